"""What a customer did wrong: read from the words and the task alone, whoever played it.

A dialogue that fails says little about the agent when its customer never said what it wanted. What
is reported here is plain to see; a customer may be at fault in other ways.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from toolwoz_gym.toolwoz.goals import EMPTY
from toolwoz_gym.toolwoz.lexicon import (
    ATTENTION,
    asks_to_book,
    by_domain,
    heard_values,
    is_indifferent,
    mended,
    named_domain,
    sentences,
)
from toolwoz_gym.toolwoz.task import ToolWOZTask, Wish
from toolwoz_gym.toolwoz.tools import KEYS
from toolwoz_gym.types import END_CONVERSATION, Message, Task
from toolwoz_gym.users.hearing import CLOSED, Heard, understand
from toolwoz_gym.users.scripted import PATIENCE

FaultKind: TypeAlias = Literal[
    "left early", "gave up", "untold", "wrong value", "ignored question", "repeated"
]

KINDS: tuple[FaultKind, ...] = get_args(FaultKind)
"""``left early``: it said goodbye and had never named one of its wishes. ``gave up``: it said
goodbye before one was served, though the agent was getting on. ``untold``: it said goodbye and had
never told one of its constraints. ``wrong value``: it said a value that it does not want, neither
first nor in the end, and left it at that. ``ignored question``: asked for something that it wants
and had not told, it did not say it. ``repeated``: it said the same again, word for word."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that a customer did wrong."""

    kind: FaultKind
    message: int
    """Index of the message where it shows."""
    what: str
    """What it is about, in words that a person understands."""


def faults(task: Task, messages: Sequence[Message]) -> tuple[Fault, ...]:
    """Return what the customer did wrong in a dialogue, in the order in which it shows.

    Nobody has to go on with an agent that gets nowhere for as long as customers have patience: the
    first three kinds are none then.

    Args:
        task: What the customer wanted. Only customers of ToolWOZ are looked at.
        messages: The whole dialogue. Of the agent, only what it says counts.
    """
    if not isinstance(task, ToolWOZTask) or not task.wishes:
        return ()
    reading = _Reading({wish.domain: _Progress(wish) for wish in task.wishes})
    found, turn = list[Fault](), ""
    for number, message in enumerate(messages):
        if message.role == "user":
            found += reading.customer(number, message.content, turn)
            turn = ""
        elif message.role == "assistant" and message.call is None and message.error is None:
            turn = f"{turn}\n{message.content}"[:ATTENTION]
    found += reading.wrong_values()
    return tuple(sorted(found, key=lambda fault: fault.message))


@dataclass(slots=True)
class _Progress:
    """What has been said about a wish so far."""

    wish: Wish
    named: bool = False
    said: dict[str, set[str]] = field(default_factory=dict)
    """Every value that the customer has given, by parameter."""
    last: dict[str, tuple[str, int]] = field(default_factory=dict)
    """The last of them, and the message that gave it."""
    asked: set[str] = field(default_factory=set)
    """Parameters that the agent has asked for."""
    asked_to_book: bool = False
    served: bool = False
    """Whether it was booked; where nothing is to be booked, whether something was offered."""

    def goal(self) -> dict[str, str]:
        """Return what the customer wants in the end, without the entity that it books."""
        wish, key = self.wish, KEYS[self.wish.domain]
        booking = {slot: value for slot, value in (wish.book or {}).items() if slot != key}
        wanted = {**(wish.search or {}), **booking}
        return {slot: value for slot, value in wanted.items() if value not in EMPTY}

    def meant(self, slot: str) -> set[str]:
        """Return the values of a parameter that the customer wants, first or in the end."""
        wish = self.wish
        choices = (wish.search, wish.failing_search, wish.book, wish.failing_book)
        values = {(choice or {}).get(slot, "") for choice in choices}
        return {value for value in values if value not in EMPTY}

    def listen(self, number: int, words: str) -> None:
        """Take note of what the customer says about the wish."""
        self.named = True
        self.asked_to_book |= asks_to_book(words)
        for sentence in sentences(words):
            if is_indifferent(sentence):
                continue
            for slot, value in heard_values(self._known(sentence), sentence).items():
                self.said.setdefault(slot, set()).add(value)
                self.last[slot] = value, number

    def _known(self, sentence: str) -> dict[str, Sequence[str]]:
        """Return the values to listen for: those that it wants, and those that everybody knows."""
        times = _TIME.findall(sentence)
        known: dict[str, Sequence[str]] = {}
        for choice in (self.wish.search, self.wish.book):
            for slot in choice or ():
                closed = times if slot in ("time", "leaveAt", "arriveBy") else CLOSED.get(slot, ())
                if slot != KEYS[self.wish.domain] or choice is self.wish.search:
                    known[slot] = sorted({*closed, *self.meant(slot)})
        return known


