"""The search, on cases small enough to work out by hand.

Two scripts stand in for agent and customer. What a leaf does is looked up by step and by the leaf's
place in that step, as in the recorded searches of ``test_josh_oracle.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agents.customers import ModelCustomer
from agents.scripted import ExpertAgent, RandomAgent
from benchmarks.evaluate import EvaluateOptions
from josh_search.__main__ import HarvestOptions
from josh_search.publish import ExportOptions
from josh_search.rows import UNCLEAN, make_rows
from josh_search.search import SearchOptions, search
from josh_search.tree import Node, Tree, tree_key, tree_to_json
from toolwoz_gym import make_toolwoz
from toolwoz_gym.dialogue import Dialogue
from toolwoz_gym.records import message_from_json
from toolwoz_gym.seeding import derive
from toolwoz_gym.toolwoz import ToolWOZ
from toolwoz_gym.toolwoz.builtin import CityOptions, load_builtin
from toolwoz_gym.toolwoz.task import ToolWOZTask
from toolwoz_gym.toolwoz.v0 import ToolWOZv0
from toolwoz_gym.types import (
    END_CONVERSATION,
    AgentFailure,
    Episode,
    Message,
    Task,
    ToolCall,
    Usage,
    UsageError,
    UserFault,
)
from toolwoz_gym.users.scripted import ScriptedUser
from training.sft import SFTOptions

SEED = 5

WORLD = load_builtin(CityOptions.parse("domains=2,failures=0"))

GOALS = next(  # a search and a booking, then another search and perhaps a booking
    task for task in WORLD.tasks("train") if all(wish.book for wish in task.wishes)
)

G0, G1, G2, G3 = GOALS.goals
USELESS = ToolCall("search_attraction", {})
BAD = Message("assistant", "{", error="not valid JSON")

Output = ToolCall | Message | str | None
"""A call, a message as it is, words to the customer, or a failure of the agent (None)."""


class Script:
    """An agent that does as it is told at (step, leaf), and says "hm" where it is told nothing."""

    def __init__(self, turns: Mapping[tuple[int, int], Sequence[Output]]) -> None:
        self.turns = turns
        self.places = {
            derive(derive(SEED, "branch", step, leaf), output): (step, leaf, output)
            for step in range(30)
            for leaf in range(16)
            for output in range(5)
        }
        self.played: list[tuple[int, int, int]] = []

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        assert view[-1].role in ("user", "tool")
        step, leaf, output = self.places[seed]
        self.played.append((step, leaf, output))
        outputs = self.turns.get((step, leaf), ())
        action = outputs[output] if output < len(outputs) else "hm"
        if action is None:
            raise AgentFailure("scripted")
        if isinstance(action, Message):
            return action
        if isinstance(action, ToolCall):
            return Message("assistant", call=action, usage=Usage(10, 1))
        return Message("assistant", f"{step}.{leaf} {action}", usage=Usage(10, 1))


class Customer:
    """A customer that repeats what it hears, and leaves when it hears "bye"."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def reply(self, task: Task, messages: Sequence[Message], *, seed: int) -> Message:
        if not messages:
            return Message("user", "opening")
        last = messages[-1].content if messages[-1].role == "assistant" else "(silence)"
        self.heard.append(last)
        if "fault" in last:
            raise UserFault("scripted")
        end = f" {END_CONVERSATION}" if "bye" in last else ""
        return Message("user", f"{last}?{end}", usage=Usage(3, 2))


class Played:
    """A search with scripts, and all that was seen of it."""

    def __init__(
        self,
        turns: Mapping[tuple[int, int], Sequence[Output]],
        limit: int = 45,
        world: ToolWOZ = WORLD,
        **options: Any,
    ) -> None:
        self.agent, self.customer = Script(turns), Customer()
        self.live: list[int] = []
        dialogue = Dialogue(world, self.customer, limit)
        self.tree = search(
            dialogue,
            self.agent,
            GOALS,
            seed=SEED,
            options=SearchOptions(strategy="josh", **options),
            on_step=lambda tree, live: self.live.append(live),
        )

    def step(self, step: int) -> list[Node]:
        return [node for node in self.tree.nodes if node.step == step]

    def states(self) -> list[str]:
        return [node.state for node in self.tree.nodes]

    def marked(self, mark: str) -> set[int]:
        return {node.id for node in self.tree.nodes if getattr(node, mark)}


