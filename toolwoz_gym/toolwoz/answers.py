"""What an agent has offered and told a customer by now: ToolWOZ-v1's account of answers.

An answer belongs to the thing that the customer takes it to be about: the one that a sentence
names, else the one that was offered last. The last word on an attribute holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from typing import TypeAlias

from toolwoz_gym.toolwoz.lexicon import asked_attributes, attribute_name, domains_named
from toolwoz_gym.toolwoz.speech import Speech, heard
from toolwoz_gym.toolwoz.tables import Row, RowSet, Table, Tables, first, numbers
from toolwoz_gym.toolwoz.task import ToolWOZTask
from toolwoz_gym.toolwoz.told import COMMON, is_known, tells
from toolwoz_gym.toolwoz.tools import DOMAINS, KEYS
from toolwoz_gym.types import Message

CHOICE = 3
"""A message that names more things of a kind than this offers none of them: it is a list."""

Fact: TypeAlias = tuple[str, int, str]
"""A domain, the number of one of its rows, and an attribute."""


@dataclass(slots=True)
class Account:
    """What a customer was offered and told."""

    offered: dict[str, int] = field(default_factory=dict)
    """The row that was offered last, by domain."""
    told: dict[Fact, int] = field(default_factory=dict)
    """The message that told a fact rightly, where that still holds."""
    untold: dict[Fact, int] = field(default_factory=dict)
    """The message that said something else, or took it back, where that is the last word."""

    def note(self, fact: Fact, message: int, *, is_right: bool) -> None:
        """Put down what a message says of a fact."""
        now, before = (self.told, self.untold) if is_right else (self.untold, self.told)
        now[fact] = message
        before.pop(fact, None)


def account_of(
    tables: Tables,
    task: ToolWOZTask,
    messages: Sequence[Message],
    fitting: Collection[tuple[str, int]],
) -> Account:
    """Go through a dialogue as its customer hears it.

    Args:
        tables: The world.
        task: What the customer wants, and wants to know.
        messages: The dialogue.
        fitting: The rows that were shown and fit, with their domains.
    """
    account = Account()
    desk = _Desk()
    for number, message in enumerate(messages):
        if message.role == "user":
            desk.asked = message.content
        elif message.role == "tool":
            _look(tables, account, desk, messages[number - 1], message)
        elif message.call is None and message.error is None:
            speech = heard(message.content)
            _take_back(account, speech, desk.spoke, number)
            desk.is_trusted &= not speech.never_means_it
            if desk.is_trusted:
                asking = {
                    wish.domain
                    for wish in task.wishes
                    if asked_attributes(wish.requests, desk.asked)
                    and (wish.domain, account.offered.get(wish.domain)) in fitting
                }
                _take_offer(tables, account, desk, speech, asking)
                _listen(tables, account, desk, task, speech, number)
            desk.fresh.clear()
            desk.spoke = number
    return account


@dataclass(slots=True)
class _Desk:
    """What happens behind the desk, and around an answer."""

    asked: str = ""
    """What the customer said last."""
    about: str = ""
    """The domain of the last call."""
    shown: dict[str, list[int]] = field(default_factory=dict)
    """The rows that searches have shown, by domain, the latest last."""
    fresh: dict[str, int] = field(default_factory=dict)
    """Those shown since the agent spoke last."""
    spoke: int = -1
    """Where the agent spoke last."""
    is_trusted: bool = True


def _look(tables: Tables, account: Account, desk: _Desk, made: Message, answer: Message) -> None:
    """Take note of what a call has shown or booked."""
    kind, _, domain = (answer.name or "").partition("_")
    if domain not in DOMAINS or made.call is None or answer.content[:1] not in "[{":
        return
    table, desk.about = tables[domain], domain
    if kind == "search":
        for shown in json.loads(answer.content):
            number = _number(table, shown)
            if number is not None:
                desk.shown.setdefault(domain, []).append(number)
                desk.fresh[domain] = number
    elif json.loads(answer.content)["success"]:
        key = str(made.call.arguments.get(table.key))
        number = _pick(desk, domain, table.plainly(table.key, key))
        if number is not None:
            account.offered[domain] = number
            desk.fresh.pop(domain, None)


def _take_back(account: Account, speech: Speech, spoke: int, number: int) -> None:
    """Strike out what the agent says is not so: what it said last, what it names, or all of it."""
    if not speech.disowned:
        return
    last = max(account.told.values(), default=spoke) if speech.is_of_earlier else spoke
    for fact, message in list(account.told.items()):
        is_named = attribute_name(fact[2]).split()[0] in speech.disowned
        if speech.takes_all_back or not speech.corrects and (is_named or message == last):
            account.note(fact, number, is_right=False)


def _take_offer(
    tables: Tables, account: Account, desk: _Desk, speech: Speech, asking: Collection[str]
) -> None:
    """Find out what the message offers: what it names, else what was found just before.

    While an offer that fits is asked about, nothing else takes its place.
    """
    named: dict[str, list[int]] = {}
    for sentence in speech.sentences:
        for mark in marks_of(tables, sentence.mentions):
            number = _pick(desk, mark.domain, mark.rows, only_shown=True)
            if number is not None:
                named.setdefault(mark.domain, []).append(number)
    for domain, number in {**desk.fresh, **{d: rows[-1] for d, rows in named.items()}}.items():
        if len(set(named.get(domain, ()))) > CHOICE:
            account.offered.pop(domain, None)
        elif domain not in asking:
            account.offered[domain] = number


def _listen(
    tables: Tables,
    account: Account,
    desk: _Desk,
    task: ToolWOZTask,
    speech: Speech,
    number: int,
) -> None:
    """Put down what the message tells."""
    parts = _parts(tables, account, desk, speech)
    for wish in task.wishes:
        table = tables[wish.domain]
        for row in {part.row for part in parts if part.domain == wish.domain}:
            mine = tuple(p for p in parts if (p.domain, p.row) == (wish.domain, row))
            for name in wish.requests:
                is_right = is_told(table, row, name, mine, desk.asked)
                if is_right or (is_right is False and all(part.is_sure for part in mine)):
                    account.note((wish.domain, row, name), number, is_right=is_right)


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a sentence, and the row that it is about."""

    domain: str
    row: int
    stated: str
    masked: str
    """What is stated without the names of rows."""
    denied: str
    is_likely: bool = True
    """Whether it may well be about this domain."""
    is_sure: bool = True
    """Whether it can be about no other."""
    is_named: bool = False
    """Whether it names the row."""


