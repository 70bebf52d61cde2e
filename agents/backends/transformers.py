"""A language model in process, for many callers at once.

Branches of one dialogue differ in their last few tokens, so nothing that two of them have in common
is computed or read twice:

* Keys and values of prompts and completions stay in a
  :class:`~agents.backends.prefix_store.PrefixStore`; a prompt that begins alike computes only what
  is new.
* Rows that have much in common decode as *one* sequence: the keys and values of everything that
  some of them have read lie side by side as columns, each column once, and a mask says which row
  sees which. Eight branches of one dialogue thus read its prefix once a step, not eight times.
  Rows of other dialogues form groups of their own, beside them in the batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.utils import logging as transformers_logging

from agents.backends.prefix_store import Ints, Layers, PrefixStore
from agents.base import BackendError, ChatMessage, Completion, Sampling
from agents.models import load_model, load_tokenizer, pick_device, pick_dtype, resolve
from toolwoz_gym.types import Usage, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_QUIET = 0.01
"""A batch sets out when no call has joined it for so many seconds. The branches of a search call
within a few milliseconds of each other; a batch takes a hundred times as long."""

_GREEDY = 1e-5
"""Temperatures below count as zero."""


@dataclass(slots=True)
class Stats:
    """What a backend has done so far."""

    calls: int = 0
    batches: int = 0
    prompt_tokens: int = 0
    """Tokens of all prompts."""
    computed_tokens: int = 0
    """Tokens of prompts that were computed, not found in the store or shared within a batch."""
    completion_tokens: int = 0
    seconds: float = 0.0
    """Time in which the model was busy."""


@dataclass(slots=True, eq=False)
class _Call:
    """One completion in the making."""

    prompt: Ints
    sampling: Sampling
    limit: int
    """At most so many tokens are written."""
    slots: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    """Where the store holds the prompt but its last token, which is the first to be decoded."""
    written: list[int] = field(default_factory=list)
    logprob: float = 0.0
    columns: list[int] = field(default_factory=list)
    """Where the batch's cache holds what was decoded: that last token, and ``written[:-1]``."""
    luck: Random = field(init=False)
    """One number per token: it depends on the seed and the position, never on the company."""

    def __post_init__(self) -> None:
        self.luck = Random(self.sampling.seed)


@dataclass(slots=True, eq=False)
class _Batch:
    """Calls that are answered together."""

    calls: list[_Call] = field(default_factory=list)
    done: Future[None] = field(init=False)


