"""A ToolWOZ customer that needs no model.

It works from the structured goal alone and hears only what the agent says: no tool traffic. It
tells its wishes piecemeal, answers what it is asked, falls back when its first choice fails, asks
for what it was told to find out, loses patience with an agent that gets nowhere, and says goodbye.

It has no state: what it has in mind is worked out anew from the conversation each time it speaks,
by hearing the agent's turns one after the other (:func:`_hear`). What it does is decided there;
how it says it is decided in :mod:`.wording`, what noise adds in :mod:`.noise`. All luck comes from
seeds that hash the episode's seed and what was said.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from toolwoz_gym.seeding import Luck
from toolwoz_gym.toolwoz.goals import EMPTY
from toolwoz_gym.toolwoz.lexicon import ATTENTION
from toolwoz_gym.toolwoz.task import ToolWOZTask, Wish
from toolwoz_gym.toolwoz.tools import KEYS
from toolwoz_gym.types import Message, Task, UsageError
from toolwoz_gym.users.hearing import Heard, mentions, understand
from toolwoz_gym.users.noise import AHEAD, CHANGE_OF_MIND, CORRECTION, first_thought
from toolwoz_gym.users.wording import Act, Kind, Manner, Values, speak

PATIENCE = 3
"""So many turns in a row that get nowhere end the dialogue."""


@dataclass(frozen=True, slots=True)
class ScriptedUser:
    """The scripted customer of ToolWOZ."""

    noise: float = 0.0
    """How hard it makes it to be understood, from 0 to 1: typos, terse or chatty messages, several
    wishes at once, changes of mind, and corrections of what the agent says."""

    def __post_init__(self) -> None:
        """Refuse a noise that is none."""
        if not 0.0 <= self.noise <= 1.0:
            raise UsageError(f"noise {self.noise}: choose a number from 0 to 1")

    def reply(self, task: Task, messages: Sequence[Message], *, seed: int) -> Message:
        """Return what the customer says next."""
        assert isinstance(task, ToolWOZTask)
        script = _Script(task, seed, self.noise)
        mind = _open(script, 0, _Mind())
        for number, text in enumerate(_agent_turns(messages)):
            mind = _hear(script, mind, text, number)
        words: list[int | str] = [seed, task.id]
        words += (f"{m.role}:{m.content}" for m in messages)
        said = {m.content for m in messages if m.role == "user"}
        manner = Manner.draw(seed, "manner", task.id)
        return Message("user", speak(mind.acts, manner, self.noise, words, said))


@dataclass(frozen=True, slots=True)
class _Script:
    """What does not change during a dialogue."""

    task: ToolWOZTask
    seed: int
    noise: float

    def luck(self, *parts: int | str) -> Luck:
        return Luck(self.seed, self.task.id, *parts)


@dataclass(frozen=True, slots=True)
class _Mind:
    """What the customer has in mind after its last turn, and what it is about to do."""

    wish: int = 0
    stage: Literal["search", "book", "ask"] = "search"
    first_search: bool = False
    """Whether it still wants the first choice that is bound to fail."""
    first_book: bool = False
    withholds: bool = False
    """Whether it leaves something out when it books, which the agent then has to ask for."""
    told: frozenset[str] = frozenset()
    """Parameters of the wish, told with the values that now hold."""
    wrong: Values = ()
    """What it has just told wrongly; it takes it back in its next message."""
    told_ahead: frozenset[str] = frozenset()
    """Parameters of the next wish that it has told already."""
    announced: bool = False
    """Whether it has named the next wish already."""
    corrected: frozenset[str] = frozenset()
    """Parameters in which it has corrected the agent: it does so once."""
    shrugged: frozenset[str] = frozenset()
    """Parameters it was asked for and has no wish about."""
    heard: frozenset[str] = frozenset()
    """Attributes of the entity that the agent has told."""
    patience: int = PATIENCE
    acts: tuple[Act, ...] = ()
    """What it says now."""


def _agent_turns(messages: Sequence[Message]) -> list[str]:
    """Return what is heard between the customer's messages; "" where the agent kept silent."""
    turns: list[list[str]] = []
    for message in messages:
        if message.role == "user":
            turns.append([])
        else:
            turns[-1].append(message.content)
    return ["\n".join(turn)[:ATTENTION] for turn in turns]


