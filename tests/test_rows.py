"""Training rows: a hand-worked tree, and what holds of the rows of any tree."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.backends.canned import CannedBackend
from agents.base import ChatMessage, Sampling
from agents.scripted import ExpertAgent, RandomAgent
from agents.tool_calling import ToolCallingAgent, system_prompt
from josh_search.rows import Rows, make_rows
from josh_search.search import SearchOptions, search
from josh_search.tree import tree_to_json
from toolwoz_gym.actions import format_call
from toolwoz_gym.dialogue import Dialogue
from toolwoz_gym.records import message_from_json
from toolwoz_gym.seeding import Luck, derive
from toolwoz_gym.toolwoz.builtin import CityOptions, load_builtin
from toolwoz_gym.types import END_CONVERSATION, Message, Task, ToolCall
from toolwoz_gym.users.scripted import ScriptedUser

WORLD = load_builtin(CityOptions.parse("domains=1,constraints=1,failures=0"))
DIALOGUE = Dialogue(WORLD, ScriptedUser(), max_steps=45)
SYSTEM = system_prompt(WORLD.policy, WORLD.tools)

USELESS = format_call(ToolCall("search_attraction", {}))
BAD = '{"name": "search_hotel"'


class Waverer:
    """What the expert does, but now and then something else, written as a model would."""

    def __init__(self, task: Task, error_rate: float) -> None:
        self.expert, self.error_rate = ExpertAgent(task), error_rate
        self.backend = CannedBackend(self.write)
        self.agent = ToolCallingAgent(self.backend, SYSTEM)

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        self.view = view
        return self.agent.act(view, seed=seed)

    def write(self, prompt: Sequence[ChatMessage], sampling: Sampling) -> str:
        luck = Luck(sampling.seed, "waver")
        if luck.chance(self.error_rate):
            return luck.choice([BAD, USELESS, f" {USELESS} ", "Hm.", "What is your budget?"])
        message = self.expert.act(self.view, seed=0)
        return format_call(message.call) if message.call else message.content


def grown(number: int, seed: int, error_rate: float, options: SearchOptions) -> dict[str, Any]:
    """Return the record of a search, as it is read from a file."""
    task = WORLD.tasks("train")[number]
    tree = search(DIALOGUE, Waverer(task, error_rate), task, seed=seed, options=options)
    record: dict[str, Any] = json.loads(json.dumps(tree_to_json(tree, 0)))
    return record


records = st.builds(
    grown,
    number=st.integers(0, 300),
    seed=st.integers(0, 10**6),
    error_rate=st.sampled_from([0.0, 0.2, 0.5, 0.8]),
    options=st.builds(
        SearchOptions,
        beam=st.sampled_from([1, 2, 4, 8]),
        max_steps=st.integers(1, 8),
        max_outputs=st.sampled_from([1, 3]),
        reward=st.sampled_from(["goal_calls", "terminal"]),
    ),
)


def frozen(row: Mapping[str, Any], *names: str) -> tuple[str, ...]:
    return tuple(json.dumps(row[name]) for name in names)


def replayed(record: Mapping[str, Any]) -> list[tuple[int, tuple[Message, ...], Message]]:
    """Return every assistant message of a tree: its node, what it answers, and itself."""
    found: list[tuple[int, tuple[Message, ...], Message]] = []
    ends: list[tuple[Message, ...]] = []
    for node in record["nodes"]:
        view = () if node["parent"] is None else ends[node["parent"]]
        for message in map(message_from_json, node["messages"]):
            if message.role == "assistant":
                found.append((node["id"], view, message))
            view = (*view, message)
        ends.append(view)
    return found


def check(record: Mapping[str, Any], rows: Rows) -> None:
    """Check all that holds of the rows of a tree."""
    agent = ToolCallingAgent(CannedBackend([]), SYSTEM)
    written = [
        (node, agent.prompt(view), message.raw, message) for node, view, message in replayed(record)
    ]
    nodes = record["nodes"]
    labels: dict[tuple[str, ...], set[bool]] = {}
    for row in rows.kto:
        labels.setdefault(frozen(row, "prompt", "completion"), set()).add(row["label"])
        (completion,) = row["completion"]
        assert completion["role"] == "assistant"
        # The prompt is what the agent was shown at that node, and the completion what it wrote.
        assert any(
            (node, prompt, raw) == (row["node"], row["prompt"], completion["content"])
            for node, prompt, raw, _ in written
        )
        if row["label"]:
            assert nodes[row["node"]]["golden"]
        else:
            assert not any(  # nothing successful is punished, wherever it was written
                (nodes[node]["successful"] or nodes[node]["golden"])
                and (prompt, raw) == (row["prompt"], completion["content"])
                for node, prompt, raw, _ in written
            )
            # It answers something that the golden path answers too.
            assert any(
                nodes[node]["golden"] and prompt == row["prompt"] for node, prompt, _, _ in written
            )
    assert all(len(found) == 1 for found in labels.values())
    assert len(labels) == len(rows.kto)
    good = [frozen(row, "prompt", "completion") for row in rows.kto if row["label"]]
    bad = [frozen(row, "prompt", "completion") for row in rows.kto if not row["label"]]
    assert [frozen(row, "prompt", "completion") for row in rows.sft] == good
    for row in rows.dpo:
        assert frozen(row, "prompt", "chosen") in good
        assert frozen(row, "prompt", "rejected") in bad
    golden = [m for node, _, _, m in written if nodes[node]["golden"]]
    malformed = rows.dropped["messages of golden paths with malformed output"]
    if not record["solved"]:
        assert not rows.kto and rows.dropped == {"trees without a solution": 1}
    elif any(m.error for m in golden):
        assert malformed > 0
    else:
        assert malformed == 0
        texts = {(json.dumps(p), r) for node, p, r, _ in written if nodes[node]["golden"]}
        assert len(good) == len(texts) > 0
    assert rows.counts()["kto"] == {"good": len(good), "bad": len(bad)}


@settings(max_examples=300)
@given(records)
def test_what_holds_of_the_rows_of_any_tree(record: dict[str, Any]) -> None:
    check(record, make_rows([record], SYSTEM))


def test_random_agents_give_rows_too() -> None:
    counts: Counter[str] = Counter()
    for number in range(60):
        task = WORLD.tasks("train")[number]
        agent = RandomAgent(WORLD.tools)
        tree = search(DIALOGUE, agent, task, seed=number, options=SearchOptions())
        rows = make_rows([json.loads(json.dumps(tree_to_json(tree, 0)))], SYSTEM)
        counts += Counter(solved=tree.solved, sft=len(rows.sft), kto=len(rows.kto))
        pairs = Counter(frozen(row, "prompt", "completion") for row in rows.kto)
        assert max(pairs.values(), default=1) == 1
    assert counts["kto"] > counts["sft"] > counts["solved"] > 0


@pytest.mark.parametrize("reward", ["goal_calls", "terminal"])
def test_no_two_trees_contradict_each_other(reward: Any) -> None:
    """Tasks may open with the same words: what was good for one is not punished for another."""
    options = SearchOptions(beam=8, max_steps=6, reward=reward)
    trees = [grown(number, number, 0.5, options) for number in range(150)]
    rows = make_rows(trees, SYSTEM)
    assert len({frozen(row, "prompt") for row in rows.kto}) > 300
    good = {frozen(row, "prompt", "completion") for row in rows.kto if row["label"]}
    bad = {frozen(row, "prompt", "completion") for row in rows.kto if not row["label"]}
    assert good and bad and not good & bad
    for row in rows.dpo:
        assert frozen(row, "prompt", "chosen") in good
        assert frozen(row, "prompt", "rejected") in bad


# --- a tree worked by hand -------------------------------------------------------------------

TASK = next(task for task in WORLD.tasks("train") if len(task.goals) == 2)
SEARCH, BOOK = (format_call(goal) for goal in TASK.goals)


class Told:
    """Writes what it is told at (step, leaf): a turn of outputs each."""

    def __init__(self, turns: Mapping[tuple[int, int], Sequence[str]]) -> None:
        self.turns, self.agent = turns, ToolCallingAgent(CannedBackend(self.write), SYSTEM)

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        return self.agent.act(view, seed=seed)

    def write(self, prompt: Sequence[ChatMessage], sampling: Sampling) -> str:
        for (step, leaf), outputs in self.turns.items():
            for output, text in enumerate(outputs):
                if sampling.seed == derive(derive(1, "branch", step, leaf), output):
                    return text
        raise AssertionError("nothing more was to be written")


class Echo:
    """A customer that repeats what it hears, and leaves when it hears "bye"."""

    def reply(self, task: Task, messages: Sequence[Message], *, seed: int) -> Message:
        if not messages:
            return Message("user", "opening")
        end = f" {END_CONVERSATION}" if "bye" in messages[-1].content else ""
        return Message("user", f"{messages[-1].content}?{end}")


def told(turns: Mapping[tuple[int, int], Sequence[str]], **options: Any) -> dict[str, Any]:
    tree = search(
        Dialogue(WORLD, Echo(), 45), Told(turns), TASK, seed=1, options=SearchOptions(**options)
    )
    return tree_to_json(tree, 0)


def brief(rows: Rows) -> list[tuple[str, str, bool]]:
    """Return the last message of each row's prompt, its completion and its label."""
    return [
        (row["prompt"][-1]["content"], row["completion"][0]["content"], row["label"])
        for row in rows.kto
    ]


