"""How ToolWOZ's parameters are spoken of: as a customer says them, as an agent asks for them.

The scripted customer says values with the phrases below, and recognises questions and answers; the
scripted expert recognises values. Values are always said literally, so whoever listens can.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

NOUNS = {
    "restaurant": ("restaurant", "place to eat"),
    "hotel": ("hotel", "place to stay"),
    "attraction": ("attraction", "place to visit"),
    "train": ("train",),
}
"""What each domain's entities are called."""

PHRASES: dict[str, tuple[str, ...]] = {
    "name": ("called {}", "named {}"),
    "area": ("in the {}", "in the {} part of town"),
    "food": ("that serves {} food", "with {} cuisine"),
    "pricerange": ("in the {} price range", "that is {}"),
    "type": ("of the type {}", "that is a {}"),
    "stars": ("with {} stars", "rated {} stars"),
    "departure": ("from {}", "departing from {}"),
    "destination": ("to {}", "going to {}"),
    "leaveAt": ("leaving after {}", "that leaves after {}"),
    "arriveBy": ("arriving by {}", "that arrives by {}"),
    "day": ("on {}",),
    "time": ("at {}",),
    "people": ("for {} people",),
    "stay": ("for {} nights",),
}
"""How a value is said; internet and parking are in :func:`phrase_variants`."""

_YES_NO = {"internet": ("free wifi", "internet"), "parking": ("free parking", "parking")}

QUESTIONS = {
    "name": r"\bin mind|(particular|specific) (one|name|place|hotel|restaurant|attraction)"
    r"|which (one|place|hotel|restaurant)|name of",
    "area": r"\barea|(part|side) of (the )?(town|city)|\bwhere\b|whereabouts|neighbou?rhood"
    r"|district|location",
    "food": r"food|cuisine|what .*\beat\b",
    "pricerange": r"price|budget|cheap|expensive|spend",
    "type": r"\btype|\bkind|\bsort\b|guest ?house",
    "stars": r"\bstar",
    "internet": r"wi-?fi|internet",
    "parking": r"parking",
    "departure": r"from (where|which)|depart|leav\w+ from|travell?ing from|where .*\bfrom\b",
    "destination": r"destination|to where|to which|where .*\b(go|going|to)\b|travell?ing to",
    "leaveAt": r"what time|which time|leav\w+ (after|at)|\bwhen\b|departure time|time .*leave",
    "arriveBy": r"what time|which time|arriv|\bwhen\b",
    "day": r"\bday|\bdate|\bwhen\b",
    "time": r"\btime|\bwhen\b",
    "people": r"how many (?!night|star|day)|\bpeople|\bparty|\bguests|\bpassengers",
    "stay": r"\bnights?\b|how long|how many days|(of|your|will you) stay\b|\bstay(ing)? for",
}
"""What a question about a parameter contains."""

_PRICE = r"£|pounds|gbp|\bfree\b|\$|price|cost|fee"
ANSWERS = {
    "phone": r"\d[\d ]{7,}\d|no phone",
    "postcode": r"\b[a-z]{2}\d{1,2} ?\d?[a-z]{2,3}\b|post ?code",
    "address": r"address|located at|street|road|\blane\b|avenue|square|\brow\b|\bhill\b|\bwalk\b",
    "entrance fee": _PRICE + r"|entrance|admission",
    "price": _PRICE,
    "duration": r"\d+ min|hour|duration",
    "area": r"\b(north|south|east|west|centre|center)\b",
    "pricerange": r"\b(cheap|moderate\w*|expensive|free)\b|price",
    "food": r"food|cuisine|serves|restaurant",
    "stars": r"\bstars?\b",
    "type": r"\btype|guest ?house|hotel|is an? \w+",
    "internet": r"wi-?fi|internet",
    "parking": r"parking",
    "leaveAt": r"(leav|depart)\w*.*\d\d:\d\d",
    "arriveBy": r"arriv\w*.*\d\d:\d\d",
    "trainID": r"\btr\d{3,4}\b",
    "reference": r"\b[a-z0-9]{8}\b",
}
"""What an answer with an attribute contains."""

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


ASKING = ("What is the {}?", "Can you tell me the {}?", "I would like to know the {}.")
"""How a customer asks for attributes."""

_ASKED = re.compile(r"\b(?:what is|tell me|know) the (.+)")


def asked_attributes(attributes: Sequence[str], text: str) -> list[str]:
    """Return which of the attributes a customer's words ask for."""
    asked = " ".join(match[1] for match in _ASKED.finditer(text.lower()))
    return [name for name in attributes if attribute_name(name).lower() in asked]


def phrase_variants(slot: str, value: str) -> tuple[str, ...]:
    """Return the ways to say that a parameter has a value."""
    if slot in _YES_NO:
        word = "without" if value.lower() == "no" else "with"
        return tuple(f"{word} {noun}" for noun in _YES_NO[slot])
    if slot in ("people", "stay") and value == "1":
        return ("for 1 person",) if slot == "people" else ("for 1 night",)
    return tuple(phrase.format(value) for phrase in PHRASES[slot])


def last_mention(slot: str, value: str, text: str) -> int:
    """Return where in ``text`` a value is said last, or -1."""
    literal = re.escape(value.lower())
    if slot in _YES_NO:
        noun = "|".join(_YES_NO[slot])
        pattern = rf"{'without' if value.lower() == 'no' else 'with'} ({noun})"
    elif slot == "people":
        pattern = rf"\b{literal} (people|person)"
    elif slot == "stay":
        pattern = rf"\b{literal} night"
    elif slot == "type":  # "hotel" is also what the customer calls any place to stay
        pattern = rf"(type|is an?) {literal}(?!\w)"
    elif slot == "stars":
        pattern = rf"\b{literal} star"
    else:
        pattern = rf"(?<!\w){literal}(?!\w)"
    return max((m.start() for m in re.finditer(pattern, text.lower())), default=-1)


def heard_values(candidates: Mapping[str, tuple[str, ...]], text: str) -> dict[str, str]:
    """Return the value of each parameter that ``text`` mentioned last, among its candidates."""
    heard = {}
    for slot, values in candidates.items():
        position, value = max((last_mention(slot, value, text), value) for value in values)
        if position >= 0:
            heard[slot] = value
    return heard


def sentences(text: str) -> list[str]:
    """Split a text into sentences, in lower case and with straight apostrophes."""
    text = text.lower().replace("’", "'")
    return [s.strip() for s in re.findall(r"[^.?!;\n]+(?:\.(?=\d)[^.?!;\n]+)*[.?!;\n]*", text)]


def attribute_name(attribute: str) -> str:
    """Return what an attribute is called in English."""
    return ATTRIBUTES.get(attribute, attribute)


def said(value: Any) -> str:
    """Return a table's value as it is said."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {v}" for name, v in value.items())
    return str(value)
