"""Which values an agent's words give to an attribute: how ToolWOZ-v1 judges answers.

What counts is the value itself, in any spelling that a reader takes for the same: "£10.10" for
"10.10 pounds", "1 hour and 19 minutes" for "79 minutes", "swimming pool" for "swimmingpool". All
values of a kind count, so that who names two of them has told neither.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from toolwoz_gym.toolwoz.speech import folded
from toolwoz_gym.toolwoz.tables import minute_of, plain

_UNKNOWN = frozenset(("", "?", "none", "null", "unknown"))
"""How the databases say that they do not know."""


def is_known(value: Any) -> bool:
    """Return whether the database has a value that could be told."""
    return isinstance(value, (str, int, float)) and plain(value) not in _UNKNOWN


def tells(
    attribute: str,
    value: Any,
    stated: Sequence[str],
    denied: Sequence[str] = (),
    *,
    asked: str = "",
    column: Sequence[str] = (),
) -> bool | None:
    """Return whether words give an attribute its value.

    Args:
        attribute: The column that the value stands in.
        value: What the database has; see :func:`is_known`.
        stated: What was stated of the row, in lower case, without the names of rows.
        denied: What was denied of it.
        asked: What the customer said just before: "Yes, it has." is an answer to some question.
        column: All values of the column, in lower case.

    Returns:
        True: this value and no other. False: another value, or not this one. None: no value.
    """
    right = _value(attribute, folded(str(value)).strip())
    told = {v for text in stated for v in _values(attribute, text, column, right)}
    refuted = {v for text in denied for v in _values(attribute, text, column, right)}
    if not told and isinstance(right, str) and attribute in _SPELT:
        # In no usual form: a postcode with a letter too many, a name without its apostrophe.
        told = {right} if any(_is_spelt(attribute, right, text) for text in stated) else set()
    if attribute in _FEATURES:
        noun = _FEATURES[attribute]  # "not no" is yes
        told |= {_NOT_NO.search(text) is not None for text in denied if re.search(noun, text)}
        if not told and re.search(_FEATURES[attribute], folded(asked)):
            answers = (_YES_OR_NO.match(text) for text in (*stated, *denied))
            told = {answer["yes"] is not None for answer in answers if answer}
        refuted = set()
    elif attribute == "entrance fee":
        told |= {0.0 for text in denied if _NO_FEE.search(text)}
    elif attribute == "stars" and "0" in refuted:  # "it has no stars"
        told, refuted = told | {"0"}, refuted - {"0"}
    if (
        attribute in ("price", "entrance fee")
        and right in told
        and isinstance(right, float)
        and right
    ):
        # For several tickets it is a multiple.
        several = any(_SEVERAL.search(text) for text in stated)
        multiples = {v for v in told if isinstance(v, float) and v and v % right < 0.001}
        told = told - multiples | {right} if several else told
    if told:
        return told == {right} and right not in refuted
    if right in refuted and (attribute not in COMMON or any(_IS_NOT.search(d) for d in denied)):
        return False
    return None


_SPELT = ("phone", "postcode", "address", "name", "openhours")
"""Attributes whose values are found wherever they stand."""

COMMON = ("area", "pricerange", "food", "type")
"""Attributes whose values stand in sentences about other things: "no other place in the north"."""

_IS_NOT = re.compile(
    r"(?:\b(?:is|are|was)(?: not|n't| never)|\b(?:it's|its) not)\b"
    r"(?! (?:an?other|any|provided|available|offered|included|allowed|possible|open))"
)


def _value(attribute: str, text: str) -> Hashable:
    """Return a database's value as :func:`_values` returns it."""
    if attribute in _FEATURES:
        return text != "no"
    if attribute in ("price", "entrance fee"):
        amount = _NUMBER.search(text)
        return float(amount[0]) if amount else 0.0 if text == "free" else text
    if attribute == "duration" and (amount := _NUMBER.search(text)):
        return int(float(amount[0]))
    if attribute in ("leaveAt", "arriveBy") and (minute := minute_of(text)) is not None:
        return minute % _DAY
    if attribute in ("phone", "postcode"):
        return re.sub(r"[\W_]", "", text)
    return text


