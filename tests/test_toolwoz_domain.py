"""ToolWOZ-v0's rules on a world small enough to work out by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolwoz_gym.toolwoz import ToolWOZ
from toolwoz_gym.toolwoz.goals import EMPTY, derive_wishes, found, normalised, subset
from toolwoz_gym.toolwoz.tables import Tables, first, last
from toolwoz_gym.toolwoz.task import ToolWOZTask, make_task
from toolwoz_gym.toolwoz.tools import PARAMETERS
from toolwoz_gym.toolwoz.v0 import ToolWOZv0
from toolwoz_gym.types import Domain, Episode, ToolCall, ToolError, UsageError

TABLES = Tables(
    {
        "restaurant": [
            {"name": "salt", "food": "thai", "area": "north", "pricerange": "cheap"},
            {"name": "pepper", "food": "thai", "area": "south", "pricerange": "cheap"},
            {"name": "basil", "food": "thai", "area": "north", "pricerange": "dear"},
            {"name": "lime", "food": "thai", "area": "north", "pricerange": "cheap", "phone": "1"},
            {"name": "café d'or", "food": "french", "area": "south", "pricerange": "dear"},
        ],
        "train": [
            {"trainID": "TR1", "leaveAt": "09:00", "arriveBy": "10:00", "day": "monday"},
            {"trainID": "TR2", "leaveAt": "10:00", "arriveBy": "11:00", "day": "monday"},
            {"trainID": "TR3", "leaveAt": "11:00", "arriveBy": "12:00", "day": "monday"},
            {"trainID": "TR4", "day": "sunday"},
        ],
    }
)

THAI_NORTH = {"restaurant": {"info": {"food": "thai", "area": "north"}}}

BOOK = {"time": "19:00", "day": "Friday", "people": "2"}


def world_of(
    goal: Mapping[str, Any], booked: Mapping[str, Mapping[str, str] | None] | None = None
) -> tuple[ToolWOZ, ToolWOZTask]:
    task = make_task("one", "train", "", derive_wishes(goal, booked or {}, TABLES))
    return ToolWOZv0("small", TABLES, {"train": (task,)}, "0"), task


def thai(booked: str | None = None) -> tuple[ToolWOZ, ToolWOZTask]:
    """Return a task of finding thai food in the north and, with a name, of booking it."""
    goal = {"restaurant": {**THAI_NORTH["restaurant"], **({"book": BOOK} if booked else {})}}
    item = {"name": booked, "reference": "REF"} if booked else None
    return world_of(goal, {"restaurant": item})


def ask(at: tuple[ToolWOZ, ToolWOZTask], name: str, /, **arguments: Any) -> tuple[Any, set[str]]:
    """Return what a first call answers, and the goals that it meets."""
    domain, task = at
    world, text = domain.call(task, domain.start(task), ToolCall(name, arguments))
    return json.loads(text), {task.goals[i].name for i in domain.calls_met(world)}


def search(at: tuple[ToolWOZ, ToolWOZTask], /, **arguments: Any) -> tuple[str | None, bool]:
    """Return the name that a restaurant search shows, and whether it meets the search goal."""
    rows, met = ask(at, "search_restaurant", **arguments)
    assert len(rows) <= 1
    return (rows[0]["name"] if rows else None), met == {"search_restaurant"}


# --- the tables ------------------------------------------------------------------------------


def test_rows_have_every_column() -> None:
    assert TABLES["restaurant"].rows[0] == {
        "name": "salt", "food": "thai", "area": "north", "pricerange": "cheap", "phone": None,
    }  # fmt: skip
    assert TABLES["hotel"].rows == ()


times = st.one_of(st.none(), st.sampled_from(["", "05:00", "9:30", "09:30", "12:00", "24:10"]))
words = st.one_of(st.none(), st.sampled_from(["a", "A", "o'b", "O'B", "ob"]))
train_rows = st.fixed_dictionaries(
    {"leaveAt": times, "arriveBy": times, "day": words, "departure": words, "trainID": words}
)


@given(
    rows=st.lists(train_rows, max_size=12),
    asked=st.dictionaries(
        st.sampled_from(["leaveAt", "arriveBy", "day", "departure"]),
        st.one_of(words, times, st.integers()),
    ),
)
def test_the_index_finds_what_a_scan_finds(
    rows: list[dict[str, str | None]], asked: dict[str, Any]
) -> None:
    table = Tables({"train": rows})["train"]
    arguments = normalised(asked)

    def matches(row: Mapping[str, str | None]) -> bool:
        for column, value in arguments.items():
            cell = row[column]
            if not isinstance(value, str):
                continue
            if cell is None:
                return False
            if column == "leaveAt":
                fits = cell > value
            elif column == "arriveBy":
                fits = cell < value
            else:
                fits = cell == value
            if not fits:
                return False
        return True

    numbers = [number for number, row in enumerate(rows) if matches(row)]
    rows_found = found(table, arguments)
    assert [n for n in range(len(rows)) if rows_found >> n & 1] == numbers
    assert first(rows_found) == (numbers[0] if numbers else None)
    assert last(rows_found) == (numbers[-1] if numbers else None)


# --- wishes ----------------------------------------------------------------------------------


def test_wishes() -> None:
    goal = {
        "train": {"info": {"day": "monday"}, "book": {"people": "2"}, "fail_book": {"people": "9"}},
        "restaurant": {
            "info": {"food": "thai"},
            "book": {**BOOK, "invalid": True},
            "fail_info": {"food": "welsh"},
            "fail_book": {"time": "20:00", "name": "lime"},
            "reqt": ["phone", "area"],
        },
        "attraction": {},
        "hotel": {"info": {"area": "north"}, "book": {"stay": "2"}},
    }
    hotel, train, restaurant = derive_wishes(
        goal, {"train": {"reference": "T"}, "restaurant": {"name": "pepper"}, "hotel": None}, TABLES
    )
    assert (hotel.domain, train.domain, restaurant.domain) == ("hotel", "train", "restaurant")
    assert hotel.search is not None
    assert hotel.search["area"] == "north"
    assert set(hotel.search) == set(PARAMETERS["search_hotel"])
    assert hotel.book is hotel.booked is hotel.failing_book is None
    assert train.book == {"people": "2", "trainID": "TR1"}
    assert train.booked == {"trainID": "TR1", "reference": "T"}
    assert train.failing_book == {"people": "9", "trainID": ""}
    assert restaurant.book == {**BOOK, "name": "pepper"}
    assert restaurant.failing_book == {**BOOK, "time": "20:00", "name": ""}
    assert restaurant.failing_search == {"food": "welsh", "pricerange": "", "name": "", "area": ""}
    assert restaurant.requests == ("phone", "area")


def test_a_wish_without_a_search() -> None:
    at = world_of({"restaurant": {"book": BOOK}}, {"restaurant": {"name": "salt"}})
    assert [goal.name for goal in at[1].goals] == ["book_restaurant"]
    assert search(at, food="thai") == ("salt", False)
    assert ask(at, "book_restaurant", **BOOK, name="salt")[1] == {"book_restaurant"}


# --- searches --------------------------------------------------------------------------------

# Rows that hold the goal (thai, north): salt, basil, lime. The last thai row that does not: pepper.


def test_case_1_shows_the_booked_entity() -> None:
    assert search(thai("basil"), food="thai", area="north") == ("basil", True)
    assert search(thai("basil"), food="thai", area="north", pricerange="dear") == ("basil", True)


def test_case_1_shows_what_is_wrong_when_the_booked_entity_is_not_found() -> None:
    # Nothing that was found is wrong, so nothing is shown.
    assert search(thai("basil"), food="thai", area="north", pricerange="cheap") == (None, False)
    at = world_of(
        {"train": {"info": {"leaveAt": "09:00"}, "book": {"people": "1"}}},
        {"train": {"trainID": "TR1"}},
    )
    # A train that leaves after nine does not leave at nine: each one found is wrong.
    rows, met = ask(at, "search_train", leaveAt="09:00")
    assert (rows[0]["trainID"], met) == ("TR3", set())


def test_case_2_shows_something_else_to_who_has_not_asked_for_everything() -> None:
    assert search(thai("basil"), food="thai") == ("pepper", False)
    assert search(thai(), food="thai") == ("pepper", False)
    assert search(thai()) == ("café d'or", False)


def test_case_2_shows_the_booked_entity_when_nothing_found_is_wrong() -> None:
    goal = {"restaurant": {"info": {"food": "french", "area": "south"}, "book": BOOK}}
    at = world_of(goal, {"restaurant": {"name": "café d'or"}})
    assert search(at, food="french") == ("café d'or", True)


def test_case_2_shows_the_first_row_when_there_is_no_other() -> None:
    goal = {"restaurant": {"info": {"food": "thai", "area": "north"}, "book": BOOK}}
    at = world_of(goal, {"restaurant": {"name": "café d'or"}})
    assert search(at, area="north") == ("salt", False)
    assert search(thai(), area="north") == ("salt", True)


def test_case_3_shows_the_first_row() -> None:
    assert search(thai("basil"), pricerange="cheap") == ("salt", False)
    assert search(thai("basil"), name="lime") == ("lime", False)
    assert search(thai(), food="thai", area="north") == ("salt", True)
    assert search(thai(), food="thai", area="north", pricerange="dear") == ("basil", True)


def test_nothing_is_found() -> None:
    assert search(thai("basil"), food="welsh") == (None, False)
    assert search(thai(), food="thai", area="north", pricerange="x") == (None, False)


def test_a_domain_that_nobody_wishes_for() -> None:
    rows, met = ask(thai(), "search_train", day="monday")
    assert (rows[0]["trainID"], met) == ("TR1", set())
    assert ask(thai(), "search_hotel") == ([], set())


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ({"leaveAt": "09:00"}, "TR2"),
        ({"leaveAt": "08:59"}, "TR1"),
        ({"arriveBy": "12:00", "leaveAt": "09:30"}, "TR2"),
        ({"arriveBy": "10:00"}, None),
        ({"leaveAt": "9:00"}, None),  # text, not time: no row is later than "9:00"
        ({"day": "sunday"}, "TR4"),
        ({"day": "sunday", "leaveAt": "00:00"}, None),
        ({"leaveAt": 10, "day": "monday"}, "TR1"),
    ],
)
def test_times(arguments: dict[str, Any], shown: str | None) -> None:
    rows, _ = ask(thai(), "search_train", **arguments)
    assert [row["trainID"] for row in rows] == ([shown] if shown else [])


# --- words -----------------------------------------------------------------------------------


def test_arguments_are_folded_and_the_database_is_not() -> None:
    assert search(thai(), food="THAI", area="No'rth") == ("salt", True)
    assert search(thai(), food=" thai", area="north") == (None, False)
    assert search(thai(), name="café d'or") == (None, False)


@pytest.mark.parametrize("word", sorted(EMPTY))
def test_words_that_ask_for_nothing(word: str) -> None:
    assert subset({"food": "thai", "area": word}, {"food": "THAI"})
    shown = search(thai(), food="thai", area="north", pricerange=word)
    # Losing its apostrophe makes a value of this one in the query, though not in the score.
    assert shown == ((None, False) if word == "do n't care" else ("salt", True))


def test_the_score_goes_by_what_was_written() -> None:
    """The query takes "Don't care" for nothing; the score takes it for a value."""
    assert search(thai("basil"), food="thai", area="Don't care") == ("pepper", False)
    assert search(thai(), area="north", food="Don't care") == ("salt", False)
    assert search(thai(), area="north", food="don't care") == ("salt", True)


def test_numbers_are_not_words() -> None:
    at = world_of({"hotel": {"info": {"stars": "4"}}})
    assert not subset({"stars": "4"}, {"stars": 4})
    assert not subset({"stars": 4}, {"stars": "4"})
    assert ask(at, "search_hotel", stars=4) == ([], set())
    # The query ignores it, and the goal does not know it.
    assert search(thai(), food="thai", area=3) == ("salt", False)


# --- bookings --------------------------------------------------------------------------------


def test_booking() -> None:
    success = (
        {"success": True, "return": {"name": "basil", "reference": "REF"}},
        {"book_restaurant"},
    )
    failure = ({"success": False, "return": {}}, set[str]())
    book = {**BOOK, "name": "basil"}
    assert ask(thai("basil"), "book_restaurant", **book) == success
    assert (
        ask(thai("basil"), "book_restaurant", **{**book, "day": "friday", "name": "BASIL"})
        == success
    )
    assert ask(thai("basil"), "book_restaurant", **{**book, "name": "salt"}) == failure
    assert ask(thai("basil"), "book_restaurant", **{**book, "people": 2}) == failure
    assert ask(thai("basil"), "book_restaurant", **{**book, "time": ""}) == failure
    assert ask(thai("basil"), "book_restaurant") == failure
    assert ask(thai(), "book_restaurant", **book) == failure
    assert ask(thai("basil"), "book_attraction") == failure


def test_observations_are_plain_json() -> None:
    domain, task = thai()
    _, text = domain.call(
        task, domain.start(task), ToolCall("search_restaurant", {"food": "french"})
    )
    assert text == (
        '[{"name": "café d\'or", "food": "french", "area": "south", "pricerange": "dear", '
        '"phone": null}]'
    )


# --- score -----------------------------------------------------------------------------------


def test_score_is_all_or_nothing_and_goals_stay_met() -> None:
    domain, task = thai("basil")
    world = domain.start(task)

    def score() -> float:
        return domain.score(Episode(task, seed=0, messages=(), world=world))

    assert (domain.calls_met(world), score()) == (frozenset(), 0.0)
    world, _ = domain.call(task, world, task.goals[1])
    assert (domain.calls_met(world), score()) == (frozenset({1}), 0.0)
    world, _ = domain.call(task, world, task.goals[0])
    assert (domain.calls_met(world), score()) == (frozenset({0, 1}), 1.0)
    # A wrong booking and a search for something else cost nothing.
    world, _ = domain.call(task, world, ToolCall("book_restaurant", {"name": "salt"}))
    world, _ = domain.call(task, world, ToolCall("search_restaurant", {"food": "french"}))
    assert (domain.calls_met(world), score()) == (frozenset({0, 1}), 1.0)


def test_a_call_leaves_the_world_before_it_alone() -> None:
    domain, task = thai("basil")
    before = domain.start(task)
    after, _ = domain.call(task, before, task.goals[1])
    assert (before, after) == (frozenset(), {1})
    assert hash(after) == hash(frozenset({1}))


def test_splits() -> None:
    domain, task = thai()
    as_domain: Domain = domain
    assert as_domain.splits == ("train",)
    assert as_domain.tasks("train") == (task,)
    with pytest.raises(UsageError, match="world 'small' has no split 'dev'; it has train"):
        domain.tasks("dev")


# --- mistakes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "find_food",
            {},
            "there is no tool 'find_food'; the tools are search_restaurant, book_restaurant, "
            "search_hotel, book_hotel, search_attraction, book_attraction, search_train, "
            "book_train",
        ),
        ("book_taxi", {}, "there is no tool 'book_taxi'; the tools are search_restaurant, .*"),
        (None, {}, "there is no tool NoneType; .*"),
        (["search_train"], {}, "there is no tool list; .*"),
        (
            "book_train",
            {"day": "monday"},
            "book_train has no parameter 'day'; its parameters are people, trainID",
        ),
        ("book_attraction", {"x": ""}, "book_attraction has no parameter 'x'; it takes none"),
        (
            "search_train",
            {"\ud800\n" * 9999: ""},
            r"search_train has no parameter '(\\ud800|\\n)+.*",
        ),
        (
            "search_train",
            {"day": ["monday"]},
            "the value of day must be a string, not a list or an object",
        ),
        ("search_train", {"day": {}}, "the value of day must be a string, .*"),
        ("search_train", None, "the arguments of search_train must be an object"),
        ("search_train", ["day"], "the arguments of search_train must be an object"),
    ],
)
def test_mistakes_say_what_is_allowed(name: Any, arguments: Any, message: str) -> None:
    domain, task = thai()
    with pytest.raises(ToolError, match=f"^{message}$") as raised:
        domain.call(task, domain.start(task), ToolCall(name, arguments))
    text = str(raised.value)
    assert len(text) < 300
    assert text.isascii()
    assert text.isprintable()


def test_an_integer_too_long_to_print() -> None:
    assert search(thai(), food="thai", area=10**5000) == ("salt", False)


strings = st.text(st.characters(codec=None, exclude_categories=()))
values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        strings,
        st.sampled_from(
            ["thai", "north", "basil", "19:00", "", "don't care", "\ud800", "0" * 9999]
        ),
        st.just(10**4000),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(strings, inner, max_size=3)
    ),
    max_leaves=4,
)
parameters = sorted({p for names in PARAMETERS.values() for p in names})
calls = st.builds(
    ToolCall,
    st.one_of(st.sampled_from(sorted(PARAMETERS)), strings),
    st.dictionaries(st.one_of(st.sampled_from(parameters), strings), values, max_size=5),
)
known_calls = st.sampled_from(sorted(PARAMETERS)).flatmap(
    lambda name: st.builds(
        ToolCall,
        st.just(name),
        st.fixed_dictionaries({}, optional={p: values for p in PARAMETERS[name]}),
    )
)


@settings(max_examples=400)
@given(st.lists(st.one_of(calls, known_calls), max_size=4))
def test_any_call_is_answered_or_refused(sequence: list[ToolCall]) -> None:
    domain, task = thai("basil")
    world = domain.start(task)
    for call in sequence:
        try:
            after, text = domain.call(task, world, call)
        except ToolError as error:
            assert len(str(error)) < 300
            assert str(error).isascii()
            continue
        assert after >= world
        json.loads(text)
        text.encode()  # no half of a surrogate pair gets through
        world = after
    assert domain.calls_met(world) <= {0, 1}
