"""JOSH on τ-bench: gold actions as goals, and the environment's own reward."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from agents.base import Agent
from agents.gold import GoldAgent
from agents.options import AgentOptions
from josh_search.search import SearchOptions, search
from toolwoz_gym import TAU_MAX_STEPS, Dialogue, make_env
from toolwoz_gym.rollout import play
from toolwoz_gym.tau_bench.data import read_tau_bench
from toolwoz_gym.tau_bench.domain import TRANSFER, TauBench
from toolwoz_gym.types import Message, ToolCall
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


def test_a_script_that_errs_plays_and_sometimes_errs(airline: TauBench) -> None:
    dialogue = Dialogue(airline, InstructedUser(airline.end_marker), max_steps=60)
    with AgentOptions(agent="erring").open(airline) as make:
        tasks = airline.tasks("test")
        rewards = [play(dialogue, make(task), task, seed=0).reward for task in tasks]
    assert 0 < sum(rewards) < len(tasks)


def test_other_calls_do_not_take_the_place_of_gold_ones(airline: TauBench) -> None:
    class Curious:
        """Asks for all airports before each gold action."""

        def __init__(self, gold: Agent) -> None:
            self.gold = gold

        def act(self, view: Sequence[Message], *, seed: int) -> Message:
            if view[-1].name == "list_all_airports":
                return self.gold.act(view, seed=seed)
            return Message("assistant", call=ToolCall("list_all_airports", {}))

    dialogue = Dialogue(airline, InstructedUser(airline.end_marker), max_steps=100)
    for task in airline.tasks("test"):
        assert play(dialogue, Curious(GoldAgent(task)), task, seed=0).reward == 1.0, task.id


def test_a_harvest_finds_the_split_that_a_desk_has(airline: TauBench, shared: Path) -> None:
    retail = read_tau_bench(shared / "data" / "tau_bench", "retail")
    splits = [make_env("TauBench-v0", world=desk, split=None).split for desk in (airline, retail)]
    assert splits == ["test", "train"]
