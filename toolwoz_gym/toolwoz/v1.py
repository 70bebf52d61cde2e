"""ToolWOZ-v1: the repaired benchmark. docs/toolwoz.md says how it differs from v0, and why.

A search is answered with one row: the one the customer means as soon as the arguments rule out all
that it does not want, else one of those. A booking that makes sense is made, whether or not the
customer wants it, and stands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from toolwoz_gym.seeding import derive
from toolwoz_gym.toolwoz.answers import Account, account_of
from toolwoz_gym.toolwoz.domain import ToolWOZ, check_call, dump, wish_for
from toolwoz_gym.toolwoz.lexicon import attribute_name
from toolwoz_gym.toolwoz.tables import TIMES, RowSet, Table, first, last, minute_of, plain
from toolwoz_gym.toolwoz.task import ToolWOZTask, Wish
from toolwoz_gym.toolwoz.told import is_known
from toolwoz_gym.toolwoz.tools import DAYS, PARAMETERS
from toolwoz_gym.types import Episode, Task, ToolCall, ToolError, Verdict, World

_Booking: TypeAlias = tuple[str, tuple[str, ...]]
"""A domain, and the booking's values in the order of the tool's parameters, as compared."""

_DONT_CARE = frozenset(("", "dont care", "not mentioned", "dontcare", "do nt care"))
"""Values that ask for nothing, as :func:`plain` leaves them."""


@dataclass(frozen=True, slots=True)
class Desk:
    """What a dialogue has done so far."""

    met: frozenset[int] = frozenset()
    """Indices of the goal calls that are met."""
    shown: frozenset[tuple[str, int]] = frozenset()
    """Entities shown that fit the customer's wish: domain and row number."""
    bookings: tuple[_Booking, ...] = ()
    """All that is booked, in order. Making the same booking again changes nothing."""


class ToolWOZv1(ToolWOZ):
    """The :class:`~toolwoz_gym.types.Domain` of ToolWOZ-v1."""

    version = 1

    def start(self, task: Task) -> World:
        """Return the world as a dialogue finds it: nothing is met, shown or booked."""
        return _NOTHING

    def call(self, task: Task, world: World, call: ToolCall) -> tuple[World, str]:
        """Answer a tool call: see :meth:`ToolWOZ.call`."""
        check_call(call)
        kind, domain = call.name.split("_")
        wish, table = wish_for(task, domain), self.tables[domain]
        asked = given(call.arguments)
        if kind == "search":
            return _search(task, world, wish, table, call.name, asked)
        return _book(task, world, wish, table, call.name, asked)

    def calls_met(self, world: World) -> frozenset[int]:
        """Return the indices of the task's goal calls that are met."""
        met: frozenset[int] = world.met
        return met

    def goals(self, task: Task) -> tuple[ToolCall | str, ...]:
        """Return the goal calls, then the answers that the customer wants."""
        assert isinstance(task, ToolWOZTask)
        answers = (_answer(wish.domain, name) for wish in task.wishes for name in wish.requests)
        return (*task.goals, *answers)

    def goals_met(self, episode: Episode) -> frozenset[int]:
        """Return the indices of the goals that are met: all of them if and only if it is a success.

        None is once something is booked that the customer does not want: it stands.
        """
        if self.is_spoiled(episode):
            return frozenset()
        first = len(episode.task.goals)
        told = (i for i, verdict in enumerate(self._requests(episode), first) if verdict.met)
        return self.calls_met(episode.world).union(told)

    def is_spoiled(self, episode: Episode) -> bool:
        """Return whether something is booked that the customer does not want."""
        desk: Desk = episode.world
        wanted = sum(episode.task.goals[index].name.startswith("book_") for index in desk.met)
        return len(desk.bookings) > wanted  # what is wanted meets its goal when it is booked

    def score(self, episode: Episode) -> float:
        """Return 1.0 if every demand of :meth:`explain` is met, else 0.0."""
        return float(len(self.goals_met(episode)) == len(self.goals(episode.task)))

    def explain(self, episode: Episode) -> tuple[Verdict, ...]:
        """Say what became of each goal call and each question, and which bookings nobody wanted."""
        return (*super().explain(episode), *self._requests(episode), self._no_others(episode))

    def _requests(self, episode: Episode) -> list[Verdict]:
        """Say which of the customer's questions were answered as the database has it."""
        task, desk = episode.task, episode.world
        assert isinstance(task, ToolWOZTask)
        if not any(wish.requests for wish in task.wishes):
            return []
        account = account_of(self.tables, task, episode.messages, desk.shown)
        verdicts = []
        for wish in task.wishes:
            row = self._entity(wish, desk, account) if wish.requests else None
            verdicts += [
                _request(account, self.tables[wish.domain], wish.domain, name, row)
                for name in wish.requests
            ]
        return verdicts

    def _entity(self, wish: Wish, desk: Desk, account: Account) -> int | None:
        """Return the row that the customer's questions are about: what is booked, or offered."""
        if wish.book is not None:
            shown = sum(1 << number for domain, number in desk.shown if domain == wish.domain)
            booked = chosen(self.tables[wish.domain], wish)
            return first(booked & shown or booked)
        offered = account.offered.get(wish.domain)
        return offered if (wish.domain, offered) in desk.shown else None

    def _no_others(self, episode: Episode) -> Verdict:
        demand = "nothing else is booked"
        for number, _call, _before, after in self.replay(episode):
            if unwanted := _unwanted(episode.task, after):
                domain, values = unwanted[0]
                return Verdict(
                    demand,
                    False,
                    f"message {number} books a {domain} that the customer did not ask for: "
                    f"{', '.join(values)}",
                    number,
                )
        return Verdict(demand, True, "no booking but the customer's")


