"""How the scripted customer puts what it is about to do into words.

A sentence is a frame with phrases in it. Which ones depends on the customer's manner, drawn once
per dialogue, and on the luck of the moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from toolwoz_gym.seeding import Luck, derive
from toolwoz_gym.toolwoz.lexicon import (
    KINDS,
    NOUNS,
    attribute_name,
    bare_phrase,
    phrase_variants,
)
from toolwoz_gym.toolwoz.tools import PARAMETERS
from toolwoz_gym.types import END_CONVERSATION
from toolwoz_gym.users.noise import HABIT, TYPO, with_small_talk, with_typos

Kind: TypeAlias = Literal[
    "open", "next", "announced", "ahead", "tell", "insist", "instead", "book",
    "correct", "contradict", "ask", "shrug", "goodbye", "give up",
]  # fmt: skip

Values: TypeAlias = tuple[tuple[str, str], ...]
"""Parameters with their values."""


@dataclass(frozen=True, slots=True)
class Act:
    """Something that the customer says: what kind of thing, and what it is about."""

    kind: Kind
    domain: str = ""
    values: Values = ()
    """What it says of what it wants."""
    before: Values = ()
    """What it said wrongly before (``correct``)."""
    attributes: tuple[str, ...] = ()
    """What it asks for (``ask``), or does not mind (``shrug``)."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How a customer talks, all through a dialogue."""

    voice: Literal["polite", "brisk", "warm"]
    terse: bool
    """Its habit when there is noise: terse, or chatty."""
    seed: int
    """Decides on its favourite phrases."""
    constancy: float = 0.6
    """How likely it is to use a favourite."""

    @classmethod
    def draw(cls, *parts: int | str) -> Manner:
        """Return the manner that follows from a seed's parts."""
        luck = Luck(*parts)
        voice = luck.choice(_VOICES)
        return cls(voice, luck.chance(0.5), derive(*parts))

    def pick(self, variants: Sequence[str], luck: Luck) -> str:
        """Return one of the ways to say something: mostly the favourite."""
        favourite = variants[derive(self.seed, *variants) % len(variants)]
        return favourite if luck.chance(self.constancy) else luck.choice(variants)


_VOICES: tuple[Literal["polite", "brisk", "warm"], ...] = ("polite", "brisk", "warm")

_GREETINGS = {
    "polite": ("Hello.", "Good day.", "Good morning.", "Good afternoon.", "Hello there.", ""),
    "brisk": ("", "", "Hi.", "Hello."),
    "warm": ("Hi!", "Hello!", "Hi there!", "Hello there!", "Good morning!", ""),
}