class TransformersBackend:
    """A causal language model of the ``transformers`` library."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_batch: int = 16,
        cache_bytes: int = 2 << 30,
    ) -> None:
        """Serve a model.

        Args:
            model: A causal language model with full attention in every layer, whose attention is
                ``sdpa`` or ``eager``.
            tokenizer: Its tokenizer, with a chat template.
            max_batch: At most so many calls are answered together.
            cache_bytes: What the store of keys and values may take. A batch can need as much again,
                and more for what it writes. No prompt can be longer than what fits.

        Raises:
            UsageError: The model's attention is of another kind.
        """
        layers = DynamicCache(config=model.config).layers
        if any(type(layer) is not DynamicLayer for layer in layers):
            raise UsageError(
                f"{model.config.model_type} models do not see all of a dialogue in every layer, "
                "which this backend relies on: serve the model behind an endpoint"
            )
        if model.config._attn_implementation == "sdpa":
            model.set_attn_implementation("folded")
        self.stats = Stats()
        self._model = model
        self._tokenizer = tokenizer
        self._tokenizing = Lock()  # tokenizers are not made for several threads at once
        self._max_batch = max_batch
        ends = model.generation_config.eos_token_id
        self._stops = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}

        sample = self._sample_of_cache()
        a_token = sum(tensor.nbytes for layer in sample for tensor in layer)
        longest = int(model.config.max_position_embeddings)
        self._store = PrefixStore(sample, max(1, cache_bytes // a_token))
        self.context = min(longest, self._store.capacity)
        """Most tokens of a prompt and its completion together."""

        self._worker = ThreadPoolExecutor(1, thread_name_prefix="transformers-backend")
        self._joining = Lock()
        self._open: _Batch | None = None  # the batch that calls can join
        self._closed = False

    @classmethod
    def load(cls, name: str, device: str = "auto", dtype: str = "auto") -> Self:
        """Load a model by name: see :func:`agents.models.resolve`.

        Args:
            name: The model's name.
            device: ``auto``, ``cuda``, ``mps`` or ``cpu``.
            dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``. Half precision is quicker,
                but rounds so coarsely that samples depend on the company a call has in its batch;
                in ``float32`` equal seeds give equal texts, but for a token in ten thousand or so.

        Raises:
            UsageError: There is no such model, device or data type.
        """
        transformers_logging.disable_progress_bar()  # loading takes a second
        source, place = resolve(name), pick_device(device)
        tokenizer = load_tokenizer(source)
        model = load_model(source, device=place, dtype=pick_dtype(dtype, place))
        return cls(model, tokenizer)

    def complete(self, prompt: Sequence[ChatMessage], sampling: Sampling) -> Completion:
        """Write the next message of a chat.

        Raises:
            BackendError: The model failed, or the backend is closed.
        """
        with self._tokenizing:
            tokens: list[int] = self._tokenizer.apply_chat_template(
                list(prompt), add_generation_prompt=True, return_dict=False
            )
        room = self.context - len(tokens)
        if room <= 0:
            return Completion("", Usage(), "context")
        call = _Call(np.array(tokens), sampling, min(sampling.max_tokens, room))
        error = self._join(call).done.exception()
        if error is not None:
            raise BackendError(f"the model failed: {error}") from error
        usage = Usage(len(tokens), len(call.written))
        stopped = call.written[-1] in self._stops
        text = call.written[:-1] if stopped else call.written
        with self._tokenizing:
            words: str = self._tokenizer.decode(
                text, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        return Completion(words, usage, "stop" if stopped else "length", call.logprob)

    def close(self) -> None:
        """Answer the calls that have come, and take no more."""
        with self._joining:
            self._closed = True
        self._worker.shutdown()

    def __enter__(self) -> Self:
        """Return the backend itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the backend."""
        self.close()

    def _join(self, call: _Call) -> _Batch:
        """Put a call into the batch that sets out next.

        The worker runs one batch at a time, so calls that come meanwhile find each other in the
        next one without waiting for it.
        """
        with self._joining:
            if self._closed:
                raise BackendError("the backend is closed")
            if self._open is None or len(self._open.calls) == self._max_batch:
                self._open = _Batch()
                self._open.done = self._worker.submit(self._answer, self._open)
            self._open.calls.append(call)
            return self._open

    def _answer(self, batch: _Batch) -> None:
        """Answer the calls of a batch, once it is complete."""
        joined = -1
        while joined < len(batch.calls) < self._max_batch:
            joined = len(batch.calls)
            time.sleep(_QUIET)
        with self._joining:
            if self._open is batch:
                self._open = None
        began = time.perf_counter()
        waiting = list(batch.calls)
        with torch.inference_mode():
            while waiting:
                together: list[_Call] = []
                while waiting and self._read(waiting[0], together):
                    together.append(waiting.pop(0))
                self._write(together)
        self.stats.calls += len(batch.calls)
        self.stats.batches += 1
        self.stats.prompt_tokens += sum(len(call.prompt) for call in batch.calls)
        self.stats.completion_tokens += sum(len(call.written) for call in batch.calls)
        self.stats.seconds += time.perf_counter() - began

    def _read(self, call: _Call, company: Sequence[_Call]) -> bool:
        """Compute what the store lacks of a prompt, all but its last token.

        Returns:
            Whether it fits into the store beside the prompts of its company. Alone, it does.
        """
        tokens = call.prompt[:-1]
        known = self._store.longest(tokens)
        new = tokens[len(known) :]
        slots = self._store.reserve(len(new), keep=[known, *(other.slots for other in company)])
        if slots is None:
            return False
        if len(new):
            cache = DynamicCache(self._store.read(known))
            self._forward(cache, new[None], logits_to_keep=1)
            fresh = [
                (layer.keys[:, :, len(known) :], layer.values[:, :, len(known) :])
                for layer in cache.layers
            ]
            self._store.write(slots, fresh)
        call.slots = np.concatenate([known, slots])
        self._store.add(tokens, call.slots)
        self.stats.computed_tokens += len(new) + 1
        return True

    def _write(self, calls: list[_Call]) -> None:
        """Decode all rows together until each has ended."""
        board = _Board(_grouped(calls), self._store, self._model.dtype)
        while board.calls:
            tokens, how = board.next_tokens()
            logits = self._forward(board.cache, tokens, **how)
            rows = logits[board.groups, board.rows]
            drawn = _draw(rows.float(), board.calls)
            for call, (token, logprob) in zip(board.calls, drawn, strict=True):
                call.written.append(token)
                call.logprob += logprob
            for call in [call for call in board.calls if self._has_ended(call)]:
                self._keep(call, board.take(call), calls)

    def _keep(self, call: _Call, decoded: Layers, company: Sequence[_Call]) -> None:
        """Put what was decoded into the store, if there is room: the next prompt may begin so."""
        count = decoded[0][0].shape[2]
        slots = self._store.reserve(count, keep=[other.slots for other in company])
        if slots is not None:
            self._store.write(slots, decoded)
            tokens = np.concatenate([call.prompt, np.array(call.written[:-1], np.int64)])
            self._store.add(tokens, np.concatenate([call.slots, slots]))

    def _has_ended(self, call: _Call) -> bool:
        return call.written[-1] in self._stops or len(call.written) >= call.limit

    def _forward(self, cache: Cache, tokens: Ints, **how: Any) -> torch.Tensor:
        """Run the model on tokens of shape [groups, n] after those in the cache, which it extends.

        Returns:
            Logits of shape [groups, n, vocabulary], or what ``logits_to_keep`` makes of it.
        """
        ids = torch.from_numpy(tokens).to(self._model.device)
        out = self._model(input_ids=ids, past_key_values=cache, use_cache=True, **how)
        logits: torch.Tensor = out.logits
        return logits

    def _sample_of_cache(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return the keys and values of one token."""
        cache = DynamicCache()
        with torch.inference_mode():
            self._forward(cache, np.array([[0]]))
        return [(layer.keys, layer.values) for layer in cache.layers]


