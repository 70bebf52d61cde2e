"""Playing one dialogue from its opening to its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from toolwoz_gym.dialogue import Dialogue
from toolwoz_gym.seeding import derive
from toolwoz_gym.types import AgentFailure, Episode, Message, Task


class Policy(Protocol):
    """What plays: a function of the conversation, as the agents of ``agents`` are."""

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        """Return the assistant's next message.

        Raises:
            AgentFailure: It cannot go on with this dialogue.
        """
        ...


def play(dialogue: Dialogue, policy: Policy, task: Task, *, seed: int) -> Episode:
    """Play one dialogue and return it as it ended."""
    episode = dialogue.start(task, seed=seed)
    while episode.outcome is None:
        luck = derive(episode.seed, "agent", episode.steps)
        try:
            message = policy.act(episode.messages, seed=luck)
        except AgentFailure:
            return dialogue.cut_off(episode)
        episode = dialogue.act(episode, message)
        if episode.awaits_user:
            episode = dialogue.listen(episode)
    return episode
