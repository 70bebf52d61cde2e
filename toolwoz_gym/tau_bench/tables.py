"""The tables of a τ-bench domain: shared, read-only records, and the few that a dialogue changed.

A world is the mapping of its changed records. Nothing else is ever copied, so a fork costs nothing
and a score compares a handful of records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, TypeAlias

Record: TypeAlias = dict[str, Any]
"""One user, order, product, flight or reservation, as JSON has it."""

Place: TypeAlias = tuple[str, str]
"""Where a record stands: its table and its key."""

Changes: TypeAlias = Mapping[Place, Record]
"""The records that a dialogue changed or added. Nobody writes to it, nor to its records."""


class Base:
    """A domain's tables as every dialogue finds them. Nobody writes to them."""

    def __init__(self, tables: Mapping[str, Mapping[str, Record]]) -> None:
        """Take over tables.

        Args:
            tables: The records of each table by key, in file order.
        """
        self.tables = tables
        self._canonical: dict[Place, str] = {}

    def canonical(self, place: Place) -> str | None:
        """Return the canonical text of a record; None when there is none."""
        text = self._canonical.get(place)
        if text is None and place[1] in self.tables[place[0]]:
            text = self._canonical[place] = canonical(self.tables[place[0]][place[1]])
        return text

    def differences(self, changes: Changes) -> dict[Place, str]:
        """Return the canonical text of every record that is not as it was."""
        texts = {place: canonical(record) for place, record in changes.items()}
        return {place: text for place, text in texts.items() if text != self.canonical(place)}

    def digest(self, changes: Changes) -> str:
        """Return τ-bench's hash of all tables: hexadecimal SHA-256 of their canonical text."""
        tables = []
        for name in sorted(self.tables):
            keys = {*self.tables[name], *(key for table, key in changes if table == name)}
            items = []
            for key in sorted(keys):
                record = changes.get((name, key))
                text = self.canonical((name, key)) if record is None else canonical(record)
                items.append(f"({key!r}, {text})")
            tables.append(f"({name!r}, {_tuple(items)})")
        return sha256(_tuple(tables).encode()).hexdigest()


class Tables:
    """The tables as one tool call sees them, and what it changes of them."""

    def __init__(self, base: Base, changes: Changes) -> None:
        """Look at the tables of a dialogue.

        Args:
            base: The tables as the dialogue found them.
            changes: What it has changed so far; left as it is.
        """
        self.base = base
        self._before = changes
        self._edited: dict[Place, Record] = {}

    def __contains__(self, place: Place) -> bool:
        """Return whether there is a record.

        Raises:
            TypeError: The key is a list or an object.
        """
        if place in self._edited or place in self._before:
            return True
        return place[1] in self.base.tables[place[0]]

    def read(self, table: str, key: str) -> Record:
        """Return a record, for reading only.

        Raises:
            KeyError: There is none.
        """
        place = table, key
        record = self._edited.get(place) or self._before.get(place)
        return self.base.tables[table][key] if record is None else record

    def edit(self, table: str, key: str) -> Record:
        """Return a record to write to: a copy that stands in its place from now on.

        Raises:
            KeyError: There is none.
        """
        place = table, key
        if place not in self._edited:
            self._edited[place] = copied(self.read(table, key))
        return self._edited[place]

    def add(self, table: str, key: str, record: Record) -> None:
        """Put a new record in its place, or over the one that is there."""
        self._edited[table, key] = record

    def changes(self) -> Changes:
        """Return all that has been changed, this call's doing included."""
        return {**self._before, **self._edited} if self._edited else self._before


def copied(value: Any) -> Any:
    """Return a copy of JSON data that shares nothing that can be written to."""
    if isinstance(value, dict):
        return {key: copied(v) for key, v in value.items()}
    if isinstance(value, list):
        return [copied(v) for v in value]
    return value


def canonical(value: Any) -> str:
    """Return the text that τ-bench hashes: ``str`` of nested tuples, objects sorted by key.

    Equal texts mean equal data, down to the kind of each number: 5 and 5.0 differ.
    """
    if isinstance(value, str):  # as most values are: scoring spends its time here
        return repr(value)
    if isinstance(value, dict):
        return _tuple([f"({key!r}, {canonical(value[key])})" for key in sorted(value)])
    if isinstance(value, list):
        return _tuple([canonical(item) for item in value])
    try:
        return repr(value)
    except ValueError:  # an integer of more digits than Python writes out
        return hex(value)


def _tuple(texts: Sequence[str]) -> str:
    """Write a tuple of texts as Python would."""
    return f"({', '.join(texts)}{',' if len(texts) == 1 else ''})"
