"""The scripted customer: solvable, a function of the conversation, and sensible to talk to."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.scripted import ExpertAgent, KeywordAgent, RandomAgent
from benchmarks.__main__ import main as benchmarks
from toolwoz_gym.dialogue import Dialogue
from toolwoz_gym.rollout import play
from toolwoz_gym.seeding import Luck, derive
from toolwoz_gym.toolwoz import ToolWOZ
from toolwoz_gym.toolwoz.builtin import CityOptions, load_builtin
from toolwoz_gym.toolwoz.goals import EMPTY
from toolwoz_gym.toolwoz.lexicon import (
    ATTENTION,
    KEYWORDS,
    asked_attributes,
    asks_to_book,
    attribute_name,
    heard_values,
    is_indifferent,
    mended,
    misspellings,
    named_domain,
    sentences,
)
from toolwoz_gym.toolwoz.task import ToolWOZTask, Wish, make_task
from toolwoz_gym.toolwoz.tools import DAYS, KEYS, PARAMETERS, POLICY
from toolwoz_gym.types import END_CONVERSATION, Episode, Message, ToolCall, UsageError
from toolwoz_gym.users.faults import KINDS, faults
from toolwoz_gym.users.hearing import mentions, understand
from toolwoz_gym.users.noise import SMALL_TALK, with_typos
from toolwoz_gym.users.scripted import PATIENCE, ScriptedUser


def city(text: str) -> ToolWOZ:
    return load_builtin(CityOptions.parse(text))


def wish(
    domain: str,
    search: Mapping[str, str],
    book: Mapping[str, str] | None = None,
    *,
    failing_search: Mapping[str, str] | None = None,
    failing_book: Mapping[str, str] | None = None,
    requests: tuple[str, ...] = (),
) -> Wish:
    """Return a wish; the failing choices name only what differs."""
    key = {KEYS[domain]: "TR1234" if domain == "train" else "amber ladle"}

    def filled(tool: str, values: Mapping[str, str]) -> dict[str, str]:
        return {name: values.get(name, "") for name in PARAMETERS[f"{tool}_{domain}"]}

    return Wish(
        domain,
        search=filled("search", search),
        book=filled("book", {**book, **key}) if book else None,
        booked={**key, "reference": "ABCD2345"} if book else None,
        failing_search=filled("search", {**search, **failing_search}) if failing_search else None,
        failing_book=filled("book", {**(book or {}), **failing_book}) if failing_book else None,
        requests=requests,
    )


THAI = {"food": "thai", "area": "north", "pricerange": "cheap"}
TABLE = {"people": "4", "day": "friday", "time": "18:15"}
HOUSE = {
    "area": "east", "pricerange": "moderate", "stars": "3", "type": "guesthouse",
    "parking": "yes", "internet": "no",
}  # fmt: skip
TRIP = {
    "departure": "larkhaven", "destination": "wexcombe", "day": "tuesday",
    "leaveAt": "09:15", "arriveBy": "12:45",
}  # fmt: skip

RESTAURANT = wish("restaurant", THAI, TABLE, requests=("phone", "postcode"))
KOREAN_FIRST = wish(
    "restaurant", THAI, TABLE, failing_search={"food": "korean"}, requests=("phone",)
)
LATE_FIRST = wish(
    "restaurant", THAI, TABLE, failing_book={"time": "20:00"}, requests=("phone", "postcode")
)
HOTEL = wish("hotel", HOUSE, {"people": "2", "day": "monday", "stay": "3"})
MUSEUM = wish("attraction", {"type": "museum", "area": "centre"}, requests=("entrance fee",))
NAMED = wish("attraction", {"name": "amber hall"}, requests=("phone",))
TRAIN = wish("train", TRIP, {"people": "3"}, requests=("price",))
UNBOOKED = wish("restaurant", THAI, requests=("phone", "address"))

FOUND = "I found amber ladle. Shall I book it?"


def task(*wishes: Wish) -> ToolWOZTask:
    return make_task("one", "train", "", wishes)


def talk(of: ToolWOZTask, *lines: str, seed: int, noise: float = 0.0) -> list[str]:
    """Return what the customer says, beginning with the opening, to an agent that says lines."""
    customer, messages = ScriptedUser(noise), list[Message]()
    messages.append(customer.reply(of, messages, seed=seed))
    for line in lines:
        if END_CONVERSATION not in messages[-1].content:
            messages.append(Message("assistant", line))
            messages.append(customer.reply(of, messages, seed=seed))
    assert all(m.role in ("user", "assistant") for m in messages)
    return [m.content for m in messages if m.role == "user"]


def seed_where(of: ToolWOZTask, *, said: Sequence[str] = (), unsaid: Sequence[str] = ()) -> int:
    """Return a seed with which the opening says some words and does not say others."""
    for seed in range(1000):
        opening = talk(of, seed=seed)[0]
        if all(w in opening for w in said) and not any(w in opening for w in unsaid):
            return seed
    raise AssertionError("no opening is like that")


# --- solvable --------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 400),
        ("domains=1,constraints=1,failures=0,seed=3", 350),
        ("domains=2,constraints=2-3,failures=1-2,seed=7", 150),
        ("domains=4,constraints=6,failures=3-4,seed=2", 60),
        ("domains=1,failures=2,seed=11", 150),
    ],
)
def test_the_expert_solves_every_built_in_task(text: str, count: int, version: int) -> None:
    world = load_builtin(CityOptions.parse(text), version)
    tasks = [*islice(world.tasks("train"), count - 50), *islice(world.tasks("val"), 50)]
    for number, one in enumerate(tasks):
        noise = (0.0, 0.0, 0.5, 1.0)[number % 4]
        dialogue = Dialogue(world, ScriptedUser(noise), max_steps=45)
        episode = play(dialogue, ExpertAgent(one), one, seed=number)
        assert (episode.outcome, episode.reward) == ("success", 1.0), (one.id, noise)
        assert not faults(one, episode.messages), (one.id, noise)
        check_told(one, episode)


def check_told(of: ToolWOZTask, episode: Episode) -> None:
    """Check that the customer has said all that it wanted: an agent without the goal could know."""
    words = mended(" ".join(m.content for m in episode.messages if m.role == "user"))
    for one in of.wishes:
        book = {k: v for k, v in (one.book or {}).items() if k != KEYS[one.domain]}
        for values in (one.search or {}, book):
            wanted = {name: (v,) for name, v in values.items() if v not in EMPTY}
            assert set(heard_values(wanted, words)) == set(wanted), (of.id, one.domain)


def test_the_expert_solves_real_tasks(shared: Path, multiwoz: ToolWOZ) -> None:
    file = shared / "oracle" / "toolwoz" / "exact_goal_reward_val.json.gz"
    rewards = json.loads(gzip.decompress(file.read_bytes()))
    dialogue = Dialogue(multiwoz, ScriptedUser(), max_steps=45)
    solved = {
        one.id
        for one in multiwoz.tasks("val")
        if play(dialogue, ExpertAgent(one), one, seed=derive(1, one.id)).reward == 1.0
    }
    solvable = {id for id, result in rewards.items() if result["reward"] == 1.0}
    assert solvable <= solved and len(solvable) == 755


def test_the_expert_solves_every_repaired_task(multiwoz_v1: ToolWOZ) -> None:
    for number, one in enumerate(multiwoz_v1.tasks("val")):
        noise = (0.0, 1.0)[number % 2]
        dialogue = Dialogue(multiwoz_v1, ScriptedUser(noise), max_steps=45)
        episode = play(dialogue, ExpertAgent(one), one, seed=number)
        assert episode.reward == 1.0, (one.id, noise)
        assert not faults(one, episode.messages), (one.id, noise)


def test_chance_solves_next_to_nothing() -> None:
    """Measured with these seeds: 0 of 300 default tasks, and 1 of 600 of the easiest kind."""
    for text, count, most in (("", 300, 0), ("domains=1,constraints=1,failures=0,seed=3", 600, 3)):
        world = city(text)
        dialogue = Dialogue(world, ScriptedUser(), max_steps=45)
        agent, outcomes = RandomAgent(world.tools), Counter[str | None]()
        for number, one in enumerate(islice(world.tasks("train"), count)):
            outcomes[play(dialogue, agent, one, seed=number).outcome] += 1
        assert set(outcomes) <= {"success", "failure", "truncated"}
        assert outcomes["success"] <= most


# --- a function of the conversation ----------------------------------------------------------

LINES = [
    "Which area?",
    "What kind of food, and at what time?",
    "I am sorry, there is no such place.",
    FOUND,
    "The booking failed.",
    "It is booked. The reference number is ABCD2345.",
    "The phone number is 01970 123456.",
    "",
    "qwertz\ud800",
    "Bye!",
]
TRAFFIC = [
    Message("assistant", call=ToolCall("search_hotel", {"area": "north"})),
    Message("tool", "[]", name="search_hotel"),
    Message("assistant", "{", error="not valid JSON"),
    Message("tool", "Error: not valid JSON"),
]


@settings(max_examples=80)
@given(st.integers(0, 300), st.lists(st.tuples(st.sampled_from(LINES), st.booleans()), max_size=10))
def test_the_same_words_meet_the_same_answer(seed: int, lines: list[tuple[str, bool]]) -> None:
    world = city("")
    dialogue = Dialogue(world, ScriptedUser(), max_steps=99)
    one = world.tasks("train")[seed]
    quiet = busy = dialogue.start(one, seed=seed)
    assert quiet == dialogue.start(one, seed=seed)
    for line, noisy in lines:
        if quiet.outcome is not None:
            break
        if noisy:
            for message in TRAFFIC[0::2]:
                busy = dialogue.act(busy, message)
        quiet = dialogue.listen(dialogue.act(quiet, Message("assistant", line)))
        busy = dialogue.listen(dialogue.act(busy, Message("assistant", line)))
        assert quiet.messages[-1] == busy.messages[-1]
        assert quiet.messages[-1].role == "user" and quiet.messages[-1].content


def test_customers_differ_by_seed() -> None:
    assert len({tuple(talk(task(RESTAURANT), FOUND, seed=seed)) for seed in range(40)}) > 20


# --- telling ---------------------------------------------------------------------------------


def test_wishes_are_told_piecemeal() -> None:
    told = Counter(
        len(heard_values({k: (v,) for k, v in HOUSE.items()}, talk(task(HOTEL), seed=seed)[0]))
        for seed in range(200)
    )
    assert set(told) == {1, 2, 3, 4, 5, 6}  # never nothing, sometimes everything
    assert told[6] < 100


QUESTIONS: dict[str, tuple[Wish, tuple[str, ...]]] = {
    "food": (
        RESTAURANT,
        (
            "What kind of food would you like?",
            "Which cuisine do you prefer?",
            "What would you like to eat?",
            "Please tell me what type of food you want.",
        ),
    ),
    "area": (
        RESTAURANT,
        (
            "Which area?",
            "What part of town are you looking in?",
            "Which side of the city do you prefer?",
            "Where would you like to eat?",
            "In which neighbourhood should it be?",
        ),
    ),
    "pricerange": (
        RESTAURANT,
        (
            "In which price range?",
            "What's your budget?",
            "Should it be cheap, moderate or expensive?",
            "How much do you want to spend?",
        ),
    ),
    "type": (
        HOTEL,
        (
            "What type of place are you looking for?",
            "Would you prefer a hotel or a guest house?",
            "What sort of accommodation do you need?",
        ),
    ),
    "stars": (HOTEL, ("How many stars?", "Do you have a star rating in mind?")),
    "internet": (HOTEL, ("Do you need free wifi?", "Is internet required?", "Wi-Fi?")),
    "parking": (HOTEL, ("Do you need parking?", "Will you be parking a car?")),
    "departure": (
        TRAIN,
        (
            "Where are you departing from?",
            "Where will you be leaving from?",
            "From where are you travelling?",
            "What is your departure station?",
        ),
    ),
    "destination": (
        TRAIN,
        (
            "What is your destination?",
            "Where are you going?",
            "Where would you like to travel to?",
            "To which town?",
        ),
    ),
    "day": (TRAIN, ("On which day?", "What day are you travelling?", "When do you want to go?")),
    "leaveAt": (
        TRAIN,
        (
            "What time would you like to leave?",
            "When would you like to travel?",
            "At which time?",
            "Do you have a departure time?",
        ),
    ),
    "arriveBy": (
        TRAIN,
        ("When do you need to arrive?", "By what time must you be there?", "Any arrival time?"),
    ),
    "name": (NAMED, ("Which attraction do you mean?", "Do you have a specific place in mind?")),
    "people": (
        RESTAURANT,
        (
            "For how many people?",
            "How many guests?",
            "How many of you are there?",
            "How many will be dining?",
            "How big is your party?",
        ),
    ),
    "time": (RESTAURANT, ("At what time?", "What time should I book the table for?", "When?")),
    "stay": (
        HOTEL,
        ("For how many nights?", "How long will you stay?", "What is the length of your stay?"),
    ),
}


@pytest.mark.parametrize("slot", QUESTIONS)
def test_questions_are_answered(slot: str) -> None:
    of, questions = QUESTIONS[slot]
    value = {**(of.search or {}), **(of.book or {})}[slot]
    for question in questions:
        asked = 0
        for seed in range(12):
            opening, answer = talk(task(of), question, seed=seed)
            if not heard_values({slot: (value,)}, opening) or slot in ("people", "time", "stay"):
                asked += 1
                assert heard_values({slot: (value,)}, answer), (question, opening, answer)
        assert asked or of is NAMED


@pytest.mark.parametrize("slot", sorted(set(QUESTIONS) - {"name"}))
def test_what_was_told_already_is_told_again(slot: str) -> None:
    of, questions = QUESTIONS[slot]
    value = {**(of.search or {}), **(of.book or {})}[slot]
    again = talk(task(of), questions[0], questions[0], seed=1)[-1]
    assert heard_values({slot: (value,)}, again), again


INDIFFERENT = {
    "food": wish("restaurant", {"area": "north"}, TABLE),
    "area": wish("restaurant", {"food": "thai"}, TABLE),
    "pricerange": wish("restaurant", {"food": "thai"}, TABLE),
    "type": wish("hotel", {"area": "north"}),
    "stars": wish("hotel", {"area": "north"}),
    "internet": wish("hotel", {"area": "north"}),
    "parking": wish("hotel", {"area": "north"}),
    "name": wish("restaurant", {"area": "north"}),
    "arriveBy": wish("train", {"destination": "wexcombe"}),
}


@pytest.mark.parametrize("slot", INDIFFERENT)
def test_what_does_not_matter_is_shrugged_off(slot: str) -> None:
    questions = {
        "name": ("Do you have a particular restaurant in mind?",),
        "arriveBy": ("When must you arrive?",),
    }
    for question in questions.get(slot, QUESTIONS[slot][1]):
        for seed in range(5):
            _, answer = talk(task(INDIFFERENT[slot]), question, seed=seed)
            assert attribute_name(slot) in answer, (question, answer)
            assert is_indifferent(answer.lower()), (question, answer)


def test_a_detail_that_was_left_out_is_given_when_asked_for() -> None:
    of, details, left_out = task(RESTAURANT), {k: (v,) for k, v in TABLE.items()}, 0
    for seed in range(100):
        opening, booking, answer = talk(
            of, FOUND, "For how many people? On which day? At what time?", seed=seed
        )
        if not heard_values({k: (v,) for k, v in THAI.items()}, opening).keys() >= THAI.keys():
            continue
        missing = details.keys() - heard_values(details, booking).keys()
        assert len(missing) <= 1
        left_out += len(missing)
        assert missing <= heard_values(details, answer).keys()
    assert left_out > 3


# --- what it makes of what it hears ----------------------------------------------------------

OFFERS = [
    "I found amber ladle, a cheap thai restaurant in the north. Would you like me to book a table?",
    "Amber Ladle serves Thai food. Shall I make a reservation?",
    "How about Amber Ladle? It's got great reviews.",
    "I'd recommend Amber Ladle. No reservations are needed.",
    "Amber Ladle is a cheap Thai place in the north. They do not have parking, unfortunately.",
    "Sorry for the wait, I found Amber Ladle in the north.",
    "No problem, I found Amber Ladle, which is cheap.",
    "Amber Ladle is in the north. Please don't hesitate to ask if there is anything else.",
    "Amber Ladle is available. If not, I can find you another one.",
    "There is one: Amber Ladle.",
    "Great choice! The Amber Ladle fits all your requirements. Do you want to reserve a table?",
    "You could try Amber Ladle at 12 mill lane. Would that work?",
    "Here is what I found: Amber Ladle, thai food, north, cheap.",
    "I was able to find Amber Ladle. Its phone number is 01970123456. Anything else?",
    "I've found a match for you! **Amber Ladle** - Thai - 12 Mill Lane - 01970123456",
    "We have Amber Ladle for you.",
    "Amber Ladle matches your wishes.",
    "I am not sure whether you know Amber Ladle; it is a cheap Thai restaurant in the north.",
    "The Amber Ladle would be perfect. Want me to book it?",
    "It's called Amber Ladle.",
]
NOT_FOUND = [
    "I'm sorry, I couldn't find any Thai restaurants in the north.",
    "There are no restaurants matching your criteria.",
    "No results were found for your search.",
    "Unfortunately nothing came up.",
    "We don't have any korean restaurants.",
    "I am sorry, there is no such restaurant. What else would you like?",
    "I'm afraid there aren't any.",
    "My search returned no results.",
    "None match your request. Shall I look in another part of town?",
    "I was unable to find a Korean restaurant in the north. Would you like another cuisine?",
    "It looks like there isn't a cheap korean restaurant in the north.",
    "I cannot find what you are looking for.",
    "Unfortunately, I do not see any Korean restaurants in that area.",
    "I couldn’t find anything like that.",
    "There are zero Korean restaurants in the north.",
    "I have no Korean restaurants in the north, but I have Thai ones. Would you like that?",
    "Your search didn't return anything. Would a different price range work?",
    "No luck, I'm afraid.",
    "I'm sorry but no korean places are listed in the north. How about italian instead?",
    "I found no match, would you like to change something?",
    "There doesn't seem to be one.",
]
NOTHING_SAID = [
    "Let me check that for you.",
    "I will look for what is available.",
    "One moment please.",
    "Hello! How can I help you today?",
    "asdf qwer",
    "",
    "Sure, no problem!",
    "Could you please repeat that?",
    "Sorry, I did not understand.",
]
BOOKED = [
    "It is booked. The reference number is ABCD2345.",
    "Your table has been reserved! Reference: ABCD2345.",
    "Booking successful. Your reference number is ABCD2345.",
    "I've booked a table for 4 at 18:15 on Friday.",
    "I have made the reservation. The reference is ABCD2345.",
    "All set! Your confirmation code is ABCD2345.",
    "Booked, ref ABCD2345. Don't hesitate to call us if you have any questions.",
    "Your reservation is confirmed.",
    "I was able to book your table.",
    "Your reservation at Amber Ladle went through.",
    "Great news, your booking has been made.",
    "I made a reservation for 4 people.",
    "I have successfully made your booking.",
    "No problem, it is booked. Your reference number is ABCD2345.",
    "I have successfully made your booking. There are no extra costs.",
]
NOT_BOOKED = [
    "I am sorry, the booking failed. What else would you like?",
    "Unfortunately, the restaurant is fully booked at 20:00.",
    "I was unable to book that time.",
    "There are no tables available at that time.",
    "Sorry, that time is not available.",
    "The reservation was unsuccessful. Would another time work?",
    "I couldn't make the booking. Would you like another time or day?",
    "I'm afraid they are full at 20:00.",
    "I’m sorry, I wasn’t able to reserve it for that time.",
    "Booking could not be completed.",
    "The restaurant is unavailable at that time.",
    "That slot is already taken.",
    "No availability at 20:00, would 21:00 work?",
    "My attempt to book did not go through.",
    "They do not have a table at 20:00.",
    "It seems that we cannot book it for 20:00. Shall I try a different time?",
    "Your booking has not been confirmed.",
    "Sorry, 20:00 is sold out.",
    "There was an error with the booking.",
    "I'm sorry, it didn't work.",
]
NOT_YET_BOOKED = [
    "I will book that for you now.",
    "Let me make the reservation.",
    "I need your confirmation to go on.",
    "I made a mistake there.",
    "One moment.",
    "For what time?",
    "Would you like to confirm the booking?",
    "",
]

ALL_OF_IT = tuple(THAI.values())


def answers_to_search(line: str) -> tuple[str, str]:
    """Return what is answered by customers that want thai food, now or in the end."""
    now, later = task(RESTAURANT), task(KOREAN_FIRST)
    return (
        talk(now, line, seed=seed_where(now, said=ALL_OF_IT))[1],
        talk(later, line, seed=seed_where(later, said=("korean", "north", "cheap")))[1],
    )


@pytest.mark.parametrize("line", OFFERS)
def test_an_offer_is_booked(line: str) -> None:
    now, _ = answers_to_search(line)
    assert "book it" in now and "people" in now, now


@pytest.mark.parametrize("line", NOT_FOUND)
def test_it_falls_back_when_nothing_was_found(line: str) -> None:
    now, later = answers_to_search(line)
    assert "thai" in later and "korean" not in later, later
    assert "thai" in now and "book" not in now, now


@pytest.mark.parametrize("line", NOTHING_SAID)
def test_it_insists_when_nothing_was_said(line: str) -> None:
    now, later = answers_to_search(line)
    assert "thai" in now and "book" not in now, now
    assert "korean" in later and "thai" not in later, later


def answers_to_booking(line: str) -> tuple[str, str]:
    """Return what is answered by customers that want a table at 18:15, now or in the end."""
    answers = []
    for of in (task(RESTAURANT), task(LATE_FIRST)):
        seed = next(
            seed
            for seed in range(200)
            if all(w in talk(of, FOUND, seed=seed)[1] for w in ("book", "people", "friday", ":"))
        )
        answers.append(talk(of, FOUND, line, seed=seed)[2])
    return answers[0], answers[1]


@pytest.mark.parametrize("line", BOOKED)
def test_it_asks_for_its_requests_once_it_is_booked(line: str) -> None:
    now, _ = answers_to_booking(line)
    assert asked_attributes(("address", "phone", "postcode"), now) == ["phone", "postcode"], now


@pytest.mark.parametrize("line", NOT_BOOKED)
def test_it_falls_back_when_the_booking_failed(line: str) -> None:
    now, later = answers_to_booking(line)
    assert "18:15" in later and "20:00" not in later, later
    assert "book" in now and "18:15" in now, now


@pytest.mark.parametrize("line", NOT_YET_BOOKED)
def test_it_waits_for_the_booking(line: str) -> None:
    now, later = answers_to_booking(line)
    assert "book" in now and "18:15" in now and "phone" not in now, now
    assert "20:00" in later and "18:15" not in later, later


def test_requests_are_asked_for_until_they_are_answered() -> None:
    of = task(UNBOOKED)
    seed = seed_where(of, said=ALL_OF_IT)
    offer, phone, address = FOUND, "The phone number is 01970123456.", "It is at 3 mill lane."
    said = talk(of, offer, phone, address, seed=seed)
    assert asked_attributes(("area", "phone", "address"), said[1]) == ["phone", "address"]
    assert asked_attributes(("area", "phone", "address"), said[2]) == ["address"]
    assert END_CONVERSATION in said[3]
    assert END_CONVERSATION in talk(of, f"{offer} {phone} {address}", seed=seed)[1]


def test_one_wish_comes_after_the_other() -> None:
    of = task(MUSEUM, TRAIN)
    said = talk(of, *["I found it. The entrance fee is free."] * 2, FOUND, FOUND, seed=3)
    named = [named_domain(line) for line in said]
    assert named[0] == "attraction" and [n for n in named[1:] if n] == ["train"]


# --- patience --------------------------------------------------------------------------------

HOPELESS: dict[str, Callable[[int], str]] = {
    "silent": lambda turn: "",
    "gibberish": lambda turn: f"xq{turn} zzkp wrrl {turn * 7919}",
    "polite": lambda turn: "I can help you with that!",
    "asks the same": lambda turn: "Which area do you prefer?",
    "finds nothing": lambda turn: "I am sorry, I could not find anything.",
    "offers for ever": lambda turn: FOUND,
    "cannot book": lambda turn: FOUND if turn % 2 else "The booking failed.",
    "tells the same": lambda turn: ("It is cheap.", "It is in the north.")[turn % 2],
    "asks everything": lambda turn: " ".join(q[0] for _, q in QUESTIONS.values()),
}


@pytest.mark.parametrize("kind", HOPELESS)
def test_it_loses_patience_with_hopeless_agents(kind: str) -> None:
    tasks = [task(one) for one in (RESTAURANT, KOREAN_FIRST, LATE_FIRST, HOTEL, TRAIN, NAMED)]
    tasks += list(islice(city("domains=1").tasks("train"), 60))
    for of in tasks:
        for seed in range(3):
            lines = [HOPELESS[kind](turn) for turn in range(40)]
            said = talk(of, *lines, seed=seed)
            assert END_CONVERSATION in said[-1], said
            assert len(said) <= 10, said
            if kind in ("silent", "gibberish"):
                assert len(said) == 1 + PATIENCE


def test_real_customers_come_to_an_end_whatever_they_hear(multiwoz: ToolWOZ) -> None:
    """Every real task, with an agent that says one after the other of all of the above."""
    lines = [*OFFERS, *NOT_FOUND, *NOTHING_SAID, *BOOKED, *NOT_BOOKED, *NOT_YET_BOOKED, *LINES]
    lines += [question for _, questions in QUESTIONS.values() for question in questions]
    for number, of in enumerate(multiwoz.tasks("val")):
        luck = Luck(number, "lines")
        said = talk(of, *[luck.choice(lines) for _ in range(40)], seed=number)
        assert END_CONVERSATION in said[-1]
        kind = list(HOPELESS)[number % len(HOPELESS)]
        said = talk(of, *map(HOPELESS[kind], range(40)), seed=number)
        assert END_CONVERSATION in said[-1] and len(said) <= 10 * len(of.wishes)


# --- paraphrase ------------------------------------------------------------------------------


def test_no_two_tasks_sound_alike() -> None:
    tasks = list(city("").tasks("val"))
    openings = Counter(talk(one, seed=0)[0] for one in tasks)
    assert len(openings) > 0.95 * len(tasks)
    # The values aside: the same wish, said by forty customers.
    assert len({talk(task(HOTEL), seed=seed)[0] for seed in range(40)}) > 35


def test_nothing_is_said_twice() -> None:
    for of in (task(RESTAURANT), task(HOTEL), task(TRAIN), task(MUSEUM, TRAIN)):
        for kind in HOPELESS.values():
            for seed in range(20):
                said = talk(of, *map(kind, range(30)), seed=seed)
                assert len(set(said)) == len(said)


# --- noise -----------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [-0.1, 1.1, float("nan"), float("inf")])
def test_noise_is_a_number_from_0_to_1(noise: float) -> None:
    with pytest.raises(UsageError, match="choose a number from 0 to 1"):
        ScriptedUser(noise)


@cache
def words_of(noise: float, count: int = 90) -> list[list[str]]:
    """Return what customers say to the expert, dialogue by dialogue."""
    world, said = city(""), []
    dialogue = Dialogue(world, ScriptedUser(noise), max_steps=60)
    for number, one in enumerate(islice(world.tasks("train"), count)):
        episode = play(dialogue, ExpertAgent(one), one, seed=number)
        said.append([m.content for m in episode.messages if m.role == "user"])
    return said


NOISE: dict[str, Callable[[Sequence[str]], bool]] = {
    "typo": lambda said: any(mended(line) != line.lower() for line in said),
    "terse": lambda said: any(line[0].islower() for line in said),
    "chatty": lambda said: any(
        mended(talk) in mended(line) for line in said for talk in SMALL_TALK
    ),
    "change of mind": lambda said: any("meant" in line for line in said),
    "two wishes at once": lambda said: len(domains_of(said[0])) > 1,
    "search and booking at once": lambda said: "people" in mended(said[0]),
}


def domains_of(line: str) -> set[str | None]:
    return {named_domain(sentence) for sentence in sentences(mended(line))} - {None}


@pytest.mark.parametrize("kind", NOISE)
def test_noise_comes_in_every_kind(kind: str) -> None:
    quiet, loud = words_of(0.0), words_of(1.0)
    assert not any(map(NOISE[kind], quiet))
    assert sum(map(NOISE[kind], loud)) > 5
    assert sum(map(NOISE[kind], words_of(0.2))) < sum(map(NOISE[kind], loud))


def test_the_agent_is_corrected() -> None:
    """An agent that names another area than the customer's, which then says its own again."""
    of = task(RESTAURANT)
    wrong = "I found amber ladle, a cheap thai restaurant in the south. Shall I book it?"
    corrected = 0
    for seed in range(60):
        quiet, loud = (talk(of, wrong, wrong, seed=seed, noise=n) for n in (0.0, 1.0))
        assert "No, " not in " ".join(quiet)
        again = [line for line in loud[1:] if "north" in line and "north" in loud[0]]
        corrected += len(again) == 1 and "book" not in again[0]
    assert corrected > 10


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_nothing_can_be_booked_that_is_not_wanted(noise: float) -> None:
    """Whoever books once it is asked to, and has all details, books what the customer means."""
    world = city("domains=1,failures=1")
    dialogue, asked, slips = Dialogue(world, ScriptedUser(noise), max_steps=60), 0, 0
    for number, one in enumerate(islice(world.tasks("train"), 400)):
        (wanted,) = one.wishes
        if not wanted.book:
            continue
        details = [name for name in wanted.book if name != KEYS[wanted.domain]]
        choices = [c for c in (wanted.book, wanted.failing_book) if c]
        days = city_values(details)
        words = ""
        for message in play(dialogue, ExpertAgent(one), one, seed=number).messages:
            if message.role != "user":
                continue
            words = f"{words} {mended(message.content)}"
            heard = heard_values(days, words)
            booking = {name: heard[name] for name in details if name in heard}
            if asks_to_book(words):
                meant = any(booking.items() <= choice.items() for choice in choices)
                slips += not meant
                assert meant or booking.keys() != set(details), (one.id, words)
                asked += 1
    assert asked > 200 and (slips > 10 or noise < 1.0)


