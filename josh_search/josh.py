"""JOSH: a beam search over agent turns that keeps what leads to reward (arXiv 2409.04617)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol, TypeVar

from josh_search.player import Player
from josh_search.tree import Node, Tree
from toolwoz_gym.seeding import derive
from toolwoz_gym.types import Episode

if TYPE_CHECKING:
    from josh_search.search import SearchOptions

T = TypeVar("T")
U = TypeVar("U")


class Mapper(Protocol):
    """Applies a function to items, in order, perhaps at once: ``map``, or a pool's ``map``."""

    def __call__(self, function: Callable[[T], U], items: Iterable[T], /) -> Iterable[U]:
        """Return the results in the order of the items."""
        ...


def grow_beam(
    player: Player,
    tree: Tree,
    options: SearchOptions,
    mapper: Mapper,
    on_step: Callable[[Tree, int], None],
) -> None:
    """Grow a tree, from its root, as the paper does."""
    root = tree.nodes[0]
    guided = options.guides(tree)
    live = [root] if root.state == "root" else []
    while live and tree.steps < options.max_steps and not options.is_spent(tree):
        played = _act(player, tree, live, options, mapper)
        live = [node for node in played if node.state == "live"]
        # All that the root has met, and something besides: in v1, what was met can be undone.
        hits = [node for node in played if guided and node.goals_met > root.goals_met]
        if hits:
            root = _collapse(live, hits)
            live = [root] if root.state == "live" else []
        solved = guided and len(root.goals_met) == len(tree.goals)
        if not solved:
            live = _listen(player, tree, live, mapper)
        tree.steps += 1
        on_step(tree, len(live))
        if solved:
            tree.solved = True
            break
    if guided:
        tree.goals_met = root.goals_met
    else:
        _mark_rewarded(tree)


def _act(
    player: Player, tree: Tree, live: list[Node], options: SearchOptions, mapper: Mapper
) -> list[Node]:
    """Expand the live leaves as the beam allows, and play a move on each.

    Returns:
        Every new node, live or not, from left to right.
    """
    width = options.width if options.width * len(live) <= options.beam else 1
    parents = [leaf for leaf in live for _ in range(width)]
    seeds = [derive(tree.seed, "branch", tree.steps, leaf) for leaf in range(len(parents))]

    def move(place: tuple[Node, int]) -> Episode:
        parent, seed = place
        return player.act(parent.episode, seed)

    played = list(mapper(move, list(zip(parents, seeds, strict=True))))
    nodes = []
    for parent, seed, episode in zip(parents, seeds, played, strict=True):
        parent.state = "expanded" if parent.parent else "root"
        nodes.append(tree.grow(parent, episode, player.dialogue.goals_met(episode), seed))
    return nodes


def _collapse(live: list[Node], hits: list[Node]) -> Node:
    """Mark hits and their ancestors, prune every leaf but the leftmost hit, and return that one."""
    for node in hits:
        node.mark_successful()
    target = hits[0]
    for above in target.path():
        above.golden = True
    target.collapsed = True
    for leaf in live:
        if leaf is not target:
            leaf.state = "pruned"
    return target


def _listen(player: Player, tree: Tree, live: list[Node], mapper: Mapper) -> list[Node]:
    """Let the customer answer on every live leaf; return those that are still live."""
    episodes = list(mapper(player.listen, [leaf.episode for leaf in live]))
    for leaf, episode in zip(live, episodes, strict=True):
        tree.answer(leaf, episode)
    return [leaf for leaf in live if leaf.state == "live"]


def _mark_rewarded(tree: Tree) -> None:
    """Mark the path to every leaf that the environment rewarded."""
    for node in tree.nodes:
        if node.episode.reward == 1.0:
            for above in node.path():
                above.successful = above.golden = True
            tree.goals_met = node.goals_met
            tree.solved = True
