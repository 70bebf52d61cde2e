"""The rules of play: pure functions from one :class:`Episode` to the next.

:class:`~toolwoz_gym.env.DialogueEnv` is these rules behind Gymnasium's interface. The search of
``josh_search`` uses them directly, because it lets the agent act and the customer listen apart: a
branch that is pruned in between costs no customer.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace

from toolwoz_gym.types import (
    Domain,
    Episode,
    Message,
    Outcome,
    Task,
    ToolError,
    UserFault,
    UserSimulator,
)

_NAME = re.compile(r'"name"\s*:\s*"([^"\\]*)"')
"""Where a text that was to be a call names its tool."""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One domain, one customer, one limit: everything about an episode that does not change."""

    domain: Domain
    user: UserSimulator
    max_steps: int
    """The dialogue is cut off after so many assistant messages."""

    def start(self, task: Task, *, seed: int) -> Episode:
        """Begin a dialogue: the customer speaks first."""
        world, fingerprint = self.domain.start(task), self.domain.fingerprint
        episode = Episode(task, seed, messages=(), world=world, fingerprint=fingerprint)
        return self.listen(episode)

    def act(self, episode: Episode, message: Message) -> Episode:
        """Play one assistant message: a tool call is answered at once, a reply by :meth:`listen`.

        Args:
            episode: A dialogue that has not ended and does not await the customer.
            message: What the agent does, as :func:`~toolwoz_gym.actions.parse_action` reads it.
        """
        world, answer = episode.world, None
        if message.error is not None:
            answer = Message("tool", f"Error: {message.error}{self._schema(message.content)}")
        elif message.call is not None:
            try:
                world, text = self.domain.call(episode.task, world, message.call)
            except ToolError as error:
                text = f"Error: {error}"
            answer = Message("tool", text, name=message.call.name)
        after = replace(
            episode,
            messages=(*episode.messages, message, *([answer] if answer else [])),
            world=world,
            steps=episode.steps + 1,
        )
        if message.call is not None and message.call.name in self.domain.final_tools:
            return self._ended(after)
        return after if after.awaits_user else self._limited(after)

    def listen(self, episode: Episode) -> Episode:
        """Let the customer speak: at the opening, and whenever the episode awaits it."""
        heard = tuple(
            m for m in episode.messages if m.role in ("user", "assistant") and _is_spoken(m)
        )
        try:
            answer = self.user.reply(episode.task, heard, seed=episode.seed)
        except UserFault as fault:
            silence = Message("user", f"({fault})", error=fault.kind, usage=fault.usage)
            return replace(
                episode, messages=(*episode.messages, silence), outcome="user_fault", reward=0.0
            )
        spoken = answer if answer.error is None else replace(answer, error=None)
        after = replace(episode, messages=(*episode.messages, spoken))
        if self.domain.end_marker not in answer.content:
            return self._limited(after)
        ended = self._ended(after)
        if answer.error is None or ended.reward or self.domain.is_spoiled(after):
            return ended
        # The agent could still have done it.
        return replace(ended, messages=(*episode.messages, answer), outcome="user_fault")

    def cut_off(self, episode: Episode) -> Episode:
        """End a running dialogue where it stands, as the step limit would."""
        return self._ended(replace(episode, truncated=True))

    def goals_met(self, episode: Episode) -> frozenset[int]:
        """Return the indices of the goals that are met so far."""
        return self.domain.goals_met(episode)

    def progress(self, episode: Episode) -> float:
        """Return the fraction of the goals that are met; the reward, where a task has none."""
        total = len(self.domain.goals(episode.task))
        return len(self.goals_met(episode)) / total if total else episode.reward

    def _schema(self, written: str) -> str:
        """Say what the tool takes that is named in a text that is no action; "" if none is."""
        named = _NAME.search(written)
        for tool in self.domain.tools:
            if named and tool.name == named[1]:
                schema = {"properties": tool.parameters, "required": tool.required}
                return f"; {tool.name} takes {json.dumps(schema, ensure_ascii=False)}"
        return ""

    def _limited(self, episode: Episode) -> Episode:
        if episode.steps < self.max_steps:
            return episode
        return self.cut_off(episode)

    def _ended(self, episode: Episode) -> Episode:
        reward = self.domain.score(episode)
        outcome: Outcome = "failure"
        if reward == 1.0:
            outcome = "success"
        elif episode.truncated:
            outcome = "truncated"
        return replace(episode, outcome=outcome, reward=reward)


def _is_spoken(message: Message) -> bool:
    """Whether the customer hears it: tool calls and malformed messages stay behind the desk."""
    return message.call is None and message.error is None