def pairs(rows: Rows) -> list[tuple[str, str, str]]:
    return [
        (r["prompt"][-1]["content"], r["chosen"][0]["content"], r["rejected"][0]["content"])
        for r in rows.dpo
    ]


def found() -> str:
    world, answer = WORLD.call(TASK, WORLD.start(TASK), TASK.goals[0])
    assert world == {0}
    return f"[tool] {answer}"


def test_a_tree_worked_by_hand() -> None:
    """Four leaves at the second step; the third meets the search, then the fifth turn the booking.

    The left half leaves the golden path with its first message: one bad row, and none for what
    followed it. The fourth leaf begins like the golden one and goes astray after the call.
    """
    record = told(
        {
            (0, 0): ["Hm."],
            (0, 1): ["Where?"],
            (1, 0): [USELESS, "So?"],
            (1, 1): ["Well."],
            (1, 2): [USELESS, SEARCH, "Found it."],
            (1, 3): [USELESS, BAD, "Oh."],
            (2, 0): [BOOK, "Booked."],
            (2, 1): ["bye"],
        },
        beam=4,
    )
    rows = make_rows([record], SYSTEM)
    useless_answer = record["nodes"][5]["messages"][1]["content"]
    assert brief(rows) == [
        ("opening", "Where?", True),
        ("Where??", USELESS, True),
        (f"[tool] {useless_answer}", SEARCH, True),
        (found(), "Found it.", True),
        ("Found it.?", BOOK, True),
        (rows.sft[-1]["prompt"][-1]["content"], "Booked.", True),
        ("opening", "Hm.", False),
        (f"[tool] {useless_answer}", BAD, False),
        ("Found it.?", "bye", False),
    ]
    assert pairs(rows) == [
        ("opening", "Where?", "Hm."),
        (f"[tool] {useless_answer}", SEARCH, BAD),
        ("Found it.?", BOOK, "bye"),
    ]
    assert [row["completion"][0]["content"] for row in rows.sft] == [
        "Where?", USELESS, SEARCH, "Found it.", BOOK, "Booked.",
    ]  # fmt: skip
    assert rows.counts() == {"kto": {"good": 6, "bad": 3}, "sft": 6, "dpo": 3, "dropped": {}}
    assert rows.kto[0]["prompt"][0] == {"role": "system", "content": SYSTEM}
    assert {row["task_id"] for row in rows.kto} == {TASK.id}
    check(record, rows)