_FRAMES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "open": {
        "polite": (
            "I would like to find {}, please.",
            "Could you please help me find {}?",
            "I am looking for {}, please.",
            "Would you please find me {}?",
            "Could you find me {}, please?",
            "I would like {}, please.",
            "I would be glad if you could find me {}.",
        ),
        "brisk": (
            "I need {}.",
            "I want {}.",
            "Find me {}.",
            "I am looking for {}.",
            "Please find {}.",
            "I need to find {}.",
            "I am trying to find {}.",
        ),
        "warm": (
            "I am hoping to find {}.",
            "Can you find me {}?",
            "I would love to find {}.",
            "Can you help me find {}?",
            "We are looking for {}.",
            "I wonder if you can find me {}.",
            "I could use your help to find {}.",
        ),
    },
    "next": {
        "polite": (
            "I would also like {}, please.",
            "Could you also find me {}, please?",
            "I am also looking for {}, please.",
            "Next, I would like to find {}.",
            "Would you please find me {}, too?",
        ),
        "brisk": (
            "I also need {}.",
            "Next, I need {}.",
            "Now find me {}.",
            "I also want {}.",
            "Then I need {}.",
        ),
        "warm": (
            "I am also hoping to find {}.",
            "Can you also find me {}?",
            "We also need {}.",
            "Next, we would love to find {}.",
            "Now can you help me find {}?",
        ),
    },
    "ahead": {
        "polite": ("Later I would also like {}, please.", "After that, I would like {}."),
        "brisk": ("Later I also need {}.", "Then I need {}."),
        "warm": ("After that, we would love {}!", "Later we are also looking for {}."),
    },
    "announced": {
        "polite": ("Now to the {} that I mentioned, please.", "May we turn to the {} now?"),
        "brisk": ("Now the {}.", "Next, the {} that I mentioned."),
        "warm": ("Now for the {} that I told you about!", "Shall we look at the {} next?"),
    },
    "tell": {
        "polite": (
            "I would like {}, please.",
            "It should be {}, please.",
            "{} would be lovely.",
            "I would prefer {}.",
            "Please make it {}.",
        ),
        "brisk": ("{}.", "{}, please.", "I want {}.", "It has to be {}."),
        "warm": (
            "{} would be great.",
            "I would love {}.",
            "We are hoping for {}.",
            "Ideally {}.",
        ),
    },
    "detail": {
        "polite": ("It is {}, please.", "{}, please.", "Please make it {}.", "That would be {}."),
        "brisk": ("{}.", "{}, please.", "Make it {}.", "It is {}."),
        "warm": ("It is {}.", "{} would be great.", "It will be {}!", "Make it {}, please."),
    },
    "insist": {
        "polite": (
            "As I said, I would like {}.",
            "Could you look again for {}, please?",
            "I am afraid I still need {}.",
            "Please look once more for {}.",
            "I really would like {}, please.",
        ),
        "brisk": (
            "As I said, I want {}.",
            "Look again for {}.",
            "I still need {}.",
            "Once more: {}, please.",
            "I am still looking for {}.",
        ),
        "warm": (
            "I am really hoping for {}.",
            "Can you look again for {}?",
            "Could you try again to find {}?",
            "As I said, {} would be great.",
            "We still need {}.",
        ),
    },
    "instead": {
        "polite": (
            "Then I would take {}.",
            "In that case, {} would be fine.",
            "Would you look for {} instead, please?",
            "Then {} will be fine, thank you.",
        ),
        "brisk": ("Then {}.", "Then find {} instead.", "OK, {} instead."),
        "warm": (
            "How about {} instead?",
            "Never mind, then we would love {}.",
            "Oh well, then {} would be great.",
        ),
    },
    "change": {
        "polite": (
            "Then please make it {}.",
            "In that case, {}, please.",
            "Could you make it {}, please?",
        ),
        "brisk": ("Then make it {}.", "OK, {} then.", "Try it {}."),
        "warm": ("How about {} instead?", "Then let us say {}.", "Never mind, then {}, please."),
    },
    "book": {
        "polite": (
            "Please book it {}.",
            "Could you book it {}, please?",
            "I would like to book it {}.",
            "That sounds good. Please book it {}.",
            "Would you please book it {}?",
        ),
        "brisk": (
            "Book it {}, please.",
            "Good. Book it {}.",
            "Fine, book it {}.",
            "Book it {}.",
            "Please book it {}.",
            "I want to book it {}.",
        ),
        "warm": (
            "Great, please book it {}.",
            "Perfect! Can you book it {}?",
            "Lovely, book it {}, please.",
            "We will take it. Please book it {}.",
            "I would love to book it {}.",
        ),
    },
    "correct": {
        "polite": (
            "I am sorry, I said {}, but I meant {}.",
            "I must correct myself: I said {}, but I meant {}.",
        ),
        "brisk": ("Wait, I said {}. I meant {}.", "I said {}, but I meant {}."),
        "warm": ("Oh no, I said {}, but I meant {}!", "Sorry, I said {}. I meant {}!"),
    },
    "contradict": {
        "polite": ("Excuse me, I said {}.", "I am sorry, but I asked for {}."),
        "brisk": ("No, I said {}.", "No, {}."),
        "warm": ("Oh, but I said {}.", "Hm, no, I meant {}."),
    },
    "ask": {
        "polite": (
            "Could you please tell me {}?",
            "May I know {}, please?",
            "I would like to know {}.",
            "Would you give me {}, please?",
            "I need to know {}, please.",
            "Can you tell me {}, please?",
        ),
        "brisk": (
            "What is {}?",
            "Give me {}.",
            "Tell me {}.",
            "I need to know {}.",
            "I want to know {}.",
            "And what is {}?",
        ),
        "warm": (
            "Can you tell me {}?",
            "Can you give me {}?",
            "What about {}?",
            "I would love to know {}.",
            "Can I know {}?",
            "Could you tell me {}?",
        ),
    },
    "shrug": {
        "polite": ("I do not mind {}.", "As for {}, I do not mind."),
        "brisk": ("I do not mind {}.", "{}? I do not mind."),
        "warm": ("Oh, I do not mind {}.", "I really do not mind {}."),
    },
    "goodbye": {
        "polite": (
            "Thank you very much, that is all. Goodbye.",
            "That was all I needed, thank you. Goodbye!",
            "Thank you for your help. Have a good day.",
        ),
        "brisk": ("That is all. Bye.", "That was all. Thanks, bye.", "OK, that is it. Bye."),
        "warm": (
            "Wonderful, that is everything. Thanks and bye!",
            "Thanks so much, that was all. Bye!",
            "You have been so helpful. Goodbye!",
        ),
    },
    "give up": {
        "polite": (
            "I am afraid this is not getting us anywhere. Goodbye.",
            "I will ask somewhere else. Goodbye.",
        ),
        "brisk": ("This is no use. Bye.", "I give up. Bye."),
        "warm": (
            "Never mind, I will try elsewhere. Bye.",
            "I am sorry, this does not help me. Bye.",
        ),
    },
}  # fmt: skip
"""How each voice says each kind of thing."""

