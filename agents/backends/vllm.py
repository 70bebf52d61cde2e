"""A language model in vLLM's engine, for many callers at once.

The engine computes in processes of its own: it batches what is in flight step by step, and keeps
the keys and values of what it has read, so a prompt that begins alike computes only what is new. An
event loop in a thread carries calls to it and answers back, so no caller waits for another.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack
from itertools import count
from multiprocessing import resource_tracker
from pathlib import Path
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, Self, TypeVar

# vLLM and the engine's processes read these when they start; what is set already, stays.
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # forks with threads can hang
# Errors are shown, but not what vLLM and torch have to say of every start.
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
os.environ.setdefault("TORCH_LOGS", "-all")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
os.environ.setdefault("PYTHONWARNINGS", "ignore")

import torch
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMError
from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from agents.adapters import CONFIG, adapter_digest, chat_files, check_adapter
from agents.backends.chat_tokens import ChatTokens
from agents.base import BackendError, ChatMessage, Closing, Completion, RunStopped, Sampling
from agents.chat_template import Ends
from agents.models import base_folder, load_tokenizer, pick_dtype, resolve
from toolwoz_gym.types import ToolSpec, Usage, UsageError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

_GREEDY = 1e-5
"""Temperatures below count as zero."""

_PATIENCE = 30.0
"""Seconds after which the engine's processes are killed if they have not ended."""

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks for which vLLM makes room."""

_WATCHDOG = """
import os, signal, sys
sys.stdin.read()  # until whoever holds the other end has ended
for process in sys.argv[1:]:
    try:
        os.kill(int(process), signal.SIGTERM)
    except ProcessLookupError:
        pass
