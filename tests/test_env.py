"""One contract for every environment of this package, on every world."""

from __future__ import annotations

import json
import logging
import pickle
import warnings
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

import toolwoz_gym
from agents.gold import GoldAgent
from agents.scripted import ExpertAgent
from toolwoz_gym import DialogueEnv, make_env
from toolwoz_gym.actions import MAX_CHARS, format_action, format_call
from toolwoz_gym.spaces import UnicodeText
from toolwoz_gym.tau_bench.data import read_tau_bench
from toolwoz_gym.tau_bench.domain import TauBench, TauTask
from toolwoz_gym.toolwoz import ToolWOZ
from toolwoz_gym.types import Episode, ToolCall, UsageError

IDS = sorted(
    spec.id for spec in gym.registry.values() if str(spec.entry_point).startswith("toolwoz_gym")
)

WORLDS = [
    "builtin",
    "builtin:domains=1,constraints=1,failures=0,seed=7",
    "builtin:domains=4,constraints=1-6,failures=4,tasks=20",
    "real data",
]

CASES = [
    *((env_id, world) for env_id in ("ToolWOZ-v0", "ToolWOZ-v1") for world in WORLDS),
    ("TauBench-v0", "retail"),
    ("TauBench-v0", "airline"),
]

INFO = {"task_id", "split", "world", "goals_met", "goals_total", "progress", "outcome"}

ACTIONS = [
    "Hello, how can I help you?",
    "I am sorry, there is no such place. What else would you like?",
    "It is booked. The reference number is ABCD1234.",
    "For how many people? Which area? In which price range? At what time?",
    "",
    "{",
    '{"name": "search_taxi", "arguments": {}}',
    '{"name": "search_hotel", "arguments": {"area": "north"}}',
    '{"name": "search_train", "arguments": {}}',
    '{"name": "book_restaurant", "arguments": {"people": "2"}}',
    "£–\ud800\x00",
]
BYE = "This is all I can do for you. Bye."


def test_every_id_is_registered() -> None:
    assert IDS == ["TauBench-v0", "ToolWOZ-v0", "ToolWOZ-v1"]
    assert {env_id for env_id, _ in CASES} == set(IDS)


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    env_id, world = request.param
    return env_id, world


@pytest.fixture
def env_id(case: tuple[str, str]) -> str:
    return case[0]


@pytest.fixture
def world(request: pytest.FixtureRequest, case: tuple[str, str]) -> str | ToolWOZ | TauBench:
    env_id, world = case
    if env_id == "TauBench-v0":
        shared: Path = request.getfixturevalue("shared")
        return read_tau_bench(shared / "data" / "tau_bench", world)
    if world == "real data":
        name = "multiwoz" if env_id == "ToolWOZ-v0" else "multiwoz_v1"
        real: ToolWOZ = request.getfixturevalue(name)
        return real
    return world


@pytest.fixture
def split(case: tuple[str, str]) -> str:
    return {"retail": "dev", "airline": "test"}.get(case[1], "val")


@pytest.fixture
def env(env_id: str, world: str | ToolWOZ | TauBench, split: str) -> DialogueEnv:
    return make_env(env_id, world=world, split=split)


@pytest.fixture
def small() -> DialogueEnv:
    return make_env("ToolWOZ-v0", world="builtin:domains=1")


def play(env: DialogueEnv, actions: list[str]) -> list[Any]:
    """Play actions until the end, and return all that is seen."""
    seen = []
    for action in actions:
        seen.append(env.step(action))
        if seen[-1][2] or seen[-1][3]:
            break
    return seen


def expert_actions(env: DialogueEnv) -> Iterator[str]:
    task = env.snapshot().task
    expert = GoldAgent(task) if isinstance(task, TauTask) else ExpertAgent(task)
    while env.snapshot().outcome is None:
        yield format_action(expert.act(env.snapshot().messages, seed=0))


# --- Gymnasium's contract --------------------------------------------------------------------