def _open(script: _Script, index: int, before: _Mind) -> _Mind:
    """Turn to the wish at ``index``, or say goodbye when all are served."""
    if index == len(script.task.wishes):
        return replace(before, acts=(Act("goodbye"),))
    wish, luck = script.task.wishes[index], script.luck("wish", index)
    mind = _fresh(script, index)
    slots = list(_search_values(wish, mind))
    told = frozenset(luck.sample(slots, 1 + luck.below(len(slots)))) if slots else frozenset()
    kind: Kind = "next" if index else "open"
    if before.announced:
        kind, told = "announced", told - before.told_ahead
    mind = replace(mind, told=told | before.told_ahead)
    values = _values(wish, mind, told)
    acts = [Act(kind, wish.domain, values)]
    if script.noise:
        noisy = script.luck("noise", index)
        if noisy.chance(CHANGE_OF_MIND * script.noise):
            mind = replace(mind, wrong=first_thought(sorted(told), _meant(wish), noisy))
            acts = [Act(kind, wish.domain, _with(values, mind.wrong))]
        if wish.book is not None and noisy.chance(AHEAD * script.noise):
            details = _book_values(wish, mind)
            mind = replace(mind, told=mind.told | set(details))
            acts.append(Act("tell", wish.domain, _values(wish, mind, details)))
        if index + 1 < len(script.task.wishes) and noisy.chance(AHEAD * script.noise):
            following, later = script.task.wishes[index + 1], _fresh(script, index + 1)
            wanted = list(_search_values(following, later))
            ahead = frozenset(noisy.sample(wanted, noisy.below(len(wanted) + 1)))
            mind = replace(mind, announced=True, told_ahead=ahead)
            acts.append(Act("ahead", following.domain, _values(following, later, ahead)))
    return replace(mind, acts=tuple(acts))


def _fresh(script: _Script, index: int) -> _Mind:
    """Return what is in its mind before it has said anything of a wish."""
    wish = script.task.wishes[index]
    return _Mind(
        wish=index,
        first_search=wish.failing_search is not None,
        first_book=wish.failing_book is not None and wish.book is not None,
        withholds=script.luck("withholds", index).chance(0.3),
    )


def _hear(script: _Script, mind: _Mind, text: str, number: int) -> _Mind:
    """Return what the customer has in mind after one turn of the agent's.

    Args:
        script: What does not change.
        mind: What it had in mind before.
        text: What the agent said.
        number: Of the turn, for luck.
    """
    wish = script.task.wishes[mind.wish]
    heard = understand(wish.domain, text)
    heard = replace(heard, attributes=heard.attributes - mind.heard)
    mind = replace(mind, heard=mind.heard | heard.attributes, acts=())
    if mind.wrong:
        return _take_back(wish, mind, heard)
    if contradicted := _contradicted(script, wish, mind, heard, text, number):
        return _contradict(wish, mind, heard, contradicted)
    hear = {"search": _hear_search, "book": _hear_book, "ask": _hear_ask}[mind.stage]
    after = hear(script, wish, mind, heard)
    if after.stage == "search":  # what was told was about something else
        after = replace(after, heard=frozenset())
    if after.stage == "ask" and not after.acts:
        return _open(script, mind.wish + 1, after)
    if after.patience == 0:
        return replace(after, acts=(Act("give up"),))
    return after


def _take_back(wish: Wish, mind: _Mind, heard: Heard) -> _Mind:
    """Put right what it said wrongly, and answer what it was asked besides."""
    slots = [slot for slot, _ in mind.wrong]
    act = Act("correct", wish.domain, _values(wish, mind, slots), before=mind.wrong)
    return _and_answers(wish, replace(mind, wrong=(), patience=PATIENCE), heard, act)


def _contradicted(
    script: _Script, wish: Wish, mind: _Mind, heard: Heard, text: str, number: int
) -> list[str]:
    """Return the parameters that the agent has wrong, unless the customer lets it pass."""
    if mind.stage == "ask" or heard.nothing_found or heard.failed or heard.booked:
        return []
    if not script.noise or not script.luck("correction", mind.wish, number).chance(
        CORRECTION * script.noise
    ):
        return []
    values = _search_values(wish, mind) | (_book_values(wish, mind) if wish.book else {})
    return [
        slot
        for slot, named in mentions(text).items()
        if slot in mind.told - mind.corrected and values.get(slot, "").lower() not in named
    ]


def _contradict(wish: Wish, mind: _Mind, heard: Heard, slots: list[str]) -> _Mind:
    """Correct the agent, and answer what it was asked besides."""
    act = Act("contradict", wish.domain, _values(wish, mind, slots))
    corrected = mind.corrected | set(slots)
    mind = replace(mind, corrected=corrected, heard=frozenset(), patience=PATIENCE)
    return _and_answers(wish, mind, heard, act)


def _and_answers(wish: Wish, mind: _Mind, heard: Heard, act: Act) -> _Mind:
    after = _answer(wish, mind, heard) or mind
    return replace(after, acts=(act, *after.acts))


def _hear_search(script: _Script, wish: Wish, mind: _Mind, heard: Heard) -> _Mind:
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
    if mind.first_search:
        # The agent found what should not be there: the goal still wants the other.
        return _fall_back(wish, mind)
    return _begin_booking(script, wish, mind)


