"""JOSH on τ-bench: gold actions as goals, and the environment's own reward."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.gold import GoldAgent
from josh_search.search import SearchOptions, search
from toolwoz_gym import TAU_MAX_STEPS, Dialogue
from toolwoz_gym.tau_bench.data import read_tau_bench
from toolwoz_gym.tau_bench.domain import TRANSFER, TauBench
from toolwoz_gym.users.instructed import InstructedUser


@pytest.fixture(scope="module")
def airline(shared: Path) -> TauBench:
    return read_tau_bench(shared / "data" / "tau_bench", "airline")


def test_goals_of_one_turn_all_count(airline: TauBench) -> None:
    """A turn of 40 outputs holds every gold action; the reference would count one of them."""
    dialogue = Dialogue(airline, InstructedUser(airline.end_marker), max_steps=100)
    options = SearchOptions(strategy="josh", beam=2, max_outputs=40)
    for task in airline.tasks("test"):
        tree = search(dialogue, GoldAgent(task), task, seed=0, options=options)
        calls = [goal for goal in task.goals if goal.name != TRANSFER]
        if calls:
            assert max(len(node.met) for node in tree.nodes) >= len(calls)
        assert tree.solved and tree.progress == 1.0, "without goals, by its reward"


def test_the_default_search_lets_the_expert_solve_every_task(airline: TauBench) -> None:
    """Seven tasks have no goals: their reward decides, and a dialogue ends their search."""
    dialogue = Dialogue(airline, InstructedUser(airline.end_marker), max_steps=TAU_MAX_STEPS)
    without = 0
    for task in airline.tasks("test"):
        tree = search(dialogue, GoldAgent(task), task, seed=0, options=SearchOptions())
        assert tree.solved and tree.progress == 1.0, task.id
        assert task.goals or tree.nodes[-1].episode.outcome == "success"
        without += not task.goals
    assert without == 7


def test_the_reward_of_the_environment(airline: TauBench) -> None:
    dialogue = Dialogue(airline, InstructedUser(airline.end_marker), max_steps=60)
    options = SearchOptions(
        strategy="josh", beam=2, max_steps=15, max_outputs=40, reward="terminal"
    )
    for task in airline.tasks("test"):
        tree = search(dialogue, GoldAgent(task), task, seed=0, options=options)
        assert tree.solved, task.id
