"""Agents without a model: one that knows the goal, one that goes by keywords, one that guesses."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from toolwoz_gym.seeding import Luck
from toolwoz_gym.toolwoz.goals import EMPTY
from toolwoz_gym.toolwoz.lexicon import (
    asked_attributes,
    asks_to_book,
    attribute_name,
    by_domain,
    heard_values,
    is_indifferent,
    mended,
    named_domain,
    said,
    sentences,
)
from toolwoz_gym.toolwoz.tables import Tables
from toolwoz_gym.toolwoz.task import ToolWOZTask, Wish
from toolwoz_gym.toolwoz.tools import DOMAINS, KEYS, PARAMETERS, TOOLS
from toolwoz_gym.types import Message, Task, ToolCall, ToolSpec


class ExpertAgent:
    """Solves a ToolWOZ task, knowing its goal, in the way a good agent would that does not.

    It calls tools with what the customer has said so far, so that a model can learn from it; its
    knowledge of the goal only tells it what to listen for. Where the customer's words leave it
    stuck, it makes the goal's own calls. It books nothing before it is asked to, and nothing twice.
    """

    def __init__(self, task: Task) -> None:
        assert isinstance(task, ToolWOZTask)
        self._task = task

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        """Return the agent's next message."""
        desk = _read(self._task, view)
        for wish in self._task.wishes[: desk.wish]:  # the customer has moved on: make up for it
            if wish.search is not None and wish.search not in desk.searches:
                return _call(f"search_{wish.domain}", wish.search)
        wish = self._task.wishes[desk.wish]
        last, words = view[-1], desk.words.get(wish.domain, "")
        if last.name == f"book_{wish.domain}" and last.content[:1] == "{":
            return _tell_booking(json.loads(last.content))
        wants_booking = wish.book is not None and asks_to_book(words)
        if last.name == f"search_{wish.domain}" and not wants_booking:
            return _offer(wish.domain, desk.row)
        asked = asked_attributes(wish.requests, mended(last.content))
        if asked and desk.row is not None:
            return answer(asked, desk.row)
        if (search := _next_search(wish, desk, words)) is not None:
            return search
        if not wants_booking:
            return _offer(wish.domain, desk.row)
        return _book(wish, desk, words) if desk.booked is None else _tell_booking(desk.booked)


@dataclass(slots=True)
class _Desk:
    """What the dialogue has come to."""

    wish: int = 0
    """Which wish it is about now."""
    words: dict[str, str] = field(default_factory=dict)
    """What the customer has said, by domain."""
    row: Mapping[str, Any] | None = None
    """What the last search for the wish found."""
    last_search: Mapping[str, Any] | None = None
    """The arguments of that search."""
    last_booking: Mapping[str, Any] | None = None
    booked: Mapping[str, Any] | None = None
    """What the tool said when it was booked."""
    searches: list[Mapping[str, Any]] = field(default_factory=list)
    """The arguments of every search so far, as goals write them."""


def _read(task: ToolWOZTask, view: Sequence[Message]) -> _Desk:
    desk = _Desk()
    for number, message in enumerate(view):
        if message.role == "user":
            desk = _listen(task, desk, mended(message.content), is_opening=number == 0)
        elif message.call is not None and message.call.name.startswith("search_"):
            desk.last_search = message.call.arguments
            domain = message.call.name.removeprefix("search_")
            for wish in task.wishes:
                if wish.domain == domain and _given(wish.search) == _given(desk.last_search):
                    desk.searches.append(wish.search or {})
        elif message.call is not None:
            desk.last_booking = message.call.arguments
        elif message.role == "tool" and message.name and message.content[:1] in "[{":
            answer = json.loads(message.content)
            if message.name.startswith("search_"):
                desk.row = answer[0] if answer else None
            elif answer["success"]:
                desk.booked = answer
    return desk


def _listen(task: ToolWOZTask, desk: _Desk, text: str, *, is_opening: bool) -> _Desk:
    """Take note of what the customer says; it turns to its next wish by naming it."""
    current, *later = [wish.domain for wish in task.wishes[desk.wish :]]
    parts = by_domain(text, current, later)
    if later and not is_opening and any(domain == later[0] for domain, _ in parts):
        desk = _Desk(desk.wish + 1, desk.words, searches=desk.searches)
    for domain, words in parts:
        clear = " ".join(s for s in sentences(words) if not is_indifferent(s))
        desk.words[domain] = f"{desk.words.get(domain, '')} {clear}"
    return desk