def _begin_booking(script: _Script, wish: Wish, mind: _Mind) -> _Mind:
    if wish.book is None:
        return _begin_asking(wish, mind)
    mind = replace(mind, stage="book", patience=PATIENCE)
    slots = [slot for slot in _book_values(wish, mind) if slot not in mind.told]
    noisy = script.luck("booking", mind.wish)
    changes = noisy.chance(CHANGE_OF_MIND * script.noise)
    # Nothing can be booked while a detail is missing: what is wrong can still be put right.
    left_out = slots[:1] if (mind.withholds or changes) and len(slots) > 1 else []
    told = [slot for slot in slots if slot not in left_out]
    mind = replace(mind, told=mind.told | set(told))
    if changes and left_out:
        mind = replace(mind, wrong=first_thought(told, _meant(wish), noisy))
    act = Act("book", wish.domain, _with(_values(wish, mind, told), mind.wrong))
    return replace(mind, acts=(act,))


def _hear_book(script: _Script, wish: Wish, mind: _Mind, heard: Heard) -> _Mind:
    """Get it booked: tell the details, fall back when it cannot be had."""
    untold = [slot for slot in _book_values(wish, mind) if slot not in mind.told]
    if heard.failed or heard.nothing_found:
        return _fall_back(wish, mind) if mind.first_book else _insist(wish, mind)
    if heard.booked and untold:
        return _tell(wish, mind, untold)
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
    return _ask(wish, replace(mind, stage="ask", patience=PATIENCE))


def _hear_ask(script: _Script, wish: Wish, mind: _Mind, heard: Heard) -> _Mind:
    """Find out what it was told to find out; twice in vain, and it lets the matter rest."""
    if heard.yes_or_no:
        mind = replace(mind, heard=mind.heard | {"internet", "parking"})
    if mind.patience == PATIENCE - 1:
        return mind
    new = heard.attributes & set(wish.requests)
    return _ask(wish, mind if new else replace(mind, patience=mind.patience - 1))


def _ask(wish: Wish, mind: _Mind) -> _Mind:
    """Ask for what it has not heard; it says nothing when it has heard all."""
    outstanding = tuple(name for name in wish.requests if name not in mind.heard)
    acts = (Act("ask", wish.domain, attributes=outstanding),) if outstanding else ()
    return replace(mind, acts=acts)


def _fall_back(wish: Wish, mind: _Mind) -> _Mind:
    """Give up the first choice for what the goal really wants, and say what is different."""
    if mind.stage == "search":
        old, after = _search_values(wish, mind), replace(mind, first_search=False)
        new = _search_values(wish, after)
    else:
        old, after = _book_values(wish, mind), replace(mind, first_book=False)
        new = _book_values(wish, after)
    changed = [slot for slot in new if new[slot] != old.get(slot)]
    dropped = tuple(slot for slot in old if slot not in new)
    acts: list[Act] = []
    if changed:
        acts.append(Act("instead", wish.domain, _values(wish, after, changed)))
    if dropped:
        acts.append(Act("shrug", wish.domain, attributes=dropped))
    if not acts:
        acts.append(Act("insist", wish.domain, _values(wish, after, mind.told)))
    told = mind.told | frozenset(changed)
    return replace(after, told=told, patience=PATIENCE, acts=tuple(acts))


def _answer(wish: Wish, mind: _Mind, heard: Heard) -> _Mind | None:
    """Answer the agent's questions; None when they bring nothing new."""
    values = _search_values(wish, mind) | (_book_values(wish, mind) if wish.book else {})
    news = [slot for slot in values if slot in heard.asked and slot not in mind.told]
    if news:
        return _tell(wish, mind, news)
    shrugs = heard.asked - set(values) - mind.shrugged
    if not shrugs:
        return None
    acts = (Act("shrug", wish.domain, attributes=tuple(sorted(shrugs))),)
    return replace(mind, shrugged=mind.shrugged | shrugs, patience=PATIENCE, acts=acts)


def _tell(wish: Wish, mind: _Mind, slots: Sequence[str]) -> _Mind:
    acts = (Act("tell", wish.domain, _values(wish, mind, slots)),)
    return replace(mind, told=mind.told | set(slots), patience=PATIENCE, acts=acts)


def _insist(wish: Wish, mind: _Mind) -> _Mind:
    """Say it all again, with less patience."""
    kind: Kind = "book" if mind.stage == "book" else "insist"
    values = _book_values(wish, mind) if mind.stage == "book" else _search_values(wish, mind)
    slots = [slot for slot in values if slot in mind.told]
    acts = (Act(kind, wish.domain, _values(wish, mind, slots)),)
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


def _values(wish: Wish, mind: _Mind, slots: Iterable[str]) -> Values:
    """Return parameters with the values that now hold, in the order of the tools."""
    now = _search_values(wish, mind) | _book_values(wish, mind)
    wanted = set(slots)
    return tuple((slot, value) for slot, value in now.items() if slot in wanted)


def _with(values: Values, wrong: Values) -> Values:
    return tuple((dict(values) | dict(wrong)).items())


def _meant(wish: Wish) -> Mapping[str, Collection[str]]:
    """Return the values of each parameter that the customer wants, first or in the end."""
    meant: dict[str, set[str]] = {}
    for values in (wish.search, wish.failing_search, wish.book, wish.failing_book):
        for slot, value in (values or {}).items():
            meant.setdefault(slot, set()).add(value)
    return meant
