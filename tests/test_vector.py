"""Vectors of environments, pickles, and other processes: wherever a dialogue goes on, it goes on
alike."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.vector import AutoresetMode, VectorEnv

from agents.scripted import ExpertAgent, RandomAgent
from toolwoz_gym import DialogueEnv, make_env
from toolwoz_gym.actions import format_action
from toolwoz_gym.records import dump, message_to_json
from toolwoz_gym.rollout import play
from toolwoz_gym.seeding import derive
from toolwoz_gym.types import Episode

IDS = ("ToolWOZ-v0", "ToolWOZ-v1")
WORLD = "builtin:domains=1,tasks=10"
ASYNC: dict[str, Any] = {"shared_memory": False}
MODES = [("sync", {}), ("async", ASYNC), ("async", {**ASYNC, "context": "spawn"})]
ACTIONS = ("Hello £?", "{", '{"name": "search_hotel", "arguments": {}}')


@pytest.fixture(params=IDS)
def env_id(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def singles(env_id: str, n: int, **arguments: Any) -> list[DialogueEnv]:
    return [make_env(env_id, **arguments) for _ in range(n)]


def rows(infos: dict[str, Any], n: int) -> list[dict[str, Any]]:
    """Take a vector's infos apart: the info of each environment."""
    names = [name for name in infos if not name.startswith("_")]
    assert all(infos[f"_{name}"].tolist() == [True] * n for name in names)
    return [{name: infos[name][i] for name in names} for i in range(n)]


def plays_like(envs: VectorEnv[Any, Any, Any], alone: list[DialogueEnv], steps: int) -> None:
    """Check a vector against environments that play on their own, new episodes included."""
    n = len(alone)
    observations, infos = envs.reset(seed=5)
    expected = [env.reset(seed=5 + i) for i, env in enumerate(alone)]
    assert (observations, rows(infos, n)) == (
        tuple(observation for observation, _ in expected),
        [info for _, info in expected],
    )
    done = [False] * n
    for step in range(steps):
        actions = tuple(ACTIONS[(step + i) % len(ACTIONS)] for i in range(n))
        observations, rewards, terminated, truncated, infos = envs.step(actions)
        assert observations in envs.observation_space
        seen = [
            (*env.reset(), 0.0, False, False) if over else _reordered(env.step(action))
            for env, action, over in zip(alone, actions, done, strict=True)
        ]
        assert observations == tuple(one[0] for one in seen)
        assert rows(infos, n) == [one[1] for one in seen]
        assert rewards.tolist() == [one[2] for one in seen]
        assert terminated.tolist() == [one[3] for one in seen]
        assert truncated.tolist() == [one[4] for one in seen]
        done = [one[3] or one[4] for one in seen]


def _reordered(step: Any) -> tuple[Any, ...]:
    observation, reward, terminated, truncated, info = step
    return observation, info, reward, terminated, truncated


@pytest.mark.parametrize(("mode", "options"), MODES, ids=["sync", "async", "async spawn"])
def test_a_vector_plays_as_its_environments_do(
    env_id: str, mode: str, options: dict[str, Any]
) -> None:
    arguments = {"world": WORLD, "max_steps": 3}
    envs = gym.make_vec(
        env_id, num_envs=3, vectorization_mode=mode, vector_kwargs=options, **arguments
    )
    try:
        assert envs.action_space.sample() in envs.action_space
        plays_like(envs, singles(env_id, 3, **arguments), steps=9)
    finally:
        envs.close()