# --- growing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("beam", "leaves"),
    [
        (1, [1, 1, 1, 1]),
        (2, [2, 2, 2, 2]),
        (3, [2, 2, 2, 2]),
        (4, [2, 4, 4, 4]),
        (7, [2, 4, 4, 4]),
        (8, [2, 4, 8, 8]),
        (16, [2, 4, 8, 16]),
    ],
)
def test_the_beam_bounds_the_leaves(beam: int, leaves: list[int]) -> None:
    played = Played({}, beam=beam, max_steps=4)
    assert [len(played.step(step)) for step in range(4)] == leaves == played.live
    assert played.tree.steps == 4 and not played.tree.solved
    children = [sum(n.parent is node for n in played.step(1)) for node in played.step(0)]
    assert set(children) == {leaves[1] // leaves[0]}
    assert played.states()[-leaves[3] :] == ["live"] * leaves[3]
    assert set(played.states()[1 : -leaves[3]]) == {"expanded"}


@pytest.mark.parametrize(
    ("width", "beam", "leaves"),
    [(1, 8, [1, 1, 1]), (3, 8, [3, 3, 3]), (3, 9, [3, 9, 9]), (4, 16, [4, 16, 16])],
)
def test_the_width_is_what_a_leaf_expands_to(width: int, beam: int, leaves: list[int]) -> None:
    played = Played({}, width=width, beam=beam, max_steps=3)
    assert [len(played.step(step)) for step in range(3)] == leaves


def test_single_outputs_can_branch() -> None:
    """A call is a step of its own; the customer answers words, or a turn without any."""
    played = Played(
        {(0, 0): [USELESS], (0, 1): ["words"], (1, 0): [USELESS], (2, 0): [USELESS], (2, 1): [G0]},
        beam=2,
        max_steps=4,
        branch="output",
    )
    tree = played.tree
    assert tree.branch == "output"
    assert [len(played.step(step)) for step in range(3)] == [2, 2, 2]
    assert all(sum(m.role == "assistant" for m in node.messages) == 1 for node in tree.nodes[1:])
    silent, spoken = played.step(0)
    assert [m.role for m in silent.messages] == ["assistant", "tool"]
    assert [m.role for m in spoken.messages] == ["assistant", "user"]
    assert [node.collapsed for node in played.step(2)] == [False, True]
    three = Played(
        {(step, 0): [USELESS] for step in range(3)}, beam=1, max_steps=3, branch="output"
    )
    assert three.customer.heard == ["(silence)"], "after three outputs without a word"


def test_children_begin_as_their_parents_copies() -> None:
    played = Played({}, beam=2, max_steps=3)
    for node in played.tree.nodes[1:]:
        assert node.parent is not None
        before = node.parent.episode.messages
        assert node.episode.messages[: len(before)] == before
        assert [m.role for m in node.messages] == ["assistant", "user"]
    assert [m.content for m in played.tree.nodes[0].messages] == ["opening"]
    assert [n.id for n in played.tree.nodes] == list(range(7))


def test_a_turn_ends_with_words_or_after_three_outputs() -> None:
    turns: dict[tuple[int, int], list[Output]] = {
        (0, 0): [USELESS, "found"],
        (0, 1): [USELESS, BAD, USELESS, "never said"],
    }
    played = Played(turns, beam=2, max_steps=1)
    assert [len(node.episode.messages) for node in played.step(0)] == [5, 8]
    assert played.customer.heard == ["0.0 found", "(silence)"]
    assert played.agent.played == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (0, 1, 2)]
    assert played.step(0)[1].messages[-1].content == "(silence)?"
    short = Played(turns, beam=2, max_steps=1, max_outputs=1)
    assert short.customer.heard == ["(silence)", "(silence)"]


def test_leaves_that_are_over_grow_no_more() -> None:
    played = Played(
        {(0, 0): ["bye"], (0, 1): ["on"], (1, 0): [None], (1, 1): [USELESS, None]},
        beam=2,
        max_steps=9,
    )
    assert played.live == [1, 0]
    assert played.states() == ["root", "over", "expanded", "over", "over"]
    assert [node.episode.outcome for node in played.tree.nodes] == [
        None, "failure", None, "truncated", "truncated",
    ]  # fmt: skip
    assert played.step(1)[0].messages == () and len(played.step(1)[1].messages) == 2
    assert played.customer.heard == ["0.0 bye", "0.1 on"]
    assert played.tree.steps == 2 and not played.tree.solved


def test_freed_places_are_filled_again() -> None:
    turns: dict[tuple[int, int], list[Output]] = {(1, leaf): ["bye"] for leaf in range(3)}
    played = Played(turns, beam=4, max_steps=4)
    assert [len(played.step(step)) for step in range(4)] == [2, 4, 2, 4]