def _grouped(calls: Sequence[_Call]) -> list[list[_Call]]:
    """Put calls together whose prompts have much in common.

    A row pays for every column of its group, seen or not: at most twice for what it has read.
    """
    groups: list[tuple[list[_Call], Ints]] = []
    for call in calls:
        for i, (group, slots) in enumerate(groups):
            union = np.union1d(slots, call.slots)
            if len(union) <= 2 * min(len(other.slots) for other in (*group, call)):
                groups[i] = ([*group, call], union)
                break
        else:
            groups.append(([call], call.slots))
    return [group for group, _ in groups]


class _Board:
    """The rows that decode together, group by group, and who sees what.

    A tensor of tokens has shape [groups, rows of the largest group]; places without a call hold
    some token that nobody sees.
    """

    def __init__(self, groups: list[list[_Call]], store: PrefixStore, dtype: torch.dtype) -> None:
        columns = [np.unique(np.concatenate([call.slots for call in group])) for group in groups]
        self._width = max(map(len, columns))
        self._depth = max(map(len, groups))
        limit = max(call.limit for group in groups for call in group)
        room = self._width + self._depth * limit
        read = [store.read(slots) for slots in columns]
        layers = [[layer[i] for layer in read] for i in range(len(read[0]))]
        self.cache = Cache([_Columns(layer, self._width, room) for layer in layers])
        self._device = read[0][0][0].device
        mask = torch.full((len(groups), 1, self._depth, room), _hidden(dtype), dtype=dtype)
        self._places: dict[_Call, tuple[int, int]] = {}
        for g, (group, slots) in enumerate(zip(groups, columns, strict=True)):
            for row, call in enumerate(group):
                mask[g, 0, row, np.searchsorted(slots, call.slots)] = 0
                self._places[call] = g, row
        self._mask = mask.to(self._device)

    @property
    def calls(self) -> list[_Call]:
        """The calls that still decode."""
        return list(self._places)

    @property
    def groups(self) -> list[int]:
        """The group of each call."""
        return [group for group, _ in self._places.values()]

    @property
    def rows(self) -> list[int]:
        """The row of each call in its group."""
        return [row for _, row in self._places.values()]

    def next_tokens(self) -> tuple[Ints, dict[str, torch.Tensor]]:
        """Return each row's last token, and where it stands and what it sees."""
        shape = (self._mask.shape[0], self._depth)
        tokens, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for call, place in self._places.items():
            tokens[place] = call.written[-1] if call.written else call.prompt[-1]
            positions[place] = len(call.prompt) + len(call.written) - 1
            call.columns.append(self._width + place[1])
        own = range(self._depth)  # every row sees itself, and so has something to see
        self._mask[:, 0, own, [self._width + row for row in own]] = 0
        self._width += self._depth
        return tokens, {
            "position_ids": torch.from_numpy(positions).to(self._device),
            "attention_mask": self._mask[..., : self._width],
        }

    def take(self, call: _Call) -> Layers:
        """Take a call off the board; return the keys and values of what it decoded."""
        group, _ = self._places.pop(call)
        columns = [layer.taken(group, call.columns) for layer in self.cache.layers]
        if self._places and 2 * len(self._places) <= self._mask.shape[0] * self._depth:
            self._close_up()
        return columns

    def _close_up(self) -> None:
        """Give up groups and rows that nobody uses, once half of the places are empty."""
        kept = sorted(set(self.groups))
        used = [[c for c, (g, _) in self._places.items() if g == group] for group in kept]
        depth = max(map(len, used))
        if len(kept) == self._mask.shape[0] and depth == self._depth:
            return
        mask = self._mask.new_full(
            (len(kept), 1, depth, self._mask.shape[3]), _hidden(self._mask.dtype)
        )
        for g, calls in enumerate(used):
            for row, call in enumerate(calls):
                mask[g, 0, row] = self._mask[self._places[call][0], 0, self._places[call][1]]
                self._places[call] = g, row
        for layer in self.cache.layers:
            layer.keep(kept)
        self._mask, self._depth = mask, depth


