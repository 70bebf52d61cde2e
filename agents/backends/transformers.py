"""A language model in process, for many callers at once.

A step of the model writes one token for every call in flight. Calls join at any step and leave when
they have ended: none waits for the text of another. Nothing that two of them have in common is
computed or read twice:

* Keys and values of prompts and completions stay in a
  :class:`~agents.backends.prefix_store.PrefixStore`; a prompt that begins alike computes only what
  is new.
* Calls that have much in common decode as *one* sequence: the keys and values of everything that
  some of them have read lie side by side as columns, each column once, and a mask says which call
  sees which. Eight branches of one dialogue thus read its prefix once a step, not eight times.
  Other dialogues form groups of their own. Only attention tells groups apart: for all else, the
  tokens of a step are one row, without padding.

That is for models that attend to all of a text in every layer. Others have their calls answered by
the library: see :mod:`agents.backends.generation`.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.utils import logging as transformers_logging

from agents.backends.chat_tokens import ChatTokens
from agents.backends.generation import LibraryGeneration, longest_context
from agents.backends.grammar import Grammars, mask
from agents.backends.prefix_store import Ints, KeyValues, PrefixStore, common_length
from agents.base import BackendError, ChatMessage, Closing, Completion, RunStopped, Sampling
from agents.models import (
    check_vocabulary,
    load_model,
    load_tokenizer,
    pick_device,
    pick_dtype,
    resolve,
)
from toolwoz_gym.types import ToolSpec, Usage, UsageError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_READ_AT_ONCE = 2048
"""A step reads at most so many new tokens of prompts, or one prompt: that bounds the memory of a
step, and how long those who write wait for those who join."""

_log = logging.getLogger(__name__)

_GREEDY = 1e-5
"""Temperatures below count as zero."""

_GROUPED = "grouped"
"""The name of our attention."""

_ROWS, _COLUMNS = 16, 512
"""Where results must be exact, matrices have a multiple of so many rows, and attention goes to a
multiple of so many columns, which are PyTorch's blocks: what is left over is computed in another
order."""


@dataclass(slots=True)
class Stats:
    """What a backend has done so far."""

    calls: int = 0
    """Calls that were answered."""
    steps: int = 0
    """Forward passes of the model: each writes one token for every call in flight."""
    prompt_tokens: int = 0
    """Tokens of the prompts of these calls."""
    computed_tokens: int = 0
    """Tokens of prompts that were computed, not found in the store."""
    completion_tokens: int = 0
    """Tokens that were written."""
    seconds: float = 0.0
    """Time in which the model was busy."""

    @property
    def occupancy(self) -> float:
        """For how many calls a step writes, on average; 0.0 before the first."""
        return self.completion_tokens / self.steps if self.steps else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens written per second in which the model was busy; 0.0 before the first."""
        return self.completion_tokens / self.seconds if self.steps else 0.0


def _none() -> Ints:
    return np.empty(0, np.int64)


@dataclass(slots=True, eq=False)
class _Call:
    """One completion in the making."""

    prompt: Ints
    sampling: Sampling
    limit: int
    """At most so many tokens are written."""
    done: Future[None] = field(default_factory=Future)
    slots: Ints = field(default_factory=_none)
    """Where the store holds the prompt but its last token, which every call reads for itself."""
    columns: Ints = field(default_factory=_none)
    """Where its group holds what it has read, in the end the prompt and ``written[:-1]``."""
    written: list[int] = field(default_factory=list)
    logprob: float = 0.0
    """Natural logarithm of the probability of what is written."""
    cached: int = 0
    """Tokens of the prompt that the store held already."""
    matcher: Any = None
    """What knows which tokens the grammar allows next; None: any."""
    luck: Random = field(init=False)
    """One number per token: it depends on the seed and the position, never on the company."""

    def __post_init__(self) -> None:
        self.luck = Random(self.sampling.seed)

    @property
    def unread(self) -> Ints:
        """What the next step reads: the rest of the prompt, then each token that was written."""
        if self.written:
            return np.array(self.written[-1:])
        return self.prompt[len(self.columns) :]

    @property
    def columns_to_come(self) -> int:
        """Most columns that it can still need."""
        return len(self.prompt) + self.limit - 1 - len(self.columns)