_NOTHING = Desk()


def given(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Return the parameters that ask for something, as they are compared.

    Raises:
        ToolError: A value is neither text nor a number, or no time where one is needed.
    """
    values = {}
    for name, value in parameters.items():
        if isinstance(value, bool):
            raise ToolError(f"the value of {name} must be a string")
        text = "" if value is None else plain(value)
        if text in _DONT_CARE:
            continue
        if name in (*TIMES, "time"):
            minute = minute_of(text)
            if minute is None:
                raise ToolError(f"{name} must be a time as hh:mm")
            text = f"{minute // 60:02d}:{minute % 60:02d}"
        values[name] = text
    return values


def found(table: Table, asked: Mapping[str, str]) -> RowSet:
    """Return the rows that satisfy given parameters; times are inclusive."""
    rows = table.all
    for column, value in asked.items():
        if column in TIMES:
            minute = minute_of(value)
            assert minute is not None
            rows &= (table.since if column == "leaveAt" else table.until)(column, minute)
        else:
            rows &= table.plainly(column, value)
    return rows


def fitting(table: Table, wish: Wish) -> RowSet:
    """Return the rows that satisfy a wish's search."""
    return found(table, given(wish.search or {}))


def chosen(table: Table, wish: Wish) -> RowSet:
    """Return what a wish books: the rows of its key that fit.

    Trains share numbers, and a booking names no more: the customer's train is the one that fits.
    """
    assert wish.book is not None
    rows = table.plainly(table.key, wish.book[table.key])
    return rows & fitting(table, wish) if rows & (rows - 1) else rows


def booking(domain: str, asked: Mapping[str, str]) -> _Booking:
    """Return a booking as it is compared.

    Args:
        domain: Not ``attraction``: nobody books those.
        asked: What :func:`given` makes of the arguments.

    Raises:
        ToolError: Something is missing or makes no sense.
    """
    parameters = PARAMETERS[f"book_{domain}"]
    missing = [name for name in parameters if name not in asked]
    if missing:
        raise ToolError(f"book_{domain} needs {', '.join(missing)} too")
    if asked.get("day", "monday") not in DAYS:
        raise ToolError(f"day must be one of {', '.join(DAYS)}")
    for name in ("people", "stay"):
        if name in asked and not re.fullmatch(r"[1-9]\d?", asked[name], re.ASCII):
            raise ToolError(f"{name} must be a whole number")
    return domain, tuple(asked[name] for name in parameters)


def _search(
    task: Task,
    world: Desk,
    wish: Wish | None,
    table: Table,
    tool: str,
    asked: Mapping[str, str],
) -> tuple[Desk, str]:
    rows = found(table, asked)
    if wish is None:
        number = first(rows)
        return world, dump([] if number is None else [table.rows[number]])
    fit = fitting(table, wish)
    if wish.failing_search is not None:
        # The first choice is not to be had, whatever the database has.
        failing = given(wish.failing_search)
        rows &= 0 if failing.items() <= asked.items() else fit | ~found(table, failing)
    number = last(rows & ~fit)
    if number is not None:  # the arguments leave room for what the customer does not want
        return world, dump([table.rows[number]])
    right = 0 if wish.book is None else table.plainly(table.key, wish.book[table.key])
    number = first(rows & right or rows)
    if number is None:
        return world, dump([])
    met = _goals(task, tool)
    shown = world.shown | {(wish.domain, number)}
    return replace(world, met=world.met | met, shown=shown), dump([table.rows[number]])


def _book(
    task: Task,
    world: Desk,
    wish: Wish | None,
    table: Table,
    tool: str,
    asked: Mapping[str, str],
) -> tuple[Desk, str]:
    domain = tool.removeprefix("book_")
    if domain == "attraction":
        return world, dump(_REFUSED)
    made = booking(domain, asked)
    rows = table.plainly(table.key, asked[table.key])
    if wish is not None and wish.failing_book is not None:
        failing = given(wish.failing_book)
        if failing.items() <= asked.items():
            rows = 0
    if wish is not None and wish.failing_search is not None:
        rows &= fitting(table, wish) | ~found(table, given(wish.failing_search))
    number = first(rows)
    if number is None:
        return world, dump(_REFUSED)
    if made not in world.bookings:
        world = replace(world, bookings=(*world.bookings, made))
    item: Mapping[str, str] = {
        table.key: table.rows[number][table.key],
        "reference": f"{derive(task.id, domain, *made[1]) % 16**8:08X}",
    }
    if wish is not None and wish.booked is not None and made == _wanted(wish):
        item = wish.booked
        world = replace(world, met=world.met | _goals(task, tool))
    return world, dump({"success": True, "return": item})


_REFUSED = {"success": False, "return": {}}


def _goals(task: Task, tool: str) -> frozenset[int]:
    return frozenset(index for index, goal in enumerate(task.goals) if goal.name == tool)


def _wanted(wish: Wish) -> _Booking | None:
    """Return the booking that the customer wants, if it wants one."""
    return None if wish.book is None else booking(wish.domain, given(wish.book))


def _unwanted(task: Task, desk: Desk) -> list[_Booking]:
    """Return the bookings made that the customer does not want."""
    if not desk.bookings:
        return []
    assert isinstance(task, ToolWOZTask)
    wanted = [_wanted(wish) for wish in task.wishes]
    return [made for made in desk.bookings if made not in wanted]


def _answer(domain: str, name: str) -> str:
    """Say in words that a question of the customer's is to be answered."""
    return f"the customer is told the {domain}'s {attribute_name(name)}"


def _request(account: Account, table: Table, domain: str, name: str, row: int | None) -> Verdict:
    """Say whether the customer was told an attribute of a row."""
    demand = _answer(domain, name)
    if row is None:
        return Verdict(demand, False, f"no {domain} that fits was offered last")
    value = table.rows[row].get(name)
    if not is_known(value):
        return Verdict(demand, True, "the database does not have it")
    if (message := account.told.get((domain, row, name))) is not None:
        return Verdict(demand, True, f"told in message {message}", message)
    if (message := account.untold.get((domain, row, name))) is not None:
        why = f"the database has {value!r}, which message {message} does not say"
        return Verdict(demand, False, why, message)
    return Verdict(demand, False, f"the database has {value!r}, which was never said")