def test_what_met_a_goal_elsewhere_is_not_punished() -> None:
    """The right leaf meets the goal too, one output later: neither good nor bad."""
    turns = {
        (0, 0): [SEARCH, "a"],
        (0, 1): [USELESS, SEARCH, "b"],
        (1, 0): [BOOK, "c"],
        (1, 1): [BOOK, "d"],
    }
    rows = make_rows([told(turns, beam=2, max_steps=1)], SYSTEM)
    assert rows.counts()["dropped"] == {"trees without a solution": 1} and not rows.kto
    record = told(turns, beam=2)
    rows = make_rows([record], SYSTEM)
    assert [text for _, text, label in brief(rows) if not label] == []
    assert rows.dropped == {"messages that left the golden path and met a goal": 2}
    check(record, rows)


def test_golden_paths_with_malformed_output_give_no_good_rows() -> None:
    record = told(
        {
            (0, 0): [BAD, SEARCH, "a"],
            (0, 1): ["b"],
            (1, 0): [BOOK, "c"],
            (1, 1): ["d"],
        },
        beam=2,
    )
    assert record["solved"]
    rows = make_rows([record], SYSTEM)
    assert brief(rows) == [("opening", "b", False), ("a?", "d", False)]
    assert rows.sft == rows.dpo == []
    assert rows.dropped == {"messages of golden paths with malformed output": 5}
    check(record, rows)


def test_a_malformed_path_does_not_spoil_another() -> None:
    """Two paths to the reward that share their first message: only one of them is clean."""
    record = told(
        {
            (0, 0): ["Where?"],
            (1, 0): [BAD, SEARCH, BOOK, "bye"],
            (1, 1): [SEARCH, BOOK, "bye"],
            (0, 1): ["Where?"],
            (1, 2): ["bye"],
            (1, 3): ["bye"],
        },
        beam=4,
        max_outputs=4,
        reward="terminal",
    )
    rows = make_rows([record], SYSTEM)
    assert [text for _, text, label in brief(rows) if label] == ["Where?", SEARCH, BOOK, "bye"]
    assert [text for _, text, label in brief(rows) if not label] == ["bye"]
    assert rows.dropped == {"messages of golden paths with malformed output": 4}
    check(record, rows)


def test_rows_are_marked_with_what_the_model_wrote_spaces_and_all() -> None:
    record = told({(0, 0): [f" {SEARCH}\n", BOOK, " bye "]}, beam=1)
    rows = make_rows([record], SYSTEM)
    assert [text for _, text, _ in brief(rows)] == [f" {SEARCH}\n", BOOK, " bye "]
    check(record, rows)