def test_a_customer_at_fault_ends_its_leaf_only() -> None:
    played = Played({(0, 0): ["fault"]}, beam=2, max_steps=2)
    assert played.states() == ["root", "over", "expanded", "live", "live"]
    assert played.step(0)[0].episode.outcome == "user_fault"


def test_the_step_limit_of_the_environment_cuts_leaves_off() -> None:
    played = Played({(0, 0): [USELESS, USELESS], (0, 1): ["x"]}, limit=2, beam=2, max_steps=9)
    assert played.live == [1, 0]
    assert [node.episode.truncated for node in played.tree.nodes] == [
        False, True, False, True, True,
    ]  # fmt: skip
    assert played.agent.played[:3] == [(0, 0, 0), (0, 0, 1), (0, 1, 0)]


# --- reward="goal_calls" ---------------------------------------------------------------------


def test_where_a_branch_is_a_turn_the_leftmost_hit_is_the_target() -> None:
    """Leaf 1 meets a goal with its second output, leaves 2 and 3 with their first: 1 is it."""
    played = Played(
        {
            (1, 0): ["nothing"],
            (1, 1): [USELESS, G0, "late"],
            (1, 2): [G0, "early"],
            (1, 3): [G0, G1, "early, too, and more"],
        },
        beam=4,
        max_steps=2,
    )
    root, left, right = played.tree.nodes[:3]
    hits = played.step(1)
    assert [sorted(node.met) for node in hits] == [[], [0], [0], [0, 1]]
    assert [node.collapsed for node in hits] == [False, True, False, False]
    assert played.marked("golden") == {root.id, left.id, hits[1].id}
    assert played.marked("successful") == {0, left.id, right.id, *(hit.id for hit in hits[1:])}
    assert [node.state for node in hits] == ["pruned", "live", "pruned", "pruned"]
    assert played.tree.goals_met == {0} and played.tree.progress == 0.25


def test_where_a_branch_is_an_output_the_earliest_is_the_target() -> None:
    """The same four leaves, a step for each of their outputs: the second is before the first."""
    played = Played(
        {
            (1, 0): ["nothing"],
            (1, 1): [USELESS],
            (1, 2): [G0],
            (1, 3): [G0],
        },
        beam=4,
        max_steps=3,
        branch="output",
    )
    assert [node.collapsed for node in played.step(1)] == [False, False, True, False]
    assert [sorted(node.met) for node in played.step(1)] == [[], [], [0], [0]]
    assert [node.parent for node in played.step(2)] == [played.step(1)[2]] * 2


def test_pruned_leaves_cost_no_customer() -> None:
    played = Played({(1, 2): [G0, "found"]}, beam=4, max_steps=2)
    assert played.customer.heard == ["0.0 hm", "0.1 hm", "1.2 found"]
    assert [node.messages[-1].role for node in played.step(1)] == [
        "assistant", "assistant", "user", "assistant",
    ]  # fmt: skip


def test_a_collapse_begins_an_unmarked_tree() -> None:
    """All goals of a turn are consumed; one that was met before is no hit; the end is golden."""
    played = Played(
        {
            (0, 1): [G0, G1, "two at once"],
            (1, 0): [G1, "again"],
            (1, 1): [G2, "third"],
            (2, 0): [G3, "fourth"],
            (2, 1): [G3, "fourth"],
        },
        beam=2,
    )
    tree = played.tree
    assert [len(played.step(step)) for step in range(tree.steps)] == [2, 2, 2]
    assert tree.solved and tree.goals_met == {0, 1, 2, 3} and tree.progress == 1.0
    assert [node.id for node in tree.nodes if node.collapsed] == [2, 4, 5]
    assert played.marked("golden") == {0, 2, 4, 5}
    assert played.marked("successful") == {0, 2, 4, 5, 6}
    assert [sorted(node.met) for node in tree.nodes] == [[], [], [0, 1], [], [2], [3], [3]]
    assert played.customer.heard == ["0.1 two at once", "1.1 third"], "there is no goal after that"
    assert played.live == [1, 1, 1]
    assert played.states() == ["root", "pruned", "expanded", "pruned", "expanded", "live", "pruned"]


def test_a_target_may_be_over() -> None:
    """The agent fails after it met a goal: a hit, but nothing goes on from there."""
    played = Played({(0, 0): [G0, None], (0, 1): ["on"]}, beam=2)
    assert played.tree.goals_met == {0} and not played.tree.solved
    assert played.live == [0] and played.states() == ["root", "over", "pruned"]
    assert played.customer.heard == []


