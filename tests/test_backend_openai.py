"""The backend of OpenAI-compatible endpoints: faults, limits, tools; a real llama.cpp server."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from email.utils import format_datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import chat_server as server_module
import pytest
from chat_server import (
    Behaviour,
    ChatServer,
    Handler,
    answers,
    chat_server,
    completion,
    fails,
    says,
    writes,
)
from hypothesis import given
from hypothesis import strategies as st
from tenacity import RetryCallState

from agents import act, react, tool_calling
from agents.backends.openai import KEY_VARIABLE, OpenAIBackend
from agents.backends.retry import Patience, Refusal
from agents.backends.spending import Budget, BudgetSpent, Price, RunStopped, prices
from agents.backends.transport import Unreached
from agents.base import BackendError, ChatMessage, Completion, Sampling
from agents.models import _bundled_file
from toolwoz_gym.actions import parse_action
from toolwoz_gym.types import ToolCall, ToolSpec, Usage, UsageError

PROMPT: list[ChatMessage] = [
    {"role": "system", "content": "You are a clerk."},
    {"role": "user", "content": "A table for two, please."},
]

QUICK = Patience(tries=4, first=0.001, longest=0.01)
"""Nobody waits for a test."""

KEY = "sk-secret-0123456789"

HELLO = Completion("Hello!", Usage(10, 2), "stop")

DEAR = Price(input=1.0, cached_input=0.5, output=10.0, seen=date(2026, 1, 1), source="a test")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    # Whoever used it would not reach the server.
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as server:
        yield server


def ask(server: ChatServer, **options: Any) -> Completion:
    """Complete the prompt once, on a backend of its own."""
    with OpenAIBackend.connect("m", server.url, **{"patience": QUICK, **options}) as backend:
        return backend.complete(PROMPT, Sampling(seed=7))


def error_of(server: ChatServer, **options: Any) -> str:
    with pytest.raises(BackendError) as raised:
        ask(server, **options)
    whole = "".join(traceback.format_exception(raised.value))
    assert KEY not in whole
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_is_sent(server: ChatServer) -> None:
    assert ask(server) == HELLO
    assert server.requests == [
        {
            "model": "m",
            "messages": PROMPT,
            "temperature": 1.0,
            "max_tokens": 128,
            "seed": 7,
        }
    ]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_seeds_fit_into_31_bits(server: ChatServer) -> None:
    with OpenAIBackend.connect("m", server.url) as backend:
        for seed in (2**63 - 1, 2**31, 2**32 - 1):
            backend.complete(PROMPT, Sampling(seed=seed))
    assert [request["seed"] for request in server.requests] == [2**31 - 1, 0, 2**31 - 1]


def test_half_a_surrogate_pair_is_replaced(server: ChatServer) -> None:
    with OpenAIBackend.connect("m", server.url) as backend:
        backend.complete([{"role": "user", "content": "a \ud83d b ☕"}], Sampling())
    assert server.requests[0]["messages"][0]["content"] == "a ? b ☕"


def test_local_servers_need_no_key(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE)
    assert ask(server) == HELLO


# Faults that pass.

PASSING: dict[str, Behaviour] = {
    "429": fails(429, "slow down", code="rate_limit_exceeded"),
    "500": fails(500, "oops"),
    "502 in HTML": lambda handler: handler.send(b"<html>\n<p>Bad", 502, {"Content-Type": "text"}),
    "503": fails(503, "loading model", type="unavailable_error"),
    "408": fails(408, "request timeout"),
    "dropped connection": server_module.drops,
    "truncated body": server_module.breaks_off,
    "truncated chunk": server_module.breaks_off_a_chunk,
    "truncated stream": server_module.breaks_off_a_stream,
    "truncated JSON": writes(b'{"choices": [{"message": {"content": "Hel'),
    "bytes that are no text": writes(b'{"choices": "\xff"}'),
    "empty body": writes(b""),
    "HTML": writes(b"<html>Sign in</html>", "text/html"),
    "a list": answers([1, 2]),
    "null": answers(None),
    "an error with status 200": answers({"error": {"message": "upstream", "code": 502}}),
    "no choices": answers(completion(choices=[])),
    "choices are null": answers(completion(choices=None)),
    "no message": answers(completion(choices=[{"index": 0, "finish_reason": "stop"}])),
    "content is a number": answers(completion(choices=[{"message": {"content": 3}}])),
}


@pytest.mark.parametrize("fault", PASSING)
def test_passing_faults_are_retried(server: ChatServer, fault: str) -> None:
    server.script = [PASSING[fault]] * 2
    answer = ask(server)
    assert (answer.text, answer.usage.calls, answer.usage.retries) == ("Hello!", 1, 2)
    assert len(server.requests) == 3
    assert server.requests[0] == server.requests[2]


@pytest.mark.parametrize("fault", PASSING)
def test_faults_that_do_not_pass_end_in_one_line(server: ChatServer, fault: str) -> None:
    server.default = PASSING[fault]
    line = error_of(server)
    assert len(server.requests) == QUICK.tries
    assert line.startswith(f"m at {server.url}: ") and line.endswith("(4 tries)")


def test_silence_is_a_time_out(server: ChatServer) -> None:
    server.script = [server_module.hangs]
    assert ask(server, timeout=0.2) == HELLO
    server.script = [server_module.hangs] * 2
    assert "timed out" in error_of(server, timeout=0.2, patience=Patience(2, 0.001, 0.01))
    assert len(server.requests) == 4


def test_where_nobody_has_ever_answered_nobody_is_waited_for_long() -> None:
    with chat_server() as gone:
        pass
    said = r"Connection refused\) \(3 tries\): is the server running\?$"
    with pytest.raises(RunStopped, match=said):
        ask(gone)
    assert f"m at {gone.url}: " in error_of(gone)


def test_a_server_that_is_there_a_moment_later_is_found() -> None:
    nobody = Unreached("connection error")
    nobody.__cause__ = ConnectionRefusedError()
    answers = [completion(), nobody, nobody]

    def send(**request: Any) -> object:
        answer = answers.pop()
        if isinstance(answer, Unreached):
            raise answer
        return answer

    answer = OpenAIBackend(send, "m", patience=QUICK).complete(PROMPT, Sampling())
    assert (answer.text, answer.usage.retries) == (HELLO.text, 2)


@pytest.mark.parametrize("answer", [says("Hello!"), fails(503), fails(400)])
def test_a_server_that_has_answered_may_be_away_for_a_while(answer: Behaviour) -> None:
    with chat_server() as server:
        server.default = answer
        backend = OpenAIBackend.connect("m", server.url, patience=QUICK)
        with suppress(BackendError):
            backend.complete(PROMPT, Sampling())
        server.default = server_module.drops
    with backend, pytest.raises(BackendError, match=r"Connection refused\) \(4 tries\)") as raised:
        backend.complete(PROMPT, Sampling())
    assert not isinstance(raised.value, RunStopped)


def test_a_server_that_keeps_failing_is_told_of_once(
    server: ChatServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.default = fails(503, "overloaded")
    with OpenAIBackend.connect("m", server.url, patience=QUICK) as backend:
        for _ in range(3):
            with pytest.raises(BackendError):
                backend.complete(PROMPT, Sampling())
        server.script, server.default = [fails(503, "overloaded")], says("Hello!")
        assert backend.complete(PROMPT, Sampling()).text == "Hello!"
    assert caplog.messages == [f"m at {server.url}: HTTP 503: overloaded; trying again"]


def test_a_server_that_is_slow_at_first_is_waited_for(server: ChatServer) -> None:
    server.script = [server_module.hangs, server_module.drops]
    assert ask(server, timeout=0.2) == HELLO


# Faults that do not pass.


@pytest.mark.parametrize(
    ("fault", "says", "kind"),
    [
        (fails(401, "Incorrect API key provided", code="invalid_api_key"), "API key", RunStopped),
        (fails(403, "Not allowed"), "API key", RunStopped),
        (
            fails(404, "The model `m` does not exist", code="model_not_found"),
            "unknown model",
            RunStopped,
        ),
        (
            fails(400, "messages must be an array"),
            "HTTP 400: messages must be an array",
            BackendError,
        ),
        (
            fails(422, "temperature: out of range"),
            "HTTP 422: temperature: out of range",
            BackendError,
        ),
        (fails(429, "You exceeded your quota", code="insufficient_quota"), "quota", RunStopped),
        (fails(402, "Insufficient credits. Add more", code=402), "Insufficient", RunStopped),
        # OpenRouter's, Azure's, and such that say it elsewhere.
        (
            fails(
                403,
                "Your chosen model requires moderation and your input was flagged",
                code=403,
                metadata={"reasons": ["violence"], "flagged_input": "a table for two"},
            ),
            r"/v1: HTTP 403: Your chosen model requires moderation",
            BackendError,
        ),
        (
            fails(
                400,
                "The response was filtered due to the prompt triggering Azure OpenAI's content "
                "management policy. Please modify your prompt and retry.",
                param="prompt",
                code="content_filter",
            ),
            "HTTP 400: The response was filtered",
            BackendError,
        ),
        (fails(403, "Refused", code="content_policy_violation"), "403: Refused", BackendError),
        (fails(403, "Refused", type="content_filter"), "403: Refused", BackendError),
        (
            fails(403, "Refused", metadata={"reasons": ["x"], "flagged_input": "my seed"}),
            "403: Refused",
            BackendError,
        ),
        (lambda handler: handler.send(b"Go away", 400), "HTTP 400: Go away", BackendError),
        (
            lambda handler: handler.send(b'{"error": "no"}', 401),
            "API key .*: HTTP 401: no",
            RunStopped,
        ),
    ],
)
def test_lasting_faults_are_not_retried(
    server: ChatServer, fault: Behaviour, says: str, kind: type[BackendError]
) -> None:
    server.default = fault
    with pytest.raises(BackendError) as raised:
        ask(server)
    assert type(raised.value) is kind
    assert re.search(says, error_of(server))
    assert len(server.requests) == 2, "one a call"


@pytest.mark.parametrize("status", [401, 429, 500])
def test_the_key_is_never_repeated(server: ChatServer, status: int) -> None:
    server.default = fails(status, f"Incorrect API key: {KEY}.\nSee https://example.org")
    assert "***" in error_of(server)


def test_the_key_shows_nowhere(server: ChatServer) -> None:
    backend = OpenAIBackend.connect("m", server.url)
    assert KEY not in repr(backend) and KEY not in repr(vars(backend))
    backend.close()


# Retry-After.


def test_a_wait_that_is_asked_for_is_kept() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    past = format_datetime(datetime.now(UTC) - timedelta(seconds=20), usegmt=True)
    waits = {"": 0, "3": 3, "0.5": 0.5, "-4": 0, "nonsense": 0, "nan": 0, soon: 15, past: 0}
    for header, seconds in waits.items():
        assert seconds <= wait_after(limited(header)) <= (20 if header == soon else seconds)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("-inf", 0),
        ("inf", math.inf),
        ("1e999", math.inf),
        ("Mon, 01 Jan 0001 00:00:00 +1200", 0),
        ("Mon, 01 Jan 0001 00:00:00", 0),
        ("Wed, 21 Oct 99999 07:28:00 GMT", 0),
        ("Wed, 21 Oct 2026 07:28:00 +99999", 0),
        ("Fri, 31 Dec 9999 23:59:59 -1200", 0),
        ("Wed, 21 Oct 2026 07:28:00 +9999999999999999999", 0),
    ],
)
def test_odd_waits_that_are_asked_for(server: ChatServer, header: str, seconds: float) -> None:
    """A wait without end is an error at once; what cannot be read is none."""
    server.script = [fails(429, "slow down", headers={"Retry-After": header})]
    if seconds:
        assert "slow down" in error_of(server)
        assert len(server.requests) == 1
    else:
        assert ask(server) == HELLO


dates = st.builds(
    "{}, {} {} {} {}:{}:{} {}{}".format,
    st.sampled_from(["Mon", "", "mon"]),
    *[st.integers(0, 40)],
    st.sampled_from(["Jan", "Feb", "0"]),
    st.integers(0, 10**5),
    *[st.integers(0, 70)] * 3,
    st.sampled_from(["GMT", "+", "-", ""]),
    st.integers(0, 10**20),
)


@given(st.text(max_size=20) | st.floats().map(str) | dates)
def test_any_wait_that_is_asked_for_is_a_number(asked: str) -> None:
    assert wait_after(limited(asked)) >= 0


def limited(asked: str) -> Refusal:
    """Return what is raised when a server wants to be left alone."""
    return Refusal(429, "slow down", headers={"retry-after": asked})


def wait_after(error: Exception) -> float:
    """Return for how many seconds is waited after an error, jitter apart."""
    retrying = Patience(first=0.0).retrying(threading.Event(), lambda: True, lambda _: None)
    state = RetryCallState(retrying, None, (), {})
    state.set_exception((type(error), error, error.__traceback__))
    return float(retrying.wait(state))


def test_waits_grow_and_have_jitter() -> None:
    retrying = Patience(first=1.0, longest=30.0).retrying(
        threading.Event(), lambda: True, lambda _: None
    )
    state = RetryCallState(retrying, None, (), {})
    state.set_exception((ValueError, ValueError(), None))
    drawn = []
    for attempt in range(1, 9):
        state.attempt_number = attempt
        drawn.append([float(retrying.wait(state)) for _ in range(50)])
        assert min(drawn[-1]) >= 0 and max(drawn[-1]) <= min(30.0, 2.0 ** (attempt - 1))
    assert all(len(set(waits)) > 40 for waits in drawn)
    assert max(drawn[-1]) > 8 > max(drawn[2])


def test_nobody_waits_longer_than_patience(server: ChatServer) -> None:
    server.default = fails(429, "come back tomorrow", headers={"Retry-After": "86400"})
    assert "come back tomorrow" in error_of(server)
    assert len(server.requests) == 1


# Parameters that a server does not take.


def test_hosted_models_want_another_name_for_the_limit(server: ChatServer) -> None:
    server.script = [
        fails(
            400,
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
            "'max_completion_tokens' instead.",
            param="max_tokens",
            code="unsupported_parameter",
        )
    ]
    with OpenAIBackend.connect("m", server.url) as backend:
        for _ in range(2):
            answer = backend.complete(PROMPT, Sampling(max_tokens=5))
            assert answer == HELLO and answer.usage.retries == 0
    limits = [{k: v for k, v in r.items() if "tokens" in k} for r in server.requests]
    assert limits == [{"max_tokens": 5}, {"max_completion_tokens": 5}, {"max_completion_tokens": 5}]


def test_a_limit_that_is_refused_by_both_names(server: ChatServer) -> None:
    server.default = fails(400, "max_tokens: not supported, max_completion_tokens: not supported")
    assert "not supported" in error_of(server)
    assert len(server.requests) == 2


def test_what_is_not_essential_is_left_out(server: ChatServer) -> None:
    server.script = [
        fails(403, "You are not allowed to request logprobs from this model"),
        fails(400, "'top_logprobs' needs 'logprobs'", param="top_logprobs"),
        fails(422, "body.seed: Extra inputs are not permitted"),
    ]
    assert ask(server, logprobs=True) == HELLO
    assert [sorted(set(r) & {"logprobs", "top_logprobs", "seed"}) for r in server.requests] == [
        ["logprobs", "seed", "top_logprobs"],
        ["seed", "top_logprobs"],
        ["seed"],
        [],
    ]


def test_a_temperature_is_never_left_out(server: ChatServer) -> None:
    server.default = fails(400, "'temperature' does not support 1.0", param="temperature")
    assert "temperature" in error_of(server)
    assert len(server.requests) == 1


# The context.


@pytest.mark.parametrize(
    "fault",
    [
        fails(400, "too long", code="context_length_exceeded", param="messages"),
        fails(
            400,
            "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in "
            "300007 tokens. Please reduce the length of the messages.",
        ),
        fails(
            400,
            "request (3031 tokens) exceeds the available context size (1024 tokens), try "
            "increasing it",
            type="exceed_context_size_error",
            n_prompt_tokens=3031,
        ),
        fails(500, "the request exceeds the size", type="exceed_context_size_error"),
        fails(
            400,
            "This model's maximum context length is 2048 tokens. However, your request has 3031 "
            "input tokens. Please reduce the length of the input messages.",
            type="BadRequestError",
            param="input_tokens",
            code=400,
        ),
        fails(
            400,
            "'max_tokens' or 'max_completion_tokens' is too large: 128. This model's maximum "
            "context length is 2048 tokens and your request has 2000 input tokens",
            type="BadRequestError",
            code=400,
        ),
        fails(
            400,
            "The decoder prompt (length 128) plus the number of requested output tokens (at least "
            "1) is longer than the maximum model length of 2048.",
        ),
        fails(
            400,
            "This model's maximum context length is 2048 tokens. However, you requested 128 output "
            "tokens and your prompt contains at least 1921 input tokens, for a total of at least "
            "2049 tokens.",
        ),
        fails(
            400,
            "input length and `max_tokens` exceed context limit: 199900 + 128 > 200000, decrease "
            "input length or `max_tokens` and try again",
        ),
        fails(
            400,
            "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)",
            param="max_tokens",
        ),
    ],
    ids=[
        *("openai", "openai 5", "llama.cpp", "old llama.cpp", "vllm", "vllm limit", "old vllm"),
        *("vllm total", "anthropic", "vllm to the last token"),
    ],
)
def test_a_full_context_is_an_outcome(server: ChatServer, fault: Behaviour) -> None:
    server.default = fault
    assert ask(server) == Completion("", Usage(), "context")
    assert len(server.requests) == 1


VLLM = "This model's maximum context length is 2048 tokens"


def test_a_prompt_alone_can_be_too_long_whatever_the_length(server: ChatServer) -> None:
    server.default = fails(400, f"{VLLM}. However, your prompt contains at least 2049 input tokens")
    with OpenAIBackend.connect("m", server.url) as backend:
        assert backend.complete(PROMPT, Sampling(max_tokens=2048)).finish == "context"


@pytest.mark.parametrize(
    ("length", "fault"),
    [
        (
            4096,
            fails(
                400,
                "max_tokens=4096 cannot be greater than max_model_len=2048. Please request fewer "
                "output tokens. (parameter=max_tokens, value=4096)",
                type="BadRequestError",
                param="max_tokens",
                code=400,
            ),
        ),
        (
            2048,
            fails(
                400,
                f"'max_tokens' or 'max_completion_tokens' is too large: 2048. {VLLM} and your "
                "request has 30 input tokens (2048 > 2048 - 30).",
            ),
        ),
        (
            8192,
            fails(
                400,
                f"{VLLM}. However, you requested 8256 tokens (64 in the messages, 8192 in the "
                "completion). Please reduce the length of the messages or completion.",
                code="context_length_exceeded",
            ),
        ),
        (
            6000,
            fails(
                400,
                "max_tokens is too large: 6000. This model supports at most 4096 completion "
                "tokens, whereas you provided 6000.",
                param="max_tokens",
                code="invalid_value",
            ),
        ),
        (
            10000,
            fails(
                400,
                "max_tokens: 10000 > 4096, which is the maximum allowed number of output tokens",
            ),
        ),
        (9000, fails(400, "Invalid max_tokens value, the valid range of max_tokens is [1, 8192]")),
        (
            64000,
            fails(
                400,
                "The parameter max_tokens specified in the request is not valid: integer above "
                "maximum value, expected a value <= 32768, but got 64000 instead.",
            ),
        ),
        (41000, fails(400, "`max_tokens` must be less than or equal to `40960`")),
    ],
    ids=["vllm", "old vllm", "openai 3", "openai 4", "anthropic", "range", "value", "at most"],
)
def test_a_length_that_no_prompt_leaves_room_for_ends_the_run(
    server: ChatServer, length: int, fault: Behaviour
) -> None:
    server.default = fault
    with (
        OpenAIBackend.connect("m", server.url) as backend,
        pytest.raises(RunStopped, match=r": lower --max-tokens .*: HTTP 400: ") as raised,
    ):
        backend.complete(PROMPT, Sampling(max_tokens=length))
    assert "\n" not in str(raised.value)
    assert len(server.requests) == 1, "the length is not called by another name"


# What comes back.


def test_usage_and_stats(server: ChatServer) -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    server.script = [answers(completion(usage=usage))]
    with OpenAIBackend.connect("m", server.url) as backend:
        first = backend.complete(PROMPT, Sampling()).usage
        assert (first, first.cached, first.calls, first.retries) == (Usage(100, 7), 64, 1, 0)
        assert 0 < first.seconds < 60
        second = backend.complete(PROMPT, Sampling()).usage
    assert (second, second.calls) == (Usage(10, 2), 1)
    assert second.cached is None, "the second answer does not say"
    assert first.usd is None, "the model's price is not known"


@pytest.mark.parametrize(
    "usage", [None, {}, {"prompt_tokens": 3, "completion_tokens": None}, "a lot", [3]]
)
def test_unknown_usage_is_not_zero(server: ChatServer, usage: Any) -> None:
    server.default = answers(completion(usage=usage))
    with OpenAIBackend.connect("m", server.url, price=DEAR) as backend:
        took = backend.complete(PROMPT, Sampling()).usage
    assert (took.completion, took.tokens, took.usd, took.calls) == (None, None, None, 1)
    for limit, said in (({"max_tokens": 9}, "cannot be limited"), ({"max_usd": 1.0}, "unknown")):
        budget = Budget(**limit)
        with OpenAIBackend.connect("m", server.url, price=DEAR, budget=budget) as backend:
            backend.complete(PROMPT, Sampling())
            with pytest.raises(BudgetSpent, match=said):
                backend.complete(PROMPT, Sampling())


BROKEN_ANSWERS = {
    "no choices": {"choices": []},
    "no message": {"choices": [{"index": 0}]},
    "content is a number": {"choices": [{"message": {"content": 3}}]},
}


@pytest.mark.parametrize("broken", BROKEN_ANSWERS)
def test_broken_answers_cost_what_they_say(server: ChatServer, broken: str) -> None:
    server.script = [answers(completion(**BROKEN_ANSWERS[broken]))] * 2
    budget = Budget(max_usd=1.0)
    cost = ask(server, price=DEAR, budget=budget).usage
    assert (cost, cost.calls, cost.retries) == (Usage(30, 6), 1, 2)
    assert cost.usd == pytest.approx(0.00009)
    assert (budget.spent, budget.spent.usd) == (cost, cost.usd)


def test_a_call_that_fails_is_charged(server: ChatServer) -> None:
    server.default = answers(completion(choices=[]))
    budget = Budget(max_tokens=48)
    assert "no chat completion" in error_of(server, budget=budget)
    assert budget.spent.tokens == 48
    with pytest.raises(BudgetSpent):
        ask(server, budget=budget)


@pytest.mark.parametrize("usage", [{}, None, "many", {"prompt_tokens": 4, "completion_tokens": -1}])
def test_broken_answers_that_do_not_say_what_they_cost_cost_nothing(
    server: ChatServer, usage: Any
) -> None:
    """An error page of a proxy's is no reason to end a run that has a limit."""
    server.script = [answers(completion(choices=[], usage=usage))]
    budget = Budget(max_usd=1.0, max_tokens=100)
    assert ask(server, price=DEAR, budget=budget).usage.usd == pytest.approx(0.00003)
    assert budget.spent == Usage(10, 2)


