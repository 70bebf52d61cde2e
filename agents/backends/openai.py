"""A language model behind an OpenAI-compatible endpoint, for many callers at once.

vLLM's server, llama.cpp's, Ollama and hosted services speak this protocol; LiteLLM speaks it for
the others. Requests are not streamed: a message of an agent is short, and an answer is there as a
whole or not at all.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from threading import BoundedSemaphore, Event, Lock
from typing import Any, Self, TypedDict, Unpack
from urllib.parse import SplitResult, unquote, urlsplit

from tenacity import RetryCallState

from agents.backends.answers import malformed, read_answer, tokens
from agents.backends.retry import (
    FAILED,
    Patience,
    Refusal,
    accepted,
    concerns_all,
    describe,
    is_unreachable,
    overflows,
    refused_parameter,
    unreadable_output,
    wants_too_much,
)
from agents.backends.spending import OPENAI, Budget, Price, is_openai, prices
from agents.backends.transport import LARGEST, BrokenAnswer, Connections
from agents.base import BackendError, ChatMessage, Closing, Completion, RunStopped, Sampling
from agents.tool_formats import encodable, in_protocol, native_chat, tool_schema
from toolwoz_gym.types import ToolSpec, Usage, UsageError

KEY_VARIABLE = "OPENAI_API_KEY"
"""The environment variable that holds the API key."""

_NOT_ESSENTIAL = ("logprobs", "top_logprobs", "parallel_tool_calls", "seed")
"""Parameters that are left out for a server that refuses them."""

_WORTH_A_WORD = 3
"""So many failures of a call are told of."""

_SILENCE = 60.0
"""Seconds between two such words, about."""

_log = logging.getLogger(__name__)

_LARGEST_EMPTY = 1 << 20
_LARGEST_TOKEN = 1 << 12
"""Bytes of an answer without a token, and so many more for each that it may have: a token with its
log-probability takes 300."""

_SEEDS = 1 << 31
"""Seeds are sent modulo this: llama.cpp reads 32 bits, and the largest such number as "any"."""

_PROBE = [{"role": "user", "content": "Hello."}]
"""What a server is asked that may be broken for one prompt alone."""


class _Options(TypedDict, total=False):
    """Arguments of :class:`OpenAIBackend` that each way to reach a model shares."""

    concurrency: int
    logprobs: bool
    patience: Patience
    budget: Budget
    price: Price | None


class OpenAIBackend(Closing):
    """A model behind the chat completions protocol."""

    def __init__(
        self,
        send: Callable[..., Any],
        model: str,
        *,
        place: str = "",
        concurrency: int = 16,
        logprobs: bool = False,
        patience: Patience | None = None,
        budget: Budget | None = None,
        price: Price | None = None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        """Serve a model that a function reaches. Use :meth:`connect` or :meth:`litellm`.

        Args:
            send: Takes the parameters of a chat completion, returns it, does not retry.
            model: The model's name there.
            place: Where that is, for error messages.
            concurrency: Most requests in flight.
            logprobs: Ask for log-probabilities. A completion has them if the server gives them and
                the temperature is 1: servers give those of the distribution at that temperature.
            patience: How failed requests are retried.
            budget: What may be spent; shared by all backends of a run.
            price: What the model costs; None: that is not known.
            close: Called by :meth:`close`.

        Raises:
            UsageError: The budget limits dollars, and the price is not known.
        """
        self._budget = budget or Budget()
        if self._budget.max_usd is not None and price is None:
            raise UsageError(
                f"the price of {model!r} is unknown, so dollars cannot be limited: limit tokens "
                "(agents/prices.toml has prices of services, none of a model at another address)"
            )
        self._send = send
        self._model = model
        self._name = f"{model} at {place}" if place else model
        self._logprobs = logprobs
        self._patience = patience or Patience()
        self._price = price
        self._close = close
        self._places = BoundedSemaphore(concurrency)
        self._closing = Event()
        self._answered = False  # whether the server has ever answered, if only with an error
        self._told = -_SILENCE
        self._refused: set[str] = set()  # parameters that the server does not take
        self._oddities: Counter[str] = Counter()
        self._lock = Lock()

    @classmethod
    def connect(
        cls,
        model: str,
        base_url: str = OPENAI,
        *,
        timeout: float = 120.0,
        **options: Unpack[_Options],
    ) -> Self:
        """Reach a model at an address. The API key is taken from ``OPENAI_API_KEY``, if set.

        Connections are kept for the next request. Proxies of the environment are not used.

        Args:
            model: The model's name there.
            base_url: The address; most end in ``/v1``.
            timeout: Seconds of silence after which a request has failed.
            **options: Further arguments of the class. The price is looked up for OpenAI's models.

        Raises:
            UsageError: The address is none, or OpenAI's service is to be used without a key.
        """
        address = _address(base_url)
        key = os.environ.get(KEY_VARIABLE, "").strip()
        if not key and is_openai(base_url):
            raise UsageError(f"OpenAI's service needs an API key: set {KEY_VARIABLE}")
        if not (key.isascii() and key.isprintable()):
            raise UsageError(f"{KEY_VARIABLE} has characters that no key has")
        if is_openai(base_url):
            options.setdefault("price", prices().get(f"openai/{model}"))
        user, at, host = address.netloc.rpartition("@")
        place = address._replace(netloc=host, query="")
        url = address._replace(netloc=host, path=f"{address.path}/chat/completions").geturl()
        secret = base64.b64encode(unquote(user).encode()).decode()
        headers = {
            "Authorization": f"Basic {secret}" if at else f"Bearer {key or 'none'}",
            "Content-Type": "application/json",
            "User-Agent": "toolwoz-gym",
        }
        connections = Connections()

        def send(**request: Any) -> Any:
            most = request.get("max_tokens") or request["max_completion_tokens"]
            body = json.dumps(request | request.pop("extra_body", {})).encode()
            reply = connections.exchange(
                "POST",
                url,
                headers,
                body,
                seconds=timeout,
                largest=min(LARGEST, _LARGEST_EMPTY + most * _LARGEST_TOKEN),
            )
            return accepted(reply)

        return cls(send, model, place=place.geturl(), close=connections.close, **options)

    @classmethod
    def litellm(cls, model: str, *, timeout: float = 120.0, **options: Unpack[_Options]) -> Self:
        """Reach a model of any service that LiteLLM knows, with the API key it wants.

        Args:
            model: LiteLLM's name of the model, such as ``anthropic/claude-haiku-4-5``.
            timeout: Seconds after which a request has failed.
            **options: Further arguments of the class. The price is looked up.

        Raises:
            UsageError: LiteLLM is not installed, or does not know the service.
        """
        from agents.backends.services import reach

        send, close = reach(model, timeout)
        options.setdefault("price", prices().get(model))
        return cls(send, model, place="LiteLLM", close=close, **options)

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
            sampling: How it is drawn. A grammar is sent to the server, which has to keep to it.
            tools: Tools that the model may call in its own format. A call comes back as the action
                that makes it. None: the model sees no tools but those that the prompt tells of.

        Returns:
            The completion. Its usage is that of all tries: answers that were broken are paid too.

        Raises:
            RunStopped: No call can succeed: the key, the model's name or the address is wrong,
                nobody is there, ``max_tokens`` is more than the model can write, or the budget is
                spent (:class:`~agents.backends.spending.BudgetSpent`).
            BackendError: There is no answer to be had.
        """
        began = time.perf_counter()
        request = self._request(prompt, sampling, tools)
        retrying = self._patience.retrying(self._closing, lambda: self._answered, self._tell)
        bills: list[Usage] = []
        try:
            answer: Completion = retrying(self._ask, request, bills)
        except FAILED as error:
            last = self._once_more(error, request, bills)
            if last is None:
                tries = retrying.statistics["attempt_number"]
                often = f" ({tries} tries)" if tries > 1 else ""
                nobody = is_unreachable(error) and not self._answered
                hint = ": is the server running?" if nobody else ""
                kind = RunStopped if nobody or concerns_all(error) else BackendError
                # Not chained: the server's words can repeat the key.
                raise kind(self._line(f"{describe(error)}{often}{hint}")) from None
            answer = last
        retries = retrying.statistics["attempt_number"] - 1
        call = Usage(calls=1, retries=retries, seconds=time.perf_counter() - began)
        return replace(answer, usage=sum(bills, call))

    def close(self) -> None:
        """Break off waiting calls, and take no more."""
        self._closing.set()
        self._close()
        for oddity, times in self._oddities.items():
            if times > 1:
                _log.warning("%s", self._line(f"{times:,} times: {oddity}"))
        self._oddities.clear()

    def _request(
        self, prompt: Sequence[ChatMessage], sampling: Sampling, tools: Sequence[ToolSpec]
    ) -> dict[str, Any]:
        """Return the parameters of a request."""
        chat = [{**message, "content": encodable(message["content"])} for message in prompt]
        request: dict[str, Any] = {
            "model": self._model,
            "messages": [in_protocol(message) for message in native_chat(chat)] if tools else chat,
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_tokens,
            "seed": sampling.seed % _SEEDS,
        }
        if tools:
            request["tools"] = [tool_schema(tool) for tool in tools]
            request["parallel_tool_calls"] = False
        if self._logprobs and sampling.temperature == 1.0:
            # llama.cpp sends the twenty likeliest tokens for each unless told otherwise.
            request |= {"logprobs": True, "top_logprobs": 1}
        if sampling.grammar is not None:
            # vLLM's parameter and llama.cpp's: each server ignores the other's.
            form = {"grammar": sampling.grammar}
            request["extra_body"] = {"structured_outputs": form, **form}
        return request

    def _ask(self, request: Mapping[str, Any], bills: list[Usage]) -> Completion:
        """Send a request once, and again without a parameter that the server refuses.

        Args:
            request: Its parameters.
            bills: What the answers cost is added here.
        """
        while True:
            sent = self._accepted(request)
            with self._places:
                if self._closing.is_set():
                    raise BackendError("the backend is closed")
                self._budget.check()
                try:
                    answer = self._send(**sent)
                except Refusal as error:
                    self._answered = True
                    wrote = unreadable_output(error, native="tools" in request)
                    if wrote is not None:
                        self._charge(_stated(tokens(error.body)), bills)
                        return self._unread(wrote, native="tools" in request)
                    if wants_too_much(error, request["max_tokens"]):
                        advice = "lower --max-tokens (a customer's: --user-max-tokens)"
                        raise RunStopped(self._line(f"{advice}: {describe(error)}")) from None
                    if overflows(error):
                        return Completion("", Usage(), "context")
                    refused = refused_parameter(error, {"max_tokens", *_NOT_ESSENTIAL} & {*sent})
                    if refused is None:
                        raise
                    self._refused.add(refused)
                else:
                    self._answered = True
                    return self._read(answer, bills, native="tools" in request)

    def _accepted(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return a request without what the server is known to refuse.

        ``max_tokens`` comes first, although hosted models want it called ``max_completion_tokens``
        today: they refuse the old name, while older servers ignore the new one and write on.
        """
        sent = {name: value for name, value in request.items() if name not in self._refused}
        if "max_tokens" not in sent:
            sent["max_completion_tokens"] = request["max_tokens"]
        return sent

    def _read(self, answer: object, bills: list[Usage], *, native: bool) -> Completion:
        """Read an answer, and charge what it cost."""
        usage = tokens(answer)
        try:
            completion, odd = read_answer(answer, usage, native=native)
        except (BrokenAnswer, RecursionError) as error:
            self._charge(_stated(usage), bills)
            if isinstance(error, BrokenAnswer):
                raise
            raise BrokenAnswer("the answer is nested too deeply") from None
        except BackendError as error:
            self._charge(usage, bills)
            raise BackendError(self._line(describe(error))) from None
        self._charge(usage, bills)
        if odd is not None:
            self._note("a message ended for an unknown reason, and counts as whole", f" ({odd})")
        return completion

    def _unread(self, wrote: str, *, native: bool) -> Completion:
        """Return what a model wrote and its server could not read: a mistake of the model's."""
        self._note("the server could not read what the model wrote: counted as its mistake")
        return Completion(malformed(wrote, native=native), Usage(), "stop")

    def _once_more(
        self, error: Exception, request: Mapping[str, Any], bills: list[Usage]
    ) -> Completion | None:
        """Ask a last time, if a server that shows tools may break down at this prompt alone.

        If it answers another prompt and breaks down at this one again, its parser trips over what
        the model writes there: a mistake of the model's. A server that is down, or that breaks down
        at tools of any kind, does not answer the other either.

        Args:
            error: What all tries ended with.
            request: What was asked.
            bills: What the answers cost is added here.

        Returns:
            The answer, or the mistake; None: the error stands.
        """
        if not isinstance(error, Refusal) or error.status != 500 or "tools" not in request:
            return None
        try:
            self._ask({**request, "messages": _PROBE}, bills)
        except FAILED:
            return None
        try:
            return self._ask(request, bills)
        except FAILED as again:
            is_same = isinstance(again, Refusal) and again.status == 500
            return self._unread(describe(again), native=True) if is_same else None

    def _charge(self, usage: Usage, bills: list[Usage]) -> None:
        """Charge what an answer cost."""
        usage = replace(usage, usd=None if self._price is None else self._price.cost(usage))
        self._budget.charge(usage)
        bills.append(usage)

    def _note(self, oddity: str, example: str = "") -> None:
        """Count something that is odd, and tell of it the first time."""
        with self._lock:
            self._oddities[oddity] += 1
            is_first = self._oddities[oddity] == 1
        if is_first:
            _log.warning("%s", self._line(f"{oddity}{example}"))

    def _tell(self, state: RetryCallState) -> None:
        """Say now and then that a server does not answer: nobody else does for minutes."""
        error = state.outcome.exception() if state.outcome else None
        if state.attempt_number >= _WORTH_A_WORD and isinstance(error, Exception):
            now = time.monotonic()
            if now >= self._told + _SILENCE:
                self._told = now
                _log.warning("%s; trying again", self._line(describe(error)))

    def _line(self, said: str) -> str:
        """Return what an error says: whose it is, and no key."""
        return _without_keys(f"{self._name}: {said}")


def _stated(usage: Usage) -> Usage:
    """Return what a bad answer cost: a proxy's, perhaps, and nobody says that it was billed."""
    return Usage() if usage.tokens is None else usage


def _address(base_url: str) -> SplitResult:
    """Read the address of a server, with or without the end that all have in common."""
    try:
        address = urlsplit(base_url.strip())
        fits = address.port != 0
    except ValueError:  # an odd port, half a bracket
        address, fits = urlsplit(""), False
    fits = fits and address.scheme in ("http", "https") and bool(address.hostname)
    if not fits or address.fragment or not re.fullmatch(r"[!-~]+", address.geturl()):
        raise UsageError(
            f"{base_url!r} is no address of a server: give one like http://localhost:8000/v1"
        )
    path = address.path.rstrip("/").removesuffix("/chat/completions").rstrip("/")
    return address._replace(path=path)


def _without_keys(text: str) -> str:
    """Blot out the API keys of the environment."""
    for name, value in os.environ.items():
        if name.endswith("_API_KEY") and value.strip():
            text = text.replace(value.strip(), "***")
    return text
