"""Searching the dialogues of one task for those that earn the reward.

A node of the tree is a snapshot of the dialogue. Branching shares it, pruning drops it, and neither
copies anything: an :class:`~toolwoz_gym.types.Episode` is one immutable value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from agents.base import Agent
from josh_search.josh import Mapper, grow_beam
from josh_search.player import Player
from josh_search.rollouts import grow_rollouts
from josh_search.tree import Tree
from toolwoz_gym.dialogue import Dialogue
from toolwoz_gym.types import Task


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How a tree grows."""

    strategy: Literal["go_explore", "josh", "chains"] = "josh"
    """``josh``: the published beam search (:mod:`josh_search.josh`). ``go_explore``: one dialogue
    after the other, each from the best place known; ``chains``: each from the opening
    (:mod:`josh_search.rollouts`)."""
    beam: int = 8
    """josh: a step expands its leaves only while that leaves no more than so many."""
    width: int = 2
    """josh: children of a leaf that expands."""
    branch: Literal["turn", "output"] = "turn"
    """josh: whether a step is a whole turn of the agent's, or one model output. The others play
    single outputs."""
    patience: int = 100
    """go_explore, chains: the search gives up after so many model outputs without a new goal."""
    max_steps: int = 15
    """Agent turns (josh with ``branch="output"``: outputs) from the root to the deepest leaf."""
    max_outputs: int = 3
    """Model outputs in one agent turn; a turn that uses them up without a word ends in silence."""
    max_tokens: int | None = None
    """The search gives up when agent and customer have written so many tokens; None: never."""
    reward: Literal["goal_calls", "terminal"] = "goal_calls"
    """``goal_calls``: the goals that the environment reports as met guide the search.
    ``terminal``: dialogues are played to their end, and the environment's 0/1 reward decides."""

    def is_spent(self, tree: Tree) -> bool:
        """Whether the tree has used up its tokens."""
        return self.max_tokens is not None and tree.written >= self.max_tokens


def search(
    dialogue: Dialogue,
    agent: Agent,
    task: Task,
    *,
    seed: int,
    options: SearchOptions,
    mapper: Mapper = map,
    on_step: Callable[[Tree, int], None] = lambda tree, live: None,
) -> Tree:
    """Grow the tree of a task.

    Args:
        dialogue: The rules of play.
        agent: The policy whose turns are branched.
        task: What the customer wants.
        seed: Everything random follows from it.
        options: How the tree grows.
        mapper: Plays the turns of all live leaves, and then their customers; a thread pool's
            ``map`` plays them at once.
        on_step: Called after each step with the tree and the number of live leaves.

    Raises:
        BackendError: A model did not answer; the tree is lost.
    """
    tree = Tree(task, seed)
    tree.grow(None, dialogue.start(task, seed=seed))
    if options.strategy == "josh":
        player = Player(dialogue, agent, options.branch, options.max_outputs)
        grow_beam(player, tree, options, mapper, on_step)
    else:
        player = Player(dialogue, agent, "output", options.max_outputs)
        grow_rollouts(player, tree, options, on_step)
    return tree
