"""What a customer makes of the agent's words.

It goes by patterns, sentence by sentence. None of them has an open-ended gap, so that hearing takes
linear time, whatever the agent says; and nobody listens for ever.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from toolwoz_gym.toolwoz.lexicon import (
    ANSWERS,
    QUESTIONS,
    attribute_name,
    last_mention,
    normal,
    sentences,
)
from toolwoz_gym.toolwoz.tools import DAYS, PARAMETERS


@dataclass(frozen=True, slots=True)
class Heard:
    """What a customer makes of one turn of the agent's."""

    asked: frozenset[str] = frozenset()
    """Parameters that the agent asks for."""
    attributes: frozenset[str] = frozenset()
    """Attributes of an entity that the agent tells."""
    yes_or_no: bool = False
    """It begins as the answer to a question does that is answered by yes or no."""
    nothing_found: bool = False
    failed: bool = False
    """A booking failed."""
    booked: bool = False
    offer: bool = False
    """The agent states something, or asks whether to book."""


_POLITE = re.compile(
    r"\b(?:no|not a) (?:problem|worries|trouble|doubt)\b|\bif not\b|\bsorry (?:for|about)\b"
    r"|\b(?:don't|do not) (?:hesitate|worry)\b.*|\bno (?:extra|additional|further)\b"
)
"""Negations that deny nothing."""
_PROMISE = re.compile(
    r"(?:\w{1,12}[,!]? )?(?:let me|allow me|i will|i'll|i am going to|i'm going to|one moment)\b"
)
"""The agent says what it is about to do, which states nothing yet."""
_NOT = re.compile(r"\b(?:no|not|cannot|unable|fail\w{0,4}|lack|zero|without)\b|n't\b")
_DENIAL = re.compile(
    rf"{_NOT.pattern}|\b(?:none|nothing|unfortunately|regrettably|sorry|afraid|unsuccessful\w{{0,2}}"
    r"|unavailable|full|sold out|already (?:taken|booked|reserved)|error)\b"
)
_NOTHING = re.compile(
    r"\b(?:none|nothing(?! else)|no luck)\b"
    r"|\bthere(?:(?:'s| is| are| was| were| seems?)(?: to be)? (?:no|not|zero)\b"
    r"| \w{1,9}n't\b)"
)
_WHAT_IS_NOT = re.compile(
    r"\b(?:find|found|match\w{0,4}|results?|return\w{0,3}|any|anything|such|exist\w{0,3}"
    r"|available|restaurants?|hotels?|guest ?houses?|attractions?|trains?|places?|options?)\b"
)
_BOOKING = re.compile(
    r"\b(?:book\w{0,4}|reserv\w{0,7}|tables?|rooms?|tickets?|availab\w{0,6}|unavailable|full"
    r"|sold out|taken|work\w{0,3}|possible)\b"
)
_BOOKED = re.compile(
    r"\b(?:booked|reserved|confirmed|confirmation (?:number|code|is)|reference|ref)\b"
    r"|\b(?:booking|reservation) (?:.{0,80} )?(?:successful|made|complete\w{0,2}|done|through)\b"
    r"|\bmade (?:a|the|your) (?:booking|reservation)|\bable to (?:book|reserve|make)\b"
)
_STATEMENT = re.compile(
    r"\b(?:is|are|found|has|have|recommend|suggest|leaves|departs|arrives|located|costs?"
    r"|how about|what about|there's|it's|try|serves|match\w{0,2}|fits?|called|perfect|tr\d{1,5})\b"
)
_PROPOSAL = re.compile(r"\b(?:book|reserv\w{1,7}|how about|what about)\b")
_REQUEST = re.compile(r"\b(?:please|let me know|tell me|i need|may i|can i have)\b")
_YES_OR_NO = re.compile(r"\W{0,9}(?:yes|yeah|no)\b(?! (?:problem|worries))")

_PATTERNS = {slot: re.compile(pattern) for slot, pattern in QUESTIONS.items()}
_TOLD = {
    name: re.compile(rf"{pattern}|\b{re.escape(attribute_name(name).lower())} ?(?:is|:|are|was)")
    for name, pattern in ANSWERS.items()
}


@lru_cache(maxsize=1024)
def understand(domain: str, text: str) -> Heard:
    """Make out what the agent said about a domain."""
    parts = [_POLITE.sub("", sentence) for sentence in sentences(text)]
    asking = "\n".join(s for s in parts if s.endswith("?") or _REQUEST.search(s))
    statements = [s for s in parts if not s.endswith("?") and not _PROMISE.match(s)]
    stated = "\n".join(statements)
    slots = {*PARAMETERS[f"search_{domain}"], *PARAMETERS[f"book_{domain}"]} - {"trainID"}
    # "It is fully booked at 20:00, would 21:00 suit you?" denies something before it asks.
    denials = [s.rpartition(",")[0] for s in parts if s.endswith("?")]
    negative = [s for s in (*statements, *denials) if _DENIAL.search(s)]
    positive = "\n".join(s for s in statements if not _DENIAL.search(s))
    return Heard(
        asked=frozenset(slot for slot in slots if _PATTERNS[slot].search(asking)),
        attributes=frozenset(name for name, told in _TOLD.items() if told.search(stated)),
        yes_or_no=_YES_OR_NO.match(text.lower()) is not None,
        nothing_found=any(map(_denies_all, negative)),
        failed=_BOOKING.search("\n".join(negative)) is not None,
        booked=_BOOKED.search(positive) is not None,
        offer=bool(_STATEMENT.search(positive) or _PROPOSAL.search(asking)),
    )


def _denies_all(sentence: str) -> bool:
    """Whether a sentence says that there is nothing to be had."""
    if _NOTHING.search(sentence):
        return True
    denial = _NOT.search(sentence)
    return denial is not None and _WHAT_IS_NOT.search(sentence, denial.end()) is not None


CLOSED = {
    "area": ("north", "south", "east", "west", "centre"),
    "pricerange": ("cheap", "moderate", "expensive"),
    "day": tuple(DAYS),
    "stars": tuple("012345"),
    "people": tuple("123456789"),
    "stay": tuple("123456789"),
}
"""Values of which a customer knows all there are."""


@lru_cache(maxsize=1024)
def mentions(text: str) -> dict[str, frozenset[str]]:
    """Return the values of a kind that everybody knows which the agent names, by parameter."""
    text = normal(text)
    named = {
        slot: frozenset(value for value in values if last_mention(slot, value, text) >= 0)
        for slot, values in CLOSED.items()
    }
    return {slot: values for slot, values in named.items() if values}
