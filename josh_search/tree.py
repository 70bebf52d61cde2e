"""The tree of a search: its nodes, and the record of it on disk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from toolwoz_gym.records import message_to_json, usage_of, usage_to_json, usages_to_json
from toolwoz_gym.types import Episode, Message, Task, ToolCall, Usage


@dataclass(slots=True)
class Node:
    """The dialogue just after one agent turn, and after the customer's answer once it was asked."""

    id: int
    parent: Node | None
    step: int | None
    """How many steps the node is from the root; None for the root, the customer's opening."""
    episode: Episode
    """A snapshot: children begin with it, and share what it holds."""
    state: Literal["root", "expanded", "live", "pruned", "over"]
    """``expanded``: went on to children; ``live``: alive when the search ended; ``pruned``: given
    up, since another leaf met a goal or since no reward was to be had any more; ``over``: its
    dialogue ended."""
    goals_met: frozenset[int]
    """The goals that are met so far."""
    collapsed: bool = False
    """Whether the turn was the target to which the tree collapsed."""
    successful: bool = False
    """Whether the node or one below it met a goal."""
    golden: bool = False
    """Whether the node leads to a target, or is one."""
    seed: int | None = None
    """Where the luck of the agent's turn came from; None for the root."""
    visits: int = 1
    """How often the search drew just this turn here."""
    repeated: Usage = Usage()
    """What the model cost when it said the same once more."""

    children: list[Node] = field(default_factory=list, repr=False)

    @property
    def met(self) -> frozenset[int]:
        """The goals that the turn met."""
        return self.goals_met - self.parent.goals_met if self.parent else frozenset()

    @property
    def usage(self) -> Usage:
        """What the agent's turn has cost, all visits together."""
        return usage_of(self.messages, "assistant") + self.repeated

    @property
    def messages(self) -> tuple[Message, ...]:
        """What the node adds to its parent's dialogue."""
        start = len(self.parent.episode.messages) if self.parent else 0
        return self.episode.messages[start:]

    @property
    def said(self) -> tuple[Message, ...]:
        """What the agent's move added: its messages and the tools' answers, not the customer's."""
        messages = self.messages
        return messages[:-1] if messages and messages[-1].role == "user" else messages

    def mark_successful(self) -> None:
        """Mark the node and all above it."""
        for node in self.path():
            node.successful = True

    def path(self) -> list[Node]:
        """Return the nodes from the root to this one."""
        path: list[Node] = []
        node: Node | None = self
        while node is not None:
            path.append(node)
            node = node.parent
        return path[::-1]


@dataclass(slots=True)
class Tree:
    """What a search has grown."""

    task: Task
    goals: Sequence[ToolCall | str]
    """The task's goals: see :meth:`toolwoz_gym.types.Domain.goals`."""
    seed: int
    strategy: str
    """How it was grown."""
    branch: Literal["turn", "output"]
    """Whether a node is a whole turn of the agent's, or one model output."""
    nodes: list[Node] = field(default_factory=list)
    """In order of creation: parents before children, step by step, left to right."""
    goals_met: frozenset[int] = frozenset()
    """The goals on the golden path."""
    solved: bool = False
    written: int | None = 0
    """Tokens that agent and customer have written; None: a model's server does not say."""
    steps: int = 0
    """Search steps played: those of the whole beam, or single moves where one path is played at a
    time."""

    def grow(
        self,
        parent: Node | None,
        episode: Episode,
        goals_met: frozenset[int],
        seed: int | None = None,
    ) -> Node:
        """Add a node; ``live``, or ``over`` when its dialogue has ended."""
        state: Literal["root", "live", "over"] = "live" if parent else "root"
        if episode.outcome is not None:
            state = "over"
        step = None if parent is None else 0 if parent.step is None else parent.step + 1
        node = Node(len(self.nodes), parent, step, episode, state, goals_met, seed=seed)
        self.nodes.append(node)
        if parent:
            parent.children.append(node)
        self._count(node.messages)
        return node

    def answer(self, node: Node, episode: Episode) -> None:
        """Go on with a node's dialogue: its customer has answered."""
        self._count(episode.messages[len(node.episode.messages) :])
        node.episode = episode
        if episode.outcome is not None:
            node.state = "over"

    def repeat(self, node: Node, said: Sequence[Message]) -> None:
        """Note that the model has made a node's move once more."""
        node.visits += 1
        node.repeated += usage_of(said, "assistant")
        self._count(said)

    def solve(self, node: Node) -> None:
        """Mark the way to a node that has what the customer wanted."""
        self.solved = True
        for above in node.path():
            above.golden = above.successful = True
            above.collapsed = bool(above.met)

    def _count(self, messages: Iterable[Message]) -> None:
        usages = [Usage(completion=self.written), *(m.usage for m in messages if m.usage)]
        self.written = sum(usages, Usage()).completion

    @property
    def progress(self) -> float:
        """The fraction of the goals that were met; where there are none, 1.0 if it is solved."""
        return len(self.goals_met) / len(self.goals) if self.goals else float(self.solved)


def tree_to_json(tree: Tree, trial: int) -> dict[str, Any]:
    """Return the record of a finished search: a line of ``trees.jsonl``."""
    customers = [m for node in tree.nodes for m in node.messages]
    return {
        "key": tree_key(tree.task, trial),
        "task_id": tree.task.id,
        "trial": trial,
        "seed": tree.seed,
        "strategy": tree.strategy,
        "branch": tree.branch,
        "instruction": tree.task.instruction,
        "goals": [str(goal) for goal in tree.goals],
        "solved": tree.solved,
        "progress": tree.progress,
        "goals_met": sorted(tree.goals_met),
        "steps": tree.steps,
        **usages_to_json(
            {
                "agent": sum((node.usage for node in tree.nodes), Usage()),
                "user": usage_of(customers, "user"),
            }
        ),
        "nodes": [_node_to_json(node) for node in tree.nodes],
    }


def tree_key(task: Task, trial: int) -> str:
    """Return the key of a search's record: its task and its trial."""
    return f"{task.id}/{trial}"


def _node_to_json(node: Node) -> dict[str, Any]:
    return {
        "id": node.id,
        "parent": node.parent.id if node.parent else None,
        "step": node.step,
        "state": node.state,
        "collapsed": node.collapsed,
        "met": sorted(node.met),
        "successful": node.successful,
        "golden": node.golden,
        "outcome": node.episode.outcome,
        "seed": node.seed,
        "visits": node.visits,
        "usage": usage_to_json(node.usage),
        "messages": [message_to_json(m) for m in node.messages],
    }