_FEATURES = ("Does it have {}?", "Do they have {}?", "Is there {}?")
"""How to ask for what a place has or has not."""

_BARE_FRAMES: Mapping[str, tuple[str, ...]] = {
    "open": ("{}", "{}, please"),
    "next": ("also {}", "next: {}"),
    "ahead": ("later {}", "then {}"),
    "announced": ("now the {}",),
    "insist": ("again: {}", "I said {}"),
    "instead": ("then {}", "{} instead"),
    "book": ("book it, {}", "ok, book it, {}", "please book it, {}", "yes, book it, {}"),
    "correct": ("sorry, I meant {}", "no wait, {}"),
    "ask": ("{}?", "and {}?", "what is {}?", "{}, please?"),
    "shrug": ("do not mind {}", "{}: do not mind"),
    "goodbye": ("ok bye", "thanks, bye"),
    "give up": ("forget it, bye", "useless, bye"),
}
"""How terse customers say it; for other kinds of things they say the values and nothing else."""

_FIRST = ("type", "departure", "destination")
"""What comes first whatever the manner."""

_ATTEMPTS = 24
"""So often it looks for words that it has not used before."""


def speak(
    acts: Sequence[Act], manner: Manner, noise: float, parts: Sequence[int | str], said: set[str]
) -> str:
    """Put what the customer is about to do into words.

    Args:
        acts: What it does, in order.
        manner: How it talks.
        noise: From 0 to 1.
        parts: What the luck of the moment depends on.
        said: What it has said before, which it does not say again as long as it has other words.
    """
    text, moment = "", derive("wording", *parts)
    for attempt in range(_ATTEMPTS):
        luck = Luck(moment, attempt)
        fresh = manner if attempt == 0 else replace(manner, constancy=0.0)
        text = _speak(acts, fresh, noise, said, luck)
        if text not in said:
            break
    return text


def _speak(acts: Sequence[Act], manner: Manner, noise: float, before: set[str], luck: Luck) -> str:
    habitual = luck.chance(HABIT * noise)
    terse, chatty = habitual and manner.terse, habitual and not manner.terse
    said = [_bare(act, luck) if terse else _full(act, manner, luck) for act in acts]
    text = ". ".join(said) if terse else " ".join(_capital(s) for s in said)
    farewell = acts[-1].kind in ("goodbye", "give up")
    if chatty and not farewell:
        text = with_small_talk(text, before, luck)
    values = [value for act in acts for _, value in act.values]
    text = with_typos(text, values, TYPO * noise, luck)
    return f"{text} {END_CONVERSATION}" if farewell else text


def _full(act: Act, manner: Manner, luck: Luck) -> str:
    """Say an act in whole sentences."""
    frames = {kind: by_voice[manner.voice] for kind, by_voice in _FRAMES.items()}
    frame = manner.pick(frames[act.kind], luck)
    noun = manner.pick(NOUNS[act.domain], luck) if act.domain else ""
    if act.kind in ("open", "next", "ahead"):
        return _opening(act, frame, noun, frames["tell"], manner, luck)
    if act.kind == "announced":
        opening = frame.format(noun)
        told = Act("tell", act.domain, act.values)
        return f"{opening} {_capital(_full(told, manner, luck))}" if act.values else opening
    if act.kind == "insist":
        return frame.format(_wanted(act, _ordered(act, manner), noun, manner, luck))
    if act.kind in ("tell", "instead"):
        return _constraints(act, frame, frames, manner, luck)
    if act.kind == "book":
        return (
            frame.format(_details(act.values, manner, luck))
            .replace(" .", ".")
            .replace(" ?", "?")
            .replace(" ,", ",")
        )
    if act.kind == "correct":
        return frame.format(_bare_list(act.before), _bare_list(act.values))
    if act.kind == "contradict":
        return frame.format(_bare_list(act.values))
    if act.kind == "ask":
        return _question(act.attributes, frame, manner, luck)
    if act.kind == "shrug":
        return frame.format(_joined([f"the {attribute_name(name)}" for name in act.attributes]))
    return frame


