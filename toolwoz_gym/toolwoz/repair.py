"""Which MultiWOZ tasks ToolWOZ-v1 repairs or drops, and why.

A goal can contradict its own database: the customer was told one day and booked another, or the
place that was booked goes by another name. Where the dialogue shows what was meant, the wish is
repaired; otherwise no agent could serve it, and the task is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from toolwoz_gym.toolwoz.lexicon import phrase_variants
from toolwoz_gym.toolwoz.tables import (
    TIMES,
    Row,
    RowSet,
    Table,
    Tables,
    minute_of,
    numbers,
    plain,
)
from toolwoz_gym.toolwoz.task import Wish
from toolwoz_gym.toolwoz.v1 import booking, fitting, given
from toolwoz_gym.types import ToolError

Log: TypeAlias = Sequence[Mapping[str, Any]]
"""The turns of a dialogue, as MultiWOZ has them."""


@dataclass(frozen=True, slots=True)
class Repair:
    """What v1 makes of the wishes of a dialogue."""

    wishes: tuple[Wish, ...] | None
    """The wishes that v1 plays; None when it drops the task."""
    reasons: tuple[str, ...] = ()
    """What was wrong, and what was done about it; empty when nothing was."""


def repair(wishes: tuple[Wish, ...], log: Log, tables: Tables) -> Repair:
    """Make a task solvable under v1.

    Args:
        wishes: What v0 derives from the dialogue's goal.
        log: The dialogue's turns.
        tables: The world.
    """
    kept: list[Wish] = []
    reasons: list[str] = []
    for wish in wishes:
        try:
            wish, mended = _mend(wish, log, tables[wish.domain])
            fault = _fault(wish, tables[wish.domain])
        except ToolError as error:
            mended, fault = [], f"the goal makes no sense: {error}"
        reasons += [f"{wish.domain}: {reason}" for reason in mended]
        if fault:
            return Repair(None, (*reasons, f"{wish.domain}: {fault}"))
        if wish.book is None and not given(wish.search or {}):
            reasons.append(f"{wish.domain}: the customer asks for nothing, so it is left out")
        else:
            kept.append(wish)
    return Repair(tuple(kept) or None, tuple(reasons))


def retell(message: str, before: Sequence[Wish], after: Sequence[Wish], tables: Tables) -> str:
    """Return a customer's instruction as its repaired wishes have it.

    Args:
        message: The instruction, in which MultiWOZ puts what matters between tags.
        before: The wishes that it tells.
        after: What :func:`repair` made of them.
        tables: The world.
    """
    told = {wish.domain: wish for wish in before}
    for wish in after:
        old, table = told[wish.domain], tables[wish.domain]
        # Who searches for a place by its name books that one.
        had, has = (old.search, wish.search) if _name(old.search, table) else (old.book, wish.book)
        name, new = _name(had, table), _name(has, table)
        if name != new and not table.plainly(table.key, name):
            message, is_there = _renamed(message, name, new)
            if has is wish.search and not is_there:
                message += f"\nThe {wish.domain} is called {new}."
        filled = [
            phrase_variants(slot, value)[0]
            for slot, value in (wish.book or {}).items()
            if slot != table.key and old.book and value != old.book[slot]
        ]
        if filled:
            message += f"\nYou want to book the {wish.domain} {' '.join(filled)}."
    return message


def _name(values: Mapping[str, str] | None, table: Table) -> str:
    return (values or {}).get(table.key, "").strip()


def _renamed(message: str, name: str, new: str) -> tuple[str, bool]:
    """Return a message with a name replaced, and whether it was there.

    Between tags, if it is: a restaurant is called "ask", and the word has other uses.
    """
    words = (
        "".join(f"{re.escape(c)}['\N{RIGHT SINGLE QUOTATION MARK}]?" for c in word)
        for word in plain(name).split()
    )
    spelt = r"\s+".join(words)
    for pattern in (rf"(?<=>)\s*{spelt}\s*(?=<)", rf"(?<!\w){spelt}(?!\w)"):
        message, number = re.subn(pattern, lambda _: new, message, flags=re.IGNORECASE)
        if number:
            return message, True
    return message, False


def _mend(wish: Wish, log: Log, table: Table) -> tuple[Wish, list[str]]:
    """Return a wish as it was meant, and what was changed."""
    reasons = []
    for mend in _MENDS:
        mended = mend(wish, log, table)
        if mended is not None:
            wish, reason = mended
            reasons.append(reason)
    return wish, reasons


def _fault(wish: Wish, table: Table) -> str | None:
    """Say why nobody could serve a wish; None when somebody can.

    Raises:
        ToolError: A value of the goal is none that a tool would take.
    """
    fit = fitting(table, wish)
    if not fit:
        return "nothing in the database fits the goal"
    if wish.book is None:
        return None
    booking(wish.domain, given(wish.book))
    booked = _booked(wish, table)
    if not booked:
        return "what was booked is not in the database"
    return None if booked & fit else "what was booked does not fit the goal"


_Mended: TypeAlias = tuple[Wish, str] | None


def _mend_times(wish: Wish, log: Log, table: Table) -> _Mended:
    """Read a time such as "after 16:30" as the time that it names; not one such as "4:30 pm"."""
    mended = replace(
        wish, search=_with_times(wish.search), failing_search=_with_times(wish.failing_search)
    )
    return None if mended == wish else (mended, "a time of the goal is read out of its words")


def _with_times(search: Mapping[str, str] | None) -> Mapping[str, str] | None:
    times = {}
    for name in TIMES:
        words = (search or {}).get(name, "")
        told = re.findall(r"\d{1,2}:\d\d(?!\s?p\.?m)", words)
        if len(told) == 1 and minute_of(words) is None:
            times[name] = told[0]
    return search and {**search, **times}


def _mend_search_name(wish: Wish, log: Log, table: Table) -> _Mended:
    """Give the place that is searched for the name that the database has."""
    search, failing = wish.search or {}, wish.failing_search
    name = search.get(table.key, "")
    row = _known_as(name, table, table.all)
    if row is None:
        return None
    key = {table.key: row[table.key]}
    if failing and failing[table.key] == name:  # what fails is something else about the place
        failing = {**failing, **key}
    wish = replace(wish, search={**search, **key}, failing_search=failing)
    return wish, "the goal's place is in the database under a longer name"


def _mend_booked_name(wish: Wish, log: Log, table: Table) -> _Mended:
    """Give the place that was booked the name that the database has."""
    if wish.book is None or _booked(wish, table):
        return None
    row = _known_as(wish.book[table.key], table, fitting(table, wish))
    if row is None:
        return None
    return _with_entity(wish, table, row), "what was booked is in the database under another name"


def _mend_details(wish: Wish, log: Log, table: Table) -> _Mended:
    """Fill a booking's gaps with what the dialogue settled on."""
    if wish.book is None:
        return None
    settled = _state(log, wish.domain).get("book", {})
    gaps = [n for n, v in wish.book.items() if not v and isinstance(settled.get(n), str)]
    if not gaps:
        return None
    said = {name: settled[name] for name in gaps}
    failing = wish.failing_book
    if failing:  # what fails is something else about the booking, and for every place
        failing = {n: v or said.get(n, "") for n, v in failing.items()} | {table.key: ""}
    wish = replace(wish, book={**wish.book, **said}, failing_book=failing)
    return wish, "the booking's gaps are filled with what was said"


