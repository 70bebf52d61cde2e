"""τ-bench's retail and airline desks: their tasks, their tools, and the score of a dialogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from toolwoz_gym.tau_bench import airline, retail
from toolwoz_gym.tau_bench.calling import invoke
from toolwoz_gym.tau_bench.tables import Base, Changes, Place, Tables, canonical
from toolwoz_gym.types import (
    Episode,
    Message,
    Task,
    ToolCall,
    ToolSpec,
    UsageError,
    Verdict,
    World,
)

Scoring: TypeAlias = Literal["upstream", "fork"]
"""``upstream``: the tables must be as the gold actions leave them, and all outputs must have been
said. ``fork``, the older rule of the JOSH paper's copy: where a task has outputs, only these
count."""

TRANSFER = "transfer_to_human_agents"

TOOLS = {"retail": retail.TOOLS, "airline": airline.TOOLS}
"""The tools of each domain, by name."""


@dataclass(frozen=True, slots=True)
class TauTask(Task):
    """A τ-bench task; ``goals`` are its gold actions, in order."""

    user_id: str = ""
    """Who the customer is."""
    outputs: tuple[str, ...] = ()
    """What the agent must have said to the customer by the end."""


@dataclass(frozen=True, slots=True)
class Desk:
    """What a dialogue has done so far."""

    changes: Changes = field(default_factory=dict)
    """The records that are not as they were, by place."""
    met: frozenset[int] = frozenset()
    """Indices of the gold actions that were made."""


class TauBench:
    """One domain of τ-bench: a :class:`~toolwoz_gym.types.Domain`."""

    end_marker = "###STOP###"
    final_tools = frozenset((TRANSFER,))
    max_outputs: int | None = None

    def __init__(
        self,
        name: str,
        base: Base,
        tasks: Mapping[str, Sequence[TauTask]],
        *,
        policy: str,
        tools: tuple[ToolSpec, ...],
        fingerprint: str,
        scoring: Scoring = "upstream",
    ) -> None:
        """Put a domain together.

        Args:
            name: ``retail`` or ``airline``.
            base: The tables.
            tasks: The tasks of each split.
            policy: The text of the domain's ``wiki.md``.
            tools: The tools' schemas.
            fingerprint: Digest of the data behind it all.
            scoring: See :data:`Scoring`.
        """
        self.name = name
        self.base = base
        self.policy = policy
        self.tools = tools
        self.fingerprint = fingerprint
        self.splits = tuple(tasks)
        self.scoring = scoring
        self._tasks = tasks
        self._functions = TOOLS[name]
        self._gold: dict[str, dict[Place, str]] = {}

    def tasks(self, split: str) -> Sequence[TauTask]:
        """Return the tasks of a split, in their order.

        Raises:
            UsageError: There is no such split.
        """
        if split not in self._tasks:
            have = ", ".join(self.splits)
            raise UsageError(f"the domain {self.name!r} has no split {split!r}; it has {have}")
        return self._tasks[split]

    def start(self, task: Task) -> World:
        """Return the world as a dialogue finds it: no record is changed."""
        return _UNTOUCHED

    def call(self, task: Task, world: World, call: ToolCall) -> tuple[World, str]:
        """Answer a tool call. Mistakes are answered in τ-bench's own words, none is a ToolError."""
        desk: Desk = world
        tool = self._functions.get(call.name)
        if tool is None:
            return self._met(task, desk, desk.changes, call), f"Unknown action {call.name}"
        tables = Tables(self.base, desk.changes)
        answer = invoke(self.name, call.name, tool, tables, call.arguments)
        return self._met(task, desk, tables.changes(), call), answer

    def goals(self, task: Task) -> tuple[ToolCall | str, ...]:
        """Return the gold actions, of which some tasks have none."""
        return task.goals

    def goals_met(self, episode: Episode) -> frozenset[int]:
        """Return the indices of the gold actions that were made, whatever they were answered."""
        met: frozenset[int] = episode.world.met
        return met

    def score(self, episode: Episode) -> float:
        """Return the reward: see :data:`Scoring`. A dialogue that was cut off scores 0.0."""
        return float(
            not episode.truncated and all(verdict.met for verdict in self._demands(episode))
        )

    def explain(self, episode: Episode) -> tuple[Verdict, ...]:
        """Say what the score comes from: the records that differ, and the outputs not said."""
        ended = Verdict("the dialogue comes to its end", not episode.truncated, "")
        return (*self._demands(episode), ended)

    def digest(self, world: World) -> str:
        """Return τ-bench's hash of the tables."""
        return self.base.digest(world.changes)

    def is_spoiled(self, episode: Episode) -> bool:
        """Return False: a later call may put back what an earlier one changed."""
        return False

    def passes_idle(self, task: Task) -> bool:
        """Return whether an agent that does nothing and says nothing solves a task."""
        opening = Message("user")
        return self.score(Episode(task, 0, (opening,), self.start(task))) == 1.0

    def _met(self, task: Task, desk: Desk, changes: Changes, call: ToolCall) -> Desk:
        made = _key(call)
        met = next(
            (i for i, g in enumerate(task.goals) if i not in desk.met and _key(g) == made), None
        )
        if met is None and changes is desk.changes:
            return desk
        return Desk(changes, desk.met if met is None else desk.met | {met})

    def _demands(self, episode: Episode) -> list[Verdict]:
        task = episode.task
        assert isinstance(task, TauTask)
        said = [
            message.content.lower().replace(",", "")
            for message in episode.messages
            if message.role == "assistant" and message.call is None and message.error is None
        ]
        demands = [
            Verdict(f"the customer is told {output!r}", any(output.lower() in s for s in said), "")
            for output in task.outputs
        ]
        if self.scoring == "fork" and task.outputs:
            return demands
        gold, done = self._gold_differences(task), self.base.differences(episode.world.changes)
        wrong = [
            " ".join(place) for place in {**gold, **done} if gold.get(place) != done.get(place)
        ]
        why = f"not as they should be: {', '.join(wrong)}" if wrong else "all are"
        return [Verdict("the records are as the gold actions leave them", not wrong, why), *demands]

    def _gold_differences(self, task: TauTask) -> dict[Place, str]:
        """Return what the gold actions change, worked out once for each task."""
        if task.id not in self._gold:
            world = self.start(task)
            for action in task.goals:
                if action.name not in self.final_tools:
                    world, _ = self.call(task, world, action)
            self._gold[task.id] = self.base.differences(world.changes)
        return self._gold[task.id]


_UNTOUCHED = Desk()


def _key(call: ToolCall) -> tuple[str, str]:
    return call.name, canonical(dict(call.arguments))


def task_from_json(data: Mapping[str, Any], *, domain: str, split: str, index: int) -> TauTask:
    """Return the task that τ-bench has at a position of a split."""
    goals = tuple(ToolCall(action["name"], action["kwargs"]) for action in data["actions"])
    return TauTask(
        f"{domain}-{split}-{index}",
        split,
        data["instruction"],
        goals,
        user_id=data["user_id"],
        outputs=tuple(data["outputs"]),
    )