def _values(
    attribute: str, text: str, column: Sequence[str], right: Hashable
) -> Iterator[Hashable]:
    """Yield all values that a text gives to an attribute."""
    if attribute in _FEATURES:
        if re.search(_FEATURES[attribute], text):
            yield True
    elif attribute in ("price", "entrance fee"):
        yield from _prices(attribute, text)
    elif attribute == "duration":
        yield from _minutes(text)
    elif attribute in ("leaveAt", "arriveBy"):
        yield from _times(attribute, text)
    elif attribute == "stars":
        yield from _stars(text)
    elif attribute == "phone":
        for match in _PHONE.finditer(text):
            digits = re.sub(r"\D", "", match[0])
            if len(digits) >= 7 and not _is_of_another(attribute, text, match.start()):
                yield re.sub(r"^(?:00)?44(?=\d{10}$)", "0", digits)
    elif attribute == "postcode":
        for match in _POSTCODE.finditer(text):
            if not _is_of_another(attribute, text, match.start()):
                yield re.sub(r"[\W_]", "", match[0])
    elif attribute == "trainID":
        yield from (f"tr{digits}" for digits in re.findall(r"\btr[ -]?(\d{3,4})\b", text))
    else:
        yield from _words(attribute, text, tuple(column), str(right))


_DAY = 24 * 60
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_PHONE = re.compile(r"(?<![\w.])\+?\(?\d(?:[ ()/.-]{0,3}\d){6,15}(?!\w)")
_POSTCODE = re.compile(
    r"(?<![^\W_])[a-z]{1,2}[\W_]{0,3}\d(?:[\W_]{0,3}\d){1,3}[\W_]{0,3}[a-z][\W_]{0,3}[a-z](?![^\W_])"
)

_FEATURES = {
    "internet": r"\b(?:internet|wi-?fi)\b(?!-free)",
    "parking": r"\b(?:parking|car park)\b",
}
"""Attributes that are yes or no, and what they are called."""

_NOT_NO = re.compile(r"(?:\bnot|n't) (?:a )?no\b")

_YES_OR_NO = re.compile(
    r"\W*(?:(?P<yes>yes|yeah|yep|(?:it|they) (?:\w{4,10} )?do(?:es)?\b(?! not|n't))|no\b|it does"
    r"|they do|(?:unfortunately|sadly|sorry|i'm afraid|i am afraid),? (?:no|not)\b)"
    r"(?! (?:problem|worries))"
)

_FREE = re.compile(
    r"(?<!feel )(?<!go )\bfree\b"
    r"(?! (?:wi-?fi|internet|parking|to (?:ask|call|contact|let|book)|of (?!charge)"
    r"|for (?:children|kids|students|under)))"
)
_NO_FEE = re.compile(
    r"\bno (?:\w{1,10} )?(?:fees?|charges?|cost)\b|(?:\bnot|n't) (?:charge|cost)\b"
)
_SEVERAL = re.compile(
    r"\b(?:each|per|total|altogether|in all|all|both|people|tickets?|for (?:the|\d|two|three|four"
    r"|five|six|seven|eight))\b"
)
_PAID = re.compile(r"\b(?:prices?|costs?|fees?|fare|admission|entrance|entry|tickets?)\b")
_BARE_NUMBER = re.compile(
    r"(?<![\w:.€-])\d{1,3}(?:\.\d{1,2})?(?![\w:]|\.\d| ?(?:stars?|people|persons?|passengers?"
    r"|tickets?|min|hours?|nights?|%|euros?|€|dollars?|p\b|pence|kilos?|million|thousand"
    r"|[a-z]+ (?:street|road|lane|avenue|square|row|hill|walk|way)))"
)


_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_WORDS_OF_MONEY = re.compile(rf"\b(?:{'|'.join(_NUMBERS)})(?= (?:pounds?|quid|gbp)\b)")


def _prices(attribute: str, text: str) -> set[float]:
    """Return the sums of money in a sentence."""
    amount = r"((?<!\d)\d{1,9}(?:\.\d{1,9})?)"  # bounded: a text of digits is no price to search
    pence = r"(?:,? (?:and )?(\d\d?) ?(?:pence|p)\b)?"
    pattern = (
        rf"(?:£|gbp)\s?{amount}(?!\.?\d| (?:million|thousand))"
        rf"|{amount}\s?(?:pounds?\b|gbp\b|£|quid\b){pence}"
    )
    text = _WORDS_OF_MONEY.sub(lambda match: str(_NUMBERS.index(match[0])), text)
    told = {
        float(match[1] or match[2]) + float(match[3] or 0) / 100
        for match in re.finditer(pattern, text)
        if not _is_qualified(text, match.start())
    }
    if not told and _PAID.search(text):
        told = {
            float(match[0])
            for match in _BARE_NUMBER.finditer(text)
            if not _is_of_another(attribute, text, match.start())
        }
    if attribute == "entrance fee" and _FREE.search(text):
        told.add(0.0)
    return told


