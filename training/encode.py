"""From rows to tokens: what the policy is shown, and which tokens it learns.

What is learned must follow exactly what the policy was shown when it wrote it. That holds when the
rendered prompt is a prefix of the rendered prompt and completion, as text (a property of the chat
template) and as tokens (a property of the row too: words may merge across the boundary).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agents.chat_template import Ends, message_ends, rendered, unseen
from toolwoz_gym.types import UsageError
from training.dataset import Row

TOO_LONG = "longer than max_length"
MERGED = "tokens merge between prompt and completion"
CHANGED = "the chat template changes the words to learn"


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row as tokens."""

    row: Row
    ids: list[int]
    """Tokens of the whole dialogue."""
    spans: list[tuple[int, int]]
    """Half-open ranges of ``ids`` to learn from: one per learned message, end token included."""

    @property
    def labels(self) -> list[int]:
        """The tokens to predict: ``ids`` inside the spans, -100 (no loss) elsewhere."""
        labels = [-100] * len(self.ids)
        for start, end in self.spans:
            labels[start:end] = self.ids[start:end]
        return labels


def encode(tokenizer: Any, row: Row, ends: Ends) -> Encoded | str:
    """Turn a row into tokens.

    Args:
        tokenizer: A tokenizer with a chat template.
        row: What to learn from.
        ends: What ends a message when the policy is asked.

    Returns:
        Or why it cannot be learned: tokens merge across the boundary between a prompt and what
        follows it, or the template changes a message, as those do that leave thoughts out.

    Raises:
        UsageError: The chat template refuses the row, renders a prompt alone differently than
            within its dialogue, or puts nothing after a message that would end it.
    """
    whole = _render(tokenizer, row, len(row.messages))
    ids = _ids(tokenizer, whole)
    spans = []
    for i in row.learned:
        places = []
        texts = (
            _render(tokenizer, row, i, add_generation_prompt=True),
            _render(tokenizer, row, i + 1),
        )
        for text in texts:
            if not whole.startswith(text):
                raise UsageError(
                    "the model's chat template renders a prompt alone differently than within its "
                    "dialogue, so what would be learned is not what the model was shown: use a "
                    "model whose template only ever appends"
                )
            part = _ids(tokenizer, text)
            if ids[: len(part)] != part:
                return MERGED
            places.append(len(part))
        learned = texts[1][len(texts[0]) :]
        if row.messages[i]["content"].strip() not in learned:
            return CHANGED
        if not ends.within(ids[places[0] : places[1]], learned):
            raise UsageError(
                f"the chat template of {tokenizer.name_or_path!r} puts nothing after an "
                "assistant's message that ends it, so the model would not learn to stop: take "
                "another model"
            )
        spans.append((places[0], places[1]))
    return Encoded(row, ids, spans)


def encode_all(
    tokenizer: Any, rows: Sequence[Row], max_length: int
) -> tuple[list[Encoded], Counter[str]]:
    """Turn rows into tokens and count the dropped ones.

    Args:
        tokenizer: A tokenizer with a chat template.
        rows: What to learn from.
        max_length: Rows of more tokens, prompt and completion together, are dropped.

    Returns:
        The kept rows in their order, and how many were dropped for which reason.

    Raises:
        UsageError: The chat template does not fit (see :func:`encode`), or does not show all of a
            row: what it drops would be learned as silence.
    """
    # Of rows of one kind, the longest: templates can show the last messages only.
    longest = {_kind(row): row for row in sorted(rows, key=lambda row: len(row.messages))}
    for row in longest.values():
        if missing := unseen(tokenizer, row.messages, tools=bool(row.tools)):
            raise UsageError(
                f"the chat template of {tokenizer.name_or_path!r} leaves out {', '.join(missing)}, "
                "which rows have: take the model that they were made with"
            )
    ends = message_ends(tokenizer)
    kept, dropped = [], Counter[str]()
    for row in rows:
        encoded = encode(tokenizer, row, ends)
        if isinstance(encoded, str):
            dropped[encoded] += 1
        elif len(encoded.ids) > max_length:
            dropped[TOO_LONG] += 1
        else:
            kept.append(encoded)
    return kept, dropped


def _render(tokenizer: Any, row: Row, end: int, **options: bool) -> str:
    """Render the first messages of a row."""
    text: str = rendered(tokenizer, row.messages[:end], row.tools, **options)
    return text


def _kind(row: Row) -> tuple[object, ...]:
    """Return what a row asks of a chat template."""
    roles = {(message["role"], bool(message.get("tool_calls"))) for message in row.messages}
    return frozenset(roles), bool(row.tools)


def _ids(tokenizer: Any, text: str) -> list[int]:
    # The template writes its own special tokens: the tokenizer must not add others.
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
