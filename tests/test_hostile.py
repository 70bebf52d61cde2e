"""Hostile input: whatever an agent writes is answered, at a bounded cost, and nothing grows."""

from __future__ import annotations

import gc
import json
import pickle
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import gymnasium as gym
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_actions import HOPELESS, calls, texts, values

from benchmarks.speed import HOSTILE, fresh
from toolwoz_gym import DialogueEnv, make_env, make_toolwoz
from toolwoz_gym.actions import MAX_CHARS, format_call, parse_action
from toolwoz_gym.records import dump, message_from_json, message_to_json
from toolwoz_gym.toolwoz import answers
from toolwoz_gym.toolwoz.speech import hear
from toolwoz_gym.toolwoz.tools import PARAMETERS
from toolwoz_gym.types import UsageError
from toolwoz_gym.users import hearing

T = TypeVar("T")

MAX_STEPS = 12
EXAMPLES = 1700
"""How many examples of about sixty actions each make 100,000 actions in every world."""

LONGEST_ANSWER = 2000
"""Characters of the longest observation: rows and replies come from the data, mistakes are named
and never quoted at length."""

MOST_CALLS = 6 * MAX_CHARS
"""Python and C functions that a step may call: a few for each character of the longest action,
which may be one sentence after the other."""

RAW = [
    "NaN", "-Infinity", "1e400", "-1e400", "1e308", "-0.0", "1e-400", "01", "1.", "+1", "0x1",
    "9" * 4300, "9" * 4301, "true", "null", "True", "undefined", "", "'north'", '"north',
    '"\\ud800"', '"\ud800"', '"\\u0000"', '"\\u00"', '"a\nb"', '"' + "x" * 16_000 + '"',
    '"İ\u2028\u202eﬃ"', '"24:00"', '"99:99"', '"١٢:٣٠"', '"12:30\\n"', '" NORTH "',
    '"do n\'t care"', '"END_CONVERSATION"', "[]", "{}", '{"a": 1, "a": 2}', "[" * 16 + "]" * 16,
    "[" * 4000 + "]" * 4000, '{"a":' * 500 + "1" + "}" * 500, '"north", "north": 1',
    '"north"}, "name": "search_hotel", "arguments": {"area": "north"',
]  # fmt: skip
"""JSON and what is nearly JSON, to stand where a value should."""


def attacks(raw: str, text: str, call: str, cut: int) -> list[str]:
    """Put a value, a text and a call wherever an action can be wrong.

    Args:
        raw: Stands for every parameter of every tool.
        text: Stands for names, and is said.
        call: A call in the right form, to be damaged.
        cut: Where.
    """
    quoted = json.dumps(text)
    cut %= len(call)
    return [
        *(
            f'{{"name": "{tool}", "arguments": {{"{name}": {raw}}}}}'
            for tool, names in PARAMETERS.items()
            for name in names
        ),
        *(f'{{"name": "{tool}", "arguments": {{{quoted}: {raw}}}}}' for tool in PARAMETERS),
        *(
            f'{{"name": "{tool}", "arguments": {{{_all(names, raw)}}}}}'
            for tool, names in PARAMETERS.items()
        ),
        f'{{"name": {quoted}, "arguments": {{}}}}',
        f'{{"name": {raw}, "arguments": {raw}}}',
        f'{{"name": "search_hotel", "arguments": {{}}, {quoted}: {raw}}}',
        f'{{"name": "search_hotel", "name": {quoted}, "arguments": {{}}}}',
        raw,
        text,
        "{" + text,
        f"{text}? There is no {text}, it is booked at {text} in the {raw[:100]}.",
        call,
        call[:cut],
        call[cut:],
        call[:cut] + text + call[cut:],
        call[:cut] + call[cut + 1 :],
        call.replace('"', "'"),
        call + call,
    ]


def _all(names: Sequence[str], raw: str) -> str:
    return ", ".join(f'"{name}": {raw}' for name in names)


