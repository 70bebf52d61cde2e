"""ToolWOZ-v0 answers and scores as the published reference was recorded to, on all of its data."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from toolwoz_gym.toolwoz import ToolWOZ
from toolwoz_gym.toolwoz.task import ToolWOZTask
from toolwoz_gym.toolwoz.tools import KEYS
from toolwoz_gym.types import Episode, ToolCall, ToolError

NEVER_OFFERED = ("search_taxi", "book_taxi", "search_hospital", "book_hospital")
"""Tools that the reference knows and never offers: unknown here, whatever it answers."""


@pytest.fixture(scope="module")
def tasks(multiwoz: ToolWOZ) -> dict[str, ToolWOZTask]:
    return {task.id: task for task in multiwoz.tasks("val")}


def recorded(shared: Path, name: str) -> dict[str, Any]:
    with gzip.open(shared / "oracle" / "toolwoz" / f"{name}_val.json.gz") as file:
        data: dict[str, Any] = json.load(file)
    return data


def play(domain: ToolWOZ, task: ToolWOZTask, calls: list[ToolCall]) -> tuple[float, list[str]]:
    """Return progress and unmet goals after some calls."""
    world = domain.start(task)
    for call in calls:
        world, _ = domain.call(task, world, call)
    return outcome(domain, task, world)


def outcome(domain: ToolWOZ, task: ToolWOZTask, world: Any) -> tuple[float, list[str]]:
    met = domain.calls_met(world)
    reward = domain.score(Episode(task, seed=0, messages=(), world=world))
    assert reward == (1.0 if len(met) == len(task.goals) else 0.0)
    return len(met) / len(task.goals), [g.name for i, g in enumerate(task.goals) if i not in met]


def reference_shape(task: ToolWOZTask) -> dict[str, Any]:
    """Write a task's wishes as the reference writes its goals."""
    shape: dict[str, Any] = {}
    for wish in task.wishes:
        success: dict[str, Any] = {}
        failure: dict[str, Any] = {}
        if wish.search is not None:
            success[f"search_{wish.domain}"] = {"parameters": wish.search}
        if wish.book is not None:
            assert wish.booked is not None
            success[f"book_{wish.domain}"] = {
                "parameters": wish.book,
                "returns": wish.booked,
                "unique_id": wish.booked[KEYS[wish.domain]],
            }
        if wish.failing_search is not None:
            failure[f"search_{wish.domain}"] = {"parameters": wish.failing_search}
        if wish.failing_book is not None:
            failure[f"book_{wish.domain}"] = {"parameters": wish.failing_book}
        shape[wish.domain] = {
            "success": success,
            "failure": failure,
            "requests": list(wish.requests),
        }
    return shape


def test_goals(shared: Path, tasks: dict[str, ToolWOZTask]) -> None:
    goals = recorded(shared, "goals")
    assert len(goals) == 793
    # As text, so that the order of domains, goals and parameters is compared too.
    ours = {id: json.dumps(reference_shape(task)) for id, task in tasks.items()}
    assert ours == {id: json.dumps(goal) for id, goal in goals.items()}


def test_every_recorded_call(
    shared: Path, multiwoz: ToolWOZ, tasks: dict[str, ToolWOZTask]
) -> None:
    calls = sequences = 0
    for id, recordings in recorded(shared, "calls").items():
        task = tasks[id]
        for recording in recordings:
            world = multiwoz.start(task)
            for made in recording["calls"]:
                call, returns = ToolCall(made["name"], made["args"]), made["returns"]
                where = (id, recording["kind"], made)
                if call.name in NEVER_OFFERED or str(returns).startswith("ERROR"):
                    with pytest.raises(ToolError):
                        multiwoz.call(task, world, call)
                else:
                    world, observation = multiwoz.call(task, world, call)
                    assert observation == json.dumps(returns, ensure_ascii=False), where
                calls += 1
            expected = (recording["reward"], recording["failed"])
            assert outcome(multiwoz, task, world) == expected, (id, recording)
            sequences += 1
    assert (sequences, calls) == (7265, 31269)


def test_calls_that_crash_the_reference(
    shared: Path, multiwoz: ToolWOZ, tasks: dict[str, ToolWOZTask]
) -> None:
    for id, recordings in recorded(shared, "crashes").items():
        task = tasks[id]
        for recording in recordings:
            world = multiwoz.start(task)
            for made in recording["calls"]:
                call, returns = ToolCall(made["name"], made["args"]), made.get("returns")
                refused = "raises" in made or str(returns).startswith("ERROR")
                if refused or call.name in NEVER_OFFERED:
                    with pytest.raises(ToolError):
                        multiwoz.call(task, world, call)
                else:
                    world, observation = multiwoz.call(task, world, call)
                    assert observation == json.dumps(returns, ensure_ascii=False)
            expected = (recording["reward"], recording["failed"])
            assert outcome(multiwoz, task, world) == expected, (id, recording)


def test_exact_goal_calls(shared: Path, multiwoz: ToolWOZ, tasks: dict[str, ToolWOZTask]) -> None:
    rewards = recorded(shared, "exact_goal_reward")
    ours = {}
    for id, task in tasks.items():
        # The reference was driven with the goal calls as the oracle writes them: no empty values.
        calls = [
            ToolCall(goal.name, {name: value for name, value in goal.arguments.items() if value})
            for goal in task.goals
        ]
        progress, failed = play(multiwoz, task, calls)
        ours[id] = {"reward": progress, "failed": failed}
        assert play(multiwoz, task, list(task.goals)) == (progress, failed), id
    assert ours == rewards
    assert sum(result["reward"] == 1.0 for result in ours.values()) == 755


def test_tasks_that_cannot_be_solved(
    shared: Path, multiwoz: ToolWOZ, tasks: dict[str, ToolWOZTask]
) -> None:
    """No call on the goal's parameters, whichever of them it leaves out, meets these goals."""
    unreachable = recorded(shared, "unreachable")
    solvable = [id for id, record in unreachable.items() if not record["still_failed"]]
    assert len(unreachable) - len(solvable) == 37
    for id, record in unreachable.items():
        task = tasks[id]
        best: set[int] = set()
        for goal in task.goals:
            wanted = [(name, value) for name, value in goal.arguments.items() if value]
            for kept in range(1 << len(wanted)):
                chosen = {name: v for i, (name, v) in enumerate(wanted) if kept >> i & 1}
                world, _ = multiwoz.call(task, multiwoz.start(task), ToolCall(goal.name, chosen))
                best |= multiwoz.calls_met(world)
        failed = [goal.name for i, goal in enumerate(task.goals) if i not in best]
        assert failed == record["still_failed"]
        assert len(best) / len(task.goals) == record["max_over_all_subsets_of_goal_params"]
