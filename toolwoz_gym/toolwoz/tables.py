"""The tables of a world: read-only rows, and an index that answers a search without a scan.

A set of rows is an integer whose bit i stands for row i, so that "and", "or" and "but not" are one
operation of the machine over a few hundred bytes, and the first and the last row are the lowest and
the highest bit. A search is then a handful of look-ups, whether it finds one row or all of them.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Generic, TypeAlias, TypeVar

from toolwoz_gym.toolwoz.tools import DOMAINS, KEYS, PARAMETERS

Row: TypeAlias = Mapping[str, Any]

RowSet: TypeAlias = int
"""Bit i says whether row i is in the set."""

TIMES = ("leaveAt", "arriveBy")
"""The columns that are compared, and not looked up."""

DAY = 24 * 60
"""Minutes of a day."""

_NIGHT = 4 * 60
"""Who wants to arrive by an earlier minute of the day means the night after it: no train arrives in
the night before."""

T = TypeVar("T", str, int)


def fold(text: str) -> str:
    """Return the text in lower case and without apostrophes: how v0 compares words."""
    return text.lower().replace("'", "")


def plain(value: Any) -> str:
    """Return a value as v1 compares it: folded, without surrounding blanks, numbers as text."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return fold(str(value).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")).strip()


def minute_of(time: str) -> int | None:
    """Return the minute of the day that ``hh:mm`` names; None when it is no time.

    An hour from 24 on is one of the night after the day.
    """
    match = re.fullmatch(r"\s*(\d{1,2}):([0-5]\d)\s*", time, re.ASCII)
    return int(match[1]) * 60 + int(match[2]) if match else None


def first(rows: RowSet) -> int | None:
    """Return the number of the first row of a set; None when it is empty."""
    return (rows & -rows).bit_length() - 1 if rows else None


def last(rows: RowSet) -> int | None:
    """Return the number of the last row of a set; None when it is empty."""
    return rows.bit_length() - 1 if rows else None


def numbers(rows: RowSet) -> Iterator[int]:
    """Yield the numbers of the rows of a set, in order."""
    while rows:
        yield (rows & -rows).bit_length() - 1
        rows &= rows - 1


class _Values(Generic[T]):
    """The rows in which a column has a given value."""

    def __init__(self, values: Iterable[T | None]) -> None:
        # Bits count from the first row with the value, so that a column in which no two rows agree
        # costs no more than its values.
        self._rows: dict[T, tuple[int, int]] = {}
        for number, value in enumerate(values):
            if value is not None:
                start, bits = self._rows.get(value, (number, 0))
                self._rows[value] = start, bits | 1 << (number - start)

    def __getitem__(self, value: T) -> RowSet:
        start, bits = self._rows.get(value, (0, 0))
        return bits << start

    def __iter__(self) -> Iterator[T]:
        return iter(self._rows)


class _Times(Generic[T]):
    """The rows in which a column of times lies before or after a given time."""

    def __init__(self, values: _Values[T]) -> None:
        self._times: list[T] = sorted(values)
        self._from = [0]  # the rows of times[i:], for every i
        for time in reversed(self._times):
            self._from.append(self._from[-1] | values[time])
        self._from.reverse()

    def after(self, time: T) -> RowSet:
        return self._from[bisect_right(self._times, time)]

    def since(self, time: T) -> RowSet:
        return self._from[bisect_left(self._times, time)]

    def before(self, time: T) -> RowSet:
        return self._from[0] & ~self.since(time)

    def until(self, time: T) -> RowSet:
        return self._from[0] & ~self.after(time)


class Table:
    """One domain's rows, indexed by the columns that a search can name."""

    def __init__(self, domain: str, rows: Sequence[Row]) -> None:
        """Index the rows of a domain.

        Args:
            domain: ``hotel``, ``attraction``, ``train`` or ``restaurant``.
            rows: In file order. The table has every column that one of them has, in the order of
                their first appearance; a row without a column has None there.
        """
        columns = dict.fromkeys(column for row in rows for column in row)
        self.rows: tuple[Row, ...] = tuple({c: row.get(c) for c in columns} for row in rows)
        self.key = KEYS[domain]
        self.all: RowSet = (1 << len(rows)) - 1
        searched = dict.fromkeys((*PARAMETERS[f"search_{domain}"], self.key))
        texts = {c: [_text(row.get(c)) for row in rows] for c in searched}
        self._equal = {c: _Values(values) for c, values in texts.items()}
        self._alike = {
            c: _Values(v if v is None else fold(v) for v in values) for c, values in texts.items()
        }
        self._times = {c: _Times(self._equal[c]) for c in TIMES if c in searched}

    def equal(self, column: str, value: str) -> RowSet:
        """Return the rows that have exactly this value."""
        return self._equal[column][value]

    def alike(self, column: str, value: str) -> RowSet:
        """Return the rows that have this value when both are folded."""
        return self._alike[column][fold(value)]

    def plainly(self, column: str, value: str) -> RowSet:
        """Return the rows that have this value when both are :func:`plain`."""
        return self._plainly[column][plain(value)]

    def since(self, column: str, minute: int) -> RowSet:
        """Return the rows whose time is not before a minute of the day."""
        return self._minutes[column].since(minute)

    def until(self, column: str, minute: int) -> RowSet:
        """Return the rows whose time is not after a minute of the day.

        Arrivals after midnight are late, whether they are written 24:54 or 00:54.
        """
        late = column == "arriveBy" and minute < _NIGHT
        return self._minutes[column].until(minute + DAY if late else minute)

    @cached_property
    def _plainly(self) -> dict[str, _Values[str]]:
        return {
            c: _Values(None if row.get(c) is None else plain(row[c]) for row in self.rows)
            for c in self._equal
        }

    @cached_property
    def _minutes(self) -> dict[str, _Times[int]]:
        return {
            column: _Times(_Values(_minute(row, column) for row in self.rows))
            for column in self._times
        }

    def after(self, column: str, time: str) -> RowSet:
        """Return the rows whose time is later, compared as text."""
        return self._times[column].after(time)

    def before(self, column: str, time: str) -> RowSet:
        """Return the rows whose time is earlier, compared as text."""
        return self._times[column].before(time)


class Tables:
    """All tables of a world. Every episode shares them, and nobody writes to them."""

    def __init__(self, rows: Mapping[str, Sequence[Row]]) -> None:
        """Index a world.

        Args:
            rows: The rows of each domain, in file order. A domain without rows may be left out.
        """
        self._tables = {domain: Table(domain, rows.get(domain, ())) for domain in DOMAINS}

    def __getitem__(self, domain: str) -> Table:
        return self._tables[domain]


def _minute(row: Row, column: str) -> int | None:
    """Return the minute of a row's time, counted from the midnight before the train leaves."""
    minute = minute_of(str(row.get(column)))
    if column == "leaveAt" or minute is None:
        return minute
    leaves = minute_of(str(row.get("leaveAt")))
    return minute + DAY if leaves is not None and minute < leaves else minute


def _text(value: Any) -> str | None:
    """Return a value if it is text: an argument is text, and equals nothing else."""
    return value if isinstance(value, str) else None