def test_check_env_has_nothing_to_say(
    env_id: str, world: str | ToolWOZ | TauBench, split: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Warnings are errors in this suite; Gymnasium's own go through ``warnings`` too."""
    env = gym.make(env_id, world=world, split=split)
    with caplog.at_level(logging.DEBUG):
        check_env(env.unwrapped)
        env.reset(seed=1)  # through Gymnasium's wrappers, which check passively
        for action in ACTIONS:
            if any(env.step(action)[2:4]):
                break
        env.reset()
        env.close()
    assert not caplog.records


@pytest.mark.parametrize("mode", ["ansi", "human"])
def test_check_env_with_rendering(
    env_id: str, world: str | ToolWOZ | TauBench, split: str, mode: str
) -> None:
    check_env(gym.make(env_id, world=world, split=split, render_mode=mode).unwrapped)


def test_versions_are_no_successors() -> None:
    for env_id in ("ToolWOZ-v0", "ToolWOZ-v1"):
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            env = gym.make(env_id, world="builtin")
        assert not warned and env.spec is not None and env.spec.id == env_id
    with pytest.raises(gym.error.NameNotFound, match="Did you mean: `ToolWOZ-v"):
        gym.make("ToolWOZ")


def test_types_and_info(env: DialogueEnv, split: str) -> None:
    observation, info = env.reset(seed=3)
    seen = [(observation, 0.0, False, False, info), *play(env, ACTIONS)]
    for observation, reward, terminated, truncated, info in seen:
        assert type(observation) is str and observation in env.observation_space
        assert type(reward) is float and type(terminated) is bool and type(truncated) is bool
        assert set(info) == INFO
        assert type(info["goals_met"]) is tuple
        assert info["goals_met"] == tuple(sorted(info["goals_met"]))
        assert info["goals_total"] == len(env.dialogue.domain.goals(env.snapshot().task))
        assert info["progress"] == len(info["goals_met"]) / max(1, info["goals_total"])
        assert info["split"] == split and info["world"] == env.dialogue.domain.fingerprint
        assert info["task_id"] == env.snapshot().task.id
        assert (info["outcome"] is None) == (not terminated and not truncated)
        json.dumps(info)
    infos = [step[4] for step in seen]
    assert len({id(info) for info in infos}) == len(infos)


def test_the_reward_comes_at_the_end(env: DialogueEnv) -> None:
    solved = 0
    for seed in range(20):
        env.reset(seed=seed)
        steps = [env.step(action) for action in expert_actions(env)]
        assert all(
            (reward, terminated, truncated, info["outcome"]) == (0.0, False, False, None)
            for _, reward, terminated, truncated, info in steps[:-1]
        )
        _, reward, terminated, truncated, info = steps[-1]
        assert terminated != truncated
        assert reward == (1.0 if info["goals_total"] == len(info["goals_met"]) else 0.0)
        assert (info["outcome"] == "success") == (reward == 1.0)
        solved += reward == 1.0
    assert solved >= 18


def test_stepping_after_the_end_or_before_the_beginning(env: DialogueEnv) -> None:
    for call in (lambda: env.step("Hello"), env.snapshot):
        with pytest.raises(gym.error.ResetNeeded, match="no episode has begun"):
            call()
    env.reset(seed=0)
    while env.snapshot().outcome is None:
        env.step("Hello")
    end = env.snapshot()
    for _ in range(2):
        with pytest.raises(gym.error.ResetNeeded, match="has ended"):
            env.step("Hello")
    assert env.snapshot() is end
    env.reset()
    env.step("Hello")


# --- seeds -----------------------------------------------------------------------------------


def test_the_same_seed_says_the_same(
    env_id: str, world: str | ToolWOZ | TauBench, split: str
) -> None:
    envs = [make_env(env_id, world=world, split=split) for _ in range(2)]
    for seed in (0, 1, 2**40):
        one, other = ((env.reset(seed=seed), play(env, ACTIONS)) for env in envs)
        assert one == other
    for _ in range(2):  # what follows a seeded episode follows from its seed
        one, other = ((env.reset(), play(env, ACTIONS)) for env in envs)
        assert one == other


def test_seeds_differ(small: DialogueEnv) -> None:
    assert len({small.reset(seed=seed)[1]["task_id"] for seed in range(50)}) > 45
    assert len({small.reset()[1]["task_id"] for _ in range(50)}) > 45
    openings = {small.reset(seed=s, options={"task_id": 0})[0] for s in range(30)}
    assert len(openings) > 5


def test_unseeded_environments_differ() -> None:
    envs = [make_env("ToolWOZ-v0", world="builtin") for _ in range(4)]
    assert len({env.reset()[1]["task_id"] for env in envs}) > 1
    twin = make_env("ToolWOZ-v0", world="builtin").fork()  # before its first episode
    assert twin.reset()[0]


@pytest.mark.parametrize("seed", [-1, 1.5, "1", True, False, np.bool_(1), [1], float("nan")])
def test_seeds_are_whole_numbers(small: DialogueEnv, seed: Any) -> None:
    small.reset(seed=0)
    before = small.snapshot()
    with pytest.raises(gym.error.Error):
        small.reset(seed=seed)
    assert small.snapshot() is before


@pytest.mark.parametrize(
    "options", [{"task": 0}, {0: 0}, {"task_id": 0, "seed": 1}, ["task_id"], "task_id", 3, True]
)
def test_options_that_there_are_not(small: DialogueEnv, options: Any) -> None:
    small.reset(seed=0)
    before, following = small.snapshot(), small.fork().reset()
    with pytest.raises(UsageError, match="^reset has the one option task_id"):
        small.reset(seed=5, options=options)
    assert small.snapshot() is before and small.reset() == following


# --- snapshots -------------------------------------------------------------------------------

some_actions = st.lists(st.sampled_from(ACTIONS) | st.text(max_size=20), max_size=12)


@settings(max_examples=60)
@given(st.integers(0, 1000), some_actions, some_actions, some_actions)
def test_forks_and_snapshots_go_on_alike_and_apart(
    seed: int, before: list[str], after: list[str], meanwhile: list[str]
) -> None:
    env = make_env("ToolWOZ-v0", world="builtin:failures=1", max_steps=18)
    env.reset(seed=seed)
    seen = play(env, before)
    if seen and (seen[-1][2] or seen[-1][3]):
        return
    snapshot, kept = env.snapshot(), pickle.dumps(env.snapshot())
    fork, copy = env.fork(), pickle.loads(pickle.dumps(env))
    expected = play(fork, after)
    assert env.snapshot() is snapshot and pickle.dumps(snapshot) == kept
    play(env, meanwhile)
    env.restore(snapshot)
    assert env.snapshot() is snapshot
    assert play(env, after) == expected
    assert play(copy, after) == expected
    stranger = make_env("ToolWOZ-v0", world="builtin:failures=1", max_steps=18)
    stranger.restore(pickle.loads(kept))
    assert play(stranger, after) == expected
    assert pickle.dumps(snapshot) == kept


@settings(max_examples=30)
@given(st.integers(0, 500), st.integers(0, 30))
def test_a_solution_goes_on_from_any_snapshot(seed: int, cut: int) -> None:
    env = make_env("ToolWOZ-v0", world="builtin")
    env.reset(seed=seed)
    snapshots = []
    for action in expert_actions(env):
        snapshots.append((env.snapshot(), action))
        env.step(action)
    end = env.snapshot()
    cut %= len(snapshots)
    fork = env.fork()
    fork.restore(snapshots[cut][0])
    for _, action in snapshots[cut:]:
        assert fork.snapshot().outcome is None
        fork.step(action)
    assert fork.snapshot() == end and end.reward == 1.0


def test_a_fork_that_begins_anew_leaves_the_other_alone(small: DialogueEnv) -> None:
    small.reset(seed=0)
    before, next_seed = small.snapshot(), small.fork().reset()
    fork = small.fork()
    fork.step("Hello")
    fork.reset(seed=1)
    assert small.snapshot() is before
    assert small.reset() == next_seed


ELSEWHERE = {
    "another version": ("ToolWOZ-v1", {"world": "builtin:domains=1"}),
    "another city": ("ToolWOZ-v0", {"world": "builtin:domains=1,seed=1"}),
    "other tasks": ("ToolWOZ-v0", {"world": "builtin:domains=2"}),
}


@pytest.mark.parametrize("where", ELSEWHERE)
def test_snapshots_of_other_worlds_are_refused(where: str, small: DialogueEnv) -> None:
    env_id, arguments = ELSEWHERE[where]
    stranger = make_env(env_id, **arguments)
    stranger.reset(seed=1)
    small.reset(seed=0)
    before = small.snapshot()
    for snapshot in (stranger.snapshot(), pickle.loads(pickle.dumps(stranger.snapshot()))):
        with pytest.raises(UsageError, match=r"^the snapshot is of another world[^\n]*'builtin': "):
            small.restore(snapshot)
    assert small.snapshot() is before
    small.step("Hello")


def test_snapshots_of_another_domain_are_refused(shared: Path) -> None:
    desks = [read_tau_bench(shared / "data" / "tau_bench", name) for name in ("retail", "airline")]
    envs = [
        make_env("TauBench-v0", world=desk, split=desk.splits[-1], user=["Hi"]) for desk in desks
    ]
    envs += [make_env("ToolWOZ-v0", world="builtin")]
    snapshots = []
    for env in envs:
        env.reset(seed=0)
        snapshots.append(env.snapshot())
    for env, own in zip(envs, snapshots, strict=True):
        for snapshot in snapshots:
            if snapshot is own:
                env.restore(snapshot)
                continue
            with pytest.raises(UsageError, match="another world"):
                env.restore(snapshot)
        assert env.snapshot() is own


def test_a_snapshot_goes_on_with_the_customer_and_the_limit_it_finds(small: DialogueEnv) -> None:
    small.reset(seed=0)
    play(small, ["{", "{"])
    other = make_env("ToolWOZ-v0", world="builtin:domains=1", user=["Hi", "Two"], max_steps=2)
    other.restore(small.snapshot())
    assert other.step("Hello")[:4] == ("Two", 0.0, False, True)


def test_a_snapshot_of_an_older_class_is_refused(small: DialogueEnv) -> None:
    small.reset(seed=0)
    old = object.__new__(Episode)
    for name in Episode.__slots__[:-1]:  # what its pickle would have set
        object.__setattr__(old, name, getattr(small.snapshot(), name))
    with pytest.raises(UsageError, match="another version"):
        small.restore(old)


@pytest.mark.parametrize("value", [None, {}, (), "snapshot", 3, ToolCall("a", {})])
def test_what_is_no_snapshot_is_refused(small: DialogueEnv, value: Any) -> None:
    with pytest.raises(TypeError, match=r"^restore takes what snapshot\(\) returns, and no \w+$"):
        small.restore(value)
    with pytest.raises(gym.error.ResetNeeded):
        small.snapshot()


# --- actions that are no text ----------------------------------------------------------------

NO_TEXTS = [
    {"name": "search_hotel", "arguments": {}},
    *(3, 1.5, True, None, b"Hello", bytearray(b"Hello"), ["Hello"], ("Hello",), {"Hello"}),
    *(np.array("Hello"), np.array(["Hello"]), np.bytes_(b"Hello"), np.int64(3), object()),
]


@pytest.mark.parametrize("make", [make_env, gym.make])
def test_an_action_that_is_no_text_changes_nothing(make: Any) -> None:
    env = make("ToolWOZ-v1", world="builtin", render_mode="ansi")
    env.reset(seed=0)
    before, shown = env.unwrapped.snapshot(), env.render()
    for action in NO_TEXTS:
        with pytest.raises(TypeError, match=r"^an action is a text, and no \w+: a tool call is "):
            env.step(action)
        assert env.unwrapped.snapshot() is before and env.render() == shown
    assert env.step("Hello")[0]


def test_other_kinds_of_text_are_the_text_they_hold(small: DialogueEnv) -> None:
    class Named(StrEnum):
        ASK = "Which area?"

    small.reset(seed=0)
    start = small.snapshot()
    plain = small.step("Which area?")
    for action in (np.str_("Which area?"), Named.ASK):
        small.restore(start)
        assert small.step(action) == plain
        assert type(small.snapshot().messages[1].content) is str


def test_vectors_survive_what_is_no_action() -> None:
    envs = gym.make_vec("ToolWOZ-v1", 2, vectorization_mode="sync", world="builtin")
    envs.reset(seed=0)
    with pytest.raises(TypeError, match="an action is a text, and no dict"):
        envs.step([NO_TEXTS[0], "Hello"])
    assert all(envs.step(["Hello", np.str_("Hello")])[0])
    with pytest.raises(UsageError, match="no task of type bool"):
        envs.reset(options={"task_id": True})
    assert all(envs.step(["Hello", "Hello"])[0])
    envs.close()


def test_episodes_are_immutable(small: DialogueEnv) -> None:
    small.reset(seed=0)
    episode = small.snapshot()
    with pytest.raises(AttributeError):
        episode.steps = 3  # type: ignore[misc]
    small.step("Hello")
    assert episode.steps == 0 and len(episode.messages) == 1


# --- the step limit --------------------------------------------------------------------------


@pytest.mark.parametrize("action", [ACTIONS[7], "{", "Which area?"])
def test_the_step_limit_cuts_off(action: str) -> None:
    env = make_env("ToolWOZ-v0", world="builtin:domains=4", max_steps=2)
    env.reset(seed=1)
    assert not any(env.step(action)[2:4])
    _, reward, terminated, truncated, info = env.step(action)
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info["outcome"] == "truncated"


def test_the_step_limit_is_counted_in_the_episode() -> None:
    env = make_env("ToolWOZ-v0", world="builtin:domains=4", max_steps=5)
    env.reset(seed=1)
    play(env, ["{", "{"])
    snapshot = env.snapshot()
    for _ in range(3):
        env.restore(snapshot)
        assert [step[3] for step in play(env, ["{"] * 9)] == [False, False, True]
    env.reset()
    assert len(play(env, ["{"] * 9)) == 5


def test_a_goal_met_at_the_last_step_counts() -> None:
    env = make_env("ToolWOZ-v0", world="builtin:domains=1", max_steps=45)
    env.reset(seed=4)
    goals = [format_call(goal) for goal in env.snapshot().task.goals]
    limited = make_env("ToolWOZ-v0", world="builtin:domains=1", max_steps=len(goals))
    limited.reset(seed=4)
    *_, (_, reward, terminated, truncated, info) = play(limited, goals)
    assert (reward, terminated, truncated, info["outcome"]) == (1.0, False, True, "success")


def test_the_customers_goodbye_at_the_last_step_terminates() -> None:
    env = make_env("ToolWOZ-v0", world="builtin", user=["Hi", "Bye END_CONVERSATION"], max_steps=1)
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step("Hello")
    assert (reward, terminated, truncated, info["outcome"]) == (0.0, True, False, "failure")


# --- choosing tasks, worlds and customers ----------------------------------------------------


def test_tasks_are_chosen_by_id_and_by_position(env: DialogueEnv) -> None:
    for position in (0, 1, len(env.tasks) - 1, np.int64(1)):
        id = env.tasks[int(position)].id
        for task_id in (position, id):
            observation, info = env.reset(seed=0, options={"task_id": task_id})
            assert info["task_id"] == id
    assert env.reset(seed=0, options={})[1] == env.reset(seed=0)[1]


@pytest.mark.parametrize(
    "task_id",
    [
        "nobody.json",
        "",
        "builtin-train-000000",
        "builtin-val-0",
        "-1",
        10**9,
        -1,
        1.5,
        True,
        b"0",
        [0],
    ],
)
def test_unknown_tasks(env: DialogueEnv, task_id: Any) -> None:
    env.reset(seed=0)
    before = env.snapshot()
    with pytest.raises(UsageError, match=r"^no task [^\n]*$"):
        env.reset(options={"task_id": task_id})
    assert env.snapshot() is before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"world": "mars"}, "no world 'mars': choose auto, builtin"),
        ({"world": "builtin:moons=2"}, "no option 'moons'"),
        ({"world": "builtin:domains=5"}, "1 to 4"),
        ({"world": "multiwoz:seed=1"}, "no world 'multiwoz:seed=1'"),
        ({"world": "multiwoz"}, "python -m toolwoz_gym data prepare multiwoz"),
        ({"split": "dev"}, "no split 'dev'; it has train, val, test"),
        ({"user": "nobody"}, "no customer 'nobody'"),
        ({"user": []}, "no line"),
        ({"max_steps": 0}, "at least 1"),
        ({"render_mode": "rgb_array"}, "no render mode 'rgb_array'"),
    ],
)
@pytest.mark.parametrize("make", [make_env, gym.make])
def test_wrong_arguments_are_usage_errors(
    make: Any,
    arguments: dict[str, Any],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
) -> None:
    monkeypatch.setenv("TOOLWOZ_DATA", str(tmp_path))
    with pytest.raises(UsageError) as caught:
        make("ToolWOZ-v0", **{"world": "builtin", **arguments})
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "id", ["ToolWOZ-v99", "Nothing-v0", "CartPole-v1", "???", "no.such:Env-v0"]
)
def test_unknown_environments(id: str) -> None:
    with pytest.raises(UsageError, match=r"^[^\n]*ToolWOZ-v0 or ToolWOZ-v1 or TauBench-v0$"):
        make_env(id, world="builtin")