raws = st.sampled_from(RAW) | values.map(json.dumps)
actions = st.builds(
    attacks,
    raws,
    texts | texts.map(lambda text: text[:5] * 2000) | st.sampled_from(list(HOPELESS.values())),
    calls.map(format_call),
    st.integers(0, MAX_CHARS),
)


@pytest.fixture(scope="module", params=["builtin", "real data"])
def versions(request: pytest.FixtureRequest) -> list[DialogueEnv]:
    """One world, as every version of ToolWOZ answers in it."""
    worlds: list[Any] = ["builtin:tasks=500"] * 2
    if request.param == "real data":
        worlds = [request.getfixturevalue(name) for name in ("multiwoz", "multiwoz_v1")]
    envs = [
        make_toolwoz(version=version, world=world, split="val", user=user, max_steps=MAX_STEPS)
        for version, (world, user) in enumerate(
            zip(worlds, ("scripted", "scripted:noise=1"), strict=True)
        )
    ]
    for env in envs:
        env.tasks = env.tasks[:50]  # the built-in world makes a task each time it is asked for
    return envs


@pytest.fixture(scope="module", params=[0, 1], ids=["v0", "v1"])
def env(request: pytest.FixtureRequest, versions: list[DialogueEnv]) -> DialogueEnv:
    return versions[request.param]


def play(env: DialogueEnv, actions: Sequence[str]) -> None:
    """Play actions, over and over from the same opening, and check what holds for each."""
    opening = env.snapshot()
    for action in actions:
        if env.snapshot().outcome is not None:
            env.restore(opening)
        observation, reward, terminated, truncated, info = env.step(action)
        assert len(observation) <= LONGEST_ANSWER
        assert reward == float(info["outcome"] == "success")
        assert (terminated or truncated) == (info["outcome"] is not None)


@settings(
    max_examples=EXAMPLES,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example],
)
@given(seed=st.integers(0, 10**6), actions=actions)
def test_a_hundred_thousand_hostile_actions(
    versions: list[DialogueEnv], seed: int, actions: list[str]
) -> None:
    assert len(actions) * EXAMPLES >= 100_000
    for env in versions:
        task = env.tasks[seed % len(env.tasks)]
        env.restore(env.dialogue.start(task, seed=seed))
        play(env, actions)
        episode = env.snapshot()
        assert len(pickle.dumps(episode.world)) < 2000  # nothing that was written is kept there
        for message in episode.messages:  # whatever was played can be kept on record
            assert message_from_json(json.loads(dump(message_to_json(message)))) == message


MEMORIES = (hearing.understand, hearing.mentions, hear, answers.marks_of, answers.is_told)
"""What customers make of the latest replies they heard, so as not to hear them again."""


def memory_after(env: DialogueEnv, actions: Sequence[str]) -> int:
    """Play actions from several openings; return the bytes that are held when all is over."""
    openings = [env.dialogue.start(task, seed=0) for task in env.tasks[:20]]
    for position, action in enumerate(actions):
        env.restore(openings[position % len(openings)])
        play(env, [fresh(action)])
    env.restore(openings[0])
    del openings
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def test_memory_is_flat(env: DialogueEnv, traced: None) -> None:
    """What a hostile agent wrote, a megabyte in each round, is gone with the episode."""
    actions = [*HOSTILE.values(), *attacks("1e400", "x" * 9000, "{}", 1)]
    held = []
    for _ in range(5):
        memory_after(env, actions)
        for memory in MEMORIES:
            memory.cache_clear()
        held.append(memory_after(env, []))
    assert max(held[2:]) - held[1] < 100_000


def test_customers_remember_little(env: DialogueEnv, traced: None) -> None:
    """A full memory is a few megabytes, however much was said."""
    for memory in MEMORIES:
        memory.cache_clear()
    replies = 100
    before = memory_after(env, [])
    growth = memory_after(env, ["\U0001f600" * MAX_CHARS] * replies) - before
    sizes = [memory.cache_info().maxsize for memory in MEMORIES]
    assert growth / replies * max(size for size in sizes if size) < 40_000_000
    assert None not in sizes


