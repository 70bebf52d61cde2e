"""The built-in city: the same bytes everywhere, and tasks that are what their options promise."""

from __future__ import annotations

import json
import pickle
from hashlib import sha256
from itertools import islice

import pytest

from toolwoz_gym import make_env
from toolwoz_gym.actions import format_call
from toolwoz_gym.toolwoz import ToolWOZ
from toolwoz_gym.toolwoz.builtin import CityOptions, load_builtin, make_tables
from toolwoz_gym.toolwoz.goals import EMPTY
from toolwoz_gym.toolwoz.task import ToolWOZTask, Wish, task_from_json, task_to_json
from toolwoz_gym.types import ToolCall, UsageError

DIGEST = "970d8eeedd2bca69ba46c08bd08551b7d7b9966018a270864807b109b8ad7ec2"
"""SHA-256 of the tables and of the first 50 tasks of each split, with default options, as JSON.

Scores and records name the world that they come from, so it must not change by accident. After a
deliberate change take the new digest from this test's failure.
"""

OPTIONS = [
    "",
    "domains=1,constraints=1,failures=0,seed=3",
    "domains=2-4,constraints=2-3,failures=1-2,seed=7",
    "domains=4,constraints=6,failures=3-4,seed=2",
    "domains=3,constraints=1-6,failures=8",
]


def city(text: str) -> ToolWOZ:
    return load_builtin(CityOptions.parse(text))


def some_tasks(world: ToolWOZ, count: int) -> list[ToolWOZTask]:
    return [task for split in world.splits for task in islice(world.tasks(split), count)]


def test_the_same_seed_gives_the_same_bytes() -> None:
    world = city("")
    tasks = [task_to_json(task) for task in some_tasks(world, 50)]
    assert len(tasks) == 150
    data = json.dumps([make_tables(0), tasks]).encode("ascii")
    assert sha256(data).hexdigest() == DIGEST


def test_other_seeds_give_other_cities() -> None:
    tables = [json.dumps(make_tables(seed)) for seed in range(5)]
    assert len(set(tables)) == 5
    fingerprints = [city(text).fingerprint for text in (*OPTIONS, "seed=1", "tasks=10", "tasks=99")]
    assert len(set(fingerprints)) == len(fingerprints)


def test_tables_have_multiwozs_columns(multiwoz: ToolWOZ) -> None:
    tables = make_tables(0)
    real = multiwoz.tables
    for domain, rows in tables.items():
        assert {tuple(row) for row in rows} == {tuple(rows[0])}
        assert set(rows[0]) <= set(real[domain].rows[0])
        keys = [row[real[domain].key] for row in rows]
        assert len(set(keys)) == len(keys)


def test_trains_have_numbers_of_their_own_and_arrive_on_their_day() -> None:
    for seed in range(5):
        trains = make_tables(seed)["train"]
        assert len({train["trainID"] for train in trains}) == len(trains)
        assert all(train["leaveAt"] < train["arriveBy"] < "24:00" for train in trains)


def test_splits_share_no_goal_calls() -> None:
    for text in ("", "domains=1,constraints=1-2,failures=0,tasks=3000"):
        world = city(text)
        goals = {
            split: {
                tuple((goal.name, *sorted(goal.arguments.items())) for goal in task.goals)
                for task in islice(world.tasks(split), 1500)
            }
            for split in world.splits
        }
        assert list(goals) == ["train", "val", "test"]
        assert not goals["train"] & goals["val"]
        assert not goals["train"] & goals["test"]
        assert not goals["val"] & goals["test"]


def test_tasks_do_not_depend_on_their_number() -> None:
    small, large = city("tasks=20"), city("tasks=5000")
    for split in small.splits:
        assert list(small.tasks(split)) == large.tasks(split)[: len(small.tasks(split))]
    assert [len(small.tasks(split)) for split in small.splits] == [20, 2, 2]


def test_the_smallest_world() -> None:
    world = city("tasks=10")
    assert [len(world.tasks(split)) for split in world.splits] == [10, 1, 1]
    with pytest.raises(IndexError):
        world.tasks("val")[1]
    assert world.tasks("train")[-1].id == "builtin-train-000009"


def test_tasks_are_found_by_their_ids() -> None:
    world = city("tasks=100")
    for split in world.splits:
        tasks = world.tasks(split)
        assert [tasks.by_id(task.id) for task in tasks] == list(tasks)  # type: ignore[attr-defined]
    train = world.tasks("train")
    for other in ("builtin-val-000000", "builtin-train-0", "builtin-train-000100", "", "-", "x-1"):
        assert train.by_id(other) is None  # type: ignore[attr-defined]


def test_tasks_survive_json_and_pickle() -> None:
    for task in some_tasks(city(""), 50):
        assert task_from_json(json.loads(json.dumps(task_to_json(task)))) == task
        assert pickle.loads(pickle.dumps(task)) == task


# --- options ---------------------------------------------------------------------------------


def constraints(wish: Wish) -> int:
    assert wish.search is not None
    return sum(value not in EMPTY for value in wish.search.values())


