"""ToolWOZ-v1's rules, on a world small enough to work out by hand, and on every real task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.controls import CONTROLS, LIES, WITHHOLDING, liars
from agents.scripted import ExpertAgent, RandomAgent
from benchmarks.controls import ControlOptions, prove
from toolwoz_gym import Dialogue, UsageError, load_world, make_env
from toolwoz_gym.actions import parse_action
from toolwoz_gym.rollout import play
from toolwoz_gym.toolwoz import ToolWOZ, goals, v1
from toolwoz_gym.toolwoz.goals import derive_wishes
from toolwoz_gym.toolwoz.repair import Repair, repair, retell
from toolwoz_gym.toolwoz.tables import Tables, numbers
from toolwoz_gym.toolwoz.task import ToolWOZTask, make_task
from toolwoz_gym.toolwoz.v0 import ToolWOZv0
from toolwoz_gym.toolwoz.v1 import ToolWOZv1
from toolwoz_gym.types import Episode, ToolError
from toolwoz_gym.users.replay import ReplayUser
from toolwoz_gym.users.scripted import ScriptedUser


def place(name: str, food: str, area: str, **others: str) -> dict[str, Any]:
    return {"name": name, "food": food, "area": area, "pricerange": "cheap", "phone": "1", **others}


def train(id: str, leave: str, arrive: str, day: str = "monday") -> dict[str, Any]:
    towns = {"departure": "ely", "destination": "norwich"}
    return {"trainID": id, "leaveAt": leave, "arriveBy": arrive, "day": day, **towns}


TABLES = Tables(
    {
        "restaurant": [
            place("salt", "thai", "north"),
            place("pepper", "thai", "south"),
            place("lime", "thai", "north", phone="?"),
            place("The Café d'Or ", "French", "south", phone="01223 446100"),
        ],
        "train": [
            train("TR2", "13:00", "14:00", "sunday"),  # numbers are not unique: see TR2 and TR4
            train("TR4", "15:00", "16:00", "tuesday"),
            train("TR1", "09:00", "10:00"),
            train("TR2", "10:00", "11:00"),
            train("TR3", "11:00", "12:00"),
            train("TR4", "09:00", "10:00", "sunday"),
        ],
    }
)

THAI = {"info": {"food": "thai", "area": "north"}}
TABLE = {"time": "19:00", "day": "friday", "people": "2"}
SALT = {"name": "salt", "reference": "SALT0001"}
TRIP = {"departure": "ely", "destination": "norwich", "day": "monday"}


def task_of(booked: Mapping[str, Mapping[str, str]] | None = None, **goal: Any) -> ToolWOZTask:
    return make_task("one", "val", "", derive_wishes(goal, booked or {}, TABLES))


def world_of(task: ToolWOZTask, version: type[ToolWOZ] = ToolWOZv1) -> ToolWOZ:
    return version("small", TABLES, {"val": (task,)}, "0")


def episode_of(task: ToolWOZTask, *actions: str, version: type[ToolWOZ] = ToolWOZv1) -> Episode:
    """Play actions in order; the customer says "Go on." to every reply, and then goodbye."""
    dialogue = Dialogue(world_of(task, version), ReplayUser(("Go on.",) * 50), max_steps=50)
    episode = dialogue.start(task, seed=0)
    for action in actions:
        episode = dialogue.act(episode, parse_action(action))
        if episode.awaits_user:
            episode = dialogue.listen(episode)
    return dialogue.cut_off(episode)


def call(name: str, /, **arguments: Any) -> str:
    return json.dumps({"name": name, "arguments": arguments})


def answers(task: ToolWOZTask, *actions: str) -> list[Any]:
    """Return what the tools answer to actions: parsed JSON, or the text of an error."""
    texts = [m.content for m in episode_of(task, *actions).messages if m.role == "tool"]
    return [t if t.startswith("Error") else json.loads(t) for t in texts]


def names(answer: Sequence[Mapping[str, Any]]) -> list[str]:
    return [row.get("name") or row["trainID"] for row in answer]


def find(task: ToolWOZTask, tool: str, /, **arguments: Any) -> list[str]:
    """Return which rows a search shows."""
    return names(answers(task, call(tool, **arguments))[0])


def unmet(episode: Episode, version: type[ToolWOZ] = ToolWOZv1) -> list[str]:
    """Return the demands that were not met, having held the reward against them."""
    assert isinstance(episode.task, ToolWOZTask)
    verdicts = world_of(episode.task, version).explain(episode)
    assert all(verdict.met for verdict in verdicts) == (episode.reward == 1.0)
    return [verdict.demand for verdict in verdicts if not verdict.met]


BOOK_SALT = call("book_restaurant", name="salt", **TABLE)
FIND_THAI = call("search_restaurant", food="thai", area="north")
WANTS_SALT = task_of({"restaurant": SALT}, restaurant={**THAI, "book": TABLE})


# --- 1: matching -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["the cafe d'or", "THE CAFÉ DOR", " the café d’or", "The Café d'Or "]
)
def test_spelling_does_not_matter(name: str) -> None:
    task = task_of(restaurant={"info": {"name": "the café d'or"}})
    found = find(task, "search_restaurant", name=name)
    assert found == ([] if "cafe" in name else ["The Café d'Or "])  # an accent is another letter
    assert find(task, "search_restaurant", food=" FRENCH ") == ["The Café d'Or "]


def test_numbers_equal_their_strings() -> None:
    wanted = call("book_restaurant", name="Salt", time="19:00", day="Friday", people=2)
    assert not unmet(episode_of(WANTS_SALT, FIND_THAI, wanted))
    wanted = call("book_restaurant", name="Salt", time="19:00", day="Friday", people=2.0)
    assert not unmet(episode_of(WANTS_SALT, FIND_THAI, wanted))


@pytest.mark.parametrize(
    "word", ["", "Dont Care", "don’t care", "DO N'T CARE", "Not Mentioned", None]
)
def test_dont_care_words_ask_for_nothing(word: str | None) -> None:
    task = task_of(restaurant={"info": {"food": "french", "area": "Dont care"}})
    assert find(task, "search_restaurant", food="french", area=word) == ["The Café d'Or "]
    assert not unmet(episode_of(task, call("search_restaurant", food="french", area=word)))


# --- 2: times ----------------------------------------------------------------------------------


def test_times_are_inclusive_and_compared_as_times() -> None:
    task = task_of(train={"info": {**TRIP, "leaveAt": "9:00", "arriveBy": "10:00"}})
    for leave, arrive in [("09:00", "10:00"), ("9:00", "10:00"), ("8:59", " 10:00 ")]:
        made = call("search_train", **TRIP, leaveAt=leave, arriveBy=arrive)
        assert not unmet(episode_of(task, made)), (leave, arrive)
    assert find(task, "search_train", **TRIP, leaveAt="9:01", arriveBy="10:00") == []


def test_any_train_that_satisfies_a_goal_time_meets_it() -> None:
    task = task_of(train={"info": {**TRIP, "leaveAt": "09:30"}})
    assert find(task, "search_train", **TRIP, leaveAt="10:30") == ["TR3"]
    assert not unmet(episode_of(task, call("search_train", **TRIP, leaveAt="10:30")))
    assert unmet(episode_of(task, call("search_train", **TRIP, leaveAt="08:30")))


def test_what_is_no_time_is_said() -> None:
    task = task_of(train={"info": TRIP})
    (answer,) = answers(task, call("search_train", leaveAt="after nine"))
    assert answer == "Error: leaveAt must be a time as hh:mm"


LATE = Tables(
    {
        "train": [
            train("DAY", "09:00", "10:00"),
            train("EVENING", "22:00", "23:30"),
            train("LONG", "23:17", "01:07"),
            train("SHORT", "23:17", "24:08"),
        ]
    }
)


@pytest.mark.parametrize(
    ("arrive", "in_time"),
    [
        ("08:00", []),
        ("10:00", ["DAY"]),
        ("20:00", ["DAY"]),
        ("23:59", ["DAY", "EVENING"]),
        ("00:08", ["DAY", "EVENING", "SHORT"]),
        ("24:08", ["DAY", "EVENING", "SHORT"]),
        ("00:00", ["DAY", "EVENING"]),
        ("01:06", ["DAY", "EVENING", "SHORT"]),
        ("1:07", ["DAY", "EVENING", "LONG", "SHORT"]),
        ("25:07", ["DAY", "EVENING", "LONG", "SHORT"]),
    ],
)
def test_arrivals_after_midnight_are_late_in_either_spelling(
    arrive: str, in_time: list[str]
) -> None:
    table = LATE["train"]
    rows = numbers(v1.found(table, v1.given({"arriveBy": arrive})))
    assert [table.rows[number]["trainID"] for number in rows] == in_time


def test_v0_takes_an_arrival_at_one_for_an_early_one() -> None:
    table = LATE["train"]
    rows = numbers(goals.found(table, {"arriveBy": "20:00"}))
    assert [table.rows[number]["trainID"] for number in rows] == ["DAY", "LONG"]


# --- what a search shows ----------------------------------------------------------------------


def test_a_search_shows_the_right_one_once_it_rules_out_the_wrong_ones() -> None:
    assert find(WANTS_SALT, "search_restaurant") == ["The Café d'Or "]
    assert find(WANTS_SALT, "search_restaurant", food="thai") == ["pepper"]
    assert find(WANTS_SALT, "search_restaurant", food="thai", area="north") == ["salt"]
    assert find(WANTS_SALT, "search_restaurant", name="salt") == ["salt"]
    assert find(WANTS_SALT, "search_restaurant", name="lime") == ["lime"]  # it fits as well
    assert find(WANTS_SALT, "search_train", day="monday") == ["TR1"]  # nobody asked for trains


# --- 3: first choices --------------------------------------------------------------------------


def test_the_failing_search_finds_nothing_and_hides_what_it_is_about() -> None:
    goal = {"info": {"food": "french"}, "fail_info": {"food": "thai"}}
    task = task_of(restaurant=goal)
    assert find(task, "search_restaurant", food="thai") == []
    assert find(task, "search_restaurant", food="thai", area="north") == []
    assert find(task, "search_restaurant", name="salt") == []
    assert find(task, "search_restaurant") == ["The Café d'Or "]
    assert answers(task, BOOK_SALT) == [{"success": False, "return": {}}]
    v0 = episode_of(task, call("search_restaurant", food="thai"), version=ToolWOZv0)
    assert names(json.loads(v0.messages[-1].content)) == ["salt"]


def test_the_failing_booking_is_refused_for_every_place() -> None:
    goal = {**THAI, "book": TABLE, "fail_book": {"time": "12:00"}}
    task = task_of({"restaurant": SALT}, restaurant=goal)
    for name in ("salt", "pepper"):
        early = call("book_restaurant", **{**TABLE, "time": "12:00"}, name=name)
        assert answers(task, early) == [{"success": False, "return": {}}]
    early = call("book_restaurant", **{**TABLE, "time": "12:00"}, name="salt")
    assert not unmet(episode_of(task, FIND_THAI, early, BOOK_SALT))  # a refusal leaves no booking


# --- 4: bookings -------------------------------------------------------------------------------


def test_exactly_the_goals_bookings() -> None:
    right = episode_of(WANTS_SALT, FIND_THAI, BOOK_SALT)
    assert right.reward == 1.0
    assert json.loads(right.messages[-1].content) == {"success": True, "return": SALT}
    again = episode_of(WANTS_SALT, FIND_THAI, BOOK_SALT, BOOK_SALT)
    assert again.reward == 1.0  # the same booking, not a second one


@pytest.mark.parametrize(
    "other",
    [
        call("book_restaurant", **{**TABLE, "people": "3"}, name="salt"),
        call("book_restaurant", **TABLE, name="pepper"),
        call("book_restaurant", **TABLE, name="lime"),  # it fits, but the customer took the other
        call("book_train", people="1", trainID="TR1"),
    ],
)
def test_one_wrong_booking_spoils_it(other: str) -> None:
    for actions in ([FIND_THAI, BOOK_SALT, other], [other, FIND_THAI, BOOK_SALT]):
        episode = episode_of(WANTS_SALT, *actions)
        assert unmet(episode) == ["nothing else is booked"]
        assert episode.reward == 0.0
        assert episode_of(WANTS_SALT, *actions, version=ToolWOZv0).reward == 1.0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"name": "salt"}, "book_restaurant needs time, day, people too"),
        ({**TABLE, "name": "salt", "day": "today"}, "day must be one of monday, tuesday, .*"),
        ({**TABLE, "name": "salt", "people": "two"}, "people must be a whole number"),
        ({**TABLE, "name": "salt", "people": 0}, "people must be a whole number"),
        ({**TABLE, "name": "salt", "people": True}, "the value of people must be a string"),
        ({**TABLE, "name": "salt", "time": "seven"}, "time must be a time as hh:mm"),
    ],
)
def test_a_booking_that_makes_no_sense_is_not_made(arguments: dict[str, Any], error: str) -> None:
    world = world_of(WANTS_SALT)
    made = parse_action(call("book_restaurant", **arguments)).call
    assert made is not None
    with pytest.raises(ToolError, match=f"^{error}$"):
        world.call(WANTS_SALT, world.start(WANTS_SALT), made)


def test_what_is_not_there_cannot_be_booked() -> None:
    refused = {"success": False, "return": {}}
    made = [call("book_restaurant", **TABLE, name="sugar"), call("book_attraction")]
    assert answers(WANTS_SALT, *made) == [refused, refused]


# --- 5: what the customer asks for -----------------------------------------------------------


def test_questions_must_be_answered_as_the_database_has_it() -> None:
    task = task_of(restaurant={"info": {"food": "french"}, "reqt": ["phone", "area"]})
    look = call("search_restaurant", food="french")
    both = episode_of(task, look, "It is in the south. The phone number is 01223446100.")
    assert both.reward == 1.0
    wrong = episode_of(task, look, "It is in the south. The phone number is 01223446101.")
    assert unmet(wrong) == ["the customer is told the restaurant's phone number"]
    assert len(unmet(episode_of(task, look))) == 2


def test_v0_asks_for_no_answers() -> None:
    task = task_of(restaurant={**THAI, "reqt": ["phone"]})
    assert episode_of(task, FIND_THAI, version=ToolWOZv0).reward == 1.0
    assert episode_of(task, FIND_THAI).reward == 0.0


def test_a_tool_call_tells_the_customer_nothing() -> None:
    task = task_of(restaurant={"info": {"food": "french"}, "reqt": ["area"]})
    look = call("search_restaurant", food="french", area="south")
    assert unmet(episode_of(task, look)) == ["the customer is told the restaurant's area"]


def test_what_the_database_does_not_know_need_not_be_told() -> None:
    goal = {"info": {"name": "lime"}, "reqt": ["phone"]}
    task = task_of(restaurant=goal)
    offer = call("search_restaurant", name="lime"), "I have found lime."
    assert episode_of(task, *offer).reward == 1.0


def test_questions_about_a_booking_are_about_what_is_booked() -> None:
    goal = {**THAI, "book": TABLE, "reqt": ["phone"]}
    task = task_of({"restaurant": SALT}, restaurant=goal)
    assert episode_of(task, FIND_THAI, BOOK_SALT, "Its phone number is 1.").reward == 1.0
    assert episode_of(task, FIND_THAI, BOOK_SALT).reward == 0.0


def test_questions_about_a_train_are_about_the_one_on_the_customers_day() -> None:
    goal = {"info": TRIP, "book": {"people": "2"}, "reqt": ["arriveBy"]}
    task = task_of({"train": {"trainID": "TR2", "reference": "R"}}, train=goal)
    made = [call("search_train", **TRIP), call("book_train", people="2", trainID="TR2")]
    assert not unmet(episode_of(task, *made, "Booked. It arrives at 11:00."))
    assert unmet(episode_of(task, *made, "Booked. It arrives at 14:00.")) == [
        "the customer is told the train's arrival time"
    ]


def test_a_train_without_a_day_is_the_one_that_was_shown() -> None:
    goal = {"info": {"departure": "ely"}, "book": {"people": "2"}, "reqt": ["arriveBy"]}
    task = task_of({"train": {"trainID": "TR2", "reference": "R"}}, train=goal)
    book = call("book_train", people="2", trainID="TR2")
    for day, time, other in (("monday", "11:00", "14:00"), ("sunday", "14:00", "11:00")):
        look = call("search_train", departure="ely", day=day)
        assert not unmet(episode_of(task, look, book, f"Booked. It arrives at {time}."))
        assert unmet(episode_of(task, look, book, f"Booked. It arrives at {other}."))


# --- 6: repairs ----------------------------------------------------------------------------------


def repaired(
    booked: Mapping[str, Mapping[str, str]], *said: str, state: Any = None, **goal: Any
) -> Repair:
    """Repair a dialogue in which the agent said some lines."""
    log: list[dict[str, Any]] = []
    for line in said:
        log += [{"text": "Hello"}, {"text": line}]
    log.append({"text": "Bye", "metadata": state or {}})
    return repair(derive_wishes(goal, booked, TABLES), log, TABLES)


def test_a_sound_task_is_left_alone() -> None:
    wishes = WANTS_SALT.wishes
    assert repair(wishes, [], TABLES) == Repair(wishes)


def book_train(train: str, **info: str) -> tuple[dict[str, Any], dict[str, Any]]:
    goal = {"train": {"info": {**TRIP, **info}, "book": {"people": "2"}}}
    return {"train": {"trainID": train, "reference": "R"}}, goal


def booked_train(made: Repair) -> str | None:
    if made.wishes is None:
        return None
    (wish,) = made.wishes
    assert wish.book and wish.booked and wish.book["trainID"] == wish.booked["trainID"]
    return wish.book["trainID"]


def test_the_same_train_on_the_goals_day() -> None:
    booked, goal = book_train("TR4", leaveAt="08:00")
    made = repaired(booked, **goal)
    assert booked_train(made) == "TR1"
    assert made.reasons == (
        "train: the train booked runs on another day; the same train on the goal's day",
    )


def test_a_train_that_the_dialogue_names() -> None:
    booked, goal = book_train("TR1", leaveAt="09:30")
    assert booked_train(repaired(booked, "TR3 would suit you.", **goal)) == "TR3"
    assert booked_train(repaired(booked, "TR2 or TR3?", **goal)) is None
    assert booked_train(repaired(booked, "It leaves at 11:00.", **goal)) is None  # so may arrive
    assert booked_train(repaired(booked, "You arrive at 12:00.", **goal)) == "TR3"
    assert repaired(booked, **goal).reasons == ("train: what was booked does not fit the goal",)


def test_a_train_whose_times_the_dialogue_has_as_a_clock_shows_them() -> None:
    wish = derive_wishes({"train": {"info": TRIP}}, {}, LATE)[0]
    booked = replace(wish, search={**(wish.search or {}), "leaveAt": "23:00"}, book={"people": "2"})
    booked = replace(booked, book={"people": "2", "trainID": "DAY"}, booked={"trainID": "DAY"})
    log = [{"text": "Hello"}, {"text": "It arrives at 00:08."}]
    assert booked_train(repair((booked,), log, LATE)) == "SHORT"


def test_names_that_the_database_has_otherwise() -> None:
    goal = {"restaurant": {"info": {"name": "café d'or"}, "book": TABLE}}
    made = repaired({"restaurant": {"name": "café d'or", "reference": "R"}}, **goal)
    assert made.wishes is not None
    assert made.wishes[0].search is not None and made.wishes[0].book is not None
    assert made.wishes[0].search["name"] == made.wishes[0].book["name"] == "The Café d'Or "
    assert len(made.reasons) == 2


CALLED = "Its name is called <span class='emphasis'>{}</span>"


@pytest.mark.parametrize(
    ("message", "retold"),
    [
        (CALLED.format("Café d'Or"), CALLED.format("The Café d'Or")),
        (CALLED.format("café dor"), CALLED.format("The Café d'Or")),
        ("You ask for café  d’or, and nothing else", "You ask for The Café d'Or, and nothing else"),
        ("You want Café d'Orsay", "You want Café d'Orsay\nThe restaurant is called The Café d'Or."),
    ],
)
def test_the_instruction_has_the_name_that_the_database_has(message: str, retold: str) -> None:
    goal = {"restaurant": {"info": {"name": "café d'or"}, "book": TABLE}}
    before = derive_wishes(goal, {"restaurant": {"name": "café d'or"}}, TABLES)
    after = repair(before, [], TABLES).wishes
    assert after is not None and retell(message, before, after, TABLES) == retold
    assert retell(message, before, before, TABLES) == message


def test_a_name_is_replaced_where_it_is_one() -> None:
    """Between tags, if there are some; the first choice keeps the name that nobody has."""
    tables = Tables({"restaurant": [place("ask restaurant", "thai", "north")]})
    goal = {"info": {"name": "ask"}, "fail_info": {"name": "task"}, "book": TABLE}
    before = derive_wishes({"restaurant": goal}, {"restaurant": {"name": "ask"}}, tables)
    after = repair(before, [], tables).wishes
    message = f"You ask. {CALLED}. If there is none, how about {CALLED}?"
    assert after is not None and after[0].failing_search == before[0].failing_search
    assert retell(message.format("task", "ask"), before, after, tables) == message.format(
        "task", "ask restaurant"
    )


def test_a_first_choice_about_the_same_place_has_the_same_name() -> None:
    goal = {"info": {"name": "café d'or", "area": "south"}, "fail_info": {"area": "north"}}
    (wish,) = repaired({}, restaurant=goal).wishes or ()
    assert wish.failing_search is not None
    assert (wish.failing_search["name"], wish.failing_search["area"]) == ("The Café d'Or ", "north")


def test_the_instruction_has_what_fills_a_bookings_gaps() -> None:
    goal = {"restaurant": {**THAI, "book": {"time": "19:00"}, "fail_book": {"time": "18:00"}}}
    before = derive_wishes(goal, {"restaurant": SALT}, TABLES)
    state = {"restaurant": {"book": {"day": "friday", "people": "1", "booked": []}}}
    after = repair(before, [{"text": "Bye", "metadata": state}], TABLES).wishes
    assert after is not None and after[0].book is not None and after[0].failing_book is not None
    assert after[0].failing_book == {**after[0].book, "time": "18:00", "name": ""}
    assert retell("A table at 19:00", before, after, TABLES) == (
        "A table at 19:00\nYou want to book the restaurant on friday for 1 person."
    )


def test_a_booking_with_gaps() -> None:
    goal = {"restaurant": {**THAI, "book": {"time": "19:00", "people": "2"}}}
    state = {"restaurant": {"book": {"day": "friday", "booked": []}}}
    made = repaired({"restaurant": SALT}, state=state, **goal)
    assert made.wishes is not None and made.wishes[0].book == {**TABLE, "name": "salt"}
    assert repaired({"restaurant": SALT}, **goal).wishes is None


def test_times_in_words() -> None:
    booked, goal = book_train("TR2", leaveAt="after 09:30")
    made = repaired(booked, **goal)
    assert made.wishes is not None and made.wishes[0].search is not None
    assert made.wishes[0].search["leaveAt"] == "09:30"
    booked, goal = book_train("TR2", leaveAt="in the morning")
    assert repaired(booked, **goal).reasons == (
        "train: the goal makes no sense: leaveAt must be a time as hh:mm",
    )
    booked, goal = book_train("TR2", leaveAt="4:30 pm")  # not what it says in the morning
    assert repaired(booked, **goal).wishes is None


def test_times_in_words_of_a_first_choice() -> None:
    goal = {"info": TRIP, "fail_info": {"leaveAt": "after 21:30"}}
    (wish,) = repaired({}, train=goal).wishes or ()
    assert wish.failing_search is not None and wish.failing_search["leaveAt"] == "21:30"


def test_first_choices_that_cannot_fail() -> None:
    made = repaired({}, restaurant={**THAI, "fail_info": {"food": "thai"}})
    assert made.wishes is not None and made.wishes[0].failing_search is None
    goal = {**THAI, "book": TABLE, "fail_book": {"time": "19:00"}}
    made = repaired({"restaurant": SALT}, restaurant=goal)
    assert made.wishes is not None and made.wishes[0].failing_book is None


def test_goals_that_nobody_can_serve_or_fail() -> None:
    assert repaired({}, restaurant={"info": {"food": "korean"}}).wishes is None
    asks_nothing = {"info": {"food": "dontcare"}, "reqt": ["phone"]}
    assert repaired({}, restaurant=asks_nothing).wishes is None
    made = repaired({}, restaurant=asks_nothing, train={"info": TRIP})
    assert made.wishes is not None and [w.domain for w in made.wishes] == ["train"]


# --- 7: the proof --------------------------------------------------------------------------------

WORLDS = ["builtin", "builtin:domains=4,constraints=1-6,failures=4", "builtin:domains=1,seed=3"]


@pytest.mark.parametrize("world", WORLDS)
def test_the_expert_is_always_paid_and_the_others_never(world: str) -> None:
    """A sample; ``python -m benchmarks controls`` plays every task."""
    for result in prove(ControlOptions(world=world, tasks=10)):
        assert result.exceptions == ()
        assert result.rewarded["expert"] == result.played["expert"] == result.tasks
        assert all(result.played[lie] for lie in LIES)


def test_every_real_task_is_solved_by_the_expert(multiwoz_v1: ToolWOZ) -> None:
    dialogue = Dialogue(multiwoz_v1, ScriptedUser(), max_steps=60)
    for task in multiwoz_v1.tasks("val"):
        episode = play(dialogue, ExpertAgent(task), task, seed=0)
        assert episode.reward == 1.0, task.id


@pytest.mark.parametrize("name", CONTROLS)
def test_no_real_task_can_be_gamed(multiwoz_v1: ToolWOZ, name: str) -> None:
    dialogue = Dialogue(multiwoz_v1, ScriptedUser(), max_steps=45)
    for task in multiwoz_v1.tasks("val"):
        assert play(dialogue, CONTROLS[name], task, seed=0).reward == 0.0, task.id


def test_no_real_question_is_answered_by_a_lie(multiwoz_v1: ToolWOZ) -> None:
    dialogue = Dialogue(multiwoz_v1, ScriptedUser(), max_steps=45)
    lied = 0
    for task in list(multiwoz_v1.tasks("val"))[::25]:
        agents = liars(task, multiwoz_v1.tables)
        withholding = agents.pop(WITHHOLDING, None)
        if withholding and play(dialogue, withholding, task, seed=0).reward == 0.0:
            lied += len(agents)
            for name, agent in agents.items():
                assert play(dialogue, agent, task, seed=0).reward == 0.0, (task.id, name)
    assert lied > 200


def test_the_list_of_repairs(multiwoz_folder: Path) -> None:
    listed = Path(__file__).resolve().parents[1] / "docs" / "repairs-val.jsonl"
    assert (multiwoz_folder / "repairs.jsonl").read_bytes() == listed.read_bytes()


def test_real_tasks_are_kept_repaired_or_dropped(multiwoz: ToolWOZ, multiwoz_v1: ToolWOZ) -> None:
    before = {task.id: task.wishes for task in multiwoz.tasks("val")}
    after = {task.id: task.wishes for task in multiwoz_v1.tasks("val")}
    changed = [id for id in after if after[id] != before[id]]
    assert (len(before), len(after), len(changed)) == (793, 784, 20)
    assert multiwoz.fingerprint != multiwoz_v1.fingerprint


# --- both versions -------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 1])
def test_the_explanation_is_the_score(version: int) -> None:
    env = make_env(f"ToolWOZ-v{version}", world="builtin", split="test")
    for number, task in enumerate(env.tasks[:40]):
        for agent in (ExpertAgent(task), RandomAgent(env.dialogue.domain.tools)):
            episode = play(env.dialogue, agent, task, seed=number)
            domain = env.dialogue.domain
            verdicts, goals = domain.explain(episode), domain.goals(task)
            assert [verdict.demand for verdict in verdicts[: len(goals)]] == list(map(str, goals))
            assert all(verdict.met for verdict in verdicts) == (episode.reward == 1.0)
            assert (env.dialogue.progress(episode) == 1.0) == (episode.reward == 1.0)
            met = {i for i, verdict in enumerate(verdicts[: len(goals)]) if verdict.met}
            assert domain.goals_met(episode) == (set() if domain.is_spoiled(episode) else met)


def test_progress_counts_the_questions_too() -> None:
    """And what nobody asked for stands, so that nothing counts any more."""
    goal = {"info": {"food": "french"}, "reqt": ["phone", "area"]}
    task = task_of(restaurant=goal)
    env = make_env("ToolWOZ-v1", world=world_of(task), split="val", user=["Hello."] * 9)
    env.reset()
    seen = []
    for action in (
        call("search_restaurant", food="french"),
        "It is in the south.",
        "The phone number is 01223 446100.",
        call("book_restaurant", **TABLE, name="salt"),
    ):
        *_, info = env.step(action)
        seen.append((info["goals_met"], info["goals_total"], info["progress"]))
    assert seen == [((0,), 3, 1 / 3), ((0, 2), 3, 2 / 3), ((0, 1, 2), 3, 1.0), ((), 3, 0.0)]


def test_a_world_plays_one_version() -> None:
    with pytest.raises(UsageError, match="answers as ToolWOZ-v0, not as v1"):
        make_env("ToolWOZ-v1", world=load_world("builtin", version=0))


def test_worlds_of_both_versions_have_the_same_tasks() -> None:
    old, new = (load_world("builtin", version=version) for version in (0, 1))
    assert list(old.tasks("val")[:50]) == list(new.tasks("val")[:50])
    assert old.fingerprint != new.fingerprint


def test_a_task_keeps_its_goals_when_its_wishes_change() -> None:
    """Goals follow from wishes: nobody may set one without the other."""
    assert make_task("x", "val", "", WANTS_SALT.wishes).goals == WANTS_SALT.goals
    assert replace(WANTS_SALT, id="x").goals == WANTS_SALT.goals
