"""How ToolWOZ's parameters are spoken of: as a customer says them, as an agent asks for them.

The scripted customer says values with the phrases below, and recognises questions and answers; the
scripted agents recognise values. Values are always said literally, so whoever listens can.

No pattern has an open-ended gap in it, so that none takes more than linear time: agents may say
anything.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

ATTENTION = 4096
"""How many characters of what an agent says at a time are heard."""

NOUNS = {
    "restaurant": ("restaurant", "place to eat", "place to dine"),
    "hotel": ("place to stay", "place for the night"),
    "attraction": ("attraction", "place to visit"),
    "train": ("train",),
}
"""What each domain's entities are called. "Hotel" and "guesthouse" are types of places to stay."""

_DOMAINS = re.compile(
    r"(?<!called )(?<!named )(?<!name of )\b(?:(?P<restaurant>restaurants?|places? to (?:eat|dine))"
    r"|(?P<hotel>hotels?|guest ?houses?|places? (?:to stay|for the night))"
    r"|(?P<attraction>attractions?|places? to visit)|(?P<train>trains?))\b"
)

PHRASES: dict[str, tuple[str, ...]] = {
    "name": ("called {}", "named {}", "by the name of {}"),
    "area": ("in the {}", "in the {} of town", "located in the {}"),
    "food": ("that serves {} food", "serving {} food", "with {} food", "with {} cuisine"),
    "pricerange": ("in the {} price range", "that is {}", "with {} prices"),
    "stars": ("with {} stars", "rated {} stars", "that has {} stars"),
    "departure": ("from {}", "departing from {}", "leaving from {}"),
    "destination": ("to {}", "going to {}"),
    "leaveAt": ("leaving after {}", "that leaves after {}", "departing after {}"),
    "arriveBy": ("arriving by {}", "that arrives by {}", "getting in by {}"),
    "day": ("on {}",),
    "time": ("at {}",),
    "people": ("for {} people", "for a group of {} people"),
    "stay": ("for {} nights",),
}
"""How a value is said; types, internet and parking are in :func:`phrase_variants`."""

_BARE = {
    "stars": "{} stars", "departure": "from {}", "destination": "to {}", "leaveAt": "after {}",
    "arriveBy": "by {}", "people": "{} people", "stay": "{} nights", "time": "at {}",
}  # fmt: skip

_YES_NO = {"internet": ("free wifi", "internet", "wifi"), "parking": ("free parking", "parking")}

KINDS = (
    "hotel", "guesthouse", "museum", "park", "theatre", "cinema", "college", "nightclub",
    "swimmingpool", "concerthall",
)  # fmt: skip
"""Types that a place can be said to be: "a museum", but not "an architecture"."""

QUESTIONS = {
    "name": r"\bin mind|(particular|specific) (one|name|place|hotel|restaurant|attraction)"
    r"|which (one|place|hotel|restaurant|attraction)|name of",
    "area": r"\barea|(part|side) of (the )?(town|city)|\bwhere\b|whereabouts|neighbou?rhood"
    r"|district|location",
    "food": r"food|cuisine|what .{0,60}\beat\b",
    "pricerange": r"price|budget|cheap|expensive|spend",
    "type": r"\btype|\bkind|\bsort\b|guest ?house",
    "stars": r"\bstar",
    "internet": r"wi-?fi|internet",
    "parking": r"parking",
    "departure": r"from (where|which)|depart|leav\w{1,9} from|travell?ing from"
    r"|where .{0,60}\bfrom\b",
    "destination": r"destination|to where|to which|where .{0,60}\b(go|going|to)\b"
    r"|travell?ing to",
    "leaveAt": r"what time|which time|leav\w{1,9} (after|at)|\bwhen\b|departure time"
    r"|time .{0,60}leave",
    "arriveBy": r"what time|which time|arriv|\bwhen\b",
    "day": r"\bday|\bdate|\bwhen\b",
    "time": r"\btime|\bwhen\b",
    "people": r"how many (?!night|star|day)|\bpeople|\bparty|\bguests|\bpassengers",
    "stay": r"\bnights?\b|how long|how many days|(of|your|will you) stay\b|\bstay(ing)? for",
}
"""What a question about a parameter contains."""