def test_texts_that_were_cut_off(server: ChatServer) -> None:
    server.script = [says("Hel", finish_reason="length"), says(None, finish_reason="length")]
    assert ask(server) == Completion("Hel", Usage(10, 2), "length")
    assert ask(server) == Completion("", Usage(10, 2), "length")


def test_log_probabilities(server: ChatServer) -> None:
    tokens = [{"token": "He", "logprob": -0.5}, {"token": "llo", "logprob": -1.25}]
    server.default = says("Hello", logprobs={"content": tokens})
    with OpenAIBackend.connect("m", server.url, logprobs=True) as backend:
        assert backend.complete(PROMPT, Sampling()).logprob == -1.75
        server.default = says("Hello", logprobs=None)
        assert backend.complete(PROMPT, Sampling(temperature=0.5)).logprob is None
        assert backend.complete(PROMPT, Sampling()).logprob is None
    assert [request.get("logprobs") for request in server.requests] == [True, None, True]


# Native tool calls.

BOOK = ToolSpec(
    "book_restaurant",
    "Book a table.",
    {"name": {"type": "string"}, "people": {"type": "string", "enum": ["1", "2"]}},
    required=("name",),
)


def calls(*functions: dict[str, Any], content: str | None = None) -> Behaviour:
    made = [
        {"id": f"call_{i}", "type": "function", "function": function}
        for i, function in enumerate(functions)
    ]
    return says(content, message={"tool_calls": made}, finish_reason="tool_calls")