"""

_CPU = {
    # A prompt that is read in parts kills the engine if it has a seed: for each part, vLLM turns
    # the request's generator back, which generators on the CPU cannot do.
    "enable_chunked_prefill": False,
    "enforce_eager": True,  # compiling takes minutes
    "kv_cache_memory_bytes": 2 << 30,  # else nearly all of the machine's memory
    "block_size": 32,
}
"""How the engine is set on a CPU."""


class VLLMBackend(Closing):
    """A causal language model in vLLM's asynchronous engine."""

    def __init__(
        self,
        engine_options: dict[str, Any],
        tokenizer: PreTrainedTokenizerBase,
        adapter: str | None = None,
    ) -> None:
        """Start an engine. Use :meth:`load`.

        Args:
            engine_options: Arguments of vLLM's ``AsyncEngineArgs``.
            tokenizer: The model's tokenizer, with a chat template.
            adapter: Folder of a LoRA adapter to answer with; None: the model as it is.

        Raises:
            UsageError: The engine does not start, or the adapter does not fit.
        """
        self._tokens = ChatTokens(tokenizer)
        self._lock = Lock()
        self._closed = False
        self._numbers = count()
        self._answers: set[Future[RequestOutput]] = set()
        self._adapter: LoRARequest | None = None
        self._chat: list[tuple[str, bytes]] = []
        self._engine: Any = None  # an AsyncLLM, once it has started
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._run_loop, name="vllm-backend", daemon=True)
        self._thread.start()
        with ExitStack() as unless_it_starts:
            unless_it_starts.callback(self.close)
            self._engine = self._wait_for(_start(engine_options))
            self._watchdog = _watch_over(self._engine)
            if adapter is not None:
                self.use_adapter(adapter)
            unless_it_starts.pop_all()
        self.context = int(self._engine.model_config.max_model_len)
        """Most tokens of a prompt and its completion together."""

    @classmethod
    def load(
        cls,
        name: str,
        device: str = "auto",
        dtype: str = "auto",
        *,
        exact: bool = False,
        gpu_memory: float = 0.9,
    ) -> Self:
        """Load a model by name: see :func:`agents.models.resolve`.

        Args:
            name: The model's name.
            device: ``auto``, or what vLLM is built for: ``cuda`` or ``cpu``.
            dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
            exact: Compute each call as if it were alone, by vLLM's batch-invariant mode, which is
                for CUDA; engines that this process starts later do so too.
            gpu_memory: The part of a GPU's memory that vLLM may take, between 0 and 1.

        Raises:
            UsageError: There is no such model, device or data type, or vLLM cannot run the model.
        """
        kind = current_platform.device_type
        if device not in ("auto", kind):
            raise UsageError(f"this vLLM runs on {kind or 'no device here'}, not on {device!r}")
        if exact and kind != "cuda":
            raise UsageError(f"vLLM computes exactly on CUDA only, not on {kind}")
        if exact:
            os.environ["VLLM_BATCH_INVARIANT"] = "1"
        source = resolve(name)
        folder = base_folder(source)
        if source.adapter is not None:
            _check(folder, source.adapter)
        options = {
            "model": folder,
            "dtype": str(pick_dtype(dtype, torch.device(kind))).removeprefix("torch."),
            "max_model_len": -1,  # the model's context, or what there is memory for
            "enable_prefix_caching": True,
            "logprobs_mode": "processed_logprobs",  # at the sampling temperature
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            **(_CPU if kind == "cpu" else {"gpu_memory_utilization": gpu_memory}),
        }
        if source.adapter is not None:
            options |= {"enable_lora": True, "max_lora_rank": _rank(source.adapter)}
        return cls(options, load_tokenizer(source), source.adapter)

    def use_adapter(self, folder: str) -> None:
        """Answer with another adapter from now on; calls in flight keep theirs.

        Args:
            folder: A LoRA adapter, of no higher rank than the one that the backend began with.

        Raises:
            UsageError: The adapter does not fit, is talked to in another way than the one before,
                or the backend began without any.
        """
        if self._engine.vllm_config.lora_config is None:
            raise UsageError("the model was loaded without an adapter: load it with one")
        _check(self._engine.model_config.model, folder)
        chat = [(file.name, file.read_bytes()) for file in chat_files(folder)]
        if self._adapter is not None and chat != self._chat:
            raise UsageError(
                f"{folder} comes with another tokenizer or chat template: load it anew"
            )
        request = _lora_request(folder)
        try:
            self._wait_for(self._engine.add_lora(request))
        except Exception as error:
            if type(error) is not Exception:  # which is what vLLM raises when it fails there
                raise
            raise UsageError(f"vLLM cannot use the adapter {folder}: {one_line(error)}") from error
        self._adapter, self._chat = request, chat

    def complete(
        self, prompt: Sequence[ChatMessage], sampling: Sampling, tools: Sequence[ToolSpec] = ()
    ) -> Completion:
        """Write the next message of a chat.

        Args:
            prompt: The chat. With ``tools``, actions of the assistant that are tool calls are shown
                to the model as such, and ``tool`` messages after them as their answers.
            sampling: How it is drawn.
            tools: Tools that the model may call in its own format, if its chat template has one.
                A call comes back as the action that makes it. None: the model sees no tools but
                those that the prompt tells of.

        Raises:
            UsageError: The model's chat template refuses the chat.
            BackendError: The call failed, or the backend is closed.
            RunStopped: The engine has died.
        """
        tokens = self._tokens.encode(prompt, tools)
        room = self.context - len(tokens)
        if room <= 0:
            return Completion("", Usage(), "context")
        began = time.perf_counter()
        output = self._answer(tokens, _params(sampling, room, self._tokens.ends))
        seconds = time.perf_counter() - began
        (written,) = output.outputs
        if written.finish_reason not in ("stop", "length"):
            raise BackendError(f"vLLM broke a call off: {written.finish_reason}")
        stopped = written.finish_reason == "stop"
        by_token = stopped and not isinstance(written.stop_reason, str)
        text = written.token_ids[:-1] if by_token else written.token_ids
        return Completion(
            self._tokens.decode(text, native=bool(tools), cut_off_after=() if stopped else tokens),
            Usage(
                len(tokens),
                len(written.token_ids),
                cached=output.num_cached_tokens,
                calls=1,
                seconds=seconds,
            ),
            "stop" if stopped else "length",
            # Greedily, nothing else could have been written.
            round(written.cumulative_logprob, 6) if sampling.temperature >= _GREEDY else 0.0,
        )

    def close(self) -> None:
        """Answer the calls that have come, and end the engine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        wait(self._answers)
        self._wait_for(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _answer(self, tokens: list[int], params: SamplingParams) -> RequestOutput:
        """Have the engine complete a prompt, and wait for it."""
        with self._lock:
            if self._closed:
                raise BackendError("the backend is closed")
            answer = asyncio.run_coroutine_threadsafe(self._generate(tokens, params), self._loop)
            self._answers.add(answer)
        answer.add_done_callback(self._answers.discard)
        try:
            return answer.result()
        except EngineDeadError as error:
            raise RunStopped("vLLM's engine has died; what it said is above") from error
        except VLLMError as error:
            raise BackendError(f"vLLM failed: {one_line(error)}") from error

    async def _generate(self, tokens: list[int], params: SamplingParams) -> RequestOutput:
        outputs = self._engine.generate(
            tokens_input(tokens),
            params,
            request_id=str(next(self._numbers)),
            lora_request=self._adapter,
        )
        (output,) = [output async for output in outputs]
        return output

    async def _stop(self) -> None:
        """End the engine, and all that still waits for it."""
        if self._engine is not None:
            self._engine.shutdown(timeout=_PATIENCE)
            self._watchdog.kill()
            self._watchdog.communicate()
            self._engine = None  # now, not when the interpreter ends and takes away what it needs
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def _run_loop(self) -> None:
        # The engine's processes, which this thread starts, inherit it. Whether Ctrl-C ends them is
        # for the run to say, which answers the calls in flight first.
        resource_tracker.ensure_running()  # when it begins to run, it undoes this
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        self._loop.run_forever()

    def _wait_for(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


async def _start(options: dict[str, Any]) -> AsyncLLM:
    """Start an engine, in the event loop that will serve it."""
    try:
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**options))
    except (OSError, ValueError, RuntimeError, VLLMError) as error:
        raise UsageError(f"vLLM cannot run {options['model']}: {one_line(error)}") from error


def _watch_over(engine: AsyncLLM) -> subprocess.Popen[bytes]:
    """Have an engine end with this process, even if this one is killed: vLLM's would live on."""
    processes = [str(p.pid) for p in engine.engine_core.resources.engine_manager.processes]
    command = [sys.executable, "-I", "-c", _WATCHDOG, *processes]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def _params(sampling: Sampling, room: int, ends: Ends) -> SamplingParams:
    """Write how a completion is drawn as vLLM does; ``room`` is what its context leaves.

    vLLM stops at the end tokens of the model's own settings too.
    """
    grammar = sampling.grammar
    return SamplingParams(
        temperature=sampling.temperature if sampling.temperature >= _GREEDY else 0.0,
        max_tokens=min(sampling.max_tokens, room),
        seed=sampling.seed,
        structured_outputs=None if grammar is None else StructuredOutputsParams(grammar=grammar),
        logprobs=0,  # that of the token that was drawn, and no others
        stop_token_ids=sorted(ends.tokens),
        stop=[ends.text] if ends.text else None,
        detokenize=bool(ends.text),  # to find that text in what is written
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _check(base: str, adapter: str) -> None:
    """Refuse an adapter that does not fit its base, or that vLLM could not use whole."""
    if check_adapter(base, adapter):
        raise UsageError(f"{adapter} brings embeddings of its own, which vLLM does not take")


def _rank(adapter: str) -> int:
    """Return the rank for which the engine must make room."""
    config = json.loads((Path(adapter) / CONFIG).read_text(encoding="utf-8"))
    highest = max(config.get("r", 0), *config.get("rank_pattern", {}).values(), 1)
    try:
        return next(rank for rank in _RANKS if rank >= highest)
    except StopIteration:
        raise UsageError(f"vLLM serves adapters of rank {_RANKS[-1]} at most: {adapter}") from None


def _lora_request(adapter: str) -> LoRARequest:
    """Name an adapter after what is in it.

    vLLM knows adapters, and the prefixes that it keeps, by name and number: a folder that is
    overwritten in the next round must not be taken for the old one.
    """
    name = adapter_digest(adapter)
    return LoRARequest(f"adapter-{name[:16]}", 1 + int(name[:7], 16), str(Path(adapter).resolve()))
