"""Whether an agent told the customer what the database has: how ToolWOZ-v1 judges words.

What counts is the value itself, in any spelling that a reader takes for the same: "£10.10" for
"10.10 pounds", "1 hour and 19 minutes" for "79 minutes", "swimming pool" for "swimmingpool".
"""

from __future__ import annotations

import re
from typing import Any

from toolwoz_gym.toolwoz.tables import minute_of, plain

_UNKNOWN = frozenset(("", "?", "none", "null", "unknown"))
"""How the databases say that they do not know."""


def is_known(value: Any) -> bool:
    """Return whether the database has a value that could be told."""
    return isinstance(value, (str, int, float)) and plain(value) not in _UNKNOWN


def tells(text: str, attribute: str, value: Any, *, asked: str = "") -> bool:
    """Return whether words tell a value.

    Args:
        text: What the agent said.
        attribute: The column that the value stands in.
        value: What the database has; see :func:`is_known`.
        asked: What the customer said just before: "Yes, it has." is an answer to some question.
    """
    text, wanted = _folded(text), _folded(str(value))
    if attribute in _FEATURES:
        return _features_told(attribute, text, _folded(asked)) == {wanted != "no"}
    if attribute in ("price", "entrance fee") and (amount := _AMOUNT.search(wanted)):
        return float(amount[0]) in _prices_told(text)
    if attribute == "entrance fee" and wanted == "free":
        return _FREE.search(text) is not None
    if attribute == "duration" and (amount := _AMOUNT.search(wanted)):
        return int(float(amount[0])) in _minutes_told(text)
    if attribute in ("leaveAt", "arriveBy") and (minute := minute_of(wanted)) is not None:
        return minute % _DAY in _times_told(text)
    if attribute == "stars":
        return wanted in _stars_told(text)
    return any(_is_spelt(spelling, text) for spelling in _SYNONYMS.get(wanted, (wanted,)))


_DAY = 24 * 60
_AMOUNT = re.compile(r"\d+(?:\.\d+)?")

_FREE = re.compile(r"\bfree\b(?! (wi-?fi|internet|parking))|\bno (\w+ )?(fee|charge)")

_SYNONYMS = {
    "centre": ("centre", "center", "central"),
    "guesthouse": ("guesthouse", "bed and breakfast"),
    "moderate": ("moderate", "moderately", "mid-range", "mid-priced"),
    "cheap": ("cheap", "inexpensive"),
}
"""What people say for a value besides the value."""

_FEATURES = {"internet": r"\b(internet|wi-?fi)\b", "parking": r"\b(parking|car park)\b"}
"""Attributes that are yes or no, and what they are called."""

_NOT = re.compile(r"\b(no|not|without|neither|nor|lacks?|cannot)\b|n't\b")

# "It has free wifi and no parking" is two clauses, "it has no wifi and parking" is one.
_CLAUSES = re.compile(
    r"[.!;\n,]+|\b(?:but|although|however|though)\b"
    r"|\band (?=(?:no|not|free|with|without|has|have|it|there|offers?)\b)"
)


def _features_told(attribute: str, text: str, asked: str) -> set[bool]:
    """Return whether the place has a feature, as the text says it: both, if it says both."""
    told = set()
    noun = _FEATURES[attribute]
    for sentence in re.findall(r"[^.?!\n]+[.?!\n]*", text):
        if not sentence.rstrip().endswith("?"):
            clauses = [c for c in _CLAUSES.split(sentence) if re.search(noun, c)]
            told |= {_NOT.search(clause) is None for clause in clauses}
    answer = re.match(r"\W*(yes|yeah|yep|no)\b(?! (problem|worries))", text)
    if not told and answer and re.search(noun, asked):
        told = {answer[1] != "no"}
    return told


def _prices_told(text: str) -> set[float]:
    """Return the sums of money in a text."""
    amount = r"((?<!\d)\d{1,9}(?:\.\d{1,9})?)"  # bounded: a text of digits is no price to search
    pattern = rf"(?:£|gbp)\s?{amount}|{amount}\s?(?:pounds?\b|gbp\b|£)"
    told = {float(a or b) for a, b in re.findall(pattern, text)}
    for sentence in re.split(r"[!?\n]|\.(?!\d)", text):
        if re.search(r"\b(price|cost|fee|fare|admission|entrance|ticket)", sentence):
            told |= {float(number) for number in _AMOUNT.findall(sentence)}
    return told


def _minutes_told(text: str) -> set[int]:
    """Return the lengths of time in a text, in minutes."""
    minutes = r"(\d{1,4})[ -]?(?:minutes?|mins?)\b"
    hours = r"(\d{1,3}|an|one|two|three)[ -]?(?:hours?|hrs?|h)\b"
    told = {int(number) for number in re.findall(minutes, text)}
    for hour, rest in re.findall(rf"\b{hours}(?:,? (?:and )?{minutes})?", text):
        number = {"an": 1, "one": 1, "two": 2, "three": 3}.get(hour)
        told.add(60 * (int(hour) if number is None else number) + int(rest or 0))
    return told


def _times_told(text: str) -> set[int]:
    """Return the times of day in a text, as minutes of the day."""
    pattern = r"\b(\d{1,2})[:.](\d\d)(?!\d)\s?([ap]\.?m\b)?"
    return {_minute(int(h), int(m), half) for h, m, half in re.findall(pattern, text)}


def _minute(hour: int, minute: int, half: str) -> int:
    if half:
        hour = hour % 12 + 12 * half.startswith("p")
    return (60 * hour + minute) % _DAY


def _stars_told(text: str) -> set[str]:
    """Return the numbers of stars in a text."""
    words = ("zero", "one", "two", "three", "four", "five")
    number = rf"\b(\d|{'|'.join(words)})"
    found = re.findall(rf"{number}[ -]?stars?\b", text)
    found += re.findall(rf"\bstars?\b[^.!?\n]{{0,20}}?{number}\b", text)
    return {str(words.index(n)) if n in words else n for n in found} | (
        {"0"} if re.search(r"\bno stars?\b|\bunrated\b", text) else set()
    )


def _is_spelt(value: str, text: str) -> bool:
    """Return whether a text has a value's letters and digits in a row, as a word of its own."""
    letters = re.findall(r"[^\W_]", value)
    pattern = r"[\W_]{0,3}".join(map(re.escape, letters))
    return re.search(rf"(?<![^\W_]){pattern}(?![^\W_])", text) is not None


def _folded(text: str) -> str:
    return text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