def test_tools_are_described(server: ChatServer) -> None:
    with OpenAIBackend.connect("m", server.url) as backend:
        backend.complete(PROMPT, Sampling(), tools=[BOOK])
    assert server.requests[0]["parallel_tool_calls"] is False
    assert server.requests[0]["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "book_restaurant",
                "description": "Book a table.",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "name": {"type": "string"},
                        "people": {"type": "string", "enum": ["1", "2"]},
                    },
                    "required": ["name"],
                },
            },
        }
    ]


@pytest.mark.parametrize(
    ("behaviour", "action"),
    [
        (
            calls({"name": "book_restaurant", "arguments": '{"name": "Curry \\u2615"}'}),
            ToolCall("book_restaurant", {"name": "Curry ☕"}),
        ),
        (
            calls({"name": "list_all", "arguments": ""}, content="Let me see."),
            ToolCall("list_all", {}),
        ),
        (
            calls({"name": "a", "arguments": '{"x": 1}'}, {"name": "b", "arguments": "{}"}),
            ToolCall("a", {"x": 1}),
        ),
        (calls({"name": 'q"uote', "arguments": "{}"}), ToolCall('q"uote', {})),
    ],
)
def test_a_call_comes_back_as_an_action(
    server: ChatServer, behaviour: Behaviour, action: ToolCall
) -> None:
    server.default = behaviour
    with OpenAIBackend.connect("m", server.url) as backend:
        answer = backend.complete(PROMPT, Sampling(), tools=[BOOK])
    assert answer.finish == "stop"
    assert parse_action(answer.text).call == action