def _parts(tables: Tables, account: Account, desk: _Desk, speech: Speech) -> list[_Part]:
    """Sort what a message says by the rows that it is about.

    A sentence that names nothing is about what the one before it is about; the first ones are about
    what was asked for or looked up last, or else about anything that was offered.
    """
    likely = set(domains_named(desk.asked)) | ({desk.about} if desk.about else set())
    topic = set(DOMAINS)
    subject: dict[str, int | None] = dict(account.offered)
    parts: list[_Part] = []
    for sentence in speech.sentences:
        marks = marks_of(tables, sentence.stated)
        if marks:
            topic = likely = {mark.domain for mark in marks}
        elif subjects := set(sentence.subjects):
            topic = likely = subjects
        if not marks and sentence.is_of_another and not likely & desk.fresh.keys():
            subject |= dict.fromkeys(topic)  # it is about another one, which it does not name
        masked = sentence.stated
        for mark in marks:
            masked = f"{masked[: mark.start]}{' ' * (mark.end - mark.start)}{masked[mark.end :]}"
        starts = [0, *(mark.start for mark in marks[1:]), len(masked)]
        for mark, (start, end) in zip(marks, pairwise(starts), strict=False):
            row = subject[mark.domain] = _pick(desk, mark.domain, mark.rows)
            if row is not None:
                if _MOVES.search(sentence.stated, 0, mark.start):  # so was what came before
                    parts = [replace(p, row=row) if p.domain == mark.domain else p for p in parts]
                stated, hidden = sentence.stated[start:end], masked[start:end]
                denied = sentence.denied if end == len(masked) else ""
                parts.append(_Part(mark.domain, row, stated, hidden, denied, is_named=True))
        for domain in () if marks else sorted(topic):
            row = subject.get(domain)
            if row is not None:
                stated, denied = sentence.stated, sentence.denied
                is_likely, is_sure = domain in likely, likely == {domain}
                parts.append(_Part(domain, row, stated, masked, denied, is_likely, is_sure))
    return parts