def _mend_entity(wish: Wish, log: Log, table: Table) -> _Mended:
    """Book what the dialogue spoke of and what fits, where what it booked does not fit."""
    if wish.book is None:
        return None
    booked, fit = _booked(wish, table), fitting(table, wish)
    if not booked or booked & fit or not fit:
        return None
    candidates = [table.rows[n] for n in numbers(fit)]
    said = " ".join(plain(turn["text"]) for turn in log[1::2])[:_MOST_SAID]
    for shows, reason in _SIGNS:
        shown = [row for row in candidates if shows(row, wish, said, table)]
        if len(shown) == 1:
            return _with_entity(wish, table, shown[0]), reason
    return None


_MOST_SAID = 20_000
"""Characters of the agent's words that are looked at: no person said as much."""


def _is_named(row: Row, wish: Wish, said: str, table: Table) -> bool:
    return _contains(said, row[table.key])


def _is_same_train(row: Row, wish: Wish, said: str, table: Table) -> bool:
    """Whether it is what was booked, but on the day that the goal has."""
    columns = ("departure", "destination", "leaveAt", "arriveBy")
    return wish.domain == "train" and any(  # trains share numbers
        all(row.get(c) == table.rows[number].get(c) for c in columns)
        for number in numbers(_booked(wish, table))
    )


