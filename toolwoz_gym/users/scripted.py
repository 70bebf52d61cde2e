"""A ToolWOZ customer that needs no model.

It works from the structured goal alone and hears only what the agent says: no tool traffic. It
tells its wishes piecemeal, answers what it is asked, falls back when its first choice fails, asks
for what it was told to find out, loses patience with an agent that gets nowhere, and says goodbye.

It has no state: what it has in mind is worked out anew from the conversation each time it speaks,
by hearing the agent's turns one after the other (:func:`_hear`). What it does is decided there;
only the wording is drawn at random, from a seed that hashes all that was said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from toolwoz_gym.seeding import Luck
from toolwoz_gym.toolwoz.goals import EMPTY
from toolwoz_gym.toolwoz.lexicon import (
    ANSWERS,
    ASKING,
    NOUNS,
    QUESTIONS,
    attribute_name,
    phrase_variants,
    sentences,
)
from toolwoz_gym.toolwoz.task import ToolWOZTask, Wish
from toolwoz_gym.toolwoz.tools import KEYS, PARAMETERS
from toolwoz_gym.types import END_CONVERSATION, Message, Task

PATIENCE = 3
"""So many turns in a row that get nowhere end the dialogue."""

_Act: TypeAlias = tuple[str, tuple[str, ...]]
"""A kind of speech act, and the parameters or attributes that it is about."""


class ScriptedUser:
    """The scripted customer of ToolWOZ."""

    def reply(self, task: Task, messages: Sequence[Message], *, seed: int) -> Message:
        """Return what the customer says next."""
        assert isinstance(task, ToolWOZTask)
        mind = _open(task, 0, Luck(seed, "wish", 0), _Mind())
        for text in _agent_turns(messages):
            mind = _hear(task, mind, text, seed)
        luck = Luck(seed, "wording", *(f"{m.role}:{m.content}" for m in messages))
        return Message("user", _say(task, mind, luck))


@dataclass(frozen=True, slots=True)
class _Mind:
    """What the customer has in mind after its last turn, and what it is about to do."""

    wish: int = 0
    stage: Literal["search", "book", "ask"] = "search"
    first_search: bool = False
    """Whether it still wants the first choice that is bound to fail."""
    first_book: bool = False
    terse: bool = False
    """Whether it leaves something out when it books, which the agent then has to ask for."""
    told: frozenset[str] = frozenset()
    """Parameters of the wish, told with the values that now hold."""
    shrugged: frozenset[str] = frozenset()
    """Parameters it was asked for and has no wish about."""
    heard: frozenset[str] = frozenset()
    """Attributes of the entity that the agent has told."""
    patience: int = PATIENCE
    acts: tuple[_Act, ...] = ()
    """What it says now: kinds of speech act, each with the parameters it is about."""


@dataclass(frozen=True, slots=True)
class _Heard:
    """What the customer makes of one turn of the agent's."""

    asked: frozenset[str]
    """Parameters that the agent asks for."""
    attributes: frozenset[str]
    """Attributes that the agent mentions."""
    nothing_found: bool
    failed: bool
    """A booking failed."""
    booked: bool
    offer: bool
    """The agent states something, or asks whether to book."""


def _agent_turns(messages: Sequence[Message]) -> list[str]:
    """Return what the agent said between the customer's messages; "" where it kept silent."""
    turns: list[list[str]] = []
    for message in messages:
        if message.role == "user":
            turns.append([])
        else:
            turns[-1].append(message.content)
    return ["\n".join(turn) for turn in turns]


def _open(task: ToolWOZTask, index: int, luck: Luck, before: _Mind) -> _Mind:
    """Turn to the wish at ``index``, or say goodbye when all are served."""
    if index == len(task.wishes):
        return replace(before, acts=(("goodbye", ()),))
    wish = task.wishes[index]
    mind = _Mind(
        wish=index,
        first_search=wish.failing_search is not None,
        first_book=wish.failing_book is not None and wish.book is not None,
        terse=luck.chance(0.3),
    )
    slots = list(_search_values(wish, mind))
    opening = frozenset(luck.sample(slots, 1 + luck.below(len(slots)))) if slots else frozenset()
    return replace(mind, told=opening, acts=(("open", _in_order(wish, opening)),))