CONSTRAINTS = {"restaurant": 3, "hotel": 6, "attraction": 2}
"""How many constraints each kind of place can have."""


@pytest.mark.parametrize("text", OPTIONS)
def test_options_are_obeyed(text: str) -> None:
    options, counts = CityOptions.parse(text), set()
    for task in some_tasks(city(text), 200):
        domains = [wish.domain for wish in task.wishes]
        assert options.domains[0] <= len(domains) == len(set(domains)) <= options.domains[1]
        for wish in task.wishes:
            given, (least, most) = constraints(wish), options.constraints
            assert wish.search is not None
            if wish.domain == "train":
                assert given in (3, 4)  # from, to, on a day; and perhaps a time
                assert (most > 1 or given == 3) and (least == 1 or given == 4)
            elif wish.search["name"]:
                assert given == 1
            else:
                bound = CONSTRAINTS[wish.domain]
                assert min(least, bound) <= given <= min(most, bound)
        failures = [bool(w.failing_search) + bool(w.failing_book) for w in task.wishes]
        counts.add(sum(failures))
        assert sum(failures) <= options.failures[1]
        assert all(not f for w, f in zip(task.wishes, failures, strict=True) if w.domain == "train")
        if sum(failures) < options.failures[0]:  # then no further choice can be made to fail
            for wish in task.wishes:
                assert wish.failing_book or not (
                    wish.book and wish.domain in ("hotel", "restaurant")
                )
                assert wish.failing_search or wish.domain == "train" or constraints(wish) < 4
    assert counts >= set(range(options.failures[0], min(options.failures[1], 3) + 1))


@pytest.mark.parametrize("text", OPTIONS)
def test_first_choices_fail_and_goals_do_not(text: str) -> None:
    world = city(text)
    for task in some_tasks(world, 150):
        before = world.start(task)
        state = before
        for wish in task.wishes:
            assert wish.requests or wish.book
            if wish.failing_search is not None:
                call = ToolCall(f"search_{wish.domain}", wish.failing_search)
                assert world.call(task, before, call) == (before, "[]")
                assert wish.failing_search != wish.search
            if wish.failing_book is not None:
                assert wish.book is not None and wish.booked is not None
                for key in ("", wish.booked["name"]):
                    call = ToolCall(f"book_{wish.domain}", {**wish.failing_book, "name": key})
                    after, answer = world.call(task, before, call)
                    assert (after, json.loads(answer)) == (before, {"success": False, "return": {}})
            for number, goal in enumerate(wish.goals(), len(state)):
                state, answer = world.call(task, state, goal)
                assert number in state
                if goal.name.startswith("book_"):
                    assert json.loads(answer) == {"success": True, "return": wish.booked}
            assert wish.search is not None
            for value in (*wish.search.values(), *(wish.failing_search or {}).values()):
                assert value == "" or value in task.instruction
        assert world.calls_met(state) == frozenset(range(len(task.goals)))


@pytest.mark.parametrize("text", OPTIONS)
def test_the_goal_calls_earn_the_reward(text: str) -> None:
    env = make_env("ToolWOZ-v0", world=f"builtin:{text}", split="test")
    for number in range(100):
        env.reset(seed=number, options={"task_id": number})
        goals = env.snapshot().task.goals
        steps = [env.step(format_call(goal)) for goal in goals]
        assert [info["goals_met"] for *_, info in steps] == [
            tuple(range(n + 1)) for n in range(len(goals))
        ]
        rewards = [reward for _, reward, *_ in steps]
        while env.snapshot().outcome is None:
            rewards.append(env.step("Anything else?")[1])
        assert rewards[-1] == 1.0 and not any(rewards[:-1])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("planet=mars", "no option 'planet'; it has constraints, domains, failures, seed, tasks"),
        ("domains", "domains=: write a number"),
        ("domains=x", "domains=x: write a number"),
        ("domains=1-", "domains=1-: write a number"),
        ("domains=-1", "domains=-1: write a number"),
        ("domains=1-2-3", "domains=1-2-3: write a number"),
        ("domains=0", "1 to 4"),
        ("domains=5", "1 to 4"),
        ("domains=3-2", "1 to 4"),
        ("constraints=0", "at least 1"),
        ("constraints=3-1", "at least 1"),
        ("failures=2-1", "failures"),
        ("tasks=9", "at least 10"),
        ("seed=1-2", "seed=1-2: write a number"),
        ("tasks=10-20", "tasks=10-20: write a number"),
        ("seed=1.5", "seed=1.5: write a number"),
        ("seed=1,,domains=²", "domains=²: write a number"),
    ],
)
def test_wrong_options(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        CityOptions.parse(text)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_right_options() -> None:
    assert CityOptions.parse("") == CityOptions()
    assert CityOptions.parse("domains=2,constraints=1-6,seed=7,tasks=10,failures=0") == CityOptions(
        seed=7, domains=(2, 2), constraints=(1, 6), failures=(0, 0), tasks=10
    )