@lru_cache(maxsize=512)  # a dialogue is judged after each of its messages
def is_told(
    table: Table, number: int, name: str, parts: tuple[_Part, ...], asked: str
) -> bool | None:
    """Return whether parts of a message tell an attribute: see :func:`.told.tells`."""
    row = table.rows[number]
    if not is_known(row.get(name)):
        return None
    if name == table.key:
        return True if any(part.is_named for part in parts) else None
    whole = name in ("address", "phone", "postcode")
    if name in COMMON:  # anything can be in the north
        parts = tuple(part for part in parts if part.is_likely)
    stated = [part.stated if whole else part.masked for part in parts]
    denied = [part.denied for part in parts if part.denied]
    if not whole and is_known(row.get("address")):
        stated = [_without(text, str(row["address"])) for text in stated]
    told = tells(name, row[name], stated, denied, asked=asked, column=_column(table, name))
    if told is None and name == "type" and any(part.is_named for part in parts):
        own = [str(row[table.key]).lower()]  # "Acorn Guest House" says what it is
        return tells(name, row[name], own, column=_column(table, name)) or None
    return told


def _without(text: str, words: str) -> str:
    flat = r"\W{1,3}".join(map(re.escape, re.findall(r"\w+", words.lower())))
    return re.sub(rf"\b{flat}\b", " ", text)


@lru_cache(maxsize=256)
def _column(table: Table, name: str) -> tuple[str, ...]:
    values = (row.get(name) for row in table.rows)
    return tuple(sorted({value.lower() for value in values if isinstance(value, str)}))


def _number(table: Table, shown: Row) -> int | None:
    """Return the number of a row that a search has shown."""
    rows = table.plainly(table.key, str(shown[table.key]))
    return next((n for n in numbers(rows) if table.rows[n] == shown), None)


def _pick(desk: _Desk, domain: str, rows: RowSet, *, only_shown: bool = False) -> int | None:
    """Return which of the rows of one name is meant: the one shown last, else the first."""
    for number in reversed(desk.shown.get(domain, ())):
        if rows >> number & 1:
            return number
    return None if only_shown else first(rows)


@dataclass(frozen=True, slots=True)
class _Mark:
    """Where a sentence names something."""

    start: int
    end: int
    domain: str
    rows: RowSet
    """The rows of that name."""


@lru_cache(maxsize=512)
def marks_of(tables: Tables, text: str) -> tuple[_Mark, ...]:
    """Return what a text names, in order; of names within names the longest."""
    found: list[_Mark] = []
    for domain in DOMAINS:
        pattern, rows = _names(tables[domain], domain)
        found += (
            _Mark(m.start(), m.end(), domain, rows[_squeezed(m[0])]) for m in pattern.finditer(text)
        )
    found.sort(key=lambda mark: (mark.start, -mark.end))
    kept: list[_Mark] = []
    for mark in found:
        if not kept or mark.start >= kept[-1].end:
            kept.append(mark)
    return tuple(kept)


@lru_cache(maxsize=64)
def _names(table: Table, domain: str) -> tuple[re.Pattern[str], Mapping[str, RowSet]]:
    """Return a pattern of the names of a domain's rows, and the rows of each."""
    rows: dict[str, RowSet] = {}
    spelt = set()
    for number, row in enumerate(table.rows):
        words = _name_words(str(row[KEYS[domain]]))
        if words and words != ["place"]:  # "The Place" is no name that can be told from others
            key = "".join(words)
            rows[key] = rows.get(key, 0) | 1 << number
            spelt.add(r"\W{0,3}".join(map(re.escape, words)))
    names = "|".join(sorted(spelt, key=len, reverse=True)) or "(?!)"
    return re.compile(rf"(?<!\w)(?:{names})(?!\w)"), rows


def _name_words(name: str) -> list[str]:
    """Return the words of a name, in lower case and without its article."""
    words = re.findall(r"\w+", name.lower().replace("&", " and "))
    return words[1:] if words[:1] == ["the"] and words[1:] else words


def _squeezed(name: str) -> str:
    return "".join(_name_words(name))


_MOVES = re.compile(
    r"(?:\b(?:these|those|that|this|they|it)(?:'s| (?:\w{1,12} )?(?:is|are|was|were|belongs?"
    r"|appl\w{1,3}))(?: (?:the )?(?:details|info\w{0,9}|numbers?))?(?: (?:for|of|to|from))"
    r"|\b(?:these|those|that|this)(?:'s| is| are| was| were)"
    r"|\bi (?:mean|meant|was (?:talking about|describing))) (?:the )?$"
)
"""Words before a name by which it turns out to be what the sentences before were about."""
