"""A customer that needs no model and no structured goal: it tells its instruction piece by piece.

It speaks one sentence of the instruction each time the agent has spoken, in the first person; says
yes to a confirmation that names nothing but what its task is about, and no to any other; answers a
question again when all is told; and ends the dialogue once the agent has no more questions.

It has no state: where it is follows from what was said, as for every customer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from toolwoz_gym.types import Message, Task

PATIENCE = 3
"""So many questions in a row that it cannot answer end the dialogue."""


@dataclass(frozen=True, slots=True)
class InstructedUser:
    """Tells a task's instruction, sentence by sentence."""

    end_marker: str
    """What it ends the dialogue with: its domain's."""

    def reply(self, task: Task, messages: Sequence[Message], *, seed: int) -> Message:
        """Return what the customer says next."""
        sentences = _sentences(task.instruction)
        if not messages:
            return Message("user", sentences[0])
        known = _known(task)
        told, vain, answer = 1, 0, ""
        for text in _agent_turns(messages):
            answer = ""
            if _CONFIRMATION.search(text):
                right = _ids(text) <= known
                answer = "Yes, please go ahead." if right else "No, that is not what I want."
            elif told < len(sentences):
                answer = sentences[told]
                told += 1
            elif "?" in text and vain < PATIENCE:
                answer = _closest(sentences, text)
                vain += 1
        return Message("user", answer or f"Thank you, that is all. {self.end_marker}")


_CONFIRMATION = re.compile(
    r"\(yes|yes/no|yes or no|\byes\b[^.?!]{0,60}\bto (confirm|proceed)"
    r"|\bconfirm\b[^.?]{0,120}[?.]|\bproceed\b[^.?]{0,120}\?"
    r"|\b(shall|should|may|can) i (go|cancel|book|change|modify|exchange|return|update)\b"
    r"|\b(would you like|do you want) me to\b|\bis (that|this) (ok|okay|correct|right|all right)\b",
    re.IGNORECASE,
)

_CHARACTER = re.compile(r"You are (an? |very )?\w+((,| and|, and) \w+)*\.?|You are reactive .*")
"""A sentence that says what kind of person the customer is: nothing to tell."""

_ID = re.compile(
    r"#W\d+|\b(?:credit_card|gift_card|paypal|certificate)_\d+|\b\d{8,}\b|\bHAT\d{3}\b"
    r"|\b(?=[A-Z0-9]*\d)(?=[A-Z0-9]*[A-Z])[A-Z0-9]{6}\b"
)
"""What names a record: orders, items, payment methods, flights and reservations."""


def _agent_turns(messages: Sequence[Message]) -> list[str]:
    return [message.content for message in messages if message.role == "assistant"]


@lru_cache(maxsize=1024)  # a search asks again at every leaf
def _sentences(instruction: str) -> tuple[str, ...]:
    """Return what there is to tell, in the first person; never nothing."""
    parts = re.split(r"(?<=[.!?])\s+(?=[A-Z])", instruction.strip())
    told = [_in_first_person(part) for part in parts if part and not _CHARACTER.fullmatch(part)]
    return tuple(told) or ("Hello.",)


_PERSONS = (
    (r"\byou are\b|\byou're\b", "I am"),
    (r"\byou were\b", "I was"),
    (r"\byou've\b", "I've"),
    (r"\byou'd\b", "I'd"),
    (r"\byou'll\b", "I'll"),
    (r"\byourself\b", "myself"),
    (r"\byours\b", "mine"),
    (r"\byour\b", "my"),
    (
        r"\b(to|for|with|of|from|about|on|at|than|asks?|tells?|gives?|offers?|lets?|helps?|charges?"
        r"|sends?|refunds?|transfers?|ask|tell|give) you\b",
        r"\1 me",
    ),
    (r"\byou\b", "I"),
)


def _in_first_person(sentence: str) -> str:
    for pattern, mine in _PERSONS:
        sentence = re.sub(pattern, mine, sentence, flags=re.IGNORECASE)
    return sentence[:1].upper() + sentence[1:]


@lru_cache(maxsize=1024)
def _ids(text: str) -> frozenset[str]:
    return frozenset(_ID.findall(text))


def _known(task: Task) -> set[str]:
    """Return the names of all records that the customer's task is about."""
    known = set(_ids(task.instruction))
    for value in goal_values(task):
        known |= _ids(value)
    return known


def goal_values(task: Task) -> Iterable[str]:
    """Yield every value in the goals of a task, as text."""
    for goal in task.goals:
        yield from _leaves(goal.arguments.values())


def _leaves(values: Iterable[object]) -> Iterable[str]:
    for value in values:
        if isinstance(value, dict):
            yield from _leaves(value.values())
        elif isinstance(value, list):
            yield from _leaves(value)
        else:
            yield str(value)


def _closest(sentences: Sequence[str], question: str) -> str:
    """Return the sentence that has most words in common with a question."""
    asked = set(re.findall(r"[a-z]{3,}", question.lower()))
    return max(sentences, key=lambda s: len(asked & set(re.findall(r"[a-z]{3,}", s.lower()))))