def test_prepared_data_is_found_by_workers(
    env_id: str, multiwoz_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOLWOZ_DATA", str(multiwoz_folder.parent))
    arguments = {"world": "multiwoz", "split": "val", "max_steps": 3}
    envs = gym.make_vec(
        env_id, num_envs=2, vectorization_mode="async", vector_kwargs=ASYNC, **arguments
    )
    try:
        plays_like(envs, singles(env_id, 2, **arguments), steps=5)
    finally:
        envs.close()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_end_of_an_episode_is_seen_where_the_next_begins_at_once(
    env_id: str, mode: str
) -> None:
    options = {} if mode == "sync" else ASYNC
    envs = gym.make_vec(
        env_id,
        num_envs=2,
        vectorization_mode=mode,
        vector_kwargs={**options, "autoreset_mode": AutoresetMode.SAME_STEP},
        world=WORLD,
        max_steps=1,
    )
    try:
        alone = singles(env_id, 2, world=WORLD, max_steps=1)
        envs.reset(seed=1)
        observations, _, _, truncated, infos = envs.step(("{", "Hello £?"))
        for i, (env, action) in enumerate(zip(alone, ("{", "Hello £?"), strict=True)):
            env.reset(seed=1 + i)
            observation, _, _, _, info = env.step(action)
            assert infos["final_obs"][i] == observation
            assert infos["final_info"]["outcome"][i] == info["outcome"] == "truncated"
            assert observations[i] == env.reset()[0]
        assert truncated.all()
    finally:
        envs.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of half a vector
def test_shared_memory_is_refused() -> None:
    """It holds the characters of a fixed alphabet only: what was said would come out as zeros."""
    with pytest.raises(ValueError, match="shared_memory=False"):
        gym.make_vec("ToolWOZ-v0", num_envs=2, vectorization_mode="async", world=WORLD)


# --- pickles ---------------------------------------------------------------------------------


def expert_actions(env: DialogueEnv) -> Iterator[str]:
    expert = ExpertAgent(env.snapshot().task)
    while env.snapshot().outcome is None:
        yield format_action(expert.act(env.snapshot().messages, seed=0))


@pytest.mark.parametrize("world", ["builtin", "real data"])
@pytest.mark.parametrize("cut", [0, 1, 4])
def test_a_pickled_environment_goes_on_alike(
    env_id: str, world: Any, cut: int, request: pytest.FixtureRequest
) -> None:
    if world == "real data":
        world = request.getfixturevalue("multiwoz" if env_id == "ToolWOZ-v0" else "multiwoz_v1")
    env = make_env(env_id, world=world, split="val")
    env.reset(seed=3)
    for _, action in zip(range(cut), expert_actions(env), strict=False):
        env.step(action)
    copy = pickle.loads(pickle.dumps(env))
    assert copy.snapshot() == env.snapshot() and copy.snapshot() is not env.snapshot()
    for action in expert_actions(env):
        assert copy.step(action) == env.step(action)
    assert copy.snapshot() == env.snapshot()
    assert copy.reset() == env.reset()


def test_an_unseeded_environment_pickles() -> None:
    env = make_env("ToolWOZ-v0", world=WORLD)
    assert pickle.loads(pickle.dumps(env)).reset(seed=1) == env.reset(seed=1)


def go_on(env_id: str, episode: Episode) -> bytes:
    """Play an episode to its end; return its record."""
    env = make_env(env_id, world=WORLD)
    env.restore(episode)
    for action in expert_actions(env):
        env.step(action)
    return record(env.snapshot())


def record(episode: Episode) -> bytes:
    messages = [message_to_json(message) for message in episode.messages]
    return dump([episode.task.id, episode.seed, episode.outcome, messages]).encode("ascii")


def test_forks_go_on_in_another_process(env_id: str) -> None:
    """With the spawn method, so that nothing of this process is there but what was sent."""
    env = make_env(env_id, world=WORLD)
    forks = []
    for seed in range(4):
        env.reset(seed=seed)
        for _, action in zip(range(seed), expert_actions(env), strict=False):
            env.step(action)
        forks.append(env.fork().snapshot())
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        there = list(pool.map(go_on, [env_id] * len(forks), forks))
    assert there == [go_on(env_id, fork) for fork in forks]


# --- the same seed, the same bytes -----------------------------------------------------------

EPISODES = 1000


def play_one(number: int) -> bytes:
    """Play one of the thousand episodes: all versions, policies and customers take turns."""
    env = ENVS[number % len(ENVS)]
    task = env.tasks[number % len(env.tasks)]
    agent = ExpertAgent(task) if number % 5 == 0 else RandomAgent(env.dialogue.domain.tools)
    return record(play(env.dialogue, agent, task, seed=derive("thousand", number)))


def digest(records: list[bytes]) -> str:
    assert len(set(records)) > 0.99 * EPISODES
    return sha256(b"\n".join(records)).hexdigest()


ENVS = [
    make_env(env_id, world="builtin:tasks=101", user=user, max_steps=12)
    for env_id in IDS
    for user in ("scripted", "scripted:noise=0.5")
]


def test_a_thousand_episodes_are_the_same_bytes_in_any_order_and_process() -> None:
    one_by_one = digest([play_one(number) for number in range(EPISODES)])

    order = random.Random(0).sample(range(EPISODES), EPISODES)
    with ThreadPoolExecutor(8) as pool:
        played = dict(zip(order, pool.map(play_one, order), strict=True))
    assert digest([played[number] for number in range(EPISODES)]) == one_by_one

    code = f"import test_vector as t; print(t.digest([t.play_one(n) for n in range({EPISODES})]))"
    elsewhere = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parent)},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert elsewhere.stdout.strip() == one_by_one
