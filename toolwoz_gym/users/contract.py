"""What every customer keeps to: where it does not, its dialogue says nothing about the agent.

Scripts keep to it by themselves. A language model that plays a customer may slip out of its role,
and is stopped there (``user_fault``). :mod:`~toolwoz_gym.users.faults` counts smaller faults, after
which a dialogue goes on.

The rules go by plain patterns, and rather let a breach pass than stop a customer who means well. Of
the 5,746 turns of MultiWOZ's validation dialogues one breaks them: there the person who played the
customer wrote the agent's line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias, get_args

from toolwoz_gym.actions import holds_call
from toolwoz_gym.types import Message, Task
from toolwoz_gym.users.leaving import leaves_too_soon

Breach: TypeAlias = Literal[
    "said nothing",
    "called a tool",
    "spoke as the agent",
    "told all at once",
    "left at once",
    "never ends",
    "left too soon",
]

BREACHES: tuple[Breach, ...] = get_args(Breach)
"""``called a tool``: it wrote a tool call, JSON or code. ``spoke as the agent``: it offered help,
wrote the agent's part too, or said the agent's words after it. ``told all at once``: a single
message has nearly all words of a long instruction. ``left at once``: its opening ends the dialogue.
``never ends``: it says goodbye and goodbye again but does not go, gives the same long answer to
whatever it is asked, or any answer to the same words again and again, or talks for longer than
anyone. ``left too soon``: it ends the dialogue with a message that still wants something of the
agent's (:mod:`toolwoz_gym.users.leaving`)."""

FORGIVEN = frozenset[Breach](("left too soon",))
"""What is no fault of customers who have got all they want, or can no longer get it."""

LONG_INSTRUCTION = 25
"""An instruction of fewer different words can well be told at once."""
NEARLY_ALL = 2 / 3
"""Who says this part of an instruction's words has told it: a paraphrase has no more. The most that
a person said at once of a long one is 0.58."""
LONG_MESSAGE = 6
"""A message of fewer words may be said again: "Yes, please."."""
GOODBYES = 3
"""Who says goodbye so often in a row and does not end the dialogue never will."""
REPEATS = 5
"""Who gives the same answer so often goes round in circles, even if the agent does so too: a person
would have left. A short one may be said again to other words of the agent's."""
TURNS = 40
"""Nobody talks for longer: in MultiWOZ's validation dialogues 17 times at most."""


def breach(task: Task, messages: Sequence[Message], words: str, *, ends: bool) -> Breach | None:
    """Return how a customer's next message breaks the contract, if it does.

    Args:
        task: What the customer wants.
        messages: What customer and agent said so far. Empty at the opening.
        words: What the customer says next, without the end marker.
        ends: Whether it ends the dialogue with that.
    """
    mine = [message.content for message in messages if message.role == "user"]
    agent = [message.content for message in messages if message.role == "assistant"]
    found: Mapping[Breach, bool] = {
        "said nothing": not words.strip() and not ends,
        "called a tool": calls_a_tool(words),
        "spoke as the agent": speaks_as_the_agent(words) or echoes(words, agent),
        "told all at once": tells_all(task.instruction, words),
        "left at once": not messages and ends,
        "never ends": not ends and never_ends(words, mine, agent),
        "left too soon": ends and leaves_too_soon(task, messages, words),
    }
    return next((kind for kind in BREACHES if found[kind]), None)


_CODE = re.compile(r"\A\s*(?:\{|\[\s*[{\"\]])|```|\"name\"\s*:")


def calls_a_tool(words: str) -> bool:
    """Return whether a message holds a tool call, JSON or code."""
    return holds_call(words) or _CODE.search(words) is not None


_AGENTS_WORDS = re.compile(
    r"\b(?:can|may|could) i (?:help|assist|do for) you\b|\bwelcome to (?:our|my)\b"
    r"|\banything else (?:that )?i (?:can|could|may) (?:help|assist|do for)\b"
    r"|\bi(?: can|'m here to| am here to) (?:help|assist) you\b"
    r"|\b(?:glad|happy|pleased) to (?:help|assist)\b"
    r"|\bi(?: am|'m) an? (?:ai|artificial|(?:large )?language model|virtual assistant)\b"
    r"|\bas an? (?:ai|(?:large )?language model|customer service (?:agent|representative))\b"
    r"|\byour (?:reference|confirmation) number is\b",
    re.IGNORECASE,
)
_AGENTS_PART = re.compile(
    r"^\W{0,3}(?:agent|assistant|system|tool|supervisor)\W{0,3}:", re.I | re.M
)


def speaks_as_the_agent(words: str) -> bool:
    """Return whether a message is one of the agent's, or goes on with the agent's part."""
    return bool(_AGENTS_WORDS.search(words) or _AGENTS_PART.search(words))


def echoes(words: str, agent: Sequence[str]) -> bool:
    """Return whether a message of some length is what the agent has just said."""
    said = _words(words)
    return len(said) >= LONG_MESSAGE and bool(agent) and said == _words(agent[-1])


def tells_all(instruction: str, words: str) -> bool:
    """Return whether a message holds nearly all that a long instruction says, in any order."""
    known = set(_words(instruction)) - _PERSONS
    if len(known) < LONG_INSTRUCTION:
        return False
    return len(known.intersection(_words(words))) >= NEARLY_ALL * len(known)


_PERSONS = {*("i", "me", "my", "mine", "am", "i'm", "you", "your", "yours", "are", "you're")}
"""Differ between an instruction and its words in the first person."""

_GOODBYE = re.compile(
    r"\b(?:good ?bye|bye|have an? (?:good|great|nice|lovely|wonderful) \w+"
    r"|th(?:at|is)(?:'s| is| was| will be) (?:all|everything))\b",
    re.IGNORECASE,
)


def never_ends(words: str, mine: Sequence[str], agent: Sequence[str]) -> bool:
    """Return whether a message that does not end the dialogue belongs to one without an end.

    Args:
        words: The customer's message.
        mine: What it said before.
        agent: What the agent said, each the answer to the one of ``mine`` at its place.
    """
    if len(mine) + 1 > TURNS:
        return True
    last = [*mine, words][-GOODBYES:]
    if len(last) == GOODBYES and all(map(_GOODBYE.search, last)):
        return True
    said = _words(words)
    before = zip(mine[1:], agent, strict=False)  # what it said, and to what
    answered = [turn for text, turn in before if _words(text) == said] + list(agent[-1:])
    if len(said) < LONG_MESSAGE:
        return answered.count(answered[-1]) >= REPEATS if answered else False
    return len(set(answered)) >= GOODBYES or len(answered) >= REPEATS


def _words(text: str) -> list[str]:
    return re.findall(r"[#£$]?\w+(?:[':.,]\w+)*", text.lower())
