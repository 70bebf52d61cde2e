"""Agents without a model: an expert that knows the goal, and one that acts at random."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from toolwoz_gym.seeding import Luck
from toolwoz_gym.toolwoz.goals import EMPTY
from toolwoz_gym.toolwoz.lexicon import (
    NOUNS,
    asked_attributes,
    attribute_name,
    heard_values,
    said,
)
from toolwoz_gym.toolwoz.task import ToolWOZTask, Wish
from toolwoz_gym.toolwoz.tools import KEYS
from toolwoz_gym.types import Message, Task, ToolCall, ToolSpec


class ExpertAgent:
    """Solves a ToolWOZ task, knowing its goal, in the way a good agent would that does not.

    It calls tools with what the customer has said so far, so that a model can learn from it; its
    knowledge of the goal only tells it what to listen for. Where the customer's words leave it
    stuck, it makes the goal's own calls.
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
        last = view[-1]
        if last.name == f"book_{wish.domain}":
            return _tell_booking(json.loads(last.content))
        wants_booking = wish.book is not None and "book" in desk.words.lower()
        if last.name == f"search_{wish.domain}" and not wants_booking:
            return _offer(wish, desk)
        if asked := asked_attributes(wish.requests, last.content):
            return _answer(asked, desk.row)
        if (search := _next_search(wish, desk)) is not None:
            return search
        return _book(wish, desk) if wants_booking else _offer(wish, desk)


@dataclass(slots=True)
class _Desk:
    """What the dialogue has come to."""

    wish: int = 0
    """Which wish it is about now."""
    words: str = ""
    """What the customer said about it, so far."""
    row: Mapping[str, Any] | None = None
    """What the last search for it found."""
    last_search: Mapping[str, Any] | None = None
    """The arguments of that search."""
    last_booking: Mapping[str, Any] | None = None
    searches: list[Mapping[str, Any]] = field(default_factory=list)
    """The arguments of every search so far, as goals write them."""


def _read(task: ToolWOZTask, view: Sequence[Message]) -> _Desk:
    desk = _Desk()
    for message in view:
        if message.role == "user":
            if _moves_on(task, desk.wish, message.content):
                desk = _Desk(desk.wish + 1, searches=desk.searches)
            desk.words += f" {message.content}"
        elif message.call is not None and message.call.name.startswith("search_"):
            desk.last_search = message.call.arguments
            domain = message.call.name.removeprefix("search_")
            for wish in task.wishes:
                if wish.domain == domain and _given(wish.search) == _given(desk.last_search):
                    desk.searches.append(wish.search or {})
        elif message.call is not None:
            desk.last_booking = message.call.arguments
        elif message.role == "tool" and (message.name or "").startswith("search_"):
            rows = json.loads(message.content)
            desk.row = rows[0] if rows else None
    return desk


def _moves_on(task: ToolWOZTask, current: int, text: str) -> bool:
    """Whether the customer turns to its next wish: it then says "also", and what it wants."""
    if current + 1 == len(task.wishes):
        return False
    nouns = NOUNS[task.wishes[current + 1].domain]
    return "also" in text and any(noun in text for noun in nouns)


def _next_search(wish: Wish, desk: _Desk) -> Message | None:
    """Search with all that was heard; None when there is no need to search (again)."""
    tool = f"search_{wish.domain}"
    heard = heard_values(_candidates(wish.failing_search, wish.search), desk.words)
    done = wish.search is None or wish.search in desk.searches
    if desk.last_search is not None and _given(desk.last_search) in (heard, _given(wish.search)):
        # Nothing new was heard. If that was not yet the goal's search, something was missed.
        return None if done else _call(tool, wish.search or {})
    return _call(tool, {name: heard[name] for name in wish.search or () if name in heard})


def _book(wish: Wish, desk: _Desk) -> Message:
    """Book with the details that were heard, or ask for those that are missing."""
    assert wish.book is not None
    key = KEYS[wish.domain]
    failing = {k: v for k, v in (wish.failing_book or {}).items() if k != key}
    candidates = _candidates(failing, {k: v for k, v in wish.book.items() if k != key})
    heard = heard_values(candidates, desk.words)
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


def _offer(wish: Wish, desk: _Desk) -> Message:
    row = desk.row
    if row is None:
        return _say(f"I am sorry, there is no such {wish.domain}. What else would you like?")
    if wish.domain == "train":
        offer = f"{row['trainID']} leaves at {row['leaveAt']} and arrives at {row['arriveBy']}."
        return _say(f"{offer} Shall I book it?")
    what = row["type"]
    if wish.domain == "restaurant":
        what = f"{row['pricerange']} {row['food']} restaurant"
    elif wish.domain == "hotel":
        what = f"{row['pricerange']} {row['type']}"
    article = "an" if what[0] in "aeiou" else "a"
    offer = f"{row['name']} is {article} {what} in the {row['area']}."
    return _say(offer if wish.domain == "attraction" else f"{offer} Shall I book it?")


def _tell_booking(answer: Mapping[str, Any]) -> Message:
    if answer["success"]:
        return _say(f"It is booked. The reference number is {answer['return']['reference']}.")
    return _say("I am sorry, the booking failed. What else would you like?")


def _answer(attributes: Sequence[str], row: Mapping[str, Any] | None) -> Message:
    values = row or {}
    facts = [f"the {attribute_name(a)} is {said(values.get(a, 'unknown'))}" for a in attributes]
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