def test_auto_says_which_world_it_plays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TOOLWOZ_DATA", str(tmp_path))
    toolwoz_gym._announce.cache_clear()
    for _ in range(2):
        assert make_env("ToolWOZ-v0").dialogue.domain.name == "builtin"
    (record,) = caplog.records  # once is enough
    assert "'builtin' here: MultiWOZ is not prepared in " in record.getMessage()
    with pytest.raises(
        UsageError, match=r"not prepared in .*; .* 'builtin' has no split 'test450'"
    ):
        make_env("ToolWOZ-v0", split="test450")


# --- replayed customers ----------------------------------------------------------------------


def test_a_replayed_customer_says_its_lines() -> None:
    lines = ["Hello.", "A hotel, please.", "Bye. END_CONVERSATION"]
    env = gym.make("ToolWOZ-v0", world="builtin", user=lines)
    assert env.reset(seed=0)[0] == lines[0]
    assert env.step(ACTIONS[7])[0].startswith("[")
    assert env.step("{")[0].startswith("Error: ")
    assert env.step("Which?")[0] == lines[1]
    observation, reward, terminated, truncated, info = env.step("Done.")
    assert (observation, reward, terminated, truncated) == (lines[2], 0.0, True, False)
    assert info["outcome"] == "failure"


def test_a_replayed_customer_that_runs_dry_is_at_fault() -> None:
    env = gym.make("ToolWOZ-v0", world="builtin", user=["Hello."])
    env.reset(seed=0)
    for goal in env.unwrapped.snapshot().task.goals:  # type: ignore[attr-defined]
        env.step(format_call(goal))
    observation, reward, terminated, truncated, info = env.step("Anything else?")
    assert observation in env.observation_space
    assert (reward, terminated, truncated) == (0.0, True, False)
    assert info["outcome"] == "user_fault" and info["progress"] == 1.0


