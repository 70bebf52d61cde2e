"""ToolWOZ-v0: the tools' answers and the score, exactly as the published reference has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolwoz_gym.toolwoz.domain import ToolWOZ, check_call, dump, wish_for
from toolwoz_gym.toolwoz.goals import found, holding, normalised, subset
from toolwoz_gym.toolwoz.tables import RowSet, Table, first, last
from toolwoz_gym.toolwoz.task import Wish
from toolwoz_gym.types import Episode, Task, ToolCall, World


class ToolWOZv0(ToolWOZ):
    """The :class:`~toolwoz_gym.types.Domain` of ToolWOZ-v0.

    The world that a dialogue changes is the frozenset of the goals met so far: every call is judged
    when it is made, and nothing else about it is ever asked again.
    """

    version = 0

    def start(self, task: Task) -> World:
        """Return the world as a dialogue finds it: no goal is met."""
        return frozenset[int]()

    def call(self, task: Task, world: World, call: ToolCall) -> tuple[World, str]:
        """Answer a tool call, and judge it: see :meth:`ToolWOZ.call`."""
        check_call(call)
        kind, domain = call.name.split("_")
        wish = wish_for(task, domain)
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
        return world, dump(answer)

    def calls_met(self, world: World) -> frozenset[int]:
        """Return the indices of the task's goal calls that are met."""
        met: frozenset[int] = world
        return met

    def score(self, episode: Episode) -> float:
        """Return 1.0 if every goal is met, else 0.0."""
        return float(len(episode.world) == len(episode.task.goals))


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