def _next_search(wish: Wish, desk: _Desk, words: str) -> Message | None:
    """Search with all that was heard; None when there is no need to search (again)."""
    tool = f"search_{wish.domain}"
    heard = heard_values(_candidates(wish.failing_search, wish.search), words)
    done = wish.search is None or wish.search in desk.searches
    if desk.last_search is not None and _given(desk.last_search) in (heard, _given(wish.search)):
        # Nothing new was heard. If that was not yet the goal's search, something was missed.
        return None if done else _call(tool, wish.search or {})
    return _call(tool, {name: heard[name] for name in wish.search or () if name in heard})


def _book(wish: Wish, desk: _Desk, words: str) -> Message:
    """Book with the details that were heard, or ask for those that are missing."""
    assert wish.book is not None
    key = KEYS[wish.domain]
    failing = {k: v for k, v in (wish.failing_book or {}).items() if k != key}
    candidates = _candidates(failing, {k: v for k, v in wish.book.items() if k != key})
    heard = heard_values(candidates, words)
    missing = [slot for slot in candidates if slot not in heard]
    if missing:
        return _say(" ".join(_QUESTIONS[slot] for slot in missing))
    booking = {**heard, key: wish.book[key]}
    if booking == desk.last_booking:  # the customer has changed something we do not understand
        booking = dict(wish.book)
    return _call(f"book_{wish.domain}", {name: booking[name] for name in wish.book})


_QUESTIONS = {
    "people": "For how many people?",
    "day": "On which day?",
    "time": "At what time?",
    "stay": "For how many nights?",
}


def _offer(domain: str, row: Mapping[str, Any] | None) -> Message:
    if row is None:
        return _say(f"I am sorry, there is no such {domain}. What else would you like?")
    if domain == "train":
        offer = f"{row['trainID']} leaves at {row['leaveAt']} and arrives at {row['arriveBy']}."
        return _say(f"{offer} Shall I book it?")
    what = row["type"]
    if domain == "restaurant":
        what = f"{row['pricerange']} {row['food']} restaurant"
    elif domain == "hotel":
        what = f"{row['pricerange']} {row['type']}"
    article = "an" if what[0] in "aeiou" else "a"
    offer = f"{row['name']} is {article} {what} in the {row['area']}."
    return _say(offer if domain == "attraction" else f"{offer} Shall I book it?")


def _tell_booking(answer: Mapping[str, Any]) -> Message:
    if answer["success"]:
        return _say(f"It is booked. The reference number is {answer['return']['reference']}.")
    return _say("I am sorry, the booking failed. What else would you like?")


def answer(attributes: Sequence[str], row: Mapping[str, Any]) -> Message:
    """Return a message that tells attributes of a row."""
    facts = [f"the {attribute_name(a)} is {said(row.get(a, 'unknown'))}" for a in attributes]
    return _say(", ".join(facts).capitalize() + ".")


def _candidates(*parameters: Mapping[str, str] | None) -> dict[str, tuple[str, ...]]:
    """Return the values to listen for, by parameter."""
    values: dict[str, tuple[str, ...]] = {}
    for mapping in parameters:
        for slot, value in (mapping or {}).items():
            if value not in EMPTY:
                values[slot] = (*values.get(slot, ()), value)
    return values


def _given(arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (arguments or {}).items() if value not in EMPTY}


def _call(tool: str, arguments: Mapping[str, str]) -> Message:
    return Message("assistant", call=ToolCall(tool, dict(arguments)))


def _say(text: str) -> Message:
    return Message("assistant", text)