_TYPES = (
    r"hotel|guest ?house|museum|park|theat(?:re|er)|cinema|college|night ?club|swimming ?pool"
    r"|concert ?hall|boat|architecture|entertainment|sports|church|gallery"
)
_IS = r"(?:is|:|are|was)"
_PRICE = rf"£|\bpounds?\b|\bgbp\b|\$ ?\d|\bfree\b|(?:price|cost|fee|admission)s? {_IS}"
ANSWERS = {
    "phone": r"\d[\d ]{7,20}\d",
    "postcode": r"\b[a-z]{1,2}\d{1,2} ?\d[a-z]{2}\b",
    "address": r"located at|\b(?:street|road|lane|avenue|square|row|hill|walk|quay|way)\b",
    "entrance fee": _PRICE,
    "price": _PRICE,
    "duration": r"\d ?min|\bhours?\b",
    "area": r"\b(?:north|south|east|west|centre|center)\b",
    "pricerange": r"\b(?:cheap|moderate\w{0,2}|expensive|free)\b",
    "food": r"\bserv(?:es?|ing) \w|\b(?!(?:a|an|the|this|that|of|any|such|nice|good|great|cheap"
    r"|moderate|expensive) )\w{3,20} (?:food|cuisine|restaurant|place)\b",
    "stars": r"(?:\d|\b(?:zero|one|two|three|four|five))[ -]stars?\b",
    "type": rf"\b(?:{_TYPES})\b",
    "internet": r"wi-?fi|internet",
    "parking": r"parking",
    "leaveAt": r"(?:leav|depart).{0,60}\d\d:\d\d",
    "arriveBy": r"arriv.{0,60}\d\d:\d\d",
    "trainID": r"\btr\d{3,4}\b",
    "reference": r"\b(?=[a-z]{0,7}\d)[a-z0-9]{8}\b",
}
"""What an answer with an attribute contains, where it does not name the attribute."""

ATTRIBUTES = {
    "phone": "phone number",
    "entrance fee": "entrance fee",
    "pricerange": "price range",
    "leaveAt": "departure time",
    "arriveBy": "arrival time",
    "trainID": "train number",
    "price": "price",
    "duration": "travel time",
    "internet": "internet access",
    "food": "kind of food",
    "stars": "number of stars",
}
"""What attributes are called in English, where not by their own name."""

_ASKING = re.compile(
    r"\b(?:what is|what about|tell me|give me|know|does it have|do they have|is there)\b"
)
"""What a customer says when it asks for attributes."""

_WANTS_BOOKING = re.compile(r"\bbook\b")

_INDIFFERENT = re.compile(r"\b(?:not mind|will do|not matter|any .{1,40} is fine|no wish)\b")


def asked_attributes(attributes: Iterable[str], text: str) -> list[str]:
    """Return which of the attributes a customer's words ask for."""
    asking = " ".join(
        s for s in sentences(text) if _ASKING.search(s) or (s.endswith("?") and "find" not in s)
    )
    return [
        name
        for name in attributes
        if re.search(rf"\b{attribute_name(name).lower()}\b", asking)
        or (name in _YES_NO and re.search(rf"(?:have|there|and) {name}\b", asking))
    ]


def asks_to_book(text: str) -> bool:
    """Whether a customer asks to have something booked."""
    return _WANTS_BOOKING.search(text.lower()) is not None


def is_indifferent(sentence: str) -> bool:
    """Whether a customer's sentence says that something does not matter."""
    return _INDIFFERENT.search(sentence) is not None


def phrase_variants(slot: str, value: str) -> tuple[str, ...]:
    """Return the ways to say that a parameter has a value."""
    no = value.lower() == "no"
    if slot in _YES_NO:
        heads = ("without", "that has no") if no else ("with", "that has")
        return tuple(f"{head} {noun}" for noun in _YES_NO[slot][no:] for head in heads)
    if slot == "type":
        return (f"that is a {value}",) if value in KINDS else (f"of the type {value}",)
    return tuple(_singular(slot, value, phrase.format(value)) for phrase in PHRASES[slot])


def bare_phrase(slot: str, value: str) -> str:
    """Return the shortest way to say that a parameter has a value."""
    if slot in _YES_NO:
        return ("no " if value.lower() == "no" else "") + _YES_NO[slot][-1]
    return _singular(slot, value, _BARE.get(slot, "{}").format(value))


def _singular(slot: str, value: str, phrase: str) -> str:
    if value != "1" or slot not in ("people", "stay", "stars"):
        return phrase
    return phrase.replace("a group of ", "").replace("people", "person").removesuffix("s")


def last_mention(slot: str, value: str, text: str) -> int:
    """Return where the last mention of a value in ``text`` ends, or -1.

    Args:
        slot: The parameter.
        value: Its value.
        text: As :func:`normal` leaves it.
    """
    word = "" if slot in _YES_NO else normal(value)
    if word not in text:
        return -1
    return max((m.end() for m in _mention(slot, word, value).finditer(text)), default=-1)


@lru_cache(maxsize=4096)
def _mention(slot: str, word: str, value: str) -> re.Pattern[str]:
    literal = re.escape(word)
    if slot in _YES_NO:
        noun = (
            rf"(?:any )?(?:free )?{_YES_NO[slot][-1] if slot == 'parking' else '(?:wifi|internet)'}"
        )
        denied = r"\b(?:without|no|not need) "
        if value.lower() == "no":
            return re.compile(denied + noun)
        return re.compile(rf"(?<!without )(?<!no )(?<!need )(?<!any )(?<!free )\b{noun}\b")
    patterns = {
        "people": rf"\b{literal} (?:people|person|of us|guests?)\b",
        "stay": rf"\b{literal} nights?\b",
        "stars": rf"\b{literal}[ -]stars?\b",
        "departure": rf"\bfrom {literal}(?!\w)",
        "destination": rf"\bto {literal}(?!\w)",
        "leaveAt": rf"\bafter {literal}\b",
        "arriveBy": rf"\b(?:by|before) {literal}\b",
        "time": rf"(?<!after )(?<!by )(?<!before )\b{literal}\b",
    }
    return re.compile(patterns.get(slot, rf"(?<!\w){literal}(?!\w)"))