def test_a_server_that_does_not_know_the_models_format(server: ChatServer) -> None:
    """It leaves calls and thoughts in the text. Without tools, a text is a text."""
    text = '<think>Hm.</think>\n<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>'
    server.default = says(text)
    with OpenAIBackend.connect("m", server.url) as backend:
        answer = backend.complete(PROMPT, Sampling(), tools=[BOOK])
        assert parse_action(answer.text).call == ToolCall("a", {})
        assert backend.complete(PROMPT, Sampling()).text == text
        server.default = says("<think>Hm.</think>\n\nHello!")
        assert backend.complete(PROMPT, Sampling(), tools=[BOOK]).text == "Hello!"


@pytest.mark.parametrize(
    "arguments", ['{}, "name": "other"', '{"name": "Cur', "[1]", "two", '{}, "more": {}', "{}}"]
)
def test_malformed_arguments_are_the_models_mistake(server: ChatServer, arguments: str) -> None:
    server.default = calls({"name": "book_restaurant", "arguments": arguments})
    with OpenAIBackend.connect("m", server.url) as backend:
        answer = backend.complete(PROMPT, Sampling(), tools=[BOOK])
    assert parse_action(answer.text).error is not None
    assert arguments in answer.text.replace('\\"', '"')
    assert len(server.requests) == 1