class KeywordAgent:
    """Listens for the values that its tables know, and does not know the goal.

    It takes a message to be about the kind of thing that it names first, and of two values the one
    named last. It searches whenever it has heard something new, offers what it finds, books when it
    is asked to, and looks up what it is asked for. It cannot read what is spelt wrongly.
    """

    def __init__(self, tables: Tables) -> None:
        self._known = {domain: _known_values(tables, domain) for domain in DOMAINS}

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        """Return the agent's next message."""
        notes = self._read(view)
        if notes is None:
            return _say("Is it about a restaurant, an attraction, a train or a place to stay?")
        last, domain = view[-1], notes.domain
        if last.content.startswith("Error: "):
            return _say("I am sorry, that did not work. What else would you like?")
        if last.name == f"book_{domain}":
            return _tell_booking(json.loads(last.content))
        if last.name == f"search_{domain}" and not notes.asked_to_book:
            return _offer(domain, notes.row)
        search = {n: notes.heard[n] for n in PARAMETERS[f"search_{domain}"] if n in notes.heard}
        if search != notes.last_search:
            return _call(f"search_{domain}", search)
        if notes.row and (asked := asked_attributes(notes.row, last.content)):
            return answer(asked, notes.row)
        if notes.asked_to_book and notes.row:
            return _book_noted(notes, notes.row)
        return _offer(domain, notes.row)

    def _read(self, view: Sequence[Message]) -> _Notes | None:
        """Return what is known of the domain that it is about; None when that is not known."""
        notes, about = {domain: _Notes(domain) for domain in DOMAINS}, None
        for message in view:
            if message.role == "user":
                about = named_domain(message.content) or about
                if about:
                    self._take_note(notes[about], message.content)
            elif message.call is not None:
                noted = notes[message.call.name.partition("_")[2]]
                if message.call.name.startswith("search_"):
                    noted.last_search = message.call.arguments
                else:
                    noted.last_booking = message.call.arguments
            elif message.role == "tool" and message.name and message.content[:1] in "[{":
                noted, answer = notes[message.name.partition("_")[2]], json.loads(message.content)
                if message.name.startswith("search_"):
                    noted.row = answer[0] if answer else None
                else:
                    noted.booking = answer
        return notes[about] if about else None

    def _take_note(self, notes: _Notes, words: str) -> None:
        """Note what the customer says about a domain."""
        for sentence in sentences(words):
            if is_indifferent(sentence):
                for slot in list(notes.heard):
                    if attribute_name(slot) in sentence:
                        del notes.heard[slot]
                continue
            known = self._known[notes.domain]
            times = tuple(_TIME.findall(sentence))
            now = {name: times if name in _TIMES else values for name, values in known.items()}
            notes.heard.update(heard_values(now, sentence))
            notes.asked_to_book |= asks_to_book(sentence)


@dataclass(slots=True)
class _Notes:
    """What the keyword agent knows of a domain."""

    domain: str
    heard: dict[str, str] = field(default_factory=dict)
    asked_to_book: bool = False
    row: Mapping[str, Any] | None = None
    last_search: Mapping[str, Any] | None = None
    last_booking: Mapping[str, Any] | None = None
    booking: Mapping[str, Any] | None = None
    """What the tool said to that."""


_TIMES = ("leaveAt", "arriveBy", "time")
_TIME = re.compile(r"\b\d\d:\d\d\b")


def _known_values(tables: Tables, domain: str) -> dict[str, Sequence[str]]:
    """Return the values to listen for, by parameter: those that tools list, else the table's."""
    known: dict[str, Sequence[str]] = {}
    for tool in TOOLS:
        if tool.name.endswith(f"_{domain}"):
            for name, schema in tool.parameters.items():
                known[name] = schema.get("enum") or sorted(
                    {row[name] for row in tables[domain].rows if isinstance(row.get(name), str)}
                )
    known.pop("trainID", None)
    numbers = tuple(str(number) for number in range(1, 21))
    return known | {name: numbers for name in ("people", "stay") if name in known}


def _book_noted(notes: _Notes, row: Mapping[str, Any]) -> Message:
    """Book what was asked for, or ask for what is missing."""
    key = KEYS[notes.domain]
    values = {**notes.heard, key: row[key]}
    missing = [name for name in PARAMETERS[f"book_{notes.domain}"] if name not in values]
    if missing:
        return _say(" ".join(_QUESTIONS[name] for name in missing))
    booking = {name: values[name] for name in PARAMETERS[f"book_{notes.domain}"]}
    if notes.booking and (notes.booking["success"] or booking == notes.last_booking):
        return _tell_booking(notes.booking)
    return _call(f"book_{notes.domain}", booking)


class RandomAgent:
    """Calls random tools with random arguments, and says random things."""

    def __init__(self, tools: Sequence[ToolSpec]) -> None:
        self._tools = tools

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        """Return the agent's next message."""
        luck = Luck(seed)
        if luck.chance(0.4):
            return _say(luck.choice(("How can I help you?", "Yes.", "Which day?", "It is booked.")))
        tool = luck.choice(self._tools)
        names = luck.sample(list(tool.parameters), luck.below(len(tool.parameters) + 1))
        values = {n: luck.choice(tool.parameters[n].get("enum", _WORDS)) for n in names}
        return _call(tool.name, values)


_WORDS = ("1", "2", "10:00", "18:30", "italian", "museum", "north", "copper ladle", "TR1234")