def _has_said_times(row: Row, wish: Wish, said: str, table: Table) -> bool:
    """Whether the agent spoke of a train at these times."""
    return wish.domain == "train" and any(
        _contains(said, time) for column in TIMES for time in _spellings(str(row.get(column)))
    )


def _spellings(time: str) -> set[str]:
    """Return a time as it is written, and as a clock shows it: 24:54 is 00:54."""
    minute = minute_of(time)
    return {time} if minute is None else {time, f"{minute // 60 % 24:02d}:{minute % 60:02d}"}


_SIGNS: tuple[tuple[Callable[[Row, Wish, str, Table], bool], str], ...] = (
    (_is_named, "what was booked does not fit; the dialogue names another one that does"),
    (_is_same_train, "the train booked runs on another day; the same train on the goal's day"),
    (_has_said_times, "the train booked does not fit; the dialogue has the times of one that does"),
)


def _mend_first_choices(wish: Wish, log: Log, table: Table) -> _Mended:
    """Drop a first choice that the goal itself would fulfil: it cannot fail."""
    if wish.failing_search and _within(wish.failing_search, wish.search):
        wish = replace(wish, failing_search=None)
    elif wish.failing_book and _within(wish.failing_book, wish.book):
        wish = replace(wish, failing_book=None)
    else:
        return None
    return wish, "the first choice that should fail is the goal's own, so it is left out"


_MENDS: tuple[Callable[[Wish, Log, Table], _Mended], ...] = (
    _mend_times,
    _mend_search_name,
    _mend_booked_name,
    _mend_details,
    _mend_entity,
    _mend_first_choices,
)
"""In this order: each finds the wish as those before it have left it."""


def _within(choice: Mapping[str, str], goal: Mapping[str, str] | None) -> bool:
    return goal is not None and given(choice).items() <= given(goal).items()


def _known_as(name: str, table: Table, rows: RowSet) -> Row | None:
    """Return the one row whose name has a name's words, or the other way round."""
    if not plain(name) or table.plainly(table.key, name):
        return None
    candidates = [table.rows[number] for number in numbers(rows)]
    found = [
        row
        for row in candidates
        if _contains(row[table.key], name) or _contains(name, row[table.key])
    ]
    return found[0] if len(found) == 1 else None


def _contains(text: str, words: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(plain(words))}(?!\w)", plain(text)) is not None


def _booked(wish: Wish, table: Table) -> RowSet:
    assert wish.book is not None
    return table.plainly(table.key, wish.book[table.key])


def _with_entity(wish: Wish, table: Table, row: Row) -> Wish:
    key = {table.key: row[table.key]}
    return replace(wish, book={**(wish.book or {}), **key}, booked={**(wish.booked or {}), **key})


def _state(log: Log, domain: str) -> Mapping[str, Any]:
    """Return what the dialogue has come to, of a domain."""
    states = (turn["metadata"] for turn in reversed(log) if turn.get("metadata"))
    domains: Mapping[str, Mapping[str, Any]] = next(states, {})
    return domains.get(domain, {})