HISTORY: list[ChatMessage] = [
    *PROMPT,
    {"role": "assistant", "content": '{"name": "find", "arguments": {"area": "north"}}'},
    {"role": "tool", "content": "[]"},
    {"role": "assistant", "content": '{"name": "find", '},
    {"role": "tool", "content": "Error: not valid JSON"},
    {"role": "assistant", "content": "There is none."},
    {"role": "user", "content": "Oh."},
    {"role": "assistant", "content": '{"name": "find", "arguments": {}}'},
]


def test_a_grammar_is_sent_as_servers_take_it(server: ChatServer) -> None:
    with OpenAIBackend.connect("m", server.url) as backend:
        backend.complete(PROMPT, Sampling(grammar='root ::= "a"'))
        backend.complete(PROMPT, Sampling())
    bound, free = server.requests
    assert bound["grammar"] == bound["structured_outputs"]["grammar"] == 'root ::= "a"'
    assert not {"grammar", "structured_outputs", "extra_body"} & {*free}


def test_history_in_the_native_form(server: ChatServer) -> None:
    with OpenAIBackend.connect("m", server.url) as backend:
        backend.complete(HISTORY, Sampling(), tools=[BOOK])
        backend.complete(HISTORY, Sampling())
    native, text = (request["messages"] for request in server.requests)
    function = {"name": "find", "arguments": '{"area": "north"}'}
    call = {"id": "call00002", "type": "function", "function": function}
    assert native[2:] == [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "[]", "tool_call_id": "call00002"},
        HISTORY[4],
        {"role": "user", "content": "Error: not valid JSON"},
        *HISTORY[6:],  # the last call has no answer, so it is shown as text
    ]
    assert text == HISTORY


