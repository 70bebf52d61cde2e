"""Searching the dialogues of one task for those that earn the reward.

A node of the tree is a snapshot of the dialogue. Branching shares it, pruning drops it, and neither
copies anything: an :class:`~toolwoz_gym.types.Episode` is one immutable value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from agents.base import Agent, RunStopped
from josh_search.josh import Mapper, grow_beam
from josh_search.player import Player
from josh_search.rollouts import grow_rollouts
from josh_search.tree import Tree
from toolwoz_gym.cli import check_choices, check_counts
from toolwoz_gym.dialogue import Dialogue
from toolwoz_gym.types import Task


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How a tree grows."""

    strategy: Literal["go_explore", "josh", "chains"] = "go_explore"
    """go_explore: one dialogue after the other, each from the best place known. josh: the paper's
    beam search over agent turns. chains: one after the other, each from the opening."""
    beam: int = 8
    """josh: a step expands its leaves only while that leaves no more than so many."""
    width: int = 2
    """josh: children of a leaf that expands."""
    branch: Literal["turn", "output"] = "turn"
    """josh: whether a step is a whole turn of the agent's or one model output. The other strategies
    play single outputs."""
    patience: int = 100
    """go_explore, chains: model outputs without a new goal before the search gives up."""
    max_steps: int = 30
    """Agent turns from the opening to the deepest leaf; outputs, for josh with branch=output."""
    max_outputs: int | None = None
    """Model outputs in one agent turn; a turn that uses them up without a word ends in silence.
    Unless told: 3 in ToolWOZ, as many as a dialogue has in τ-bench."""
    tree_tokens: int | None = None
    """Tokens, written by agent and customer, after which the search gives up."""
    reward: Literal["goal_calls", "terminal"] = "goal_calls"
    """What guides the search: the goals that the environment reports as met, or its 0/1 alone."""

    def __post_init__(self) -> None:
        check_choices(self)

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UsageError: It does not.
        """
        check_counts(self, "beam", "width", "patience", "max_steps", "max_outputs", "tree_tokens")

    def guides(self, tree: Tree) -> bool:
        """Whether goals guide the search of a tree. Where a task has none, the reward does."""
        return self.reward == "goal_calls" and bool(tree.goals)

    def is_spent(self, tree: Tree) -> bool:
        """Whether the tree has used up its tokens.

        Raises:
            RunStopped: Nobody knows, since the model's server does not count them.
        """
        if self.tree_tokens is None:
            return False
        if tree.written is None:
            raise RunStopped(
                "the server does not say how many tokens it writes: set no tree_tokens"
            )
        return tree.written >= self.tree_tokens


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
    branch = options.branch if options.strategy == "josh" else "output"
    tree = Tree(task, dialogue.domain.goals(task), seed, options.strategy, branch)
    opening = dialogue.start(task, seed=seed)
    tree.grow(None, opening, dialogue.goals_met(opening))
    most = options.max_outputs or dialogue.domain.max_outputs or dialogue.max_steps
    player = Player(dialogue, agent, branch, most)
    if options.strategy == "josh":
        grow_beam(player, tree, options, mapper, on_step)
    else:
        grow_rollouts(player, tree, options, on_step)
    return tree