_OPAQUE = ("name", "food")
"""Parameters in whose values others can seem to be named: "north american", "city centre north"."""


def heard_values(candidates: Mapping[str, Sequence[str]], text: str) -> dict[str, str]:
    """Return the value of each parameter that ``text`` mentioned last, among its candidates."""
    text, heard = normal(text), dict[str, str]()
    for slot in sorted(candidates, key=lambda slot: slot not in _OPAQUE):
        mentions = [(last_mention(slot, v, text), len(v), v) for v in candidates[slot]]
        spoken = sorted(mention for mention in mentions if mention[0] >= 0)
        if spoken:
            heard[slot] = spoken[-1][2]
        if slot in _OPAQUE:
            for _, _, value in sorted(spoken, key=lambda mention: -mention[1]):
                text = text.replace(normal(value), "it")
    return heard


_NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
)  # fmt: skip
_SPELLINGS = {
    "center": "centre", "guest house": "guesthouse", "moderately": "moderate",
    "inexpensive": "cheap", "wi-fi": "wifi", "swimming pool": "swimmingpool",
    **{word: str(number) for number, word in enumerate(_NUMBERS)},
}  # fmt: skip
_SPELLED = re.compile(
    rf"\b(?:center|guest house|moderately|inexpensive|wi-fi|swimming pool"
    rf"|(?:{'|'.join(_NUMBERS)})(?=[ -](?:people|person|guest|of us|night|star)))"
)


def normal(text: str) -> str:
    """Return a text in lower case, with plain apostrophes and one spelling of each value."""
    text = text.lower().replace("’", "'")
    return _SPELLED.sub(lambda match: _SPELLINGS[match[0]], text)


KEYWORDS = (
    "restaurant", "attraction", "train", "place", "visit", "night", "nights", "people", "person",
    "book", "phone", "number", "address", "postcode", "entrance", "price", "range", "departure",
    "arrival", "travel", "leaving", "departing", "arriving",
)  # fmt: skip
"""Words that listeners go by, and that typing in haste spoils."""


def misspellings(word: str) -> list[str]:
    """Return what becomes of a word when a letter inside it is missing, doubled, or too early."""
    inside = range(1, len(word) - 1)
    spoilt = {word[:i] + word[i + 1 :] for i in inside}
    spoilt |= {word[:i] + word[i] + word[i:] for i in inside}
    spoilt |= {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in inside}
    return sorted(spoilt - {word})


_MEANT = {spoilt: word for word in KEYWORDS for spoilt in misspellings(word)}


def mended(text: str) -> str:
    """Return a text in lower case, its keywords spelt right."""
    return re.sub(r"[a-z]+", lambda m: _MEANT.get(m[0], m[0]), text.lower())


def named_domain(text: str) -> str | None:
    """Return the domain that a customer names first, if it names one."""
    return next(iter(domains_named(text)), None)


def domains_named(text: str) -> list[str]:
    """Return the domains that a text names, in order."""
    return [match.lastgroup or "" for match in _DOMAINS.finditer(text.lower())]


def by_domain(text: str, current: str, others: Collection[str]) -> list[tuple[str, str]]:
    """Split a customer's words by what they are about.

    Args:
        text: What it says.
        current: The domain that it is about until it names another one.
        others: Which other domains it can be about.

    Returns:
        Domains, each with the sentences about it, in order.
    """
    parts: list[tuple[str, str]] = []
    for sentence in sentences(text):
        named = (match.lastgroup or "" for match in _DOMAINS.finditer(sentence))
        current = next((d for d in named if d == current or d in others), current)
        if parts and parts[-1][0] == current:
            parts[-1] = current, f"{parts[-1][1]} {sentence}"
        else:
            parts.append((current, sentence))
    return parts


_SENTENCE = re.compile(r"[^.?!;\n]+(?:\.(?=\d)[^.?!;\n]+)*[.?!;\n]*")


def sentences(text: str) -> list[str]:
    """Split a text into sentences, in lower case and with straight apostrophes."""
    text = text.lower().replace("’", "'")
    return [stripped for s in _SENTENCE.findall(text) if (stripped := s.strip())]


def attribute_name(attribute: str) -> str:
    """Return what an attribute is called in English."""
    return ATTRIBUTES.get(attribute, attribute)


def said(value: Any) -> str:
    """Return a table's value as it is said."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {v}" for name, v in value.items())
    return str(value)