# Limits.


def test_no_more_requests_are_in_flight_than_allowed(server: ChatServer) -> None:
    together = threading.Barrier(3)

    def answer_three_at_a_time(handler: Handler) -> None:
        together.wait(timeout=20)
        says("Hello!")(handler)

    server.default = answer_three_at_a_time
    backend = OpenAIBackend.connect("m", server.url, concurrency=3)
    with backend, ThreadPoolExecutor(12) as pool:
        samplings = [Sampling(seed=seed) for seed in range(12)]
        texts = list(pool.map(lambda sampling: backend.complete(PROMPT, sampling), samplings))
    assert texts == [HELLO] * 12
    assert server.peak == 3
    assert sorted(request["seed"] for request in server.requests) == list(range(12))
    assert len(server.connections) <= 3


def test_connections_are_kept(server: ChatServer) -> None:
    with OpenAIBackend.connect("m", server.url) as backend:
        for _ in range(5):
            backend.complete(PROMPT, Sampling())
    assert len(server.connections) == 1


def test_a_wait_holds_no_place_and_ends_when_the_backend_is_closed(server: ChatServer) -> None:
    server.script = [fails(429, headers={"Retry-After": "29"})]
    backend = OpenAIBackend.connect("m", server.url, concurrency=1, patience=Patience(2, 0.001, 30))
    with backend, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(backend.complete, PROMPT, Sampling())
        while not (server.requests and not server.in_flight) and not waiting.done():
            time.sleep(0.001)
        assert backend.complete(PROMPT, Sampling()) == HELLO
        assert not waiting.done()
        backend.close()
        with pytest.raises(BackendError, match="closed"):
            waiting.result()