def _hear(task: ToolWOZTask, mind: _Mind, text: str, seed: int) -> _Mind:
    """Return what the customer has in mind after one turn of the agent's."""
    wish = task.wishes[mind.wish]
    heard = _understand(wish, text)
    mind = replace(mind, heard=mind.heard | heard.attributes, acts=())
    after = {"search": _hear_search, "book": _hear_book, "ask": _hear_ask}[mind.stage](
        wish, mind, heard
    )
    if after.stage == "ask" and not after.acts:
        luck = Luck(seed, "wish", mind.wish + 1)
        return _open(task, mind.wish + 1, luck, after)
    if after.patience == 0:
        return replace(after, acts=(("give up", ()),))
    return after


def _hear_search(wish: Wish, mind: _Mind, heard: _Heard) -> _Mind:
    """Look for the entity: tell the wishes, fall back, and go on once one is offered."""
    untold = [slot for slot in _search_values(wish, mind) if slot not in mind.told]
    if heard.nothing_found:
        return _fall_back(wish, mind) if mind.first_search else _insist(wish, mind)
    if answered := _answer(wish, mind, heard):
        return answered
    if untold:
        again = [slot for slot in heard.asked if slot in mind.told]
        told = _tell(wish, mind, [*again, *untold[:2]])
        return told if heard.offer else replace(told, patience=mind.patience - 1)
    if not heard.offer:
        return _insist(wish, mind)
    if (
        mind.first_search
    ):  # the agent found what should not be there: the goal still wants the other
        return _fall_back(wish, mind)
    return _begin_booking(wish, mind)


def _begin_booking(wish: Wish, mind: _Mind) -> _Mind:
    if wish.book is None:
        return _begin_asking(wish, mind)
    mind = replace(mind, stage="book")
    slots = list(_book_values(wish, mind))
    told = slots[1:] if mind.terse and len(slots) > 1 else slots
    return replace(
        mind,
        told=mind.told | frozenset(told),
        patience=PATIENCE,
        acts=(("book", _in_order(wish, told)),),
    )


def _hear_book(wish: Wish, mind: _Mind, heard: _Heard) -> _Mind:
    """Get it booked: tell the details, fall back when it cannot be had."""
    untold = [slot for slot in _book_values(wish, mind) if slot not in mind.told]
    if heard.failed or heard.nothing_found:
        return _fall_back(wish, mind) if mind.first_book else _insist(wish, mind)
    if heard.booked:
        if mind.first_book:  # the goal still wants the other
            return _fall_back(wish, mind)
        return _begin_asking(wish, mind)
    if answered := _answer(wish, mind, heard):
        return answered
    if untold:
        return replace(_tell(wish, mind, untold), patience=mind.patience - 1)
    return _insist(wish, mind)


def _begin_asking(wish: Wish, mind: _Mind) -> _Mind:
    outstanding = tuple(name for name in wish.requests if name not in mind.heard)
    acts = (("ask", outstanding),) if outstanding else ()
    return replace(mind, stage="ask", patience=PATIENCE, acts=acts)


def _hear_ask(wish: Wish, mind: _Mind, heard: _Heard) -> _Mind:
    """Find out what it was told to find out; twice in vain, and it lets the matter rest."""
    outstanding = tuple(name for name in wish.requests if name not in mind.heard)
    if not outstanding or mind.patience == PATIENCE - 1:
        return replace(mind, acts=())
    patience = mind.patience if heard.attributes & set(wish.requests) else mind.patience - 1
    return replace(mind, patience=patience, acts=(("ask", outstanding),))


def _fall_back(wish: Wish, mind: _Mind) -> _Mind:
    """Give up the first choice for what the goal really wants, and say what is different."""
    if mind.stage == "search":
        old, after = _search_values(wish, mind), replace(mind, first_search=False)
        new = _search_values(wish, after)
    else:
        old, after = _book_values(wish, mind), replace(mind, first_book=False)
        new = _book_values(wish, after)
    changed = [slot for slot in new if new[slot] != old.get(slot)]
    dropped = [slot for slot in old if slot not in new]
    acts: list[_Act] = []
    if changed:
        acts.append(("instead", _in_order(wish, changed)))
    if dropped:
        acts.append(("shrug", tuple(dropped)))
    if not acts:
        acts.append(("insist", _in_order(wish, mind.told)))
    told = mind.told | frozenset(changed)
    return replace(after, told=told, patience=PATIENCE, acts=tuple(acts))


