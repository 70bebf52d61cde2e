"""From what a MultiWOZ customer was told to the wishes of a task, and when a call meets a goal.

The rules are those of ToolWOZ-v0: the published reference's, oddities included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolwoz_gym.toolwoz.tables import RowSet, Table, Tables, first, fold
from toolwoz_gym.toolwoz.task import Wish
from toolwoz_gym.toolwoz.tools import DOMAINS, PARAMETERS

EMPTY = frozenset(
    ("", "dont care", "not mentioned", "don't care", "dontcare", "do n't care"),
)
"""Values that ask for nothing, in exactly this spelling."""


def given(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that ask for something, their text folded."""
    return {
        name: fold(value) if isinstance(value, str) else value
        for name, value in parameters.items()
        if value not in EMPTY
    }


def subset(parameters: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """Whether everything that ``parameters`` ask for stands in ``others`` too.

    A number never equals a string, and times are compared by equality.
    """
    return given(parameters).items() <= given(others).items()


def normalised(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call's arguments as the query and the scoring see them."""
    # Folding first turns "Don't care" into "dont care", which asks for nothing, but "do n't care"
    # into "do nt care", which is taken for a value. The reference does both.
    return given({k: fold(v) if isinstance(v, str) else v for k, v in arguments.items()})


def found(table: Table, arguments: Mapping[str, Any]) -> RowSet:
    """Return the rows that match every normalised argument; what is no text is ignored."""
    rows = table.all
    for column, value in arguments.items():
        if not isinstance(value, str):
            continue
        if column == "leaveAt":
            rows &= table.after(column, value)
        elif column == "arriveBy":
            rows &= table.before(column, value)
        else:
            rows &= table.equal(column, value)
    return rows


def holding(table: Table, parameters: Mapping[str, str]) -> RowSet:
    """Return the rows of which a search goal's parameters are a subset."""
    rows = table.all
    for column, value in given(parameters).items():
        rows &= table.alike(column, value)
    return rows


def derive_wishes(
    goal: Mapping[str, Any], booked: Mapping[str, Mapping[str, str] | None], tables: Tables
) -> tuple[Wish, ...]:
    """Return the wishes of a goal in MultiWOZ's shape.

    Args:
        goal: By domain ``info``, ``book``, ``fail_info``, ``fail_book`` and ``reqt``, each of which
            may be absent or empty. Domains that are absent or empty are not wished for.
        booked: By domain what a successful booking returns: the entity's key and ``reference``. A
            key that is missing is taken from the first row that the goal's search finds. A domain
            without an item has no booking goal.
        tables: The world.

    Returns:
        One wish per domain, in the order of :data:`~toolwoz_gym.toolwoz.tools.DOMAINS`.
    """
    return tuple(
        _wish(domain, goal[domain], booked.get(domain), tables[domain])
        for domain in DOMAINS
        if goal.get(domain)
    )


def _wish(
    domain: str, goal: Mapping[str, Any], booked: Mapping[str, str] | None, table: Table
) -> Wish:
    info, book = goal.get("info") or {}, goal.get("book") or {}
    fail_info, fail_book = goal.get("fail_info") or {}, goal.get("fail_book") or {}
    searches, books = PARAMETERS[f"search_{domain}"], PARAMETERS[f"book_{domain}"]
    search = _filled(searches, info)
    item = _with_key(booked, search, table) if book and booked else None
    return Wish(
        domain,
        search=search if info else None,
        book=_filled(books, {**book, table.key: item[table.key]}) if item else None,
        booked=item,
        failing_search=_filled(searches, {**info, **fail_info}) if fail_info else None,
        failing_book=(_filled(books, {**book, **fail_book, table.key: ""}) if fail_book else None),
        requests=tuple(goal.get("reqt") or ()),
    )


def _filled(parameters: tuple[str, ...], values: Mapping[str, str]) -> dict[str, str]:
    return {name: str(values.get(name, "")) for name in parameters}


def _with_key(
    booked: Mapping[str, str], search: Mapping[str, str], table: Table
) -> Mapping[str, str]:
    if table.key in booked:
        return booked
    row = first(found(table, normalised(search)))
    return {table.key: "" if row is None else table.rows[row][table.key], **booked}