class TransformersBackend(Closing):
    """A causal language model of the ``transformers`` library."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_batch: int = 16,
        cache_bytes: int = 2 << 30,
        exact: bool = False,
    ) -> None:
        """Serve a model.

        Args:
            model: A causal language model.
            tokenizer: Its tokenizer, with a chat template.
            max_batch: A step writes for at most so many calls.
            cache_bytes: What the store of keys and values may take. Calls in flight work on copies,
                which can need as much as ``max_batch`` prompts more. No prompt can be longer than
                what fits into the store. Models that the library runs have no store.
            exact: A call's result is the same to the last bit, whatever company it has and whatever
                is in the store: no columns are shared, and matrices are filled up. Shown for
                float32 on the CPU only (docs/reproducibility.md).

        Raises:
            UsageError: Nothing ends the model's messages.
        """
        self.stats = Stats()
        self._model = model
        self._tokens = ChatTokens(tokenizer)
        self._max_batch = max_batch
        ends = model.generation_config.eos_token_id
        named = ends if isinstance(ends, list) else [ends]
        self._stops = self._tokens.ends.tokens | {end for end in named if isinstance(end, int)}
        if not self._stops and not self._tokens.ends.text:
            raise UsageError(
                f"nothing ends the messages of {tokenizer.name_or_path!r}: it has no end token, "
                "and its chat template puts nothing after a message: take another model"
            )
        self._grammars = Grammars(tokenizer, model.config.get_text_config().vocab_size, self._stops)

        self.context = longest_context(model, tokenizer)
        """Most tokens of a prompt and its completion together."""

        board = _Board.of(model, cache_bytes, exact=exact)
        if board is not None:
            self._board, self._store = board, board.store
            self.context = min(self.context, self._store.capacity)
        else:
            self._max_batch = 1 if exact else max_batch
            _log.warning(
                "layers of %s models are not all plain attention to the whole text: transformers' "
                "own generation runs them, which is slower",
                model.config.model_type,
            )
        self._library = LibraryGeneration(model) if board is None else None
        """What answers the calls that cannot be laid out as columns."""
        self._alike: list[_Call] = []
        """The calls that it is answering, with prompts of one length."""
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="transformers-backend")
        self._lock = Lock()
        self._waiting: deque[_Call] = deque()
        self._serving = False
        self._closed = False

    @classmethod
    def load(
        cls, name: str, device: str = "auto", dtype: str = "auto", *, exact: bool = False
    ) -> Self:
        """Load a model by name: see :func:`agents.models.resolve`.

        Args:
            name: The model's name.
            device: ``auto``, ``cuda``, ``mps`` or ``cpu``.
            dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``. Half precision is quicker,
                but rounds so coarsely that samples depend on the company that a call has; in
                ``float32`` equal seeds give equal texts, but for a token in ten thousand or so.
            exact: See above.

        Raises:
            UsageError: There is no such model, device or data type.
        """
        transformers_logging.disable_progress_bar()  # loading takes a second
        source, place = resolve(name), pick_device(device)
        tokenizer = load_tokenizer(source)
        if exact and dtype not in ("auto", "float32"):
            raise UsageError("--exact computes in float32: leave --dtype out")
        kind = pick_dtype("float32" if exact else dtype, place)
        model = load_model(source, device=place, dtype=kind)
        check_vocabulary(tokenizer, model.get_input_embeddings().weight.shape[0])
        return cls(model, tokenizer, exact=exact)

    def complete(
        self,
        prompt: Sequence[ChatMessage],
        sampling: Sampling,
        tools: Sequence[ToolSpec] = (),
    ) -> Completion:
        """Write the next message of a chat.

        Args:
            prompt: The chat. With ``tools``, actions of the assistant that are tool calls are shown
                to the model as such, and ``tool`` messages after them as their answers.
            sampling: How it is drawn. A grammar needs xgrammar.
            tools: Tools that the model may call in its own format, if its chat template has one:
                see :func:`agents.tool_formats.is_native`. A call comes back as the action that
                makes it. None: the model sees no tools but those that the prompt tells of.

        Raises:
            UsageError: xgrammar is not installed, or the model's chat template refuses the chat.
            BackendError: The model failed, or the backend is closed.
            RunStopped: The model computes what is no number.
        """
        began = time.perf_counter()
        tokens = self._tokens.encode(prompt, tools)
        room = self.context - len(tokens)
        if room <= 0:
            return Completion("", Usage(), "context")
        call = _Call(np.array(tokens), sampling, min(sampling.max_tokens, room))
        if sampling.grammar is not None:
            if not self._stops:
                raise UsageError("--constrain wants a model with an end token: leave it out")
            call.matcher = self._grammars.matcher(sampling.grammar)
        self._join(call)
        error = call.done.exception()
        if error is not None:
            kind = RunStopped if isinstance(error, FloatingPointError) else BackendError
            raise kind(f"the model failed: {one_line(error)}") from error
        seconds = time.perf_counter() - began
        usage = Usage(len(tokens), len(call.written), call.cached, calls=1, seconds=seconds)
        stopped = call.written[-1] in self._stops
        written = call.written[:-1] if stopped else call.written
        stopped = stopped or self._tokens.ended_by_text(written)
        cut_off_after = () if stopped else tokens
        text = self._tokens.decode(written, native=bool(tools), cut_off_after=cut_off_after)
        return Completion(text, usage, "stop" if stopped else "length", round(call.logprob, 6))

    def close(self) -> None:
        """Answer the calls that have come, and take no more."""
        with self._lock:
            self._closed = True
        self._worker.shutdown()

    def _join(self, call: _Call) -> None:
        """Put a call in line, and wake the worker if it rests."""
        with self._lock:
            if self._closed:
                raise BackendError("the backend is closed")
            self._waiting.append(call)
            if not self._serving:
                self._serving = True
                self._worker.submit(self._serve).add_done_callback(self._report)

    def _serve(self) -> None:
        """Step by step, answer all calls that come, until none is left."""
        with torch.inference_mode():
            if self._library is not None:
                while self._take_alike():
                    self._generate(self._library)
            else:
                while self._seat_waiting():
                    self._step()

    def _report(self, served: Future[None]) -> None:
        """Pass an error of the worker on to all who wait, and be ready for others."""
        error = served.exception()
        if error is not None:
            with self._lock:
                failed = [*self._alike, *self._waiting]
                if self._library is None:
                    failed += self._board.calls
                    self._board.groups.clear()
                self._waiting.clear()
                self._serving = False
            for call in failed:
                if not call.done.done():  # one that was being seated is there twice
                    call.done.set_exception(error)

    def _take_alike(self) -> bool:
        """Take the first that waits, and those whose prompts are as long as its prompt.

        Returns:
            Whether there is anything to do.
        """
        with self._lock:
            alike = [c for c in self._waiting if len(c.prompt) == len(self._waiting[0].prompt)]
            self._alike = alike[: self._max_batch]
            self._waiting = deque(call for call in self._waiting if call not in self._alike)
            self._serving = bool(self._alike)
            return self._serving

    def _generate(self, library: LibraryGeneration) -> None:
        """Have the calls that were taken answered from beginning to end."""
        began = time.perf_counter()
        calls = self._alike

        def ended() -> list[bool]:
            return [bool(call.written) and self._has_ended(call) for call in calls]

        def write(logits: torch.Tensor) -> list[int]:
            rows = [row for row, over in enumerate(ended()) if not over]
            if rows:
                self._write(logits[rows], [calls[row] for row in rows])
                self.stats.steps += 1
            return [call.written[-1] for call in calls]

        prompts = torch.from_numpy(np.stack([call.prompt for call in calls]))
        library.run(prompts, max(call.limit for call in calls), write, ended)
        self.stats.calls += len(calls)
        self.stats.prompt_tokens += prompts.numel()
        self.stats.computed_tokens += prompts.numel()
        self.stats.completion_tokens += sum(len(call.written) for call in calls)
        self.stats.seconds += time.perf_counter() - began
        for call in calls:
            call.done.set_result(None)

    def _seat_waiting(self) -> bool:
        """Let calls in, first come, first served, while there is room for the next.

        Returns:
            Whether there is anything to do.
        """
        with self._lock:
            while self._waiting and self._seat(self._waiting[0]):
                self._waiting.popleft()
            self._serving = bool(self._board.groups)
            return self._serving

    def _seat(self, call: _Call) -> bool:
        """Let a call in, if it has its place in the next step: alone, it has."""
        company = self._board.calls
        if len(company) == self._max_batch:
            return False
        tokens = call.prompt[:-1]
        known = self._store.longest(tokens)
        new = len(tokens) - len(known)
        readers = [other for other in company if not other.written]
        if readers and new + sum(len(other.unread) for other in readers) > _READ_AT_ONCE:
            return False
        # If others are about to read most of what is new, it will be known one step later.
        ahead = max((common_length(tokens, other.prompt[:-1]) for other in readers), default=0)
        if 2 * (ahead - len(known)) > new:
            return False
        slots = self._store.reserve(new, keep=[known, *(other.slots for other in company)])
        if slots is None:
            return False
        call.slots = np.concatenate([known, slots])
        call.cached = len(known)
        self._board.seat(call, known)
        self.stats.computed_tokens += new + 1
        return True

    def _step(self) -> None:
        """Read what is unread, write a token for every call, and let those that have ended go."""
        began = time.perf_counter()
        calls = self._board.calls
        readers = [(call, len(call.columns)) for call in calls if not call.written]
        logits = self._model(**self._board.lay_out(), use_cache=True).logits[0, : len(calls)]
        self._write(logits, calls)
        for call, known in readers:
            read = self._board.read(call, call.columns[known : len(call.slots)])
            self._store.cells.write(call.slots[known:], read)
            self._store.add(call.prompt[:-1], call.slots)
        ended = [call for call in calls if self._has_ended(call)]
        self.stats.calls += len(ended)
        self.stats.steps += 1
        self.stats.prompt_tokens += sum(len(call.prompt) for call in ended)
        self.stats.completion_tokens += len(calls)
        for call in ended:  # all before one leaves: if this fails, all are told
            self._keep(call, calls)
        self.stats.seconds += time.perf_counter() - began
        for call in ended:
            self._board.leave(call)
            call.done.set_result(None)

    def _write(self, logits: torch.Tensor, calls: Sequence[_Call]) -> None:
        """Add a token to each call; its logits are a row."""
        for call, (token, logprob) in zip(calls, _draw(logits.float(), calls), strict=True):
            call.written.append(token)
            call.logprob += logprob
            if call.matcher is not None:
                call.matcher.accept_token(token)

    def _keep(self, call: _Call, company: Sequence[_Call]) -> None:
        """Put what was decoded into the store, if there is room: the next prompt may begin so."""
        decoded = call.columns[len(call.slots) :]
        slots = self._store.reserve(len(decoded), keep=[other.slots for other in company])
        if slots is not None:
            self._store.cells.write(slots, self._board.read(call, decoded))
            tokens = np.concatenate([call.prompt, np.array(call.written[:-1], np.int64)])
            self._store.add(tokens, np.concatenate([call.slots, slots]))

    def _has_ended(self, call: _Call) -> bool:
        full = len(call.written) >= call.limit
        return full or call.written[-1] in self._stops or self._tokens.ended_by_text(call.written)


class _Board:
    """The calls in flight, group by group."""

    def __init__(self, store: PrefixStore, *, exact: bool) -> None:
        self.groups: list[_Group] = []
        self.store = store
        self._exact = exact
        self._rows, self._columns = (_ROWS, _COLUMNS) if exact else (1, 1)
        self._cache = Cache([_Layer(i, self._rows) for i in range(len(store.cells.layers))])

    @classmethod
    def of(cls, model: PreTrainedModel, cache_bytes: int, *, exact: bool) -> Self | None:
        """Return a board for a model, with a store of at most so many bytes.

        Returns:
            None where a trial shows that the model does not attend to columns as to a text. Then
            it is as it was.
        """
        kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
        if kinds != {DynamicLayer} or not model._supports_attention_backend:
            return None
        tokens = np.arange(8) % model.get_input_embeddings().weight.shape[0]
        text = torch.from_numpy(tokens[None]).to(model.device)
        own = model.config._attn_implementation
        with torch.inference_mode():
            cache = DynamicCache()
            plain = model(input_ids=text, past_key_values=cache, use_cache=True).logits[0, -2:]
            if not cache.get_seq_length():
                return None
            sample = KeyValues([(k[:, :, :1], v[:, :, :1]) for k, v, _ in cache])
            board = cls(PrefixStore(sample, max(1, cache_bytes // sample.nbytes)), exact=exact)
            model.set_attn_implementation(_GROUPED)
            call = _Call(tokens[:-1], Sampling(), 2)
            board.seat(call, _none())
            try:
                rows = [model(**board.lay_out(), use_cache=True).logits[0, 0]]
                call.written.append(int(tokens[-1]))
                rows.append(model(**board.lay_out(), use_cache=True).logits[0, 0])
                # Rounding is a few hundredths of this in bfloat16.
                if (torch.stack(rows) - plain).abs().mean() <= 0.1 * plain.float().std():
                    board.leave(call)
                    return board
            except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
                pass  # it looks into the keys and values, or knows nothing of columns
        model.set_attn_implementation(own)
        return None

    @property
    def calls(self) -> list[_Call]:
        """The calls, in the order in which a step writes for them."""
        return [call for group in self.groups for call in group.calls]

    def seat(self, call: _Call, known: Ints) -> None:
        """Take in a call; ``known`` are the slots of the store that hold its prompt's beginning."""
        group = next((group for group in self.groups if group.suits(call, known)), None)
        if group is None or self._exact:
            group = _Group(self.store, self._columns)
            self.groups.append(group)
        group.seat(call, known)

    def leave(self, call: _Call) -> None:
        """Let a call go, and its group with the last."""
        group = self._group_of(call)
        group.calls.remove(call)
        if not group.calls:
            self.groups.remove(group)

    def read(self, call: _Call, columns: Ints) -> KeyValues:
        """Return a copy of columns of a call's group."""
        return self._group_of(call).cells.read(columns)

    def lay_out(self) -> dict[str, Any]:
        """Give all that is unread its columns, and return what the model takes for a step.

        Tokens have shape [1, tokens]; the mask, [1, 1, tokens, columns of the widest group], says
        which columns of its group each token sees. The logits are those of the calls' last tokens.
        Where results must be exact, further tokens and logits follow that mean nothing.
        """
        unread = [call.unread for call in self.calls]
        ends = np.cumsum([len(tokens) for tokens in unread])
        read = [len(call.columns) for call in self.calls]
        positions = [at + np.arange(len(new)) for at, new in zip(read, unread, strict=True)]
        laid_out = [group.lay_out() for group in self.groups]
        widths = [_filled(seen.shape[1], self._columns) for _, seen in laid_out]
        idle = _filled(ends[-1], self._rows) - ends[-1]
        sees = np.zeros((ends[-1] + idle, max(widths)), bool)
        parts, start = [], 0
        for group, (columns, seen), width in zip(self.groups, laid_out, widths, strict=True):
            rows = slice(start, start := start + len(columns))
            sees[rows, : seen.shape[1]] = seen
            parts.append(_Part(group.cells, rows, self._tensor(columns), width))
        for layer in self._cache.layers:
            layer.parts = parts
        mask = self.store.cells.layers[0][0].new_zeros(1, 1, *sees.shape)
        mask.masked_fill_(~self._tensor(sees), torch.finfo(mask.dtype).min)
        nothing = np.zeros(idle, np.int64)
        lasts = np.pad(ends - 1, (0, _filled(len(ends), self._rows) - len(ends)))
        return {
            "input_ids": self._tensor(np.concatenate([*unread, nothing])[None]),
            "position_ids": self._tensor(np.concatenate([*positions, nothing])[None]),
            "attention_mask": mask,
            "past_key_values": self._cache,
            "logits_to_keep": self._tensor(lasts),
        }

    def _group_of(self, call: _Call) -> _Group:
        return next(group for group in self.groups if call in group.calls)

    def _tensor(self, numbers: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(numbers).to(self.store.cells.layers[0][0].device)


class _Group:
    """Calls that have much in common: what some of them have read, as columns, each once.

    Columns that no call sees any more are used again.
    """

    def __init__(self, store: PrefixStore, multiple: int) -> None:
        self.calls: list[_Call] = []
        self.cells = store.cells.read(_none())
        """The keys and values of the columns."""
        self._store = store
        self._multiple = multiple
        """There is a multiple of so many columns."""
        self._slots = _none()
        """The slot of the store that holds the same as a column; -1: none."""

    def suits(self, call: _Call, known: Ints) -> bool:
        """Return whether a call has so much in common with these that it should join them.

        A call pays for every column of its group, seen or not: at most twice for what it reads.
        """
        seen = self._seen()
        shared = np.isin(known, self._slots[seen]).sum()
        shortest = min(len(other.prompt) for other in (*self.calls, call))
        return bool(seen.sum() + len(call.prompt) - shared <= 2 * shortest)

    def seat(self, call: _Call, known: Ints) -> None:
        """Take in a call; what the store holds of its prompt is copied, unless it is here."""
        seen = self._seen()
        here = dict(zip(self._slots[seen].tolist(), np.flatnonzero(seen).tolist(), strict=True))
        columns = np.array([here.get(slot, -1) for slot in known.tolist()], np.int64)
        absent = columns < 0
        self.calls.append(call)
        to_come = sum(other.columns_to_come for other in self.calls)
        self._make_room(int(seen.sum()) + to_come)
        columns[absent] = self._free(absent.sum())
        self._slots[columns[absent]] = known[absent]
        self.cells.write(columns[absent], self._store.cells.read(known[absent]))
        call.columns = columns

    def lay_out(self) -> tuple[Ints, NDArray[np.bool_]]:
        """Give what the calls have not read yet its columns.

        Returns:
            The column of each token, and which columns each token sees: shape [tokens, columns].
        """
        counts = [len(call.unread) for call in self.calls]
        ends = np.cumsum(counts)
        new = self._free(ends[-1])
        self._slots[new] = -1
        for call, own in zip(self.calls, np.split(new, ends[:-1]), strict=True):
            of_prompt = call.slots[len(call.columns) :]
            self._slots[own[: len(of_prompt)]] = of_prompt
            call.columns = np.concatenate([call.columns, own])
        sees = np.zeros((ends[-1], 1 + max(call.columns.max() for call in self.calls)), bool)
        for call, count, end in zip(self.calls, counts, ends, strict=True):
            read = len(call.columns)
            sees[end - count : end, call.columns] = np.tri(count, read, read - count, bool)
        return new, sees

    def _seen(self) -> NDArray[np.bool_]:
        """Return which columns some call sees."""
        seen = np.zeros(len(self._slots), bool)
        for call in self.calls:
            seen[call.columns] = True
        return seen

    def _free(self, count: int) -> Ints:
        """Return the first columns that no call sees: a step reads all up to the last in use."""
        return np.flatnonzero(~self._seen())[:count]

    def _make_room(self, count: int) -> None:
        """Have room for so many columns; growing doubles it, because it copies them all."""
        room = len(self._slots)
        if count > room:
            more = _filled(max(count, 2 * room), self._multiple) - room
            # With zeros: what is hidden is multiplied by 0, and NaN would spread.
            self.cells.extend(more)
            self._slots = np.concatenate([self._slots, np.full(more, -1)])


@dataclass(frozen=True, slots=True)
class _Part:
    """A group's part in a step."""

    cells: KeyValues
    """The keys and values of its columns."""
    rows: slice
    """Which of the step's tokens are its own."""
    columns: torch.Tensor
    """Where the keys and values of these tokens go."""
    width: int
    """Columns behind are seen by none."""


class _Layer(DynamicLayer):  # type: ignore[misc]
    """A layer of the model's cache: the keys and values of all groups.

    To the model, keys and values are opaque. It gets the layer for both, and hands it on to
    :func:`_grouped_attention`.
    """

    def __init__(self, index: int, rows: int) -> None:
        super().__init__()
        self.parts: list[_Part] = []
        """The groups' parts in the present step."""
        self._index = index
        self._rows = rows

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Self, Self]:
        for part in self.parts:
            for cells, x in zip(self._of(part), (key_states, value_states), strict=True):
                cells.index_copy_(2, part.columns, x[:, :, part.rows])
        return self, self

    def attend(self, query: torch.Tensor, mask: torch.Tensor, scale: float | None) -> torch.Tensor:
        """Compute attention, each group's tokens to the group's columns.

        Where several query heads share one head of keys, folding them into the queries gives the
        same numbers as a copy of the keys for each head, and reads the columns once: with long
        prefixes that is most of the time of a step.

        Args:
            query: Shape [1, heads, tokens, size].
            mask: Shape [1, 1, tokens, columns]; what it adds hides a column.
            scale: Of the products of queries and keys; None: the usual.

        Returns:
            Shape [1, tokens, heads, size of values].
        """
        outputs = []
        for part in self.parts:
            key, value = (cells[:, :, : part.width] for cells in self._of(part))
            heads, key_heads, rows = query.shape[1], key.shape[1], part.columns.shape[0]
            shared = heads // key_heads
            output = torch.nn.functional.scaled_dot_product_attention(
                self._fill(query[:, :, part.rows].reshape(1, key_heads, shared * rows, -1)),
                key,
                value,
                attn_mask=self._fill(mask[:, :, part.rows, : part.width].repeat(1, 1, shared, 1)),
                scale=scale,
            )
            outputs.append(output[:, :, : shared * rows].reshape(1, heads, rows, -1))
        idle = query.shape[2] - self.parts[-1].rows.stop
        outputs.append(outputs[-1].new_zeros(1, heads, idle, outputs[-1].shape[3]))
        return torch.cat(outputs, 2).transpose(1, 2).contiguous()

    def _fill(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows with copies of the first behind them, where there must be a multiple."""
        more = _filled(rows.shape[2], self._rows) - rows.shape[2]
        return torch.cat([rows, rows[:, :, :1].expand(-1, -1, more, -1)], 2) if more else rows

    def get_seq_length(self) -> int:
        return 0

    def _of(self, part: _Part) -> tuple[torch.Tensor, torch.Tensor]:
        return part.cells.layers[self._index]


def _grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor | _Layer,
    value: torch.Tensor | _Layer,
    attention_mask: torch.Tensor | None,
    **how: Any,
) -> tuple[torch.Tensor, None]:
    """Attention to the columns of groups; with any other cache, as ``sdpa`` computes it."""
    if isinstance(key, _Layer):
        return key.attend(query, attention_mask, how.get("scaling")), None
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **how)
    return output, None


AttentionInterface.register(_GROUPED, _grouped_attention)
AttentionMaskInterface.register(_GROUPED, sdpa_mask)


def _filled(count: int, multiple: int) -> int:
    """Return the least multiple that is no less than a count."""
    return -(-count // multiple) * multiple


def _draw(logits: torch.Tensor, calls: Sequence[_Call]) -> list[tuple[int, float]]:
    """Draw each row's next token, and say how likely it was: the natural logarithm.

    The token is the first whose cumulative probability reaches a number in (0, 1], which therefore
    never falls on a token of probability zero.

    Args:
        logits: Shape [rows, vocabulary]; changed where a grammar forbids a token.
        calls: The rows.

    Raises:
        FloatingPointError: What the model computed is no number.
    """
    matchers = {row: c.matcher for row, c in enumerate(calls) if c.matcher is not None}
    if matchers:
        mask(logits, matchers)
    temperatures = logits.new_tensor([[call.sampling.temperature] for call in calls])
    levels = logits.new_tensor([[1.0 - call.luck.random()] for call in calls])
    likely = (logits / temperatures.clamp(min=_GREEDY)).log_softmax(-1)
    cumulative = likely.exp().cumsum(-1)
    drawn = torch.searchsorted(cumulative, levels * cumulative[:, -1:])
    likeliest = logits.argmax(-1, keepdim=True)
    # Among what is no number, the search finds no place.
    tokens = torch.where(temperatures < _GREEDY, likeliest, drawn).clamp(max=logits.shape[-1] - 1)
    logprobs = likely.gather(-1, tokens)[:, 0].tolist()
    if any(map(math.isnan, logprobs)):
        raise FloatingPointError(
            "it computes what is no number (NaN): its weights are damaged, or its numbers are too "
            "large for --dtype float16"
        )
    return list(zip(tokens[:, 0].tolist(), logprobs, strict=True))
