"""From trees to training rows: what was good at a prompt, and what was worse.

A row is ``prompt`` (the chat that the model was shown), ``completion`` (one assistant message as
the model wrote it) and, for KTO, ``label``. Where the model was shown its tools in its own format,
calls are written as chat templates take them, and ``tools`` has the tools. Only solved searches
give rows. ``docs/rows.md`` states the rules, and every reason for which a message gives no row.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from agents.base import ChatMessage
from agents.tool_calling import render_prompt
from agents.tool_formats import native_answer, native_chat, tool_schema
from toolwoz_gym.records import dump, message_from_json, read_log, replacing
from toolwoz_gym.seeding import derive
from toolwoz_gym.types import Message, ToolSpec

Row: TypeAlias = dict[str, Any]

Verdict: TypeAlias = bool | str
"""Of a message: good, bad, or why it is neither."""

KINDS = ("kto", "sft", "dpo")
"""What rows there are: each has a file of this name in the run's folder."""

UNSOLVED = "messages of trees without a solution"
ASTRAY = "messages after their branch had left the golden path"
REPEATED = "messages said before at the same prompt of their tree"
UNCLEAN = "messages of golden paths with malformed output or a goal that was undone"
CUT_OFF = "messages of golden paths that were cut off"
LED_TO_A_GOAL = "messages that left the golden path and led to a goal"
GOOD_ELSEWHERE = "messages that led to a goal in another tree"
FAULTED = "messages after which only the customer was at fault"
NOT_UNICODE = "messages with characters that no file can hold"
UNPAIRED = "bad messages without a good one to pair them with"
"""This one is no message without a row: it has its KTO row, but gives no pair for DPO."""


@dataclass(slots=True)
class Rows:
    """The rows of some trees, with a count of all that gave none."""

    kto: list[Row] = field(default_factory=list)
    sft: list[Row] = field(default_factory=list)
    dpo: list[Row] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    """How many assistant messages gave no row, by reason; and the bad ones :data:`UNPAIRED`."""

    def add(self, other: Rows) -> None:
        """Append the rows of other trees."""
        self.kto += other.kto
        self.sft += other.sft
        self.dpo += other.dpo
        self.dropped.update(other.dropped)

    def counts(self) -> dict[str, Any]:
        """Return how many rows there are, by kind, and how many messages gave none, by reason."""
        return _counts(self.tally(), self.dropped)

    def tally(self) -> Counter[str]:
        """Count the rows: ``good`` and ``bad`` for KTO, ``sft``, ``dpo``."""
        good = len(self.sft)
        return Counter(good=good, bad=len(self.kto) - good, sft=good, dpo=len(self.dpo))


