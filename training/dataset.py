"""Rows to train on: read, checked, shuffled, weighed. Nothing here needs a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from toolwoz_gym.records import check_rows, parse_json, read_jsonl
from toolwoz_gym.seeding import Luck
from toolwoz_gym.types import UsageError

Kind: TypeAlias = Literal["kto", "sft"]


@dataclass(frozen=True, slots=True)
class Row:
    """A dialogue, and which of its messages to learn from."""

    messages: list[dict[str, Any]]
    """Every message in order, as chat templates take them: ``role`` and ``content``, and
    ``tool_calls`` where the model was shown its tools in its own format."""
    start: int
    """The assistant messages from this index on are learned; what is before is only shown."""
    label: bool | None = None
    """KTO: whether the message is a good one. None in rows for supervised fine-tuning."""
    tools: list[dict[str, Any]] | None = None
    """The tools that the chat template shows; None: none."""

    @property
    def learned(self) -> list[int]:
        """Indices of the messages to learn from."""
        return [i for i in range(self.start, len(self.messages)) if _is_assistant(self.messages[i])]


@dataclass(frozen=True, slots=True)
class Balance:
    """How many rows of each label there are, and what KTO makes of it."""

    good: int
    bad: int

    def undesirable_weight(self, desirable_weight: float) -> float:
        """Return the weight of bad rows that lets both kinds count the same in total.

        This is the weight for which n_D·λ_D = n_U·λ_U (KTO, arXiv 2402.01306, eq. 8), and 1 when
        there is only one kind of row.
        """
        if not (self.good and self.bad):
            return 1.0
        return round(desirable_weight * self.good / self.bad, 4)

    def advice(self, desirable_weight: float, undesirable_weight: float) -> str | None:
        """Say how to weigh the rows, when n_D·λ_D / n_U·λ_U is outside KTO's advice of [1, 4/3]."""
        if not (self.good and self.bad):
            return f"rows of one kind only ({self.good} good, {self.bad} bad): KTO learns from both"
        high = desirable_weight * self.good / self.bad
        low = high / (4 / 3)
        # Half a hundredth of slack: weights are typed by people, who round.
        if low - 0.005 <= undesirable_weight <= high + 0.005:
            return None
        return (
            f"{self.good} good and {self.bad} bad rows: with desirable_weight "
            f"{desirable_weight:g}, an undesirable_weight of {low:.2f} to {high:.2f} balances them"
        )


def read_rows(path: Path, kind: Kind) -> list[Row]:
    """Read a file of rows.

    KTO rows are ``{"prompt": [...], "completion": [one assistant message], "label": bool}``; rows
    for supervised fine-tuning are ``{"prompt": [...], "completion": [...]}`` or whole dialogues,
    ``{"messages": [...]}``, of which every assistant message is learned. ``tools``, as JSON text,
    are the tools that the chat template shows. Other keys say where a row comes from and are not
    read.

    Raises:
        UsageError: The file is missing, empty, or not as its harvest wrote it; or a row is
            malformed: the message names the line.
    """
    check_rows(path)
    rows = []
    for number, record in enumerate(read_jsonl(path), 1):
        try:
            rows.append(_row(record, kind))
        except ValueError as error:
            raise UsageError(f"{path}, line {number}: {error}") from None
    if not rows:
        raise UsageError(f"{path} has no rows: harvest more dialogues")
    return rows


def shuffle(rows: Sequence[Row], seed: int) -> list[Row]:
    """Return the rows in an order that depends on the seed alone.

    Files of rows are in the order of their dialogues, and KTO estimates how far the policy has
    drifted by pairing each prompt with its neighbour's completion: neighbours must be strangers.
    """
    return Luck("shuffle rows", seed).sample(rows, len(rows))


def balance(rows: Sequence[Row]) -> Balance:
    """Count the rows of each label."""
    good = sum(row.label is True for row in rows)
    return Balance(good, len(rows) - good)


def _row(record: dict[str, Any], kind: Kind) -> Row:
    tools = _tools(record)
    if kind == "sft" and "messages" in record:
        row = Row(_messages(record, "messages"), 0, tools=tools)
    else:
        prompt, completion = _messages(record, "prompt"), _messages(record, "completion")
        label = record.get("label") if kind == "kto" else None
        row = Row(prompt + completion, len(prompt), label, tools)
        if kind == "kto" and (len(completion) != 1 or not _is_assistant(completion[0])):
            raise ValueError("completion must be one assistant message")
        if kind == "kto" and not isinstance(label, bool):
            raise ValueError("label must be true or false")
    if _is_assistant(row.messages[0]):
        raise ValueError("a dialogue must not begin with an assistant message")
    if not row.learned:
        raise ValueError("there is no assistant message to learn from")
    return row


def _tools(record: dict[str, Any]) -> list[dict[str, Any]] | None:
    if "tools" not in record:
        return None
    tools = parse_json(record["tools"]) if isinstance(record["tools"], str) else None
    if not isinstance(tools, list):
        raise ValueError("tools must be a list of tools, as JSON text")
    return tools


def _messages(record: dict[str, Any], key: str) -> list[dict[str, Any]]:
    allowed = {"role", "content"}
    if "tools" in record:
        allowed |= {"tool_calls", "tool_call_id", "name"}
    messages = record.get(key)
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{key} must be a list of messages")
    for message in messages:
        if (
            not isinstance(message, dict)
            or not {"role", "content"} <= set(message) <= allowed
            or not all(isinstance(message[name], str) for name in ("role", "content"))
        ):
            raise ValueError(f"a message of {key} must have exactly role and content, both text")
    return messages


def _is_assistant(message: dict[str, Any]) -> bool:
    return bool(message["role"] == "assistant")
