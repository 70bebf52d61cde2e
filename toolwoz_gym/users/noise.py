"""What makes a customer harder to serve: typos, small talk, wrong values that it takes back.

Everything grows with one number from 0 to 1, the noise. A careful listener can serve a customer at
any noise: values are spelt right, and whatever was said wrongly is put right before it matters.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from toolwoz_gym.seeding import Luck
from toolwoz_gym.toolwoz.lexicon import KEYWORDS, misspellings
from toolwoz_gym.toolwoz.tools import DAYS

TYPO = 0.25
"""Chance of a typo in a word that may have one, at noise 1. The other chances are at noise 1 too,
and all of them are in proportion to the noise."""
HABIT = 0.8
"""Chance that a message is terse or chatty, whichever is the customer's habit."""
CHANGE_OF_MIND = 0.5
"""Chance that it says something wrongly at first: of each search, and of each booking."""
AHEAD = 0.4
"""Chance that it tells what it wants to book along with the search; and that it names its next wish
when it comes with the first."""
CORRECTION = 0.8
"""Chance that it corrects the agent who names something other than it has said."""

SMALL_TALK = (
    "I have never been here before.",
    "It is my birthday soon.",
    "My sister told me about this service.",
    "The weather is lovely, by the way.",
    "We have been planning this trip for weeks.",
    "You are very kind.",
    "My children are so excited.",
    "I am a bit tired, to be honest.",
    "I hope you are well.",
    "We got lost twice already.",
    "Work has been so busy lately.",
    "I have been looking forward to this.",
    "My husband usually does these things.",
    "I should have done this earlier.",
    "Sorry, my dog is barking.",
    "This is for a little family reunion.",
)
"""What chatty customers say besides. Nothing in it can be taken for a wish."""

_TYPED_BADLY = frozenset(
    (
        *KEYWORDS,
        "looking", "would", "please", "could", "hello", "thank", "thanks", "goodbye", "morning",
        "afternoon", "hoping", "really", "think", "sorry", "great", "should", "serves", "serving",
        "cuisine", "called", "named", "rated", "located", "perfect", "wonder", "about",
    )
)  # fmt: skip
"""Words that may have a typo."""

_WRONG: Mapping[str, Sequence[str]] = {
    "area": ("north", "south", "east", "west", "centre"),
    "pricerange": ("cheap", "moderate", "expensive"),
    "stars": tuple("2345"),
    "internet": ("yes", "no"),
    "parking": ("yes", "no"),
    "day": tuple(DAYS),
    "people": tuple("12345678"),
    "stay": tuple("2345"),
    "time": tuple(f"{hour}:{minute}" for hour in range(12, 21) for minute in ("00", "30")),
    "leaveAt": tuple(f"{hour:02d}:00" for hour in range(6, 20)),
    "arriveBy": tuple(f"{hour:02d}:00" for hour in range(9, 22)),
}
"""What a customer can say instead of what it means, by parameter."""


def first_thought(
    told: Sequence[str], meant: Mapping[str, Collection[str]], luck: Luck
) -> tuple[tuple[str, str], ...]:
    """Return what a customer says wrongly at first: a parameter and a value, or nothing.

    Args:
        told: The parameters that it tells now.
        meant: The values of each parameter that it means, now or later: none of them is wrong.
        luck: Decides.
    """
    wrong = [
        (slot, value)
        for slot in told
        for value in _WRONG.get(slot, ())
        if value not in meant.get(slot, ())
    ]
    return (luck.choice(wrong),) if wrong else ()


def with_typos(text: str, values: Collection[str], rate: float, luck: Luck) -> str:
    """Misspell words of a text, but none of the values in it."""
    if rate == 0.0:
        return text
    kept = [m.span() for value in values for m in re.finditer(re.escape(value), text)]

    def misspelt(match: re.Match[str]) -> str:
        word = match[0]
        if word.lower() not in _TYPED_BADLY or not luck.chance(rate):
            return word
        if any(start <= match.start() < end for start, end in kept):
            return word
        return word[0] + luck.choice(misspellings(word.lower()))[1:]

    return re.sub(r"[A-Za-z]+", misspelt, text)


def with_small_talk(text: str, said: Collection[str], luck: Luck) -> str:
    """Say something besides, before or after, that was not said yet as long as there is such."""
    fresh = [talk for talk in SMALL_TALK if not any(talk in line for line in said)]
    talk = luck.choice(fresh or SMALL_TALK)
    return f"{talk} {text}" if luck.chance(0.5) else f"{text} {talk}"
