"""A script that knows the goal and errs: a policy to try searches on, without a language model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from agents.base import Agent
from agents.scripted import ExpertAgent, RandomAgent
from toolwoz_gym.actions import format_action, mistake
from toolwoz_gym.seeding import Luck, derive
from toolwoz_gym.types import Message, Task, ToolSpec, Usage

_KINDS = ("malformed", "nothing", "goodbye", "random")


@dataclass(frozen=True, slots=True)
class ErringAgent:
    """Does what the expert would, but for slips: hard to avoid in some places, rare in most.

    How likely a slip is depends on the dialogue so far alone, so another branch through the same
    place meets the same difficulty. It says of every message how likely it was, as language models
    do, and counts a token for every four characters.
    """

    task: Task
    tools: Sequence[ToolSpec]
    slips: float = 0.5
    """Mean probability of a slip, from 0 to 1."""
    expert: Callable[[Task], Agent] = ExpertAgent
    """What makes the agent that it would be without slips."""

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        """Return the next message."""
        place = derive(self.task.id, *(f"{m.role}:{_written(m)}" for m in view))
        # The square of an even chance: a third on average, most of it in few places.
        slip = min(0.98, 3 * self.slips * Luck(place, "difficulty").uniform() ** 2)
        luck = Luck(seed, "slip")
        if not luck.chance(slip):
            message, likely = self.expert(self.task).act(view, seed=seed), 1 - slip
        else:
            message, likely = self._slip(view, luck)
            likely *= slip
        tokens = Usage(sum(len(_written(m)) for m in view) // 4, len(_written(message)) // 4 + 1)
        return replace(message, usage=tokens, logprob=math.log(likely))

    def _slip(self, view: Sequence[Message], luck: Luck) -> tuple[Message, float]:
        """Return a mistake, and how likely it is among the mistakes."""
        kind = luck.choice(_KINDS)
        likely = 1 / len(_KINDS)
        if kind == "malformed":
            return mistake("not JSON", '{"name": ', "not valid JSON"), likely
        if kind == "nothing":
            return Message("assistant", "Can I do anything else for you?"), likely
        if kind == "goodbye":
            return Message("assistant", "I am sorry, there is nothing like that. Bye."), likely
        ways = 8
        which = derive("random", luck.below(ways))
        return RandomAgent(self.tools).act(view, seed=which), likely / ways


def _written(message: Message) -> str:
    return format_action(message) if message.raw is None else message.raw
