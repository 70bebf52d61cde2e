"""A language model in process, for many callers at once.

Branches of one dialogue differ in their last few tokens, so nothing that two of them have in common
is computed or read twice:

* Keys and values of prompts and completions stay in a
  :class:`~agents.backends.prefix_store.PrefixStore`; a prompt that begins alike computes only what
  is new.
* All rows of a batch decode as *one* sequence: the keys and values of everything that some row has
  read lie side by side as columns, each column once, and a mask says which row sees which. Eight
  branches of one dialogue thus read its prefix once a step, not eight times, and rows of different
  length need no padding.
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
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from agents.backends.prefix_store import Ints, PrefixStore
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
        return Completion(words, usage, "stop" if stopped else "length")

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
        slots = np.unique(np.concatenate([call.slots for call in calls]))
        width = len(slots)
        room = width + len(calls) * max(call.limit for call in calls)
        cache = Cache([_Columns(*layer, room) for layer in self._store.read(slots)])
        hidden = torch.finfo(self._model.dtype).min
        mask = torch.full((len(calls), room), hidden, dtype=self._model.dtype)
        for row, call in enumerate(calls):
            mask[row, np.searchsorted(slots, call.slots)] = 0
        mask = mask.to(self._model.device)
        active = calls
        while active:
            rows = range(len(active))
            for row, call in enumerate(active):
                call.columns.append(width + row)
            mask[rows, [call.columns[-1] for call in active]] = 0
            width += len(active)
            last = [call.written[-1] if call.written else int(call.prompt[-1]) for call in active]
            places = [len(call.prompt) + len(call.written) - 1 for call in active]
            logits = self._forward(
                cache,
                np.array([last]),
                position_ids=torch.tensor([places], device=self._model.device),
                attention_mask=mask[None, None, :, :width],
            )
            for call, token in zip(active, _draw(logits.float(), active), strict=True):
                call.written.append(token)
            going = [row for row in rows if not self._has_ended(active[row])]
            if len(going) < len(active):
                active, mask = [active[row] for row in going], mask[going]
        for call in calls:
            self._keep(call, cache, calls)

    def _keep(self, call: _Call, cache: Cache, company: Sequence[_Call]) -> None:
        """Put what was decoded into the store, if there is room: the next prompt may begin so."""
        slots = self._store.reserve(len(call.columns), keep=[other.slots for other in company])
        if slots is not None:
            columns = call.columns
            layers = [(x.keys[:, :, columns], x.values[:, :, columns]) for x in cache.layers]
            self._store.write(slots, layers)
            tokens = np.concatenate([call.prompt, np.array(call.written[:-1], np.int64)])
            self._store.add(tokens, np.concatenate([call.slots, slots]))

    def _has_ended(self, call: _Call) -> bool:
        return call.written[-1] in self._stops or len(call.written) >= call.limit

    def _forward(self, cache: Cache, tokens: Ints, **how: Any) -> torch.Tensor:
        """Run the model on tokens of shape [1, n] after those in the cache, which it extends.

        Returns:
            Logits of shape [n, vocabulary], or what ``logits_to_keep`` makes of it.
        """
        ids = torch.from_numpy(tokens).to(self._model.device)
        out = self._model(input_ids=ids, past_key_values=cache, use_cache=True, **how)
        logits: torch.Tensor = out.logits[0]
        return logits

    def _sample_of_cache(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return the keys and values of one token."""
        cache = DynamicCache()
        with torch.inference_mode():
            self._forward(cache, np.array([[0]]))
        return [(layer.keys, layer.values) for layer in cache.layers]


class _Columns(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values with room for more, so that a step copies none of the old ones."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, room: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._width: int = keys.shape[2]
        self._room_of = [x.new_empty(1, x.shape[1], room, x.shape[3]) for x in (keys, values)]
        for buffer, x in zip(self._room_of, (keys, values), strict=True):
            buffer[:, :, : self._width] = x

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


def _draw(logits: torch.Tensor, calls: Sequence[_Call]) -> list[int]:
    """Draw each row's next token.

    The token is the first whose cumulative probability reaches a number in (0, 1], which therefore
    never falls on a token of probability zero.

    Args:
        logits: Shape [rows, vocabulary].
        calls: The rows.
    """
    temperatures = logits.new_tensor([[call.sampling.temperature] for call in calls])
    levels = logits.new_tensor([[1.0 - call.luck.random()] for call in calls])
    cumulative = (logits / temperatures.clamp(min=_GREEDY)).softmax(-1).cumsum(-1)
    drawn = torch.searchsorted(cumulative, levels * cumulative[:, -1:])
    likeliest = logits.argmax(-1, keepdim=True)
    tokens: list[int] = torch.where(temperatures < _GREEDY, likeliest, drawn)[:, 0].tolist()
    return tokens