_TIME = re.compile(r"\b\d\d:\d\d\b")


@dataclass(slots=True)
class _Reading:
    """A dialogue, read from its beginning up to here."""

    progress: dict[str, _Progress]
    """By domain, in the order of the wishes."""
    about: str = ""
    """The domain that it is about."""
    nowhere: int = 0
    """In how many turns, up to the last, the agent got nowhere."""
    turns: set[str] = field(default_factory=set)
    """What the agent has said."""
    words: set[str] = field(default_factory=set)
    """What the customer has said."""
    last: int = 0
    """The customer's last message."""

    def customer(self, number: int, content: str, turn: str) -> Iterator[Fault]:
        """Read a message of the customer's, and what the agent said before it.

        Yields:
            What is wrong with the message.
        """
        self.about, self.last = self.about or next(iter(self.progress)), number
        words = " ".join(content.replace(END_CONVERSATION, " ").split())
        if words in self.words:
            yield Fault("repeated", number, f"it said again: {words}")
        self.words.add(words)
        wish = self.progress[self.about]
        heard = understand(self.about, turn)
        untold = (heard.asked & wish.goal().keys()) - wish.said.keys()
        if number:
            self._agent(wish, heard, turn)
        plain = mended(words)
        for domain, part in by_domain(plain, self.about, self.progress):
            self.progress[domain].listen(number, part)
        named = named_domain(plain)
        self.about = named if named in self.progress else self.about
        if END_CONVERSATION in content:
            if self.nowhere < PATIENCE:
                yield from self._left_undone(number)
        elif untold and not (untold & wish.said.keys() or _says_more(heard)):
            yield Fault("ignored question", number, f"it was asked for {', '.join(sorted(untold))}")

    def _agent(self, wish: _Progress, heard: Heard, turn: str) -> None:
        """Judge whether the agent got on."""
        new = heard.asked - wish.asked - wish.said.keys()
        wish.asked |= heard.asked
        failed = heard.nothing_found or heard.failed
        if wish.wish.book is None:
            wish.served |= heard.offer and not failed
        elif wish.asked_to_book:
            wish.served |= heard.booked and not failed
        offers = heard.booked if wish.asked_to_book else heard.offer
        got_on = (offers or bool(new)) and not failed and turn not in self.turns
        self.nowhere = 0 if got_on else self.nowhere + 1
        self.turns.add(turn)

    def _left_undone(self, number: int) -> Iterator[Fault]:
        """Yield what is amiss when the customer says goodbye to an agent that was getting on."""
        for domain, wish in self.progress.items():
            if not wish.named:
                yield Fault("left early", number, f"it never mentioned the {domain}")
                continue
            if not wish.served:
                yield Fault("gave up", number, f"it left before the {domain} was dealt with")
            for slot, value in wish.goal().items():
                if value not in wish.said.get(slot, ()):
                    yield Fault("untold", number, f"it never told {slot} {value} of the {domain}")

    def wrong_values(self) -> Iterator[Fault]:
        """Yield the values that are not wanted and were not taken back, though there was time."""
        for domain, wish in self.progress.items():
            for slot, (value, number) in wish.last.items():
                wanted = wish.meant(slot)
                if value not in wanted and slot not in wish.wish.requests and number < self.last:
                    yield Fault("wrong value", number, f"{slot} {value} of the {domain}")


def _says_more(heard: Heard) -> bool:
    """Whether a turn of the agent's brings news that matter more than what it asks."""
    return heard.nothing_found or heard.failed or heard.booked
