"""JOSH: a beam search over agent turns that keeps what leads to reward (arXiv 2409.04617).

A node of the tree is a snapshot of the dialogue. Branching shares it, pruning drops it, and neither
copies anything: an :class:`~toolwoz_gym.types.Episode` is one immutable value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from agents.base import Agent
from josh_search.tree import Node, Tree
from toolwoz_gym.dialogue import Dialogue
from toolwoz_gym.seeding import derive
from toolwoz_gym.types import AgentFailure, Episode, Task

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How a tree grows."""

    beam: int = 8
    """A step expands its leaves only while that leaves no more than so many."""
    max_steps: int = 15
    """Agent turns from the root to the deepest leaf."""
    max_outputs: int = 3
    """Model outputs in one agent turn; a turn that uses them up without a word ends in silence."""
    reward: Literal["goal_calls", "terminal"] = "goal_calls"
    """``goal_calls``: the goals that the environment reports as met guide the search, which
    collapses to the first leaf that meets one. ``terminal``: leaves grow to the end of their
    dialogues, and the environment's 0/1 reward decides."""


class Mapper(Protocol):
    """Applies a function to items, in order, perhaps at once: ``map``, or a pool's ``map``."""

    def __call__(self, function: Callable[[T], U], items: Iterable[T], /) -> Iterable[U]:
        """Return the results in the order of the items."""
        ...


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
    root = tree.grow(None, None, dialogue.start(task, seed=seed))
    outstanding = frozenset(range(len(task.goals))) - dialogue.goals_met(root.episode)
    guided = options.reward == "goal_calls"
    live = [root] if root.state == "root" else []
    while live and tree.steps < options.max_steps and not (guided and not outstanding):
        played = _act(dialogue, agent, tree, live, options, mapper)
        live = [node for node, _ in played if node.state == "live"]
        if guided:
            for node, _ in played:
                node.met &= outstanding
            if target := _find_target(played):
                _collapse(tree, live, target)
                outstanding -= target.met
                live = [target] if target.state == "live" else []
        live = _listen(dialogue, live, mapper)
        tree.steps += 1
        on_step(tree, len(live))
    if guided:
        tree.goals_met = frozenset(range(len(task.goals))) - outstanding
        tree.solved = bool(task.goals) and not outstanding
    else:
        _mark_rewarded(dialogue, tree)
    return tree


def _act(
    dialogue: Dialogue,
    agent: Agent,
    tree: Tree,
    live: list[Node],
    options: SearchOptions,
    mapper: Mapper,
) -> list[tuple[Node, int]]:
    """Expand the live leaves as the beam allows, and play a turn on each.

    Returns:
        Every new node, live or not, and the model output of its turn that met a goal first (a large
        number when none did).
    """
    width = 2 if 2 * len(live) <= options.beam else 1
    parents = [leaf for leaf in live for _ in range(width)]

    def turn(numbered: tuple[int, Node]) -> tuple[Episode, int]:
        leaf, parent = numbered
        luck = derive(tree.seed, "branch", tree.steps, leaf)
        return _play_turn(dialogue, agent, parent.episode, luck, options.max_outputs)

    played = list(mapper(turn, list(enumerate(parents))))
    nodes = []
    for parent, (episode, first) in zip(parents, played, strict=True):
        parent.state = "expanded" if parent.parent else "root"
        node = tree.grow(parent, tree.steps, episode)
        node.met = dialogue.goals_met(episode) - dialogue.goals_met(parent.episode)
        nodes.append((node, first))
    return nodes


def _play_turn(
    dialogue: Dialogue, agent: Agent, episode: Episode, luck: int, max_outputs: int
) -> tuple[Episode, int]:
    """Play until the agent has spoken; return also which output met a goal first."""
    before, first = dialogue.goals_met(episode), max_outputs
    for output in range(max_outputs):
        try:
            message = agent.act(episode.messages, seed=derive(luck, output))
        except AgentFailure:
            return dialogue.cut_off(episode), first
        episode = dialogue.act(episode, message)
        if first == max_outputs and dialogue.goals_met(episode) != before:
            first = output
        if episode.awaits_user or episode.outcome is not None:
            break
    return episode, first


def _find_target(played: list[tuple[Node, int]]) -> Node | None:
    """Return the hit whose goal was met by the earliest output, then leftmost; None without one."""
    hits = [(first, node.id, node) for node, first in played if node.met]
    return min(hits)[2] if hits else None


def _collapse(tree: Tree, live: list[Node], target: Node) -> None:
    """Mark hits and their ancestors, and prune every leaf but the target."""
    for node in tree.nodes:
        if node.step == tree.steps and node.met:
            for above in node.path():
                above.successful = True
    for above in target.path():
        above.golden = True
    target.collapsed = True
    for leaf in live:
        if leaf is not target:
            leaf.state = "pruned"


def _listen(dialogue: Dialogue, live: list[Node], mapper: Mapper) -> list[Node]:
    """Let the customer answer on every live leaf; return those that are still live."""
    episodes = list(mapper(dialogue.listen, [leaf.episode for leaf in live]))
    for leaf, episode in zip(live, episodes, strict=True):
        leaf.episode = episode
        if episode.outcome is not None:
            leaf.state = "over"
    return [leaf for leaf in live if leaf.state == "live"]


def _mark_rewarded(dialogue: Dialogue, tree: Tree) -> None:
    """Mark the path to every leaf that the environment rewarded (``reward="terminal"``)."""
    for node in tree.nodes:
        if node.episode.reward == 1.0:
            for above in node.path():
                above.successful = above.golden = True
            tree.goals_met = dialogue.goals_met(node.episode)
            tree.solved = True