class Successes:
    """What led to a goal in any tree of a run: eight bytes for each such message."""

    def __init__(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Read the trees of a run.

        Args:
            records: Lines of ``trees.jsonl``.
        """
        digests = array("Q")
        for record in records:
            digests.extend(said.digest for said in _said(record) if said.successful)
        self._sorted = np.unique(np.frombuffer(digests, dtype=np.uint64))

    def __contains__(self, digest: int) -> bool:
        """Return whether the message of this digest led to a goal somewhere."""
        at = np.searchsorted(self._sorted, np.uint64(digest))
        return bool(at < len(self._sorted) and self._sorted[at] == digest)


def write_rows(run: Path, system: str, tools: Sequence[ToolSpec] = ()) -> dict[str, Any]:
    """Write the row files of a run: ``kto.jsonl``, ``sft.jsonl`` and ``dpo.jsonl``.

    The trees are read twice and held one at a time, so that a run may have any number of them.

    Args:
        run: The run's folder, with its ``trees.jsonl``.
        system: The system prompt that the model was shown.
        tools: The tools that it was shown in its own format.

    Returns:
        How many rows there are, by kind, and how many messages gave none, by reason.

    Raises:
        UsageError: The trees cannot be read, or the rows not written. Older files are as they were.
    """
    trees = run / "trees.jsonl"
    successes = Successes(read_log(trees))
    tally, dropped = Counter[str](), Counter[str]()
    with ExitStack() as stack:
        files = {}
        for kind in KINDS:
            part = stack.enter_context(replacing(run / f"{kind}.jsonl"))
            files[kind] = stack.enter_context(open(part, "w", encoding="ascii", newline="\n"))
        for record in read_log(trees):
            rows = tree_rows(record, system, successes, tools)
            for kind, file in files.items():
                file.writelines(f"{dump(row)}\n" for row in getattr(rows, kind))
            tally.update(rows.tally())
            dropped.update(rows.dropped)
    return _counts(tally, dropped)


def make_rows(
    records: Iterable[Mapping[str, Any]], system: str, tools: Sequence[ToolSpec] = ()
) -> Rows:
    """Return the rows of trees that fit in memory: those that :func:`write_rows` would write.

    Args:
        records: All lines of a ``trees.jsonl``.
        system: The system prompt that the model was shown.
        tools: The tools that it was shown in its own format.
    """
    trees = list(records)
    successes, rows = Successes(trees), Rows()
    for record in trees:
        rows.add(tree_rows(record, system, successes, tools))
    return rows


def tree_rows(
    record: Mapping[str, Any],
    system: str,
    successes: Successes,
    tools: Sequence[ToolSpec] = (),
) -> Rows:
    """Return the rows of one tree.

    Args:
        record: A line of ``trees.jsonl``.
        system: The system prompt that the model was shown.
        successes: What led to a goal in any tree of the run: it is never a bad row.
        tools: The tools that the model was shown in its own format.
    """
    rows = Rows()
    schemas = {"tools": dump([tool_schema(tool) for tool in tools])} if tools else {}
    good: dict[int, list[str]] = {}
    """The good completions, by the digest of their prompt."""
    for said, verdict in _judge(record, successes):
        if isinstance(verdict, str):
            rows.dropped[verdict] += 1
            continue
        chat = render_prompt(system, said.view, native=bool(tools))
        prompt = native_chat(chat) if tools else chat
        where = {"task_id": record["task_id"], "tree": record["key"], "node": said.node, **schemas}
        completion = _completion(chat, said.text, native=bool(tools))
        rows.kto.append({"prompt": prompt, "completion": completion, "label": verdict, **where})
        if verdict:
            good.setdefault(said.prompt, []).append(said.text)
            rows.sft.append({"prompt": prompt, "completion": completion, **where})
            continue
        better = good.get(said.prompt, ())
        rows.dropped.update([UNPAIRED] if not better else [])
        for text in better:
            pair = {
                "chosen": _completion(chat, text, native=bool(tools)),
                "rejected": completion,
            }
            rows.dpo.append({"prompt": prompt, **pair, **where})
    return rows


def _completion(chat: Sequence[ChatMessage], text: str, *, native: bool) -> list[dict[str, Any]]:
    return [native_answer(chat, text) if native else {"role": "assistant", "content": text}]


def _judge(record: Mapping[str, Any], successes: Successes) -> Iterator[tuple[_Said, Verdict]]:
    """Yield every assistant message of a tree with its verdict, the golden ones first."""
    said = _said(record)
    clean = _clean_nodes(record["nodes"], {message.node for message in said if message.malformed})
    prompts = {message.prompt for message in said if message.golden}
    golden = {message.digest for message in said if message.golden}
    good = {message.digest for message in said if message.node in clean}
    whole = {message.digest for message in said if message.node in clean and not message.cut_off}
    successful = {message.digest for message in said if message.successful}
    faulted = _faulted_nodes(record["nodes"])
    failed = {message.digest for message in said if message.node not in faulted}

    def verdict(message: _Said) -> Verdict:
        if message.prompt not in prompts:
            return ASTRAY
        if message.digest in seen:
            return REPEATED
        if message.digest in golden and message.digest not in good:
            return UNCLEAN
        if message.digest in golden and message.digest not in whole:
            return CUT_OFF
        if message.digest not in golden and message.digest in successful:
            return LED_TO_A_GOAL
        if message.digest not in golden and message.digest in successes:
            return GOOD_ELSEWHERE
        if message.digest not in golden and message.digest not in failed:
            return FAULTED
        if not message.is_unicode():
            return NOT_UNICODE
        return message.digest in golden

    seen: set[int] = set()
    # Golden nodes first: a good row names one of them, not a sibling that wrote the same.
    for message in sorted(said, key=lambda message: not message.golden):
        yield message, verdict(message) if record["solved"] else UNSOLVED
        seen.add(message.digest)


@dataclass(frozen=True, slots=True)
class _Said:
    """One assistant message of a tree."""

    node: int
    golden: bool
    """Whether its node is golden."""
    successful: bool
    """Whether its node is: then no tree may punish it."""
    view: tuple[Message, ...]
    """Everything said before it."""
    text: str
    """What the model wrote."""
    malformed: bool
    cut_off: bool
    prompt: int
    """Digest of what the model was shown, the system prompt apart: that is the same all over."""
    digest: int
    """Digest of prompt and text: messages of equal digests give equal rows."""

    def is_unicode(self) -> bool:
        """Return whether prompt and text can be written as UTF-8: half a surrogate pair cannot."""
        shown = [message["content"] for message in render_prompt("", self.view)]
        try:
            "".join([*shown, self.text]).encode()
        except UnicodeEncodeError:
            return False
        return True


def _said(record: Mapping[str, Any]) -> list[_Said]:
    """Return the assistant messages of a tree, node by node."""
    said = []
    ends: list[tuple[int, tuple[Message, ...]]] = []
    for node in record["nodes"]:
        prompt, view = (0, ()) if node["parent"] is None else ends[node["parent"]]
        golden, successful = node["golden"], node["successful"] or node["golden"]
        for message in map(message_from_json, node["messages"]):
            _, shown = render_prompt("", [message])
            text = shown["content"]
            digest = derive(prompt, shown["role"], text)
            if message.role == "assistant":
                marks = message.error is not None, message.cut_off
                said.append(
                    _Said(node["id"], golden, successful, view, text, *marks, prompt, digest)
                )
            prompt, view = digest, (*view, message)
        ends.append((prompt, view))
    return said


def _clean_nodes(nodes: Sequence[Mapping[str, Any]], malformed: set[int]) -> set[int]:
    """Return the nodes on golden paths without a node in ``malformed``, that met no goal twice."""
    inner = {node["parent"] for node in nodes if node["golden"]}
    clean: set[int] = set()
    for node in nodes:
        if node["golden"] and node["id"] not in inner:
            path, above = [], node["id"]
            while above is not None:
                path.append(above)
                above = nodes[above]["parent"]
            met = Counter(goal for step in path for goal in nodes[step]["met"])
            if malformed.isdisjoint(path) and met.total() == len(met):
                clean.update(path)
    return clean


def _faulted_nodes(nodes: Sequence[Mapping[str, Any]]) -> set[int]:
    """Return the nodes below which every dialogue was ended by a fault of the customer's."""
    inner = {node["parent"] for node in nodes}
    faulted = {node["id"] for node in nodes}
    for node in nodes:
        if node["id"] not in inner and node["outcome"] != "user_fault":
            above = node["id"]
            while above in faulted:
                faulted.remove(above)
                above = nodes[above]["parent"]
    return faulted


def _counts(tally: Mapping[str, int], dropped: Mapping[str, int]) -> dict[str, Any]:
    return {
        "kto": {"good": tally["good"], "bad": tally["bad"]},
        "sft": tally["sft"],
        "dpo": tally["dpo"],
        "dropped": dict(sorted(dropped.items())),
    }
