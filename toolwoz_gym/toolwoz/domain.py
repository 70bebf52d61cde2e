"""ToolWOZ-v0: the tools' answers and the score, exactly as the published reference has them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from toolwoz_gym.toolwoz.goals import found, holding, normalised, subset
from toolwoz_gym.toolwoz.tables import RowSet, Table, Tables, first, last
from toolwoz_gym.toolwoz.task import ToolWOZTask, Wish
from toolwoz_gym.toolwoz.tools import PARAMETERS, POLICY, TOOLS
from toolwoz_gym.types import Episode, Task, ToolCall, ToolError, ToolSpec, UsageError, World


class ToolWOZ:
    """A world of tables with its tasks: the :class:`~toolwoz_gym.types.Domain` of ToolWOZ-v0.

    The world that a dialogue changes is the frozenset of the goals met so far: every call is judged
    when it is made, and nothing else about it is ever asked again.
    """

    policy: str = POLICY
    tools: tuple[ToolSpec, ...] = TOOLS

    def __init__(
        self,
        name: str,
        tables: Tables,
        tasks: Mapping[str, Sequence[ToolWOZTask]],
        fingerprint: str,
    ) -> None:
        """Put a world together.

        Args:
            name: What the world is called, ``multiwoz`` or ``builtin``.
            tables: What the tools search.
            tasks: The tasks of each split.
            fingerprint: Digest of the data behind it all.
        """
        self.name = name
        self.tables = tables
        self.fingerprint = fingerprint
        self.splits = tuple(tasks)
        self._tasks = tasks

    def tasks(self, split: str) -> Sequence[ToolWOZTask]:
        """Return the tasks of a split, in their order.

        Raises:
            UsageError: There is no such split.
        """
        if split not in self._tasks:
            raise UsageError(
                f"the world {self.name!r} has no split {_quoted(split)}; "
                f"it has {', '.join(self.splits)}"
            )
        return self._tasks[split]

    def start(self, task: Task) -> World:
        """Return the world as a dialogue finds it: no goal is met."""
        return frozenset[int]()

    def call(self, task: Task, world: World, call: ToolCall) -> tuple[World, str]:
        """Answer a tool call.

        Returns:
            The world after the call, and JSON: for a search a list of rows (one or none), for a
            booking ``{"success": true or false, "return": the booked item or {}}``.

        Raises:
            ToolError: There is no such tool or parameter, or a value is a list or an object.
        """
        _check(call)
        kind, domain = call.name.split("_")
        wish = _wish(task, domain)
        asked = normalised(call.arguments)
        answer: Any
        if kind == "search":
            table = self.tables[domain]
            number = _pick(table, wish, asked)
            answer = [] if number is None else [table.rows[number]]
            # The reference answers the normalised arguments but scores those that were written: the
            # two differ in how some don't-care words are understood.
            met = number is not None and _search_met(table, wish, call.arguments, number)
        else:
            met = wish is not None and wish.book is not None and subset(wish.book, asked)
            answer = {"success": met, "return": wish.booked if met and wish else {}}
        if met:
            world = world | {[goal.name for goal in task.goals].index(call.name)}
        return world, json.dumps(answer, ensure_ascii=False)

    def goals_met(self, task: Task, world: World) -> frozenset[int]:
        """Return the indices of the task's goals that are met."""
        met: frozenset[int] = world
        return met

    def score(self, episode: Episode) -> float:
        """Return 1.0 if every goal is met, else 0.0."""
        return float(len(episode.world) == len(episode.task.goals))


def _wish(task: Task, domain: str) -> Wish | None:
    assert isinstance(task, ToolWOZTask)
    return next((wish for wish in task.wishes if wish.domain == domain), None)


def _pick(table: Table, wish: Wish | None, asked: Mapping[str, Any]) -> int | None:
    """Return the number of the row that a search is answered with; None when there is none.

    The reference shows one of the rows it found, and looks at the goal to choose it: an agent that
    has not asked for all that the customer wants is shown something else, if there is something.

    Args:
        table: Where to search.
        wish: What the customer wants of the domain, if anything.
        asked: The normalised arguments.
    """
    rows = found(table, asked)
    if wish is None or wish.search is None:
        return first(rows)
    right = last(rows & _booked(table, wish))
    wrong = last(rows & ~holding(table, wish.search))
    if subset(wish.search, asked):
        if wish.book is None:
            return first(rows)
        return wrong if right is None else right
    if subset(asked, wish.search):
        shown = right if wrong is None else wrong
        return first(rows) if shown is None else shown
    return first(rows)


def _search_met(table: Table, wish: Wish | None, written: Mapping[str, Any], number: int) -> bool:
    """Whether a search that is answered with row ``number`` meets the wish's search goal.

    Args:
        table: Where it searched.
        wish: What the customer wants of the domain, if anything.
        written: The arguments as the call has them.
        number: The row that was shown.
    """
    if wish is None or wish.search is None:
        return False
    complete, partial = subset(wish.search, written), subset(written, wish.search)
    if wish.book is not None:
        return (complete or partial) and _has(_booked(table, wish), number)
    return complete or (partial and _has(holding(table, wish.search), number))


def _has(rows: RowSet, number: int) -> bool:
    return rows >> number & 1 == 1


def _booked(table: Table, wish: Wish) -> RowSet:
    """Return the rows of the booked entity."""
    return 0 if wish.booked is None else table.equal(table.key, wish.booked[table.key])


def _check(call: ToolCall) -> None:
    """Refuse a call that the tools cannot make sense of."""
    if not isinstance(call.name, str) or call.name not in PARAMETERS:
        raise ToolError(f"there is no tool {_quoted(call.name)}; the tools are {_ALL_TOOLS}")
    if not isinstance(call.arguments, Mapping):
        raise ToolError(f"the arguments of {call.name} must be an object")
    allowed = PARAMETERS[call.name]
    for name, value in call.arguments.items():
        if name not in allowed:
            raise ToolError(
                f"{call.name} has no parameter {_quoted(name)}; "
                + (f"its parameters are {', '.join(allowed)}" if allowed else "it takes none")
            )
        if not (value is None or isinstance(value, (str, int, float))):
            raise ToolError(f"the value of {name} must be a string, not a list or an object")


_ALL_TOOLS = ", ".join(PARAMETERS)


def _quoted(name: object) -> str:
    """Return what the model wrote, safe to show: plain ASCII and never long."""
    text = ascii(name) if isinstance(name, str) else type(name).__name__
    return text if len(text) <= 60 else f"{text[:60]}..."