def test_a_closed_backend(server: ChatServer) -> None:
    backend = OpenAIBackend.connect("m", server.url)
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.complete(PROMPT, Sampling())
    assert not server.requests


def test_a_spending_limit(server: ChatServer) -> None:
    # 10 tokens read at 1 dollar a million, 2 written at 10: 0.00003 dollars a call.
    budget = Budget(max_usd=0.0001)
    with OpenAIBackend.connect("m", server.url, price=DEAR, budget=budget) as backend:
        for _ in range(4):
            backend.complete(PROMPT, Sampling())
        with pytest.raises(BudgetSpent, match=r"0\.0001 of 0\.0001 US dollars") as raised:
            backend.complete(PROMPT, Sampling())
    assert isinstance(raised.value, RunStopped) and "\n" not in str(raised.value)
    assert len(server.requests) == 4
    assert budget.spent.usd == pytest.approx(0.00012) and budget.spent.tokens == 48

    # The run goes on with a higher limit, from what it has spent.
    budget = Budget(max_usd=0.0002, spent=budget.spent)
    with OpenAIBackend.connect("m", server.url, price=DEAR, budget=budget) as backend:
        for _ in range(3):
            backend.complete(PROMPT, Sampling())
        with pytest.raises(BudgetSpent):
            backend.complete(PROMPT, Sampling())
    assert budget.spent.tokens == 84


def test_a_limit_of_tokens_is_shared(server: ChatServer) -> None:
    budget = Budget(max_tokens=24)
    agent = OpenAIBackend.connect("agent", server.url, budget=budget)
    customer = OpenAIBackend.connect("customer", server.url, budget=budget)
    with agent, customer:
        agent.complete(PROMPT, Sampling())
        customer.complete(PROMPT, Sampling())
        for backend in (agent, customer):
            with pytest.raises(BudgetSpent, match="24 of 24 tokens"):
                backend.complete(PROMPT, Sampling())
    assert len(server.requests) == 2
    assert budget.spent.usd is None, "these models have no price"


