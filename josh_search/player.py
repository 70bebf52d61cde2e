"""A move of a search: what the agent does until the next branching, and what the customer answers.

Moves follow the rules of play but for one thing: an agent that has made ``max_outputs`` outputs
without a word to the customer has fallen silent, and the customer speaks (specification of JOSH).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agents.base import Agent
from toolwoz_gym.dialogue import Dialogue
from toolwoz_gym.seeding import derive
from toolwoz_gym.types import AgentFailure, Episode


@dataclass(frozen=True, slots=True)
class Player:
    """Plays the moves of one search."""

    dialogue: Dialogue
    """The rules of play."""
    agent: Agent
    branch: Literal["turn", "output"]
    """Whether a move is all that the agent does until it has spoken, or one model output."""
    max_outputs: int
    """Model outputs in one turn."""

    def act(self, episode: Episode, seed: int) -> Episode:
        """Play the agent's part of a move.

        Args:
            episode: A dialogue in which it is the agent's turn.
            seed: Where the agent's luck comes from.
        """
        output = 0
        while True:
            try:
                message = self.agent.act(episode.messages, seed=derive(seed, output))
            except AgentFailure:
                return self.dialogue.cut_off(episode)
            episode = self.dialogue.act(episode, message)
            output += 1
            if self.branch == "output" or episode.outcome is not None or self.is_due(episode):
                return episode

    def is_due(self, episode: Episode) -> bool:
        """Whether it is the customer's turn: the agent has spoken, or fallen silent."""
        outputs = 0
        for message in reversed(episode.messages):
            if message.role == "user":
                break
            outputs += message.role == "assistant"
        return episode.awaits_user or outputs >= self.max_outputs

    def listen(self, episode: Episode) -> Episode:
        """Let the customer answer, if it is its turn."""
        return self.dialogue.listen(episode) if self.is_due(episode) else episode


def turns(episode: Episode) -> int:
    """Return how many of the agent's turns the customer has answered."""
    return sum(message.role == "user" for message in episode.messages) - 1
