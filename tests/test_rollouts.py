"""Searches that play one dialogue after the other, on cases small enough to work out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.erring import ErringAgent
from agents.scripted import ExpertAgent, RandomAgent
from josh_search.search import SearchOptions, search
from josh_search.tree import Tree, tree_to_json
from toolwoz_gym.dialogue import Dialogue
from toolwoz_gym.toolwoz.builtin import CityOptions, load_builtin
from toolwoz_gym.types import END_CONVERSATION, AgentFailure, Message, Task, ToolCall, Usage
from toolwoz_gym.users.scripted import ScriptedUser

WORLD = load_builtin(CityOptions.parse("domains=2,failures=0"))
TASK = next(  # a search and a booking, then another search and perhaps a booking
    task for task in WORLD.tasks("train") if all(wish.book for wish in task.wishes)
)
G0, G1, G2, G3 = TASK.goals
BAD = Message("assistant", "{", error="not valid JSON")

Output = ToolCall | Message | str | None
Script = Callable[[Sequence[Message], int], Output]
"""What the agent does: given the dialogue, and how often it was asked in just this place before."""


class Scripted:
    """An agent that follows a script; each output costs 10 and 1 tokens."""

    def __init__(self, script: Script, logprob: float | None = None) -> None:
        self.script, self.logprob = script, logprob
        self.asked: dict[str, int] = {}
        self.heard: list[tuple[Message, ...]] = []

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        place = tuple(view)
        self.heard.append(place)
        count = self.asked.get(repr(place), 0)
        self.asked[repr(place)] = count + 1
        output = self.script(place, count)
        if output is None:
            raise AgentFailure("scripted")
        how: dict[str, Any] = {"usage": Usage(10, 1), "logprob": self.logprob}
        if isinstance(output, Message):
            return Message("assistant", output.content, error=output.error, **how)
        if isinstance(output, ToolCall):
            return Message("assistant", call=output, **how)
        return Message("assistant", output, **how)


class Customer:
    """Repeats what it hears, and leaves when it hears "bye"."""

    def reply(self, task: Task, messages: Sequence[Message], *, seed: int) -> Message:
        last = messages[-1].content if messages else "opening"
        end = f" {END_CONVERSATION}" if "bye" in last else ""
        return Message("user", f"{last}?{end}", usage=Usage(3, 2))


def grow(agent: Scripted, strategy: Any, **options: Any) -> Tree:
    dialogue = Dialogue(WORLD, Customer(), max_steps=45)
    how = SearchOptions(strategy=strategy, **options)
    return search(dialogue, agent, TASK, seed=1, options=how)


def calls_made(view: Sequence[Message]) -> list[ToolCall]:
    return [m.call for m in view if m.call is not None]


def in_order(view: Sequence[Message], count: int) -> Output:
    return TASK.goals[len(calls_made(view))]


@pytest.mark.parametrize("strategy", ["chains", "go_explore"])
def test_an_agent_that_does_all_right_needs_one_dialogue(strategy: Any) -> None:
    tree = grow(Scripted(in_order), strategy, max_outputs=9)
    assert tree.solved and tree.goals_met == {0, 1, 2, 3} and tree.steps == 4
    assert [node.id for node in tree.nodes if node.golden] == [0, 1, 2, 3, 4]
    assert [node.step for node in tree.nodes] == [None, 0, 1, 2, 3]
    assert [sorted(node.met) for node in tree.nodes] == [[], [0], [1], [2], [3]]
    assert all(node.collapsed == bool(node.met) for node in tree.nodes)
    assert tree.written == 2 + 4, "the opening, and four outputs"


def test_chains_begin_at_the_opening_again() -> None:
    """The first dialogue leaves after a goal; the second one makes the goal again, and goes on."""

    def script(view: Sequence[Message], count: int) -> Output:
        made = calls_made(view)
        return "bye" if len(made) == 1 and count == 0 else in_order(view, count)

    agent = Scripted(script)
    tree = grow(agent, "chains", max_outputs=9)
    assert tree.solved and tree.steps == 2 + 4
    assert [len(calls_made(view)) for view in agent.heard] == [0, 1, 0, 1, 2, 3]
    first = tree.nodes[1]
    assert first.visits == 2 and first.usage == Usage(20, 2), "an equal output is the same node"
    assert len(tree.nodes) == 1 + 5
    assert tree.written == 2 + 6 + 2, "the opening, six outputs, and the answer to bye"


def test_go_explore_returns_to_where_most_goals_are_met() -> None:
    def script(view: Sequence[Message], count: int) -> Output:
        made = calls_made(view)
        return f"bye {count}" if len(made) == 2 and count < 3 else in_order(view, count)

    agent = Scripted(script)
    tree = grow(agent, "go_explore", max_outputs=9)
    assert tree.solved and tree.steps == 2 + 3 + 2
    assert [len(calls_made(view)) for view in agent.heard] == [0, 1, 2, 2, 2, 2, 3]
    leaves = [node for node in tree.nodes if node.state == "over"]
    assert len(leaves) == 3 and not any(leaf.successful for leaf in leaves)


def test_go_explore_gives_a_dialogue_up_that_earned_an_error() -> None:
    """The agent would make its mistake for ever; its second try at the opening is right."""

    def script(view: Sequence[Message], count: int) -> Output:
        spoiled = any(m.error for m in view)
        return BAD if spoiled or (len(view) == 1 and count == 0) else in_order(view, count)

    agent = Scripted(script)
    tree = grow(agent, "go_explore", max_outputs=9)
    assert tree.solved and tree.steps == 1 + 4
    assert tree.nodes[1].state == "pruned"
    assert [m.role for m in tree.nodes[1].messages] == ["assistant", "tool"], "nobody was asked"
    patient = Scripted(script)
    assert grow(patient, "chains", max_outputs=9).steps > 10


def test_a_booking_that_nobody_wants_spoils_v1() -> None:
    world = load_builtin(CityOptions.parse("domains=2,failures=0"), 1)
    wrong = ToolCall(G1.name, {**G1.arguments, "people": "13"})

    def script(view: Sequence[Message], count: int) -> Output:
        made = calls_made(view)
        if len(made) == 1 and count == 0:
            return wrong
        if len(made) < 4:
            return in_order(view, count)
        (hotel,) = json.loads(view[2].content)
        return f"The hotel's price is {hotel['pricerange']}, and the address {hotel['address']}."

    dialogue = Dialogue(world, Customer(), max_steps=45)
    task = next(t for t in world.tasks("train") if t.id == TASK.id)
    options = SearchOptions(strategy="go_explore", max_outputs=9)
    tree = search(dialogue, Scripted(script), task, seed=1, options=options)
    assert tree.nodes[2].state == "pruned" and tree.solved and tree.steps == 1 + 1 + 3 + 1


def test_a_place_where_the_model_is_sure_is_not_tried_again() -> None:
    """At the opening it says one thing for sure; afterwards anything can come."""

    class Sure(Scripted):
        def act(self, view: Sequence[Message], *, seed: int) -> Message:
            self.logprob = 0.0 if len(view) == 1 else math.log(0.01)
            return super().act(view, seed=seed)

    def script(view: Sequence[Message], count: int) -> Output:
        return "hm" if len(view) == 1 else f"bye {count}"

    agent = Sure(script)
    grow(agent, "go_explore", patience=30)
    assert agent.asked[repr(agent.heard[0])] == 1


@pytest.mark.parametrize("strategy", ["chains", "go_explore"])
def test_patience_and_tokens_end_a_search(strategy: Any) -> None:
    def useless(view: Sequence[Message], count: int) -> Output:
        return f"hm {count}"

    tree = grow(Scripted(useless), strategy, patience=7)
    assert tree.steps == 7 and not tree.solved and tree.goals_met == frozenset()
    spent = grow(Scripted(useless), strategy, tree_tokens=20)
    assert 20 <= spent.written <= 22
    deep = grow(Scripted(useless), strategy, max_steps=2, patience=50)
    assert max(node.step or 0 for node in deep.nodes) == 1

    def failing(view: Sequence[Message], count: int) -> Output:
        return None

    assert grow(Scripted(failing), strategy, patience=5).steps == 5


@pytest.mark.parametrize("strategy", ["chains", "go_explore"])
def test_terminal_wants_the_reward_and_nothing_else(strategy: Any) -> None:
    def script(view: Sequence[Message], count: int) -> Output:
        return "bye" if len(calls_made(view)) == 4 else in_order(view, count)

    tree = grow(Scripted(script), strategy, max_outputs=9, reward="terminal")
    assert tree.solved and tree.steps == 5 and tree.nodes[-1].episode.reward == 1.0
    assert [node.golden for node in tree.nodes] == [True] * 6


@settings(max_examples=60, deadline=None)
@given(
    number=st.integers(0, 400),
    seed=st.integers(0, 99),
    strategy=st.sampled_from(["chains", "go_explore"]),
    reward=st.sampled_from(["goal_calls", "terminal"]),
    version=st.sampled_from([0, 1]),
    kind=st.sampled_from(["erring", "random"]),
)
def test_what_holds_of_every_tree(
    number: int, seed: int, strategy: Any, reward: Any, version: int, kind: str
) -> None:
    world = load_builtin(CityOptions.parse("domains=1-2"), version)
    task = world.tasks("train")[number]
    agent = RandomAgent(world.tools) if kind == "random" else ErringAgent(task, world.tools)
    dialogue = Dialogue(world, ScriptedUser(), max_steps=45)
    options = SearchOptions(strategy=strategy, reward=reward, patience=40)
    tree = search(dialogue, agent, task, seed=seed, options=options)
    again = search(dialogue, agent, task, seed=seed, options=options)
    assert tree_to_json(tree, 0) == tree_to_json(again, 0)
    for node in tree.nodes[1:]:
        assert node.parent is not None and node.parent.id < node.id
        before = node.parent.episode.messages
        assert node.episode.messages[: len(before)] == before
        said = [child.said for child in node.children]
        assert len(set(map(repr, said))) == len(said), "equal outputs are one node"
    golden = [node for node in tree.nodes if node.golden]
    assert bool(golden) == tree.solved
    if tree.solved:
        assert golden == golden[-1].path() and all(node.successful for node in golden)
        last = golden[-1].episode
        if reward == "terminal":
            assert last.reward == 1.0
        else:
            assert len(dialogue.goals_met(last)) == len(world.goals(task))
            assert last.outcome is not None or dialogue.cut_off(last).reward == 1.0
    visits = sum(node.visits for node in tree.nodes[1:])
    assert visits == tree.steps


def test_the_expert_solves_every_task_at_once() -> None:
    world = load_builtin(CityOptions.parse("failures=1"))
    dialogue = Dialogue(world, ScriptedUser(), max_steps=60)
    for task in world.tasks("val")[:20]:
        for strategy in ("chains", "go_explore"):
            options = SearchOptions(strategy=strategy, max_steps=40)  # type: ignore[arg-type]
            tree = search(dialogue, ExpertAgent(task), task, seed=3, options=options)
            assert tree.solved and all(node.golden for node in tree.nodes)