def _minutes(text: str) -> set[int]:
    """Return the lengths of time in a text, in minutes."""
    hours = (
        r"(?:(?P<hours>\d{1,3}|an|one|two|three)[ -]?(?:hours?|hrs?|h)(?![a-z])(?:,? (?:and )?)?)?"
    )
    minutes = (
        r"(?:(?P<minutes>\d{1,4})[ -]?(?:minutes?|mins?|m)\b"
        r"(?! (?:walk|away|drive|from|more|longer|late|early)))?"
    )
    told = set()
    for match in re.finditer(rf"\b(?=\d|an |one|two|three){hours}{minutes}", text):
        if (match["hours"] or match["minutes"]) and not _is_qualified(text, match.start()):
            whole = match["hours"] or "0"
            number = {"an": 1, "one": 1, "two": 2, "three": 3}.get(whole)
            told.add(60 * (int(whole) if number is None else number) + int(match["minutes"] or 0))
    return told


_TIMETABLE = re.compile(
    r"(?P<leaveAt>\b(?:leav|depart|pulls? out|sets? off|start)\w{0,6})"
    r"|(?P<arriveBy>\b(?:arriv\w{1,4}|gets? (?:you )?(?:in|there|to)|reach\w{0,3}))"
    r"|(?P<bound>\b(?:after|before|than|until|since) {1,2})?"
    r"(?<![£\d])\b(?P<time>(?P<hour>\d{1,2})[:.](?P<minute>\d\d)(?!\d)\s?(?P<half>[ap]m\b)?)"
    r"(?P<arrival>\s?-? ?arriv)?(?! ?(?:pounds?|gbp|£))"
)


_RANGE = re.compile(r"\b(\d{1,2}:\d\d) ?(?:-|–|—|→|to|until) ?(\d{1,2}:\d\d)\b")
"""A departure and an arrival: "17:15 - 18:34"."""


def _times(attribute: str, text: str) -> set[int]:
    """Return the times of day that a sentence gives to departure or arrival, in minutes."""
    told: dict[str, set[int]] = {"leaveAt": set(), "arriveBy": set(), "": set()}
    about = ""
    text = _RANGE.sub(r"leaves \1, arrives \2", text)
    for match in _TIMETABLE.finditer(text):
        if match["time"] is None:
            about = match.lastgroup or ""
        elif match["bound"] is None:
            hour, minute = int(match["hour"]), int(match["minute"])
            if match["half"]:
                hour = hour % 12 + 12 * match["half"].startswith("p")
            label = "arriveBy" if match["arrival"] else about
            told[label].add((60 * hour + minute) % _DAY)
    return told[attribute] or (told[""] if len(told[""]) == 1 else set())


def _stars(text: str) -> set[str]:
    """Return the numbers of stars in a text."""
    words = _NUMBERS[:6]
    text = re.sub(r"\b([\w.]{1,5}) ?(?:out of|/) ?(?:5|five)(?= stars?\b)", r"\1", text)
    number = rf"\b(\d|{'|'.join(words)})"
    found = re.findall(rf"{number}[ -]{{0,3}}stars?\b", text)
    found += re.findall(rf"\bstars?\b[^.!?\n]{{0,20}}?{number}\b(?! ?-? ?stars?)", text)
    return {str(words.index(n)) if n in words else n for n in found} | (
        {"0"} if re.search(r"\bno stars?\b|\bunrated\b", text) else set()
    )


_SPELLINGS = {
    "centre": ("centre", "center", "central"),
    "guesthouse": ("guesthouse", "guest house", "bed and breakfast", "b b"),
    "moderate": ("moderate", "moderately", "mid range", "mid priced"),
    "cheap": ("cheap", "inexpensive"),
    "swimmingpool": ("swimmingpool", "swimming pool"),
    "nightclub": ("nightclub", "night club"),
    "concerthall": ("concerthall", "concert hall"),
    "theatre": ("theatre", "theater"),
    "mutliple sports": ("mutliple sports", "multiple sports"),
}
"""What people say for a value besides the value."""

_STREET = r"(?:street|road|lane|avenue|square|row|hill|walk|quay|way|terrace)"
_NOT_THAT = {
    "area": re.compile(rf"\b(?:north|south|east|west) {_STREET}\b|\bnorth (?:american|african)\b"),
    "pricerange": re.compile(r"\b(?:less|more|most|least|very un) expensive\b"),
    "type": re.compile(r"\bcar park\b|\bpark street\b"),
}
"""Words that look like a value of an attribute and are none."""

_A_HOTEL = re.compile(r"\b(?:an?|is|type) (?:[a-z0-9]+ ){0,3}hotel$")

_ADDRESS = re.compile(rf"\b\d{{1,3}}[a-z]? (?:[a-z]+ ){{1,2}}{_STREET}\b")