def test_solving_ends_the_search_even_when_the_last_turn_fails() -> None:
    played = Played({(0, 0): [G0, G1, G2, G3, None]}, beam=1, max_outputs=5)
    assert played.tree.solved and played.states() == ["root", "over"]


def test_after_the_last_goal_nobody_asks_the_customer() -> None:
    """Who could fail: the tree would be lost, with all that was found."""
    played = Played({(0, 0): [G0, G1, G2, G3, "fault"]}, beam=1, max_outputs=5)
    assert played.tree.solved and played.states() == ["root", "live"] and played.live == [1]
    assert played.customer.heard == [] and played.tree.steps == 1


class Undoing(ToolWOZv0):
    """A world in which an agent that says "take back 0" undoes the first goal."""

    def goals_met(self, episode: Episode) -> frozenset[int]:
        met: set[int] = set()
        for message in episode.messages:
            if message.call in GOALS.goals:
                met.add(GOALS.goals.index(message.call))
            elif message.role == "assistant" and "take back" in message.content:
                met.discard(int(message.content[-1]))
        return frozenset(met)


def test_what_undoes_a_goal_is_no_hit() -> None:
    """Step 1: one leaf meets a goal and undoes another, one only undoes. Step 2 makes up for it."""
    world = Undoing("undoing", WORLD.tables, {}, "")
    played = Played(
        {
            (0, 0): [G0, "a"],
            (1, 0): [G1, "take back 0"],
            (1, 1): ["take back 0"],
            (2, 0): [G0, "b"],
            (2, 1): [G0, "c"],
            (3, 0): [G2, G3, "d"],
        },
        beam=2,
        max_steps=4,
        world=world,
    )
    assert [sorted(n.goals_met) for n in played.step(1)] == [[1], []]
    assert [sorted(n.goals_met) for n in played.step(2)] == [[0, 1], [0]]
    assert [node.id for node in played.tree.nodes if node.collapsed] == [1, 5, 7]
    assert played.marked("golden") == {0, 1, 3, 5, 7} and played.tree.solved
    rows = make_rows([tree_to_json(played.tree, 0)], "")
    assert not rows.sft and rows.dropped[UNCLEAN] == 9, "one took back what it had done"


def test_silence_can_meet_a_goal() -> None:
    played = Played({(0, 0): [G0, USELESS, USELESS]}, beam=1, max_steps=1)
    assert played.tree.goals_met == {0} and played.customer.heard == ["(silence)"]


# --- options ---------------------------------------------------------------------------------