def test_a_limit_ends_all_threads(server: ChatServer) -> None:
    budget = Budget(max_tokens=60)
    backend = OpenAIBackend.connect("m", server.url, budget=budget, concurrency=4)
    with backend, ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(backend.complete, PROMPT, Sampling()) for _ in range(40)]
    errors = [future.exception() for future in futures]
    assert {type(error) for error in errors} == {type(None), BudgetSpent}
    # At most three others were in flight when the limit was reached.
    assert 5 <= errors.count(None) <= 8
    assert budget.spent.tokens == 12 * errors.count(None)


def test_cached_tokens_are_cheaper() -> None:
    assert DEAR.cost(Usage(1_000_000, 50_000, cached=400_000)) == pytest.approx(1.3)
    assert DEAR.cost(Usage(1_000_000, 0, cached=None)) == 1.0, "at most"


def test_prices_are_dated_and_have_a_source() -> None:
    assert prices()
    for name, price in prices().items():
        assert 0 < price.cached_input <= price.input <= price.output, name
        assert price.seen >= date(2026, 1, 1), name
        assert price.source.startswith("https://"), name


def test_an_unknown_price_is_not_zero(server: ChatServer) -> None:
    with pytest.raises(UsageError, match="price of 'm' is unknown"):
        OpenAIBackend.connect("m", server.url, budget=Budget(max_usd=1.0))
    # A local model of a hosted one's name is not that model.
    with pytest.raises(UsageError, match="price of 'gpt-4o' is unknown"):
        OpenAIBackend.connect("gpt-4o", server.url, budget=Budget(max_usd=1.0))
    OpenAIBackend.connect("gpt-4o", budget=Budget(max_usd=1.0)).close()
    unknown = Budget(max_usd=1.0, spent=Usage(usd=None))
    with pytest.raises(BudgetSpent, match="an unknown part"):
        unknown.check()


def test_keys_that_are_none(monkeypatch: pytest.MonkeyPatch, server: ChatServer) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sk\nx")
    with pytest.raises(UsageError, match="characters"):
        OpenAIBackend.connect("m", server.url)
    monkeypatch.setenv(KEY_VARIABLE, " ")
    with pytest.raises(UsageError, match=f"set {KEY_VARIABLE}"):
        OpenAIBackend.connect("gpt-4o")


@pytest.mark.skipif(find_spec("litellm") is not None, reason="LiteLLM is installed")
def test_litellm_is_an_extra() -> None:
    with pytest.raises(UsageError, match="LiteLLM cannot be imported"):
        OpenAIBackend.litellm("openai/gpt-4o")


# llama.cpp.


@pytest.fixture(scope="module")
def llama() -> Iterator[str]:
    """The address of llama.cpp's server, with the bundled model and a context of 512 tokens."""
    script = Path(__file__).with_name("llama_server.py")
    process = subprocess.Popen(
        [sys.executable, str(script), str(_bundled_file())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdin is not None and process.stdout is not None
        address = next(line for line in process.stdout if line.startswith("http"))
        yield f"{address.strip()}/v1"
        process.stdin.close()


def test_llama_cpp_answers(llama: str) -> None:
    prompt: list[ChatMessage] = [{"role": "user", "content": "Say hello."}]
    with OpenAIBackend.connect("any", llama, logprobs=True) as backend:
        samplings = [Sampling(max_tokens=6, seed=seed) for seed in range(3)]
        with ThreadPoolExecutor(3) as pool:
            several = list(pool.map(lambda sampling: backend.complete(prompt, sampling), samplings))
    for answer in several:
        assert (answer.usage.calls, answer.usage.retries) == (1, 0)
        assert answer.logprob is not None and answer.logprob < 0
        assert answer.usage.prompt > 10 and 0 < answer.usage.completion <= 6
    assert len({answer.text for answer in several}) > 1


def test_llama_cpp_says_when_its_context_is_full(llama: str) -> None:
    with OpenAIBackend.connect("any", llama) as backend:
        full = backend.complete([{"role": "user", "content": "word " * 600}], Sampling())
    assert full == Completion("", Usage(), "context")


def test_llama_cpp_keeps_to_a_grammar(llama: str) -> None:
    grammars = [way.grammar([BOOK]) for way in (act, react, tool_calling)]
    with OpenAIBackend.connect("any", llama) as backend:
        samplings = [Sampling(max_tokens=24, grammar=grammar) for grammar in (*grammars, None)]
        texts = [backend.complete(PROMPT, sampling).text for sampling in samplings]
    calls = [f'{{"name":"{name}","arguments":{{' for name in ("book_restaurant", "respond")]
    assert "".join(texts[0].split()).startswith(tuple(calls))
    assert texts[1].startswith("Thought: ")
    assert texts[2] == texts[3] and not texts[3].startswith("{")


def test_llama_cpp_takes_native_history(llama: str) -> None:
    with OpenAIBackend.connect("any", llama) as backend:
        answer = backend.complete(HISTORY, Sampling(max_tokens=4), tools=[BOOK])
    assert answer.finish in ("length", "stop")