def _answer(wish: Wish, mind: _Mind, heard: _Heard) -> _Mind | None:
    """Answer the agent's questions; None when they bring nothing new."""
    values = _search_values(wish, mind) | (_book_values(wish, mind) if wish.book else {})
    news = [slot for slot in values if slot in heard.asked and slot not in mind.told]
    if news:
        return _tell(wish, mind, news)
    shrugs = heard.asked - set(values) - mind.shrugged
    if not shrugs:
        return None
    acts = (("shrug", tuple(sorted(shrugs))),)
    return replace(mind, shrugged=mind.shrugged | shrugs, patience=PATIENCE, acts=acts)


def _tell(wish: Wish, mind: _Mind, slots: Sequence[str]) -> _Mind:
    acts = (("tell", _in_order(wish, slots)),)
    return replace(mind, told=mind.told | set(slots), patience=PATIENCE, acts=acts)


def _insist(wish: Wish, mind: _Mind) -> _Mind:
    """Say it all again, with less patience."""
    kind = "book" if mind.stage == "book" else "insist"
    values = _book_values(wish, mind) if mind.stage == "book" else _search_values(wish, mind)
    slots = [slot for slot in values if slot in mind.told]
    acts = ((kind, _in_order(wish, slots)),)
    return replace(mind, patience=mind.patience - 1, acts=acts)


def _search_values(wish: Wish, mind: _Mind) -> dict[str, str]:
    """Return the constraints that now hold, without those that do not matter."""
    values = (wish.failing_search if mind.first_search else wish.search) or {}
    return {slot: value for slot, value in values.items() if value not in EMPTY}


def _book_values(wish: Wish, mind: _Mind) -> dict[str, str]:
    """Return what is now to be booked, without the entity, which the agent has named itself."""
    values = (wish.failing_book if mind.first_book else wish.book) or {}
    key = KEYS[wish.domain]
    return {slot: v for slot, v in values.items() if slot != key and v not in EMPTY}


def _in_order(wish: Wish, slots: Sequence[str] | frozenset[str]) -> tuple[str, ...]:
    """Sort parameters as English likes them."""
    names = [*PARAMETERS[f"search_{wish.domain}"], *PARAMETERS[f"book_{wish.domain}"]]
    order = ["type", "departure", "destination", *names]
    return tuple(sorted(slots, key=order.index))


_POLITE = re.compile(
    r"\b(no|not a) (problem|worries|trouble|doubt)\b|\bif not\b|\bsorry (for|about)\b"
    r"|\b(don't|do not) (hesitate|worry)\b.*|\bno (extra|additional|further)\b"
)
"""Negations that deny nothing."""
_PROMISE = re.compile(
    r"^(\w+[,!]? )?(let me|allow me|i will|i'll|i am going to|i'm going to|one moment)\b"
)
"""The agent says what it is about to do, which states nothing yet."""
_NOT = r"(\b(no|not|cannot|unable|fail\w*|lack|zero|without)\b|n't\b)"
_NEGATION = re.compile(
    _NOT + r"|\b(none|nothing|unfortunately|regrettably|sorry|afraid|unsuccessful\w*|unavailable"
    r"|full|fully booked|sold out|already (taken|booked|reserved)|error)\b"
)
_NOTHING = re.compile(
    r"\b(none|nothing(?! else)|no luck)\b"
    r"|\bthere(('s| is| are| was| were| seems?)( to be)? (no|not|zero)\b| \w+n't\b)"
    rf"|{_NOT}.*\b(find|found|match\w*|results?|return\w*|any|anything|such|exist\w*|available"
    r"|restaurants?|hotels?|guest ?houses?|attractions?|trains?|places?|options?)\b"
)
_BOOKING = re.compile(
    r"\b(book\w*|reserv\w*|tables?|rooms?|tickets?|availab\w*|unavailable|full|sold out|taken"
    r"|work\w*|possible)\b"
)
_BOOKED = re.compile(
    r"\b(booked|reserved|confirmed|confirmation (number|code|is)|reference|ref)\b"
    r"|\b(booking|reservation) (.* )?(successful|made|complete\w*|done|through)\b"
    r"|\bmade (a|the|your) (booking|reservation)|\bable to (book|reserve|make)\b"
)
_STATEMENT = re.compile(
    r"\b(is|are|found|has|have|recommend|suggest|leaves|departs|arrives|located|costs?"
    r"|how about|what about|there's|it's|try|serves|match\w*|fits?|called|perfect|tr\d+)\b"
)
_PROPOSAL = re.compile(r"\b(book|reserv\w+|how about|what about)\b")
_REQUEST = re.compile(r"\b(please|let me know|tell me|i need|may i|can i have)\b")