def counted(function: Callable[[], T]) -> tuple[int, T]:
    """Count the functions that a function calls, whether of Python or of C."""
    count = 0

    def watch(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(watch)
    try:
        result = function()
    finally:
        sys.setprofile(None)
    return count, result


@pytest.mark.parametrize("name", HOSTILE)
def test_a_step_costs_no_more_than_so_many_calls(env: DialogueEnv, name: str) -> None:
    action = HOSTILE[name]
    assert len(action) <= MAX_CHARS
    for position in range(0, 50, 5):
        env.reset(seed=position, options={"task_id": position})
        assert counted(lambda: env.step(fresh(action)))[0] < MOST_CALLS


@pytest.mark.parametrize("name", HOSTILE)
def test_a_solved_episode_is_scored_whatever_was_said(env: DialogueEnv, name: str) -> None:
    for task in env.tasks[:10]:
        episode = env.dialogue.start(task, seed=0)
        for goal in task.goals:
            episode = env.dialogue.act(episode, parse_action(format_call(goal)))
        said = env.dialogue.act(episode, parse_action(HOSTILE[name]))
        count, end = counted(lambda said=said: env.dialogue.cut_off(said))
        assert count < MOST_CALLS
        assert end.reward == env.dialogue.cut_off(episode).reward


def test_what_is_too_long_costs_nothing(env: DialogueEnv) -> None:
    env.reset(seed=0, options={"task_id": 0})
    start = env.snapshot()
    cost = []
    for length in (MAX_CHARS + 1, 10_000_000):
        env.restore(start)
        text = "{" * length
        cost.append(counted(lambda text=text: env.step(text))[0])
    assert cost[0] == cost[1] < 200


# --- resets ----------------------------------------------------------------------------------

HOSTILE_IDS: list[Any] = [
    "9" * 10_000, "builtin-val-" + "9" * 10_000, "builtin-val-٣", "builtin-val-000000\n", "\ud800",
    "\x00", "../../etc/passwd", 10**5000, -(10**5000), 1.0, float("nan"), b"builtin-val-000000",
    (), ("a",) * 10_000, [10**5000], {"a": []}, {0}, object(),
]  # fmt: skip


@pytest.mark.parametrize("task_id", HOSTILE_IDS, ids=range(len(HOSTILE_IDS)))
def test_hostile_task_ids(env: DialogueEnv, task_id: Any) -> None:
    env.reset(seed=0)
    before = env.snapshot()
    with pytest.raises(UsageError, match=r"^no task [^\n]{1,200}$"):
        env.reset(seed=1, options={"task_id": task_id})
    assert env.snapshot() is before


@pytest.mark.parametrize("options", [[], "task_id", 5, [("task_id", 0)], {"task": 0}, {0: 1}])
def test_hostile_options(env: DialogueEnv, options: Any) -> None:
    env.reset(seed=0)
    before = env.snapshot()
    with pytest.raises(UsageError, match=r"^reset has the one option task_id[^\n]*$"):
        env.reset(seed=1, options=options)
    assert env.snapshot() is before


HOSTILE_SEEDS = [-1, True, 1.0, float("nan"), "1", b"1", [1], {}, 10**5000, -(10**5000)]


@pytest.mark.parametrize("seed", HOSTILE_SEEDS, ids=range(len(HOSTILE_SEEDS)))
def test_hostile_seeds(env: DialogueEnv, seed: Any) -> None:
    env.reset(seed=0)
    before = env.snapshot()
    with pytest.raises((UsageError, gym.error.Error)):
        env.reset(seed=seed)
    assert env.snapshot() is before


@pytest.mark.parametrize("seed", [0, 2**63, 2**64, 10**300])
def test_any_other_seed_plays(env: DialogueEnv, seed: int) -> None:
    assert env.reset(seed=seed) == env.reset(seed=seed)
    again = make_env("ToolWOZ-v0", world="builtin")
    assert again.reset(seed=seed)[1]["outcome"] is None