def test_a_number_or_a_word_is_no_choice_of_words() -> None:
    assert HarvestOptions(tasks=24).tasks == 24 and HarvestOptions(tasks="all").tasks == "all"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (partial(SearchOptions, strategy="return"), "no strategy 'return': choose go_explore, "),
        (partial(SearchOptions, branch="leaf"), "no branch 'leaf': choose turn, output"),
        (partial(SearchOptions, reward=None), "no reward None: choose goal_calls, terminal"),
        (partial(HarvestOptions, reward="goals"), "no reward 'goals': choose"),
        (partial(HarvestOptions, user_backend="x"), "no user_backend 'x': choose"),
        (partial(EvaluateOptions, tool_format="json"), "no tool_format 'json': choose"),
        (partial(ExportOptions, kind="kto"), "no kind 'kto': choose sft, dpo"),
        (partial(SFTOptions, out=Path(), rows=Path(), dtype="float16"), "no dtype 'float16'"),
        (partial(ModelCustomer, None, "frank", "BYE"), "no form 'frank': choose goal"),
        (partial(make_toolwoz, version=-1, world="builtin"), "no version -1: choose 0 or 1"),
        (partial(CityOptions, domains=(3, 1)), "domains: a range within 1 to 4"),
    ],
)
def test_options_built_in_code_know_their_values(make: Callable[[], object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make()


# --- reward="terminal" -----------------------------------------------------------------------


def test_terminal_rewards_mark_every_path_to_them() -> None:
    calls = [G0, G1, G2, G3]
    played = Played(
        {
            (0, 0): [*calls, "all"],
            (0, 1): [G0, "some"],
            (1, 0): ["bye"],
            (1, 1): ["more"],
            (1, 2): ["bye"],
            (1, 3): calls,
            (2, 0): ["bye"],
            (2, 1): ["bye"],
            (2, 2): ["bye"],
            (2, 3): ["on and on"],
        },
        beam=4,
        max_outputs=5,
        max_steps=3,
        reward="terminal",
    )
    tree = played.tree
    assert [len(played.step(step)) for step in range(3)] == [2, 4, 4]
    assert played.live == [2, 2, 1]
    outcomes = [node.episode.outcome for node in played.step(1) + played.step(2)]
    assert outcomes == ["success", None, "failure", None, "success", "success", "success", None]
    first, second = played.step(0)
    hits = [played.step(1)[0], *played.step(2)[:3]]
    above = [tree.nodes[0], first, second, played.step(1)[1], played.step(1)[3]]
    expected = {node.id for node in [*hits, *above]}
    assert played.marked("golden") == played.marked("successful") == expected
    assert played.marked("collapsed") == set()
    assert tree.solved and tree.progress == 1.0 and tree.goals_met == {0, 1, 2, 3}
    assert "pruned" not in played.states()


def test_terminal_looks_at_nothing_but_the_reward() -> None:
    played = Played({(0, 0): [G0, "one goal"]}, beam=2, max_steps=2, reward="terminal")
    assert not played.tree.solved and played.tree.goals_met == frozenset()
    assert played.marked("golden") == played.marked("successful") == set()
    assert len(played.step(1)) == 2


# --- records ---------------------------------------------------------------------------------


def dialogues(record: Mapping[str, Any]) -> list[tuple[Message, ...]]:
    """Return the whole dialogue of every node of a record."""
    found: list[tuple[Message, ...]] = []
    for node in record["nodes"]:
        before = () if node["parent"] is None else found[node["parent"]]
        found.append((*before, *map(message_from_json, node["messages"])))
    return found


def test_trees_survive_json() -> None:
    played = Played({(0, 1): [USELESS, BAD, G0], (1, 0): [G1, "x"], (1, 1): [None]}, beam=2)
    tree, record = played.tree, json.loads(json.dumps(tree_to_json(played.tree, trial=3)))
    assert record["key"] == tree_key(GOALS, 3) == f"{GOALS.id}/3"
    assert (record["seed"], record["steps"]) == (SEED, tree.steps)
    assert record["goals"] == [str(goal) for goal in GOALS.goals]
    assert record["goals"][1].startswith("book_hotel(stay=")
    assert dialogues(record) == [node.episode.messages for node in tree.nodes]
    for node, data in zip(tree.nodes, record["nodes"], strict=True):
        assert data["id"] == node.id
        assert data["parent"] == (None if node.parent is None else node.parent.id)
        for name in ("step", "state", "collapsed", "successful", "golden"):
            assert data[name] == getattr(node, name)
        assert data["met"] == sorted(node.met) and data["outcome"] == node.episode.outcome
    assert record["goals_met"] == sorted(tree.goals_met) and record["progress"] == tree.progress
    # Each message that a model wrote cost 10 and 1, and each of the customer's answers 3 and 2.
    # (The malformed one and the failure are free.)
    paid = len(played.agent.played) - 2
    assert record["usage"]["agent"] == {"prompt": 10 * paid, "completion": paid}
    answers = len(played.customer.heard)
    assert record["usage"]["user"] == {"prompt": 3 * answers, "completion": 2 * answers}
    assert sum(node["usage"]["completion"] for node in record["nodes"]) == paid


# --- whole searches --------------------------------------------------------------------------


@pytest.mark.parametrize("reward", ["goal_calls", "terminal"])
def test_the_expert_solves_whole_trees(reward: Any) -> None:
    world = load_builtin(CityOptions.parse("failures=1"))
    dialogue = Dialogue(world, ScriptedUser(), max_steps=45)
    for task in world.tasks("val")[:20]:
        options = SearchOptions(strategy="josh", beam=2, max_steps=25, reward=reward)
        tree = grow(dialogue, task, options)
        assert tree.solved and tree.progress == 1.0
        assert tree_to_json(tree, 0)["solved"] is True


def test_threads_grow_the_same_tree() -> None:
    world: ToolWOZ = load_builtin(CityOptions.parse("domains=1,constraints=1"))
    dialogue = Dialogue(world, ScriptedUser(), max_steps=45)
    with ThreadPoolExecutor(6) as pool:
        for number, task in enumerate(world.tasks("train")[:15]):
            trees = [
                search(
                    dialogue,
                    RandomAgent(world.tools),
                    task,
                    seed=number,
                    options=SearchOptions(strategy="josh", beam=8),
                    mapper=mapper,
                )
                for mapper in (map, pool.map)
            ]
            assert tree_to_json(trees[0], 0) == tree_to_json(trees[1], 0)


def grow(dialogue: Dialogue, task: ToolWOZTask, options: SearchOptions) -> Tree:
    return search(dialogue, ExpertAgent(task), task, seed=3, options=options)
