"""The tables of a world: read-only rows, and an index that answers a search without a scan.

A set of rows is an integer whose bit i stands for row i, so that "and", "or" and "but not" are one
operation of the machine over a few hundred bytes, and the first and the last row are the lowest and
the highest bit. A search is then a handful of look-ups, whether it finds one row or all of them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from toolwoz_gym.toolwoz.tools import DOMAINS, KEYS, PARAMETERS

Row: TypeAlias = Mapping[str, Any]

RowSet: TypeAlias = int
"""Bit i says whether row i is in the set."""

_TIMES = ("leaveAt", "arriveBy")


def fold(text: str) -> str:
    """Return the text in lower case and without apostrophes: how v0 compares words."""
    return text.lower().replace("'", "")


def first(rows: RowSet) -> int | None:
    """Return the number of the first row of a set; None when it is empty."""
    return (rows & -rows).bit_length() - 1 if rows else None


def last(rows: RowSet) -> int | None:
    """Return the number of the last row of a set; None when it is empty."""
    return rows.bit_length() - 1 if rows else None


class _Values:
    """The rows in which a column has a given value."""

    def __init__(self, values: Iterable[str | None]) -> None:
        # Bits count from the first row with the value, so that a column in which no two rows agree
        # costs no more than its values.
        self._rows: dict[str, tuple[int, int]] = {}
        for number, value in enumerate(values):
            if value is not None:
                start, bits = self._rows.get(value, (number, 0))
                self._rows[value] = start, bits | 1 << (number - start)

    def __getitem__(self, value: str) -> RowSet:
        start, bits = self._rows.get(value, (0, 0))
        return bits << start

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)


class _Times:
    """The rows in which a column of times lies before or after a given time, as text."""

    def __init__(self, values: _Values) -> None:
        self._times = sorted(values)
        self._from = [0]  # the rows of times[i:], for every i
        for time in reversed(self._times):
            self._from.append(self._from[-1] | values[time])
        self._from.reverse()

    def after(self, time: str) -> RowSet:
        return self._from[bisect_right(self._times, time)]

    def before(self, time: str) -> RowSet:
        return self._from[0] & ~self._from[bisect_left(self._times, time)]


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
        self._times = {c: _Times(self._equal[c]) for c in _TIMES if c in searched}

    def equal(self, column: str, value: str) -> RowSet:
        """Return the rows that have exactly this value."""
        return self._equal[column][value]

    def alike(self, column: str, value: str) -> RowSet:
        """Return the rows that have this value when both are folded."""
        return self._alike[column][fold(value)]

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


def _text(value: Any) -> str | None:
    """Return a value if it is text: an argument is text, and equals nothing else."""
    return value if isinstance(value, str) else None