def _opening(
    act: Act, frame: str, noun: str, tell: Sequence[str], manner: Manner, luck: Luck
) -> str:
    """Say what is wanted, in one sentence or in two."""
    values = _ordered(act, manner)
    later: list[tuple[str, str]] = []
    if len(values) > 1 and act.domain != "train" and luck.chance(0.35):
        split = 1 + luck.below(len(values) - 1)
        values, later = values[:split], values[split:]
    opening = frame.format(_wanted(act, values, noun, manner, luck))
    if later:
        more = manner.pick(tell, luck).format(_wanted(act, later, "one", manner, luck))
        opening += f" {_capital(more)}"
    if act.kind == "open":
        opening = f"{manner.pick(_GREETINGS[manner.voice], luck)} {opening}".strip()
    return opening


def _wanted(
    act: Act, values: Sequence[tuple[str, str]], noun: str, manner: Manner, luck: Luck
) -> str:
    """Say what is wanted: "a place to eat in the north", "one in the north", "a hotel".

    Attractions are introduced as such, whatever their type, so that it is clear what they are.
    """
    slot, value = values[0] if values else ("", "")
    if slot == "type" and value in KINDS and (act.domain == "hotel" or noun == "one"):
        noun, values = value, values[1:]
    what = f"{noun} {_details(values, manner, luck)}".strip()
    if noun == "one":
        return what
    return f"an {what}" if what[0] in "aeiou" else f"a {what}"


def _constraints(
    act: Act, frame: str, frames: Mapping[str, tuple[str, ...]], manner: Manner, luck: Luck
) -> str:
    """Say constraints of a search and details of a booking, each in their own way."""
    values = _ordered(act, manner)
    booking = set(PARAMETERS[f"book_{act.domain}"]) - set(PARAMETERS[f"search_{act.domain}"])
    search = [item for item in values if item[0] not in booking]
    details = [item for item in values if item[0] in booking]
    said = [frame.format(_wanted(act, search, "one", manner, luck))] if search else []
    if details:
        kind = "change" if act.kind == "instead" else "detail"
        said.append(manner.pick(frames[kind], luck).format(_details(details, manner, luck)))
    return " ".join(map(_capital, said))


def _question(attributes: Sequence[str], frame: str, manner: Manner, luck: Luck) -> str:
    features = [name for name in attributes if name in ("internet", "parking")]
    others = [f"the {attribute_name(name)}" for name in attributes if name not in features]
    said = [frame.format(_joined(others))] if others else []
    if features:
        said.append(manner.pick(_FEATURES, luck).format(_joined(features)))
    return " ".join(said)


def _ordered(act: Act, manner: Manner) -> list[tuple[str, str]]:
    """Return an act's values in the order in which the customer likes to say them."""
    return sorted(
        act.values,
        key=lambda item: (
            _FIRST.index(item[0]) if item[0] in _FIRST else len(_FIRST),
            derive(manner.seed, item[0]),
        ),
    )


def _details(values: Sequence[tuple[str, str]], manner: Manner, luck: Luck) -> str:
    """Say values one after the other; what needs a clause comes last."""
    said = [manner.pick(phrase_variants(slot, value), luck) for slot, value in values]
    clauses = [phrase for phrase in said if phrase.startswith("that ")]
    plain = [phrase for phrase in said if not phrase.startswith("that ")]
    return " ".join(filter(None, (" ".join(plain), " and ".join(clauses))))


def _bare(act: Act, luck: Luck) -> str:
    """Say an act in as few words as will do."""
    names = [*map(attribute_name, act.attributes)]
    values = [bare_phrase(slot, value) for slot, value in luck.sample(act.values, len(act.values))]
    if act.kind in ("open", "next", "ahead", "announced", "insist"):
        values = [NOUNS[act.domain][0], *values]
    words = ", ".join(names or values)
    return luck.choice(_BARE_FRAMES.get(act.kind, ("{}",))).format(words).rstrip(", ")


def _bare_list(values: Values) -> str:
    return _joined([bare_phrase(slot, value) for slot, value in values])


def _joined(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