def _understand(wish: Wish, text: str) -> _Heard:
    """Make out what the agent said, sentence by sentence."""
    parts = [_POLITE.sub("", sentence) for sentence in sentences(text)]
    questions = [s for s in parts if s.endswith("?") or _REQUEST.search(s)]
    statements = [s for s in parts if not s.endswith("?") and not _PROMISE.search(s)]
    slots = {*PARAMETERS[f"search_{wish.domain}"], *PARAMETERS[f"book_{wish.domain}"]} - {"trainID"}
    asked = {slot for slot in slots for q in questions if re.search(QUESTIONS[slot], q)}
    # "It is fully booked at 20:00, would 21:00 suit you?" denies something before it asks.
    denials = [s.rpartition(",")[0] for s in parts if s.endswith("?")]
    negative = [s for s in (*statements, *denials) if _NEGATION.search(s)]
    positive = [s for s in statements if not _NEGATION.search(s)]
    return _Heard(
        asked=frozenset(asked),
        attributes=frozenset(
            name
            for name in wish.requests
            for s in statements
            if attribute_name(name) in s or re.search(ANSWERS.get(name, "$^"), s)
        ),
        nothing_found=any(_NOTHING.search(s) for s in negative),
        failed=any(_BOOKING.search(s) for s in negative),
        booked=any(_BOOKED.search(s) for s in positive),
        offer=any(_STATEMENT.search(s) for s in positive)
        or any(_PROPOSAL.search(q) for q in questions),
    )


_OPENINGS = ("I am looking for a {}", "I need a {}", "Can you find me a {}", "I would like a {}")
_LATER = ("I also need a {}", "I am also looking for a {}", "Could you also find me a {}")
_LINES: Mapping[str, tuple[str, ...]] = {
    "tell": ("One {}, please.", "It should be one {}.", "I would like one {}.", "{}, please."),
    "instead": (
        "Then I would take one {}.",
        "How about one {} instead?",
        "Then one {} would be fine.",
    ),
    "insist": ("As I said, I want one {}.", "Please look again for one {}."),
    "book": ("Please book it {}.", "I would like to book it {}.", "Great, book it {}, please."),
    "ask": ASKING,
    "shrug": ("I do not mind the {}.", "Any {} will do."),
    "goodbye": ("Thank you, that is all. Goodbye!", "That was all I need, thanks. Bye!"),
    "give up": ("This is getting us nowhere. Goodbye.", "Never mind, I will ask elsewhere. Bye."),
}
_DETAILS = ("It is {}.", "{}, please.", "Please make it {}.")
"""How booking details are told and changed: "at 18:00", not "one at 18:00"."""


def _say(task: ToolWOZTask, mind: _Mind, luck: Luck) -> str:
    """Put what the customer is about to do into words."""
    parts = [_say_act(task, mind, kind, slots, luck) for kind, slots in mind.acts]
    return " ".join(part[0].upper() + part[1:] for part in parts)


def _say_act(task: ToolWOZTask, mind: _Mind, kind: str, slots: tuple[str, ...], luck: Luck) -> str:
    if kind in ("goodbye", "give up"):
        return f"{luck.choice(_LINES[kind])} {END_CONVERSATION}"
    if kind in ("ask", "shrug"):
        return luck.choice(_LINES[kind]).format(_joined([attribute_name(s) for s in slots]))
    wish = task.wishes[mind.wish]
    values = _search_values(wish, mind) | _book_values(wish, mind)
    details = " ".join(luck.choice(phrase_variants(slot, values[slot])) for slot in slots)
    if kind == "open":
        noun = luck.choice(NOUNS[wish.domain])
        opening = luck.choice(_LATER if mind.wish else _OPENINGS).format(noun)
        opening = re.sub(r"\ba (?=[aeiou])", "an ", opening)
        end = "?" if opening.startswith("C") else "."
        return f"{opening} {details}".strip() + end
    about_booking = mind.stage == "book" and kind != "book"
    return luck.choice(_DETAILS if about_booking else _LINES[kind]).format(details)


def _joined(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
