"""The search against recorded searches of the reference implementation (specs/josh.md)."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from josh_search.search import SearchOptions, search
from josh_search.tree import Node, Tree
from toolwoz_gym.dialogue import Dialogue
from toolwoz_gym.seeding import derive
from toolwoz_gym.toolwoz import ToolWOZ
from toolwoz_gym.types import END_CONVERSATION, AgentFailure, Message, ToolCall


class Script:
    """Agent and customer of a recorded search: what they do depends on step and leaf only."""

    def __init__(self, case: dict[str, Any], seed: int) -> None:
        self.case, self.step, self.listened = case, 0, 0
        script = case["script"]["agent"]
        self.places = {
            derive(derive(seed, "branch", step, leaf), output): (step, leaf, output)
            for step in range(len(script))
            for leaf in range(len(script[step]))
            for output in range(3)
        }

    def act(self, view: object, *, seed: int) -> Message:
        step, leaf, output = self.places[seed]
        turn = self.case["script"]["agent"][step][leaf]
        if turn["kind"] == "raise":
            raise AgentFailure("scripted")
        if turn["kind"] == "no_speak":
            return Message("assistant", call=ToolCall("search_train", {}))
        if turn["kind"] == "malformed" and output == 0:
            return Message("assistant", "{", error="not valid JSON")
        calls = [] if turn["kind"] == "malformed" else turn["calls"]
        if output < len(calls):
            call = calls[output]
            return Message("assistant", call=ToolCall(call["name"], call["parameters"]))
        return Message("assistant", f"{turn['label']} hello.")

    def reply(self, task: object, messages: list[Message], *, seed: int) -> Message:
        if not messages:
            return Message("user", f"opening {self.case['conversation']}")
        leaf, self.listened = self.listened, self.listened + 1
        ends = self.case["script"]["user_end"][self.step][leaf]
        return Message("user", f"u{self.step}.{leaf}" + (f" {END_CONVERSATION}" if ends else ""))

    def next_step(self) -> None:
        self.step, self.listened = self.step + 1, 0


def recorded_cases(shared: Path) -> list[dict[str, Any]]:
    return [
        case
        for name in ("trees.json.gz", "trees_other_beams.json.gz")
        for case in json.loads(gzip.decompress((shared / "oracle/josh" / name).read_bytes()))
    ]


def played(case: dict[str, Any], multiwoz: ToolWOZ) -> tuple[Tree, list[int]]:
    """Play a recorded search; return its tree and the number of live leaves after each step."""
    task = next(t for t in multiwoz.tasks("val") if t.id == case["conversation"])
    script = Script(case, seed=1)
    live: list[int] = []

    def on_step(tree: Tree, count: int) -> None:
        live.append(count)
        script.next_step()

    dialogue = Dialogue(multiwoz, script, max_steps=45)
    options = SearchOptions(strategy="josh", beam=case["beam_size"], max_steps=15)
    return search(dialogue, script, task, seed=1, options=options, on_step=on_step), live


def leaves(tree: Tree, step: int) -> list[Node]:
    return [node for node in tree.nodes if node.step == step]


def label(tree: Tree, node: Node) -> tuple[int, int]:
    """A turn's step and its leaf's place in that step, as the recordings name it."""
    return node.step, leaves(tree, node.step).index(node)


def recorded_nodes(tree: Tree) -> set[tuple[tuple[tuple[int, int], ...], bool, bool]]:
    """The nodes that the reference records: path, successful, golden.

    It records at each collapse, lets a turn that does not branch extend its node in place, and
    knows no turn of an agent that failed before its first word.
    """
    found, done = set(), set()
    for target in (node for node in tree.nodes if node.collapsed):
        grown = [node for node in tree.nodes if node.step is None or node.step <= target.step]
        for node in grown:
            children = sum(other.parent is node for other in grown)
            if children != 1 and node.id not in done:
                path = tuple(label(tree, n) for n in node.path()[1:] if n.messages)
                found.add((path, node.successful, node.golden))
        done |= {node.id for node in grown}
    return found


def test_searches_are_those_of_the_reference(shared: Path, multiwoz: ToolWOZ) -> None:
    cases = recorded_cases(shared)
    assert len(cases) == 47
    for case in cases:
        tree, live = played(case, multiwoz)
        steps, goals = case["steps"], [(g.name.split("_")[1], g.name) for g in tree.task.goals]
        assert live == [step["live_leaves_after_user"] for step in steps]
        assert [len(leaves(tree, step["step"])) for step in steps] == [
            step["live_leaves_after_expand"] for step in steps
        ]
        targets = {
            label(tree, n): sorted(goals[i] for i in n.met) for n in tree.nodes if n.collapsed
        }
        assert targets == {
            (step["step"], step["collapsed_to_leaf"]): sorted(map(tuple, step["consumed"]))
            for step in steps
            if step["collapsed_to_leaf"] is not None
        }
        assert recorded_nodes(tree) == {
            (tuple(map(tuple, example["path"])), example["successful"], example["golden"])
            for example in case["training_examples"]
        }
        assert tree.progress == pytest.approx(case["final_reward"])
