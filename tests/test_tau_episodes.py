"""Whole τ-bench dialogues end, answer and score as the original's were recorded to."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_tau_airline import alike

from toolwoz_gym.dialogue import Dialogue
from toolwoz_gym.tau_bench.domain import Scoring, TauBench, TauTask, task_from_json
from toolwoz_gym.tau_bench.tables import Base
from toolwoz_gym.types import Episode, Message, ToolCall
from toolwoz_gym.users.replay import ReplayUser

TABLES = {
    "retail": ("orders", "products", "users"),
    "airline": ("flights", "reservations", "users"),
}
SPLITS = {"retail": ("train", "dev"), "airline": ("test",)}

GOLD = [
    ("retail", "train", "gold_retail_train.json.gz"),
    ("retail", "dev", "gold_retail_dev.json"),
    ("airline", "test", "gold_airline_first25.json"),
]


def read_domain(folder: Path, name: str, scoring: Scoring = "upstream") -> TauBench:
    def load(stem: str) -> Any:
        return json.loads((folder / name / f"{stem}.json").read_text())

    tasks = {
        split: [
            task_from_json(task, domain=name, split=split, index=index)
            for index, task in enumerate(load(f"tasks_{split}"))
        ]
        for split in SPLITS[name]
    }
    base = Base({table: load(table) for table in TABLES[name]})
    return TauBench(name, base, tasks, policy="", tools=(), fingerprint="", scoring=scoring)


@pytest.fixture(scope="module")
def domains(shared: Path) -> dict[str, TauBench]:
    return {name: read_domain(shared / "data" / "tau_bench", name) for name in TABLES}


def recorded(shared: Path, name: str) -> Any:
    data = (shared / "oracle" / "tau_bench" / name).read_bytes()
    return json.loads(gzip.decompress(data) if name.endswith(".gz") else data)


def gold_digest(domain: TauBench, task: TauTask) -> str:
    world = domain.start(task)
    for action in task.goals:
        world, _ = domain.call(task, world, action)
    return domain.digest(world)


def checked_reward(domain: TauBench, episode: Episode) -> float:
    """Return the reward of an ended dialogue, which is the same however it is asked for."""
    before = repr(episode)
    assert [domain.score(episode) for _ in range(2)] == [episode.reward] * 2
    assert all(verdict.met for verdict in domain.explain(episode)) == (episode.reward == 1.0)
    assert episode.outcome == ("success" if episode.reward == 1.0 else "failure")
    assert repr(episode) == before
    cut_off = replace(episode, truncated=True)
    assert domain.score(cut_off) == 0.0
    assert not all(verdict.met for verdict in domain.explain(cut_off))
    return episode.reward


# Episodes with all that agents and customers do.


@pytest.mark.parametrize("name", TABLES)
def test_recorded_episodes(shared: Path, domains: dict[str, TauBench], name: str) -> None:
    domain = domains[name]
    episodes = recorded(shared, f"episodes_{name}.json")["episodes"]
    assert len(episodes) == 60
    for number, played in enumerate(episodes):
        task = domain.tasks(played["split"])[played["task_index"]]
        user = ReplayUser((played["first_user_message"], *played["user_replies"]))
        dialogue = Dialogue(domain, user, max_steps=len(played["steps"]))
        episode = dialogue.start(task, seed=0)
        assert episode.messages[-1].content == played["first_user_message"]
        for step in played["steps"]:
            before = episode
            episode = act(dialogue, episode, step["name"], step["kwargs"])
            answer = episode.messages[-1]
            where = number, episode.steps
            assert alike(answer.content, step["observation"]), where
            assert (answer.name if answer.role == "tool" else answer.role) == step["source"], where
            assert (episode.outcome is not None) == step["done"], where
            assert episode.reward == step["reward"], where
        assert domain.digest(before.world) == played["data_hash_before_last_step"], number
        compare_reward(domain, episode, played["reward_info"])


def act(dialogue: Dialogue, episode: Episode, name: str, kwargs: dict[str, Any]) -> Episode:
    """Take one of the original's steps: there, ``respond`` is an action among others."""
    if name != "respond":
        return dialogue.act(episode, Message("assistant", call=ToolCall(name, kwargs)))
    spoken = dialogue.act(episode, Message("assistant", kwargs["content"]))
    assert spoken.awaits_user
    return dialogue.listen(spoken)


