"""The customer that tells its instruction, and the agent that knows the gold actions."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.gold import GoldAgent
from toolwoz_gym import Dialogue
from toolwoz_gym.rollout import play
from toolwoz_gym.tau_bench.data import read_tau_bench
from toolwoz_gym.tau_bench.domain import TauBench, TauTask
from toolwoz_gym.types import Message, ToolCall
from toolwoz_gym.users.instructed import InstructedUser

TASK = TauTask(
    "x",
    "dev",
    "Your name is Ann Lee and your zip code is 12345. You are shy, busy. You want to cancel order "
    "#W1234567 because you've ordered it by mistake! If they ask you why, tell them. ",
    (ToolCall("cancel_pending_order", {"order_id": "#W1234567", "reason": "ordered by mistake"}),),
)


def converse(*agent: str) -> list[str]:
    """Return what the customer says: its opening, and its answer to each of the agent's turns."""
    user, messages = InstructedUser("###STOP###"), list[Message]()
    said = [user.reply(TASK, messages, seed=0).content]
    for text in agent:
        messages += [Message("user", said[-1]), Message("assistant", text)]
        said.append(user.reply(TASK, messages, seed=0).content)
    return said


def test_it_tells_its_instruction_and_stops() -> None:
    assert converse("How can I help?", "Anything else?", "It is cancelled.", "Bye.") == [
        "My name is Ann Lee and my zip code is 12345.",
        "I want to cancel order #W1234567 because I've ordered it by mistake!",
        "If they ask me why, tell them.",
        "Thank you, that is all. ###STOP###",
        "Thank you, that is all. ###STOP###",
    ]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("I will cancel order #W1234567. Do you confirm (yes/no)?", "Yes, please go ahead."),
        ("Shall I cancel it?", "Yes, please go ahead."),
        ("I will cancel order #W7654321. Is that correct?", "No, that is not what I want."),
        ("Refund to credit_card_1234567: please confirm.", "No, that is not what I want."),
    ],
)
def test_it_says_yes_to_what_it_asked_for_only(question: str, answer: str) -> None:
    assert converse("Hello", question)[-1] == answer
    assert converse(question, "And?")[-1] == "I want to cancel order #W1234567 because I've " + (
        "ordered it by mistake!"
    )  # a confirmation takes the place of nothing


def test_it_answers_again_until_it_loses_patience() -> None:
    asked = ["Go on.", "Go on.", *["What is your zip code?"] * 4]
    said = converse(*asked)
    assert said[3:6] == ["My name is Ann Lee and my zip code is 12345."] * 3
    assert said[6] == "Thank you, that is all. ###STOP###"


@pytest.mark.parametrize(
    "text", ["yes " * 4000, "confirm " * 2000, "#W1" * 5000, "You are " + "a, " * 5000, "?" * 16000]
)
def test_hostile_words(text: str) -> None:
    assert converse(text, text)


@pytest.fixture(scope="module", params=["retail", "airline"])
def desk(request: pytest.FixtureRequest, shared: Path) -> TauBench:
    return read_tau_bench(shared / "data" / "tau_bench", request.param)


def test_every_task_is_solved_by_its_gold_actions(desk: TauBench) -> None:
    dialogue = Dialogue(desk, InstructedUser(desk.end_marker), max_steps=45)
    for split in desk.splits:
        for task in desk.tasks(split):
            episode = play(dialogue, GoldAgent(task), task, seed=0)
            assert episode.reward == 1.0, task.id
            assert dialogue.goals_met(episode) == frozenset(range(len(task.goals))), task.id
            assert dialogue.progress(episode) == 1.0, "without goals too"
