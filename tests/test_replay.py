"""Customers that say given lines, and those that say what a person said in a recorded dialogue."""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from agents.scripted import ExpertAgent
from toolwoz_gym import DialogueEnv, make_env
from toolwoz_gym.actions import format_action
from toolwoz_gym.toolwoz import ToolWOZ
from toolwoz_gym.toolwoz.task import ToolWOZTask, make_task
from toolwoz_gym.types import END_CONVERSATION, Message, Task, UsageError, UserFault
from toolwoz_gym.users import make_user
from toolwoz_gym.users.replay import ReplayUser
from toolwoz_gym.users.scripted import ScriptedUser

BUILTIN = "builtin:domains=1"


def recorded(*turns: str) -> ToolWOZTask:
    return make_task("X1.json", "val", "", (), turns)


def all_lines(user: ReplayUser, task: Task) -> list[str]:
    """Return what a customer says until it ends the dialogue."""
    messages: list[Message] = []
    while not messages or END_CONVERSATION not in messages[-1].content:
        if messages:
            messages.append(Message("assistant", f"answer {len(messages)}"))
        messages.append(user.reply(task, messages, seed=0))
    return [message.content for message in messages if message.role == "user"]


def test_recorded_turns_in_order() -> None:
    assert all_lines(ReplayUser(), recorded("hi", "a hotel", "bye")) == [
        "hi",
        "a hotel",
        f"bye {END_CONVERSATION}",
    ]
    # The agent has its turn whatever was recorded.
    assert all_lines(ReplayUser(), recorded("hi")) == ["hi", END_CONVERSATION]


def test_every_real_customer(multiwoz: ToolWOZ, multiwoz_v1: ToolWOZ) -> None:
    for world in (multiwoz, multiwoz_v1):
        for task in world.tasks("val"):
            lines = all_lines(ReplayUser(), task)
            assert lines == [*task.turns[:-1], f"{task.turns[-1]} {END_CONVERSATION}"]
            assert all(line == line.strip() for line in task.turns)


def test_a_real_dialogue(multiwoz: ToolWOZ) -> None:
    """Whatever the agent says, the customer goes on; the tools hear of nothing."""
    env = make_env("ToolWOZ-v0", world=multiwoz, split="val", user="replay")
    said, _ = env.reset(options={"task_id": "MUL0013.json"})
    task = env.snapshot().task
    assert isinstance(task, ToolWOZTask)
    for number, line in enumerate(task.turns):
        assert said.startswith(line)
        if number < len(task.turns) - 1:
            env.step('{"name": "search_hotel", "arguments": {}}')
            env.step("{")
            said, reward, terminated, truncated, info = env.step(f"no {number}")
    assert (reward, terminated, truncated) == (0.0, True, False)
    assert info["outcome"] == "failure"


def test_exact_calls_solve_a_replayed_dialogue(multiwoz_v1: ToolWOZ) -> None:
    env = make_env("ToolWOZ-v1", world=multiwoz_v1, split="val", user="replay")
    solved = 0
    for number in range(20):
        env.reset(options={"task_id": number})
        expert = ExpertAgent(env.snapshot().task)
        while env.snapshot().outcome is None:
            env.step(format_action(expert.act(env.snapshot().messages, seed=0)))
        solved += env.snapshot().outcome == "success"
    assert solved > 0


def test_a_replayed_dialogue_forks_and_pickles(multiwoz: ToolWOZ) -> None:
    env = make_env("ToolWOZ-v0", world=multiwoz, split="val", user="replay")
    env.reset(seed=1)
    env.step("hello")
    twins = [env.fork(), pickle.loads(pickle.dumps(env))]
    after = env.step("and?")[0]
    assert [twin.step("and?")[0] for twin in twins] == [after, after]


def test_nobody_was_recorded_in_the_built_in_world() -> None:
    env = make_env("ToolWOZ-v0", world=BUILTIN, user="replay")
    with pytest.raises(UsageError, match="needs world='multiwoz'$"):
        env.reset(seed=0)
    with pytest.raises(gym.error.ResetNeeded):
        env.step("hello")


def test_given_lines() -> None:
    env = make_env("ToolWOZ-v0", world=BUILTIN, user=["one", f"two {END_CONVERSATION}"])
    assert env.reset(seed=0)[0] == "one"
    assert env.step("?")[2] is True
    env = make_env("ToolWOZ-v0", world=BUILTIN, user=("one",))
    env.reset(seed=0)
    assert env.step("?")[4]["outcome"] == "user_fault"
    with pytest.raises(UserFault, match="nothing left"):
        ReplayUser(("one",)).reply(recorded(), [Message("user", "one")], seed=0)


def test_customers_by_name() -> None:
    assert make_user("scripted") == ScriptedUser()
    assert make_user("scripted:noise=0.3") == ScriptedUser(noise=0.3)
    assert make_user("scripted:noise=0") == ScriptedUser(noise=0.0)
    assert make_user("scripted:noise=1") == ScriptedUser(noise=1.0)
    assert make_user("replay") == ReplayUser()
    assert make_user(["a", "b"]) == ReplayUser(("a", "b"))
    own = ReplayUser(("a",))
    assert make_user(own) is own


@pytest.mark.parametrize(
    ("user", "said"),
    [
        ("", "no customer ''"),
        ("nobody", "choose scripted, scripted:noise=0.3 or replay"),
        ("a\nb", r"no customer 'a\\nb'"),
        ("x" * 1000, "no customer 'xxx"),
        ("replay:noise=1", "no customer 'replay:noise=1'"),
        ("Scripted", "no customer 'Scripted'"),
        ("scripted:", "its one option is noise"),
        ("scripted:seed=1", "its one option is noise"),
        ("scripted:noise", "noise='': choose a number from 0 to 1"),
        ("scripted:noise=loud", "noise='loud': choose a number from 0 to 1"),
        ("scripted:noise=1.1", "choose a number from 0 to 1"),
        ("scripted:noise=-0.1", "choose a number from 0 to 1"),
        ("scripted:noise=nan", "choose a number from 0 to 1"),
        ("scripted:noise=inf", "choose a number from 0 to 1"),
        ("scripted:noise=0.1,noise=0.2", "choose a number from 0 to 1"),
        ([], "no line"),
        (["hi", 5], "all to be text"),
        (b"hi", "all to be text"),
        (None, "a NoneType is no customer"),
        (np.array(["hi"]), "a ndarray is no customer"),
    ],
)
def test_no_such_customer(user: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said) as raised:
        make_env("ToolWOZ-v0", world=BUILTIN, user=user)
    assert str(raised.value).isprintable() and len(str(raised.value)) < 200


def test_noise_reaches_the_customer() -> None:
    def openings(user: str) -> list[str]:
        env: DialogueEnv = make_env("ToolWOZ-v0", world=BUILTIN, user=user)
        return [env.reset(seed=seed)[0] for seed in range(20)]

    assert openings("scripted:noise=0") == openings("scripted")
    assert openings("scripted:noise=1") != openings("scripted")