# --- vectors of environments -----------------------------------------------------------------


# --- rendering -------------------------------------------------------------------------------


def test_ansi_shows_the_dialogue() -> None:
    env = gym.make("ToolWOZ-v0", world="builtin", user=["A £5 hotel"], render_mode="ansi")
    env.reset(seed=0)
    env.step(ACTIONS[6])
    assert str(env.render()).splitlines() == [
        "     user: A £5 hotel",
        f"assistant: {ACTIONS[6]}",
        "     tool: " + env.unwrapped.snapshot().messages[-1].content,  # type: ignore[attr-defined]
    ]


def test_human_prints_as_it_goes(capsys: pytest.CaptureFixture[str]) -> None:
    env = make_env("ToolWOZ-v0", world="builtin", user=["Hi", "A hotel"], render_mode="human")
    env.reset(seed=0)
    assert capsys.readouterr().out == "     user: Hi\n"
    env.step("Which?")
    assert capsys.readouterr().out == "assistant: Which?\n     user: A hotel\n"
    env.step("£\ud800")  # what no terminal can show does not stop the play
    assert "£" in capsys.readouterr().out
    assert env.render() is None


def test_without_a_mode_nothing_is_shown(
    small: DialogueEnv, capsys: pytest.CaptureFixture[str]
) -> None:
    small.reset(seed=0)
    small.step("Hello")
    assert small.render() is None and capsys.readouterr().out == ""


# --- the space of texts ----------------------------------------------------------------------


@given(st.text(st.characters(codec=None)))
def test_the_space_holds_any_text(text: str) -> None:
    assert text in UnicodeText(MAX_CHARS)
    assert (text in UnicodeText(3)) == (len(text) <= 3)


def test_the_space() -> None:
    space = UnicodeText(9, seed=1)
    assert all(space.sample() in space for _ in range(20))
    assert space == UnicodeText(9) != UnicodeText(8)
    assert space != gym.spaces.Text(9) and repr(space) == "UnicodeText(9)"
    assert 5 not in space and None not in space and b"a" not in space
    assert ToolCall("a", {}) not in space
