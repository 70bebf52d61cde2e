"""LiteLLM, in an environment of its own: services of other protocols, with tools; faults."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
from chat_server import ChatServer, answers, chat_server, completion, drips, fails, floods

from agents.backends.openai import OpenAIBackend
from agents.backends.retry import Patience
from agents.backends.spending import Budget
from agents.base import BackendError, ChatMessage, Completion, RunStopped, Sampling
from toolwoz_gym.actions import parse_action
from toolwoz_gym.types import ToolCall, ToolSpec, Usage, UsageError

if find_spec("litellm") is None:
    if os.environ.get("TOOLWOZ_REQUIRE_LITELLM"):
        pytest.fail("TOOLWOZ_REQUIRE_LITELLM is set, but LiteLLM is not installed")
    pytest.skip("LiteLLM is not installed: make test-litellm", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")  # it takes those of its own types for faults

KEY = "sk-secret-0123456789"

QUICK = Patience(tries=2, first=0.001, longest=0.01)

FIND = ToolSpec("find", "Find a place.", {"area": {"type": "string"}})

NORTH = ToolCall("find", {"area": "north"})

CHAT: list[ChatMessage] = [
    {"role": "system", "content": "You are a clerk."},
    {"role": "user", "content": "Somewhere in the south?"},
    {"role": "assistant", "content": '{"name": "find", "arguments": {"area": "south"}}'},
    {"role": "tool", "content": "[]"},
]

CALL = {"function": {"name": "find", "arguments": {"area": "north"}}}

SERVICES: dict[str, dict[str, Any]] = {
    "openai/gpt-4o": completion(
        choices=[
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "c",
                            "type": "function",
                            "function": {"name": "find", "arguments": '{"area": "north"}'},
                        }
                    ],
                },
                "finish_reason": "tool_calls",
            }
        ]
    ),
    "anthropic/claude-haiku-4-5": {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": "c",
        "content": [{"type": "tool_use", "id": "t", "name": "find", "input": {"area": "north"}}],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 10, "output_tokens": 2},
    },
    "ollama_chat/llama3.1": {
        "model": "m",
        "created_at": "2026-01-01T00:00:00Z",
        "message": {"role": "assistant", "content": "", "tool_calls": [CALL]},
        "done": True,
        "done_reason": "stop",
        "prompt_eval_count": 10,
        "eval_count": 2,
    },
    "gemini/gemini-2.5-flash": {
        "candidates": [
            {
                "content": {
                    "role": "model",
                    "parts": [{"functionCall": {"name": "find", "args": {"area": "north"}}}],
                },
                "finishReason": "STOP",
            }
        ],
        "usageMetadata": {
            "promptTokenCount": 10,
            "candidatesTokenCount": 2,
            "totalTokenCount": 12,
        },
    },
}
"""The same call, as each service writes it."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    """A server that all services are taken for."""
    with chat_server() as server:
        root = server.url.removesuffix("/v1")
        for name in ("OPENAI", "ANTHROPIC", "GEMINI"):
            monkeypatch.setenv(f"{name}_API_KEY", KEY)
        for name in ("ANTHROPIC", "OLLAMA", "GEMINI"):
            monkeypatch.setenv(f"{name}_API_BASE", root)
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        yield server


def backend(model: str, **options: Any) -> OpenAIBackend:
    return OpenAIBackend.litellm(model, **{"patience": QUICK, "timeout": 20.0, **options})


@pytest.mark.parametrize("model", SERVICES)
def test_services_call_tools(server: ChatServer, model: str) -> None:
    """A parameter that a service does not take (seed, parallel_tool_calls) is left out."""
    server.default = answers(SERVICES[model])
    with backend(model) as service:
        for _ in range(2):
            answer = service.complete(CHAT, Sampling(seed=7), [FIND])
            assert parse_action(answer.text).call == NORTH
            assert (answer.usage, answer.usage.retries, answer.finish) == (Usage(10, 2), 0, "stop")
    assert len(server.requests) == 2
    shown = str(server.requests[0])
    assert "Find a place." in shown and "south" in shown and "You are a clerk." in shown


@pytest.mark.parametrize("model", SERVICES)
def test_faults_of_services(server: ChatServer, model: str) -> None:
    overflow = "This model's maximum context length is 9 tokens. However, you requested 10 tokens"
    server.script = [
        fails(503, "busy"),
        answers(SERVICES[model]),
        fails(400, overflow, code="context_length_exceeded"),
        fails(400, "no call", code="tool_use_failed", failed_generation="<function=find>"),
        fails(401, f"wrong key {KEY}"),
    ]
    with backend(model) as service:
        assert service.complete(CHAT, Sampling(), [FIND]).usage.retries == 1
        assert service.complete(CHAT, Sampling(), [FIND]).finish == "context"
        mistake = parse_action(service.complete(CHAT, Sampling(), [FIND]).text)
        assert mistake.error is not None and "<function=find>" in mistake.content
        with pytest.raises(RunStopped, match="API key is missing or wrong") as raised:
            service.complete(CHAT, Sampling(), [FIND])
    assert KEY not in "".join(traceback.format_exception(raised.value))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("model", SERVICES)
def test_answers_of_services_are_bounded(server: ChatServer, model: str) -> None:
    server.script = [lambda handler: handler.send(b"", 307, {"Location": "http://127.0.0.1:9/v1"})]
    with backend(model) as service, pytest.raises(RunStopped, match="points to http://127.0.0.1:9"):
        service.complete(CHAT, Sampling(), [FIND])
    server.default = drips
    with (
        backend(model, timeout=0.3, patience=Patience(tries=1)) as service,
        pytest.raises(BackendError, match="timed out"),
    ):
        service.complete(CHAT, Sampling(), [FIND])
    server.default = floods
    with (
        backend(model, patience=Patience(tries=1)) as service,
        pytest.raises(BackendError, match="larger than"),
    ):
        service.complete(CHAT, Sampling(), [FIND])


def test_nobody_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with chat_server() as gone:
        pass
    monkeypatch.setenv("OPENAI_BASE_URL", gone.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with (
        backend("openai/gpt-4o", patience=Patience(4, first=0.001)) as service,
        pytest.raises(RunStopped, match=r"Connection refused.* \(3 tries\): is the server running"),
    ):
        service.complete(CHAT, Sampling())


def test_the_price_of_a_service_is_known(server: ChatServer) -> None:
    with backend("openai/gpt-4o", budget=Budget(max_usd=1.0)) as service:
        answer = service.complete(CHAT, Sampling())
    assert answer == Completion("Hello!", Usage(10, 2), "stop")
    assert answer.usage.usd == pytest.approx(0.000045)


def test_services_that_there_are_not() -> None:
    with pytest.raises(UsageError, match="no service of 'nobody/m'"):
        OpenAIBackend.litellm("nobody/m")