def city_values(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    numbers = tuple("12345678")
    times = tuple(f"{hour:02d}:{minute:02d}" for hour in range(24) for minute in range(0, 60, 15))
    known = {"people": numbers, "stay": numbers, "time": times, "day": tuple(DAYS)}
    return {name: known[name] for name in names}


def test_small_talk_says_nothing() -> None:
    world = city("")
    agent = KeywordAgent(world.tables)
    for line in SMALL_TALK:
        assert named_domain(line) is None and not asks_to_book(line)
        assert asked_attributes(("phone", "area", "price", "internet"), line) == []
        answer = agent.act([Message("user", line)], seed=0)
        assert answer == agent.act([Message("user", "Hello.")], seed=0)
        told = agent.act([Message("user", f"I need a restaurant. {line}")], seed=0)
        assert told.call == ToolCall("search_restaurant", {})


@pytest.mark.parametrize("word", KEYWORDS)
def test_misspelt_keywords_can_be_read(word: str) -> None:
    for spoilt in misspellings(word):
        assert spoilt not in KEYWORDS and mended(f"({spoilt})") == f"({word})"


@given(st.integers(0, 10_000))
def test_values_have_no_typos(seed: int) -> None:
    text = "Please book the restaurant called the perfect place at 18:15 for 4 people."
    spoilt = with_typos(text, ["the perfect place", "18:15", "4"], 1.0, Luck(seed))
    assert "called" not in spoilt and "restaurant" not in spoilt
    assert "the perfect place at 18:15 for 4" in spoilt


def test_a_listener_by_keywords_suffers_from_noise() -> None:
    world = city("")
    agent, solved = KeywordAgent(world.tables), []
    for noise in (0.0, 0.4, 1.0):
        dialogue = Dialogue(world, ScriptedUser(noise), max_steps=60)
        plays = [
            play(dialogue, agent, one, seed=number)
            for number, one in enumerate(islice(world.tasks("val"), 60))
        ]
        solved.append(sum(episode.reward for episode in plays))
    assert solved[0] >= 57 and solved[0] > solved[1] + 3 and solved[1] > solved[2] + 3


def test_the_benchmark_prints_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "noise.png"
    few = ["noise", "--tasks", "4", "--trials", "2", "--levels", "0", "1"]
    assert benchmarks([*few, "--plot", str(plot)]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if ", v" in line]
    assert [row[:11].strip() for row in rows[::2]] == [
        "keyword, v0", "expert, v0", "keyword, v1", "expert, v1",
    ]  # fmt: skip
    assert all(row.split()[3:4] == ["100.0"] for row in rows if "expert" in row)
    assert plot.read_bytes().startswith(b"\x89PNG")
    for bad in (["--levels", "2"], ["--levels", "1", "0"], ["--tasks", "0"], ["--trials", "0"]):
        assert benchmarks(["noise", *bad]) == 2


# --- hostile agents --------------------------------------------------------------------------

REPEATED = (
    "no ", "no not ", "what ", "where is ", "there was ", "booking ", "leaving ", "do not worry ",
    "1 ", "1", "11:11", "1.", "£", "?", ".", "a. ", "no. ", "\ud800", "é\n", " ", "what? ", "tr1",
    "sorry, ", "in the north ", "guest ", "free ", "a", "don't ", "any ",
)  # fmt: skip


@pytest.mark.parametrize("domain", ["hotel", "train"])
def test_hearing_copes_with_anything(domain: str) -> None:
    """A pattern that is not linear would keep this test busy for minutes."""
    for piece in REPEATED:
        text = (piece * 16_384)[:16_384]
        understand(domain, text)
        mentions(text)


def test_nobody_listens_for_ever() -> None:
    long = "Well. " * ATTENTION
    of = task(RESTAURANT)
    seed = seed_where(of, said=ALL_OF_IT)
    assert asks_to_book(talk(of, FOUND + long, seed=seed)[1])
    assert not asks_to_book(talk(of, long + FOUND, seed=seed)[1])


# --- faults ----------------------------------------------------------------------------------


def dialogue_of(*lines: str) -> list[Message]:
    """Return a dialogue in which customer and agent take turns; the customer says goodbye."""
    roles = ("user", "assistant")
    *said, last = [Message(roles[i % 2], line) for i, line in enumerate(lines)]  # type: ignore[arg-type]
    return [*said, Message(last.role, f"{last.content} {END_CONVERSATION}")]


OPENING = "I need a cheap restaurant in the north with thai food."
BOOKING = "Please book it for 4 people on friday at 18:15."
SERVED = "It is booked. The reference number is ABCD2345."

FAULTY: dict[str, tuple[ToolWOZTask, list[Message], list[tuple[str, int]]]] = {
    "none": (task(RESTAURANT), dialogue_of(OPENING, FOUND, BOOKING, SERVED, "Bye."), []),
    "left early": (
        task(RESTAURANT, TRAIN),
        dialogue_of(OPENING, FOUND, BOOKING, SERVED, "Bye."),
        [("left early", 4)],
    ),
    "gave up": (
        task(UNBOOKED),
        dialogue_of(OPENING, "In which price range?", "Forget it."),
        [("gave up", 2)],
    ),
    "out of patience": (
        task(UNBOOKED),
        dialogue_of(OPENING, "Hm.", "Hello?", "Hmm.", "Are you there?", "Hmmm.", "Forget it."),
        [],
    ),
    "untold": (
        task(RESTAURANT),
        dialogue_of("I need a restaurant with thai food.", FOUND, BOOKING, SERVED, "Great, bye."),
        [("untold", 4), ("untold", 4)],
    ),
    "wrong value": (
        task(RESTAURANT),
        dialogue_of(f"{OPENING} No, in the south.", FOUND, BOOKING, SERVED, "Bye."),
        [("wrong value", 0)],
    ),
    "wrong value, taken back": (
        task(RESTAURANT),
        dialogue_of(f"{OPENING} No, in the south.", FOUND, f"North! {BOOKING}", SERVED, "Bye."),
        [],
    ),
    "the first choice is no wrong value": (
        task(LATE_FIRST),
        dialogue_of(
            OPENING,
            FOUND,
            BOOKING.replace("18:15", "20:00"),
            "The booking failed.",
            "Then at 18:15.",
            SERVED,
            "Bye.",
        ),
        [],
    ),  # fmt: skip
    "ignored question": (
        task(RESTAURANT),
        dialogue_of(
            "A thai restaurant, please.",
            "In which area?",
            "I like food.",
            "Which area?",
            "Cheap, in the north.",
            FOUND,
            BOOKING,
            SERVED,
            "Bye.",
        ),
        [("ignored question", 2)],
    ),  # fmt: skip
    "repeated": (
        task(RESTAURANT),
        dialogue_of(OPENING, "Hello.", OPENING, FOUND, BOOKING, SERVED, "Bye."),
        [("repeated", 2)],
    ),
}


@pytest.mark.parametrize("name", FAULTY)
def test_faults_worked_by_hand(name: str) -> None:
    of, messages, found = FAULTY[name]
    assert [(fault.kind, fault.message) for fault in faults(of, messages)] == found
    traffic = [messages[0], *TRAFFIC, *messages[1:]]
    assert [fault.kind for fault in faults(of, traffic)] == [kind for kind, _ in found]


def test_every_kind_of_fault_is_worked_by_hand() -> None:
    assert {kind for *_, found in FAULTY.values() for kind, _ in found} == set(KINDS)


def test_a_dialogue_that_was_cut_off_has_no_untold_wishes() -> None:
    of = task(RESTAURANT, TRAIN)
    assert faults(of, [Message("user", "I need a restaurant."), Message("assistant", FOUND)]) == ()
    assert faults(of, []) == ()


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_scripted_customers_have_no_faults(noise: float) -> None:
    world = city("")
    dialogue = Dialogue(world, ScriptedUser(noise), max_steps=60)
    keyword, chance = KeywordAgent(world.tables), RandomAgent(world.tools)
    for number, one in enumerate(islice(world.tasks("val"), 60)):
        for agent in (keyword, chance):
            episode = play(dialogue, agent, one, seed=number)
            assert not faults(one, episode.messages), one.id
        for kind in HOPELESS.values():
            lines = [kind(turn) for turn in range(40)]
            said = talk(one, *lines, seed=number, noise=noise)
            spoken = [m for pair in zip(said, lines, strict=False) for m in pair][
                : 2 * len(said) - 1
            ]
            roles = ("user", "assistant")
            messages = [Message(roles[i % 2], text) for i, text in enumerate(spoken)]  # type: ignore[arg-type]
            assert not faults(one, messages), (one.id, said)


def test_sentences() -> None:
    assert sentences("Hi! It's 4.50 pounds; OK?\nTR1234 leaves at 10:00.") == [
        "hi!", "it's 4.50 pounds;", "ok?", "tr1234 leaves at 10:00.",
    ]  # fmt: skip
    assert sentences("") == []


def test_the_policy_says_what_the_customer_needs() -> None:
    for word in ("reference number", "nothing is found", "booking fails"):
        assert word in POLICY