def compare_reward(domain: TauBench, episode: Episode, info: dict[str, Any]) -> None:
    """Hold a dialogue's reward and its reasons against what the original reports."""
    task = episode.task
    assert isinstance(task, TauTask)
    assert checked_reward(domain, episode) == info["reward"]
    assert len(task.goals) == info["actions"]
    met = {verdict.demand: verdict.met for verdict in domain.explain(episode)}
    told = {output: met[f"the customer is told {output!r}"] for output in task.outputs}
    if task.outputs:
        assert told == info["info"]["outputs"]
        assert all(told.values()) == bool(info["info"]["r_outputs"])
    else:
        assert met["the records are as the gold actions leave them"] == info["info"]["r_actions"]
        assert gold_digest(domain, task) == info["info"]["gt_data_hash"]


# What each task's gold actions earn, whole and in part.


def reward(domain: TauBench, task: TauTask, actions: tuple[ToolCall, ...], said: str) -> float:
    """Return what some actions earn, ended by a last word unless a transfer ends them."""
    dialogue = Dialogue(domain, ReplayUser(("Hi", "###STOP###")), max_steps=len(actions) + 1)
    episode = dialogue.start(task, seed=0)
    for action in actions:
        episode = dialogue.act(episode, Message("assistant", call=action))
    if episode.outcome is None:
        episode = act(dialogue, episode, "respond", {"content": said})
    return checked_reward(domain, episode)


@pytest.mark.parametrize(("name", "split", "file"), GOLD)
def test_rewards_of_gold_actions(
    shared: Path, domains: dict[str, TauBench], name: str, split: str, file: str
) -> None:
    domain = domains[name]
    wrong = []
    for gold in recorded(shared, file)["tasks"]:
        task = domain.tasks(split)[gold["task_index"]]
        assert list(task.outputs) == gold["outputs"]
        all_said = f"Done. {' ; '.join(task.outputs)}"
        rewards = {
            "reward_gold_outputs_said": reward(domain, task, task.goals, all_said),
            "reward_gold_outputs_not_said": reward(domain, task, task.goals, "Done."),
            "reward_no_action": reward(domain, task, (), "Done."),
            "reward_no_action_outputs_said": reward(domain, task, (), all_said),
            "reward_last_action_dropped": reward(domain, task, task.goals[:-1], all_said),
        }
        # Not every task has all of them: some have no outputs, or no action to drop.
        wanted = {key: gold[key] for key in rewards if gold.get(key) is not None}
        if any(rewards[key] != wanted[key] for key in wanted):
            wrong.append((gold["task_index"], rewards, wanted))
        assert wanted["reward_gold_outputs_said"] == 1.0
        assert domain.passes_idle(task) == (wanted["reward_no_action"] == 1.0)
    assert not wrong


def test_tasks_that_pass_idle(domains: dict[str, TauBench]) -> None:
    idle = {
        (name, split): sum(domain.passes_idle(task) for task in domain.tasks(split))
        for name, domain in domains.items()
        for split in domain.splits
    }
    assert idle == {("retail", "train"): 5, ("retail", "dev"): 1, ("airline", "test"): 19}


def test_older_scoring_looks_at_the_records_only_where_there_are_no_outputs(
    shared: Path, domains: dict[str, TauBench]
) -> None:
    older = read_domain(shared / "data" / "tau_bench", "airline", scoring="fork")
    with_outputs = 0
    for gold in recorded(shared, "gold_airline_first25.json")["tasks"]:
        task = older.tasks("test")[gold["task_index"]]
        said = f"Done. {' ; '.join(task.outputs)}"
        if task.outputs:
            with_outputs += 1
            assert reward(older, task, (), said) == 1.0
            assert reward(older, task, (), "Done.") == 0.0
        else:
            for actions in (task.goals, ()):
                assert reward(older, task, actions, said) == reward(
                    domains["airline"], task, actions, said
                )
    assert with_outputs > 0