def _words(attribute: str, text: str, column: tuple[str, ...], right: str) -> set[str]:
    """Return the values of a column that a text names, longer ones before what they contain."""
    flat = f" {_flat(text)} "
    told = set()
    for spelling, value in _spellings(column, right):
        start = flat.find(f" {spelling} ")
        while start >= 0:
            end = start + len(spelling) + 1
            if not (
                _is_of_another(attribute, flat, start + 1)
                or _is_part_of_another(attribute, flat, start + 1, end)
            ):
                told.add(value)
            # Blanked, so that what it contains is not found too.
            flat = f"{flat[: start + 1]}{'~' * len(spelling)}{flat[end:]}"
            start = flat.find(f" {spelling} ", end)
    if attribute == "address" and told:
        told |= set(_ADDRESS.findall(flat))
    return told


def _is_part_of_another(attribute: str, flat: str, start: int, end: int) -> bool:
    if attribute == "type" and flat[start:end] == "hotel":  # "the hotel is a guesthouse"
        return _A_HOTEL.search(flat, max(0, start - 60), end) is None
    pattern = _NOT_THAT.get(attribute)
    return pattern is not None and any(
        m.start() <= start and end <= m.end() for m in pattern.finditer(flat)
    )


@lru_cache(maxsize=256)
def _spellings(column: tuple[str, ...], right: str) -> tuple[tuple[str, str], ...]:
    """Return what to look for, the longest first, each with the value that it spells."""
    found = {
        _flat(spelling): value
        for value in dict.fromkeys((*column, right))
        for spelling in _SPELLINGS.get(value, (value,))
    }
    return tuple(sorted(found.items(), key=lambda item: (-len(item[0]), item)))


def _flat(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text).strip()


def _is_spelt(attribute: str, value: str, text: str) -> bool:
    """Return whether a text has a value's letters and digits in a row, as a word of its own."""
    pattern = r"[\W_]{0,3}".join(map(re.escape, re.findall(r"[^\W_]", value)))
    found = re.finditer(rf"(?<![^\W_]){pattern}(?![^\W_])", text)
    return any(not _is_of_another(attribute, text, match.start()) for match in found)


_LABELS: dict[str, tuple[str, Iterable[str]]] = {
    "phone": (r"(?:tele)?phone(?: number)?|mobile(?: number)?", ("phone",)),
    "postcode": (r"post ?code|postal code|zip(?: code)?", ("postcode",)),
    "address": (r"address", ("address",)),
    "fee": (r"(?:entrance|entry|admission)(?: fee| price)?", ("entrance fee",)),
    "pricerange": (r"price range", ("pricerange",)),
    "price": (r"price|costs?|fare|fee", ("price", "pricerange", "entrance fee")),
    "area": (r"area|part of town", ("area",)),
    "food": (r"(?:kind of )?food|cuisine", ("food",)),
    "type": (r"type", ("type", "food")),
    "stars": (r"number of stars|(?<!\w[ -])stars|rating", ("stars",)),
    "duration": (r"travel time|duration", ("duration",)),
    "times": (r"(?:departure|arrival) time", ("leaveAt", "arriveBy")),
    "train": (r"train (?:number|id)", ("trainID",)),
    "reference": (
        r"fax(?: number)?|ref|reference(?: number)?|confirmation(?: number)?|booking number",
        (),
    ),
}
"""What attributes are called, and which of them each name can mean."""

_LABEL = re.compile(
    rf"\b(?:{'|'.join(f'(?P<{name}>{label})' for name, (label, _) in _LABELS.items())})"
    r"\W{0,3}(?:is|was|are)?\W{0,3}(?:the |an? )?$"
)


_NOT_IT = re.compile(
    r"\b(?:near|nearly|opposite|next to|close to|similar to|than|but|changed from|differs? from"
    r"|at least|at most|up to|non|minus|over|under|below|above|twice|double|half of|avoid"
    r"|beware of|fewer|comes after|rhymes with|(?:discount|deposit|parking|taxi|coffee"
    r"|book)(?: \w{1,6}){0,3})\W{1,3}$"
)
"""Words after which a value is none."""


def _is_qualified(text: str, start: int) -> bool:
    return _NOT_IT.search(text, max(0, start - 40), start) is not None


def _is_of_another(attribute: str, text: str, start: int) -> bool:
    """Whether the value that begins at ``start`` is called something else: "postcode: 01..."."""
    if _is_qualified(text, start):
        return True
    label = _LABEL.search(text, max(0, start - 60), start)
    return label is not None and attribute not in _LABELS[label.lastgroup or ""][1]
