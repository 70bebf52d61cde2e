"""Playing one dialogue from its opening to its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from toolwoz_gym.dialogue import Dialogue
from toolwoz_gym.seeding import derive
from toolwoz_gym.types import Episode, Message, Task


class Policy(Protocol):
    """What plays: a function of the conversation, as the agents of ``agents`` are."""

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        """Return the assistant's next message."""
        ...


def play(dialogue: Dialogue, policy: Policy, task: Task, *, seed: int) -> Episode:
    """Play one dialogue and return it as it ended."""
    episode = dialogue.start(task, seed=seed)
    while episode.outcome is None:
        luck = derive(episode.seed, "agent", episode.steps)
        episode = dialogue.act(episode, policy.act(episode.messages, seed=luck))
        if episode.awaits_user:
            episode = dialogue.listen(episode)
    return episode
