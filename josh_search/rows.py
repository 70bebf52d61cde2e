"""From trees to training rows: what was good at a prompt, and what was worse.

A row is ``prompt`` (the chat that the model was shown), ``completion`` (one assistant message as
the model wrote it) and, for KTO, ``label``. Only solved searches give rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agents.tool_calling import render_prompt
from toolwoz_gym.actions import format_action
from toolwoz_gym.records import message_from_json
from toolwoz_gym.seeding import derive
from toolwoz_gym.types import Message

Row = dict[str, Any]


@dataclass(slots=True)
class Rows:
    """The rows of some trees, with a count of all that gave none."""

    kto: list[Row] = field(default_factory=list)
    sft: list[Row] = field(default_factory=list)
    dpo: list[Row] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    """How many trees or messages gave no row, by reason."""

    def counts(self) -> dict[str, Any]:
        """Return how many rows there are and how many were dropped."""
        good = sum(row["label"] for row in self.kto)
        return {
            "kto": {"good": good, "bad": len(self.kto) - good},
            "sft": len(self.sft),
            "dpo": len(self.dpo),
            "dropped": dict(sorted(self.dropped.items())),
        }


def make_rows(records: Iterable[Mapping[str, Any]], system: str) -> Rows:
    """Return the rows of the trees of a run.

    Args:
        records: Lines of ``trees.jsonl``.
        system: The system prompt that the model was shown.
    """
    rows = Rows()
    for record in records:
        if record["solved"]:
            _add_rows(rows, record, system)
        else:
            rows.dropped["trees without a solution"] += 1
    _settle(rows)
    return rows


def _settle(rows: Rows) -> None:
    """Drop what is good in one tree from the bad rows of another: tasks can begin alike."""
    good = {json.dumps([row["prompt"], row["completion"]]) for row in rows.sft}
    kto = [
        row
        for row in rows.kto
        if row["label"] or json.dumps([row["prompt"], row["completion"]]) not in good
    ]
    if dropped := len(rows.kto) - len(kto):
        rows.dropped["messages that are good in another tree"] += dropped
    rows.kto = kto
    rows.dpo = [row for row in rows.dpo if json.dumps([row["prompt"], row["rejected"]]) not in good]


def _add_rows(rows: Rows, record: Mapping[str, Any], system: str) -> None:
    turns = _read_turns(record["nodes"])
    clean = _clean_nodes(record["nodes"], turns)
    golden: dict[int, dict[str, bool]] = {}
    """By prompt: the golden completions, and whether they are good rows."""
    rewarded = set()
    for node in record["nodes"]:
        for turn in turns[node["id"]]:
            if node["golden"]:
                texts = golden.setdefault(turn.prompt, {})
                texts[turn.text] = texts.get(turn.text, False) or node["id"] in clean
            elif node["successful"]:
                rewarded.add((turn.prompt, turn.text))

    seen = set()
    # Golden nodes first: a good row names one of them, not a sibling that wrote the same.
    for node in sorted(record["nodes"], key=lambda node: not node["golden"]):
        for turn in turns[node["id"]]:
            good = golden.get(turn.prompt, {}).get(turn.text)
            if (turn.prompt, turn.text) in seen or turn.prompt not in golden:
                continue  # said before, or said where the golden path does not come by
            seen.add((turn.prompt, turn.text))
            if good is None and (turn.prompt, turn.text) in rewarded:
                rows.dropped["messages that left the golden path and met a goal"] += 1
            elif good is False:
                rows.dropped["messages of golden paths with malformed output"] += 1
            else:
                _add_row(rows, record, system, node["id"], turn, good is not None, golden)


def _add_row(
    rows: Rows,
    record: Mapping[str, Any],
    system: str,
    node: int,
    turn: _Turn,
    good: bool,
    golden: Mapping[int, Mapping[str, bool]],
) -> None:
    where = {"task_id": record["task_id"], "tree": record["key"], "node": node}
    prompt, completion = render_prompt(system, turn.view), _chat(turn.text)
    rows.kto.append({"prompt": prompt, "completion": completion, "label": good, **where})
    if good:
        rows.sft.append({"prompt": prompt, "completion": completion, **where})
        return
    for text, is_good in golden[turn.prompt].items():
        if is_good:
            pair = {"chosen": _chat(text), "rejected": completion}
            rows.dpo.append({"prompt": prompt, **pair, **where})


@dataclass(frozen=True, slots=True)
class _Turn:
    """One assistant message of a node, and what it answers."""

    prompt: int
    """Hash of everything said before it."""
    view: tuple[Message, ...]
    """Everything said before it."""
    text: str
    malformed: bool


def _read_turns(nodes: Sequence[Mapping[str, Any]]) -> list[list[_Turn]]:
    """Return the assistant messages of every node, by node."""
    ends: list[tuple[int, tuple[Message, ...]]] = []
    turns: list[list[_Turn]] = []
    for node in nodes:
        prompt, view = (0, ()) if node["parent"] is None else ends[node["parent"]]
        own = []
        for message in map(message_from_json, node["messages"]):
            text = _written(message)
            if message.role == "assistant":
                own.append(_Turn(prompt, view, text, message.error is not None))
            prompt, view = derive(prompt, message.role, text), (*view, message)
        turns.append(own)
        ends.append((prompt, view))
    return turns


def _clean_nodes(nodes: Sequence[Mapping[str, Any]], turns: list[list[_Turn]]) -> set[int]:
    """Return the nodes on golden paths without malformed output."""
    inner = {node["parent"] for node in nodes if node["golden"]}
    clean: set[int] = set()
    for node in nodes:
        if node["golden"] and node["id"] not in inner:
            path, above = [], node["id"]
            while above is not None:
                path.append(above)
                above = nodes[above]["parent"]
            if not any(turn.malformed for i in path for turn in turns[i]):
                clean.update(path)
    return clean


def _written(message: Message) -> str:
    """Return a message as it was written."""
    return format_action(message) if message.raw is None else message.raw


def _chat(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]
