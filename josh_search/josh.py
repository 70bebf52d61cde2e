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
    dialogue, root = player.dialogue, tree.nodes[0]
    outstanding = frozenset(range(len(tree.task.goals))) - dialogue.goals_met(root.episode)
    guided = options.reward == "goal_calls"
    last = root
    live = [root] if root.state == "root" else []
    while (
        live
        and tree.steps < options.max_steps
        and not (guided and not outstanding)
        and not options.is_spent(tree)
    ):
        played = _act(player, tree, live, options, mapper)
        live = [node for node, _ in played if node.state == "live"]
        if guided:
            for node, _ in played:
                node.met &= outstanding
            if target := _find_target(played):
                _collapse(tree, live, target)
                outstanding -= target.met
                last = target
                live = [target] if target.state == "live" else []
        live = _listen(player, tree, live, mapper)
        tree.steps += 1
        on_step(tree, len(live))
    if guided:
        tree.goals_met = frozenset(range(len(tree.task.goals))) - outstanding
        spoiled = dialogue.domain.is_spoiled(tree.task, last.episode.world)
        tree.solved = bool(tree.task.goals) and not outstanding and not spoiled
    else:
        _mark_rewarded(player, tree)


def _act(
    player: Player, tree: Tree, live: list[Node], options: SearchOptions, mapper: Mapper
) -> list[tuple[Node, int]]:
    """Expand the live leaves as the beam allows, and play a move on each.

    Returns:
        Every new node, live or not, and the model output of its turn that met a goal first (a large
        number when none did).
    """
    width = options.width if options.width * len(live) <= options.beam else 1
    parents = [leaf for leaf in live for _ in range(width)]
    seeds = [derive(tree.seed, "branch", tree.steps, leaf) for leaf in range(len(parents))]

    def move(place: tuple[Node, int]) -> tuple[Episode, int]:
        parent, seed = place
        return player.act(parent.episode, seed)

    played = list(mapper(move, list(zip(parents, seeds, strict=True))))
    nodes = []
    for parent, seed, (episode, first) in zip(parents, seeds, played, strict=True):
        parent.state = "expanded" if parent.parent else "root"
        node = tree.grow(parent, episode, seed)
        node.met = player.dialogue.goals_met(episode) - player.dialogue.goals_met(parent.episode)
        nodes.append((node, first))
    return nodes


def _find_target(played: list[tuple[Node, int]]) -> Node | None:
    """Return the hit whose goal was met by the earliest output, then leftmost; None without one."""
    hits = [(first, node.id, node) for node, first in played if node.met]
    return min(hits)[2] if hits else None


def _collapse(tree: Tree, live: list[Node], target: Node) -> None:
    """Mark hits and their ancestors, and prune every leaf but the target."""
    for node in tree.nodes:
        if node.step == tree.steps and node.met:
            node.mark_successful()
    for above in target.path():
        above.golden = True
    target.collapsed = True
    for leaf in live:
        if leaf is not target:
            leaf.state = "pruned"


def _listen(player: Player, tree: Tree, live: list[Node], mapper: Mapper) -> list[Node]:
    """Let the customer answer on every live leaf; return those that are still live."""
    episodes = list(mapper(player.listen, [leaf.episode for leaf in live]))
    for leaf, episode in zip(live, episodes, strict=True):
        tree.answer(leaf, episode)
    return [leaf for leaf in live if leaf.state == "live"]


def _mark_rewarded(player: Player, tree: Tree) -> None:
    """Mark the path to every leaf that the environment rewarded (``reward="terminal"``)."""
    for node in tree.nodes:
        if node.episode.reward == 1.0:
            for above in node.path():
                above.successful = above.golden = True
            tree.goals_met = player.dialogue.goals_met(node.episode)
            tree.solved = True
