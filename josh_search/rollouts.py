"""Searches that play one dialogue after the other, and choose from where to try again.

``chains`` begins each dialogue at the opening: independent samples, of which the rewarded are kept.

``go_explore`` returns to the best place that it knows, and explores from there (Ecoffet et al.
2021, Nature 590:580):

* A dialogue that has met more goals than the others is the place to go on from.
* One that is *spoiled* is given up at once: the model's last output was answered by an error, or
  the reward is out of reach. A language model imitates what it reads, its own mistakes above all,
  so going on after one is mostly paying for its repetition.
* Where the model is sure, another sample says the same again. A dialogue is therefore taken up
  again where the model is likely to say something that it has not yet said there.

Equal outputs at one place are one node: nothing is grown twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from josh_search.player import Player, turns
from josh_search.tree import Node, Tree
from toolwoz_gym.seeding import Luck, derive
from toolwoz_gym.types import Message

if TYPE_CHECKING:
    from josh_search.search import SearchOptions


def grow_rollouts(
    player: Player, tree: Tree, options: SearchOptions, on_step: Callable[[Tree, int], None]
) -> None:
    """Grow a tree, from its root, one dialogue after the other.

    Args:
        player: Plays moves of one model output each.
        tree: A tree that has a root.
        options: ``strategy`` (``chains`` or ``go_explore``), ``patience`` and limits.
        on_step: Called after each move.
    """
    rollouts = _Rollouts(player, tree, options, on_step)
    while not tree.solved and rollouts.has_patience() and (start := rollouts.pick()):
        rollouts.play(start)
    if options.guides(tree):
        tree.goals_met = max((node.goals_met for node in tree.nodes), key=len)
        for node in tree.nodes:
            if node.met:
                node.mark_successful()


class _Rollouts:
    """A tree in the making."""

    def __init__(
        self,
        player: Player,
        tree: Tree,
        options: SearchOptions,
        on_step: Callable[[Tree, int], None],
    ) -> None:
        self._player, self._tree, self._options, self._on_step = player, tree, options, on_step
        self._guided = options.guides(tree)
        self._most = len(tree.nodes[0].goals_met)
        """The goals of the dialogue that has met most."""
        self._progressed = 0
        """The number of moves when a dialogue last met more goals than all before it."""

    def has_patience(self) -> bool:
        """Whether to try any further."""
        moves = self._tree.steps - self._progressed
        return moves < self._options.patience and not self._options.is_spent(self._tree)

    def pick(self) -> Node | None:
        """Choose the node from which the next dialogue is played; None when there is none left."""
        nodes = [node for node in self._tree.nodes if self._is_open(node)]
        if not nodes:
            return None
        if self._options.strategy == "chains":
            return nodes[0]
        best = nodes
        if self._guided:
            most = max(len(node.goals_met) for node in nodes)
            best = [node for node in nodes if len(node.goals_met) == most]
        weights = [_unsaid(node) for node in best]
        if sum(weights) < 1e-3:
            return best[0]
        mark = Luck(self._tree.seed, "pick", self._tree.steps).uniform() * sum(weights)
        for node, weight in zip(best, weights, strict=True):
            mark -= weight
            if mark < 0:
                return node
        return best[-1]

    def play(self, node: Node) -> None:
        """Play a dialogue until it ends, is spoiled or given up, or has solved the task."""
        while not self._tree.solved and self._is_open(node) and self.has_patience():
            node = self._move(node)

    def _is_open(self, node: Node) -> bool:
        return node.state in ("root", "live", "expanded") and (
            turns(node.episode) < self._options.max_steps
        )

    def _move(self, parent: Node) -> Node:
        """Play one move; return the node it leads to, which may have been there before."""
        tree, dialogue = self._tree, self._player.dialogue
        seed = derive(tree.seed, "move", parent.id, sum(child.visits for child in parent.children))
        episode = self._player.act(parent.episode, seed)
        said = episode.messages[len(parent.episode.messages) :]
        tree.steps += 1
        twin = next((child for child in parent.children if child.said == said), None)
        if twin is not None:
            tree.repeat(twin, said)
            self._on_step(tree, 1)
            return twin
        if parent.parent:
            parent.state = "expanded"
        node = tree.grow(parent, episode, dialogue.goals_met(episode), seed)
        if self._guided and len(node.goals_met) > self._most:
            self._most, self._progressed = len(node.goals_met), tree.steps
        self._judge(node, said)
        self._on_step(tree, 1)
        return node

    def _judge(self, node: Node, said: Sequence[Message]) -> None:
        """Let the customer answer, unless the task is solved or the dialogue spoiled."""
        tree, dialogue = self._tree, self._player.dialogue
        if self._guided and len(node.goals_met) == len(tree.goals):
            tree.solve(node)
            return
        hopeless = dialogue.domain.is_spoiled(node.episode)
        spoiled = hopeless or (_is_mistaken(said) and not node.met)
        if spoiled and self._options.strategy == "go_explore" and node.state == "live":
            node.state = "pruned"
        elif node.state == "live":
            tree.answer(node, self._player.listen(node.episode))
        if not self._guided and node.episode.reward == 1.0:
            tree.goals_met = node.goals_met
            tree.solve(node)


def _unsaid(node: Node) -> float:
    """Return how likely the model is to say something that it has not yet said here.

    One less the probabilities of what it has said. Where these are not known, Good and Turing's
    estimate for samples that all differ: one less for each of them.
    """
    known = 0.0
    for child in node.children:
        logprob = child.messages[0].logprob if child.messages else 0.0
        if logprob is None:
            once = sum(child.visits == 1 for child in node.children)
            return once / sum(child.visits for child in node.children)
        known += math.exp(logprob)
    return max(0.0, 1.0 - known)


def _is_mistaken(said: Sequence[Message]) -> bool:
    """Whether the environment answered a move with an error."""
    return any(m.role == "tool" and m.content.startswith("Error: ") for m in said)