def _folded_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **how: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as ``sdpa`` computes it, without a copy of keys and values for each query head.

    Where several query heads share one head of keys, transformers copies that head for each of them
    whenever there is a mask. Folding those heads into the queries gives the same numbers, and reads
    the columns once: with long prefixes that is most of the time of a step.

    Args:
        module: The layer.
        query: Shape [groups, heads, rows, size].
        key: Shape [groups, key heads, columns, size].
        value: The same shape.
        attention_mask: Shape [groups, 1, rows, columns].
        **how: ``scaling``, and what only other kinds of attention need.
    """
    groups, heads, rows, size = query.shape
    shared = heads // key.shape[1]
    if attention_mask is None or shared == 1:
        output: torch.Tensor = sdpa_attention_forward(
            module, query, key, value, attention_mask, **how
        )[0]
        return output, None
    folded = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(groups, key.shape[1], shared * rows, size),
        key,
        value,
        attn_mask=attention_mask.repeat(1, 1, shared, 1),
        scale=how.get("scaling"),
    )
    return folded.reshape(groups, heads, rows, size).transpose(1, 2).contiguous(), None


AttentionInterface.register("folded", _folded_attention)
AttentionMaskInterface.register("folded", sdpa_mask)


def _hidden(dtype: torch.dtype) -> float:
    """Return what a mask adds to hide a column."""
    return float(torch.finfo(dtype).min)


class _Columns(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values with room for more, so that a step copies none of the old ones."""

    def __init__(self, groups: Layers, width: int, room: int) -> None:
        super().__init__()
        keys, values = groups[0]
        self.lazy_initialization(keys, values)
        self._width = width
        # Zeros, because what is hidden is multiplied by zero, which must not make a NaN.
        self._room_of = [
            x.new_zeros(len(groups), x.shape[1], room, x.shape[3]) for x in (keys, values)
        ]
        for g, group in enumerate(groups):
            for buffer, x in zip(self._room_of, group, strict=True):
                buffer[g, :, : x.shape[2]] = x[0]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        old, self._width = self._width, self._width + key_states.shape[2]
        for buffer, x in zip(self._room_of, (key_states, value_states), strict=True):
            buffer[:, :, old : self._width] = x
        self.keys, self.values = (buffer[:, :, : self._width] for buffer in self._room_of)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self._width

    def taken(self, group: int, columns: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a copy of keys and values of one group, of shape [1, heads, columns, size]."""
        keys, values = (buffer[group : group + 1, :, columns] for buffer in self._room_of)
        return keys, values

    def keep(self, groups: Sequence[int]) -> None:
        """Give up the other groups."""
        self._room_of = [buffer[groups] for buffer in self._room_of]


def _draw(logits: torch.Tensor, calls: Sequence[_Call]) -> list[tuple[int, float]]:
    """Draw each row's next token, and say how likely it was: the natural logarithm.

    The token is the first whose cumulative probability reaches a number in (0, 1], which therefore
    never falls on a token of probability zero.

    Args:
        logits: Shape [rows, vocabulary].
        calls: The rows.
    """
    temperatures = logits.new_tensor([[call.sampling.temperature] for call in calls])
    levels = logits.new_tensor([[1.0 - call.luck.random()] for call in calls])
    likely = (logits / temperatures.clamp(min=_GREEDY)).log_softmax(-1)
    cumulative = likely.exp().cumsum(-1)
    drawn = torch.searchsorted(cumulative, levels * cumulative[:, -1:])
    likeliest = logits.argmax(-1, keepdim=True)
    tokens = torch.where(temperatures < _GREEDY, likeliest, drawn)
    return list(zip(tokens[:, 0].tolist(), likely.gather(-1, tokens)[:, 0].tolist(), strict=True))
