"""What is made of a server's answers: their shapes, their endings, and errors over mistakes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

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
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.backends.answers import read_answer, tokens
from agents.backends.openai import OpenAIBackend
from agents.backends.retry import Patience
from agents.backends.transport import BrokenAnswer
from agents.base import BackendError, ChatMessage, Completion, Sampling
from agents.tool_calling import ToolCallingAgent
from toolwoz_gym.actions import parse_action
from toolwoz_gym.types import Message, ToolCall, ToolSpec, Usage

PROMPT: list[ChatMessage] = [{"role": "user", "content": "Somewhere in the north?"}]

FIND = ToolSpec("find", "Find a place.", {"area": {"type": "string"}})

NORTH = ToolCall("find", {"area": "north"})

QUICK = Patience(tries=3, first=0.001, longest=0.01)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    with chat_server() as server:
        yield server


def ask(server: ChatServer, *, tools: bool = True, **options: Any) -> Completion:
    options = {"patience": QUICK, "logprobs": True, **options}
    with OpenAIBackend.connect("m", server.url, **options) as backend:
        return backend.complete(PROMPT, Sampling(), [FIND] if tools else [])


# Shapes.


def calling(*functions: Any, **message: Any) -> dict[str, Any]:
    calls = [{"id": "c", "type": "function", "function": function} for function in functions]
    return {"content": None, "tool_calls": calls, **message}


def finding(arguments: Any) -> dict[str, Any]:
    return calling({"name": "find", "arguments": arguments})


ENCODED = json.dumps(NORTH.arguments)

CALLS: dict[str, tuple[dict[str, Any], ToolCall]] = {
    "text": (finding(ENCODED), NORTH),
    "an object": (finding({"area": "north"}), NORTH),
    "encoded twice": (finding(json.dumps(ENCODED)), NORTH),
    "encoded three times": (finding(json.dumps(json.dumps(ENCODED))), NORTH),
    "null": (finding(None), ToolCall("find", {})),
    "'null'": (finding("null"), ToolCall("find", {})),
    "a list": (finding([]), ToolCall("find", {})),
    "'[]'": (finding("[]"), ToolCall("find", {})),
    "an empty text": (finding(" "), ToolCall("find", {})),
    "an empty text, encoded": (finding('""'), ToolCall("find", {})),
    "no arguments": (calling({"name": "find"}), ToolCall("find", {})),
    "one call, no list": (
        {"content": "", "tool_calls": {"function": {"name": "find", "arguments": ENCODED}}},
        NORTH,
    ),
    "no function": ({"tool_calls": [{"name": "find", "arguments": ENCODED}]}, NORTH),
    "a call after null": ({"tool_calls": [None, *finding(ENCODED)["tool_calls"]]}, NORTH),
    "function_call": (
        {"content": None, "function_call": {"name": "find", "arguments": ENCODED}},
        NORTH,
    ),
    "both, one empty": (
        {"tool_calls": [], "function_call": {"name": "find", "arguments": ENCODED}},
        NORTH,
    ),
}


@pytest.mark.parametrize("shape", CALLS)
def test_calls_in_any_shape(server: ChatServer, shape: str) -> None:
    message, call = CALLS[shape]
    server.default = answers(completion(choices=[{"message": message}]))
    assert parse_action(ask(server).text).call == call
    assert parse_action(ask(server, tools=False).text).call == call, "it is what the model did"
    assert len(server.requests) == 2


WORDS: dict[str, dict[str, Any]] = {
    "text": {"content": "Hello."},
    "calls are null": {"content": "Hello.", "tool_calls": None, "function_call": None},
    "calls are odd": {"content": "Hello.", "tool_calls": "none", "function_call": [3]},
    "parts": {"content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo."}]},
    "texts": {"content": ["Hel", "lo."]},
    "one part": {"content": {"type": "text", "text": "Hello."}},
    "after a thought": {
        "content": [
            {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
            {"type": "reasoning", "text": "Hm."},
            {"type": "output_text", "text": "Hello."},
        ]
    },
    "a refusal": {"content": None, "refusal": "Hello."},
    "a refusal in parts": {"content": [{"type": "refusal", "refusal": "Hello."}]},
    "no content": {"refusal": "Hello."},
    "more": {"content": "Hello.", "refusal": None, "reasoning_content": 3, "audio": [None]},
}


@pytest.mark.parametrize("shape", WORDS)
@pytest.mark.parametrize("tools", [True, False])
def test_words_in_any_shape(server: ChatServer, shape: str, tools: bool) -> None:
    server.default = answers(completion(choices=[{"message": WORDS[shape]}]))
    assert ask(server, tools=tools) == Completion("Hello.", Usage(10, 2), "stop")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "more",
    [
        {"logprobs": []},
        {"logprobs": "none"},
        {"logprobs": {"content": [{"token": "Hello!", "logprob": None}]}},
        {"logprobs": {"content": [{"logprob": "-1"}, None, 3]}},
        {"logprobs": {"content": [{"logprob": 0.5}]}},
        {"logprobs": {"content": {}, "token_logprobs": [-1.0]}},
        {"index": "first", "finish_reason": {"type": "stop", "matched": 3}},
        {"finish_reason": None, "stop_reason": None},
    ],
)
def test_decoration_does_no_harm(server: ChatServer, more: dict[str, Any]) -> None:
    server.default = says("Hello!", **more)
    assert ask(server) == Completion("Hello!", Usage(10, 2), "stop", None)


def test_a_call_without_a_name_is_a_mistake(server: ChatServer) -> None:
    for function in ({"arguments": ENCODED}, {"name": None}, {"name": 3}):
        server.default = answers(completion(choices=[{"message": calling(function)}]))
        assert parse_action(ask(server).text).mistake == "wrong keys"


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)


def shaped(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return json_values | st.fixed_dictionaries({}, optional=fields)


calls_of_any_kind = shaped(
    function=shaped(name=json_values, arguments=json_values), name=json_values
)
messages = shaped(
    content=json_values,
    refusal=json_values,
    tool_calls=st.lists(calls_of_any_kind),
    function_call=calls_of_any_kind,
)
choices = shaped(message=messages, finish_reason=json_values, logprobs=json_values)
usages = shaped(prompt_tokens=json_values, completion_tokens=json_values)


@settings(max_examples=50)
@given(shaped(choices=st.lists(choices), usage=usages), st.booleans())
def test_any_answer_is_a_completion_or_broken(answer: Any, native: bool) -> None:
    try:
        completion, _ = read_answer(answer, tokens(answer), native=native)
    except (BrokenAnswer, BackendError):
        return
    parse_action(completion.text)
    assert completion.logprob is None or completion.logprob <= 0


# Counts of tokens.


@pytest.mark.parametrize("count", [10**30, -1, float("nan"), float("inf"), "7", True, 2.5, [7], {}])
def test_counts_that_are_not_believed(server: ChatServer, count: Any) -> None:
    details = {"cached_tokens": count}
    usage = {"prompt_tokens": 9, "completion_tokens": count, "prompt_tokens_details": details}
    server.default = answers(completion(usage=usage))
    took = ask(server).usage
    assert (took.prompt, took.completion, took.cached) == (9, None, None)


def test_counts_that_are_believed() -> None:
    usage = {"prompt_tokens": 9.0, "completion_tokens": 0, "prompt_tokens_details": None}
    assert tokens({"usage": usage}) == Usage(9, 0)
    more = {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 10}}
    assert tokens({"usage": more}).cached is None, "more than there are"


# Endings.


def play(server: ChatServer, reason: Any, text: str | None = "Your number is 4") -> Message:
    server.default = says(text, finish_reason=reason)
    with OpenAIBackend.connect("m", server.url, patience=QUICK) as backend:
        return ToolCallingAgent(backend, "system").act([Message("user", "Hi.")], seed=1)


@pytest.mark.parametrize(
    "reason",
    [
        *(
            "length",
            "LENGTH",
            "max_tokens",
            "MAX_TOKENS",
            "max-tokens",
            "model_length",
            "maxTokens",
        ),
        *("max_output_tokens", "incomplete", "max_completion_tokens", "max_length", "token_limit"),
        *("model_context_window_exceeded", "truncated", "length_limit", "context_length"),
        {"type": "length", "length": 128},
    ],
)
def test_other_names_of_length(server: ChatServer, reason: Any) -> None:
    said = play(server, reason)
    assert (said.content, said.cut_off) == ("Your number is 4", True)
    assert play(server, reason, None).mistake == "only thoughts"


@pytest.mark.parametrize(
    "reason",
    [
        *("stop", "STOP", "end_turn", "eos", "eos_token", "stop_sequence", "COMPLETE", "completed"),
        *("tool_calls", "function_call", "tool_use", "stop_token", "end_of_turn", "", None),
    ],
)
def test_whole_messages(
    server: ChatServer, reason: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    said = play(server, reason)
    assert (said.content, said.cut_off, said.mistake) == ("Your number is 4", False, None)
    assert play(server, reason, None).mistake == "empty"
    assert not caplog.messages


@pytest.mark.parametrize(
    "reason",
    [
        *("content_filter", "CONTENT_FILTERED", "safety", "SAFETY", "recitation", "blocklist"),
        *("prohibited_content", "SPII", "guardrail_intervened", "IMAGE_SAFETY", "sensitive"),
    ],
)
def test_content_filters_are_errors_of_the_call(server: ChatServer, reason: str) -> None:
    for text in ("Your number is 4", None):
        with pytest.raises(BackendError, match=rf"^m at http.*content filter .*\({reason}\)$"):
            play(server, reason, text)
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "reason",
    [
        *("abort", "ABORTED", "error", "cancelled", "canceled", "insufficient_system_resource"),
        *("timeout", "network_error", "internal-error", "preempted"),
    ],
)
def test_what_was_broken_off_is_tried_again(server: ChatServer, reason: str) -> None:
    server.script = [says("Your number is", finish_reason=reason)]
    assert ask(server).usage.retries == 1
    with pytest.raises(BackendError, match=rf"did not finish its answer \({reason}\) \(3 tries\)"):
        play(server, reason)


def test_unknown_reasons_are_told_of_and_counted(
    server: ChatServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.default = says("Hello!", finish_reason="moonlight")
    with OpenAIBackend.connect("m", server.url) as backend:
        for _ in range(3):
            assert backend.complete(PROMPT, Sampling()).finish == "stop"
    told = (
        f"m at {server.url}: a message ended for an unknown reason, and counts as whole (moonlight)"
    )
    assert caplog.messages[0] == told
    assert caplog.messages[1] == told.replace(": a", ": 3 times: a").removesuffix(" (moonlight)")
    with pytest.raises(BackendError, match="moonlight"):
        play(server, "moonlight", None)
    with pytest.raises(BackendError) as raised:
        play(server, "content_filter\n\x1b[2J" + "x" * 1_000, None)
    assert len(str(raised.value)) < 200 and str(raised.value).isprintable()


@pytest.mark.parametrize("reason", ["MALFORMED_FUNCTION_CALL", "malformed_tool_use"])
def test_a_malformed_call_is_a_mistake(server: ChatServer, reason: str) -> None:
    for text in (None, "find(area='north')", '{"name": "find", "arguments": {}}'):
        server.default = says(text, finish_reason=reason)
        assert parse_action(ask(server).text).error is not None
    assert ask(server, tools=False).text == text, "in plain text, it is what was written"


# Errors over what the model wrote.

UNREADABLE: dict[str, Behaviour] = {
    "Groq": fails(
        400,
        "Failed to call a function. Please adjust your prompt. See 'failed_generation' for more "
        "details.",
        type="invalid_request_error",
        code="tool_use_failed",
        failed_generation='<function=find>{"area": "north"}</function>',
    ),
    "Groq, by the schema": fails(
        400,
        "tool call validation failed: parameters for tool find did not match schema: errors: "
        "[`/area`: expected string, but got number]",
        code="tool_use_failed",
    ),
    "Groq, thoughts": fails(
        400,
        "Parsing failed. The model generated output that could not be parsed.",
        code="output_parse_failed",
        failed_generation='{"name": "find", "arguments": {"area": "north"}}',
    ),
    "llama.cpp": fails(
        500,
        "Failed to parse tool call arguments as JSON: [json.exception.parse_error.101] parse error "
        "at line 1, column 131: syntax error while parsing value - unexpected end of input",
        code=500,
        type="server_error",
    ),
    "llama.cpp, by position": fails(
        500, "Failed to parse input at pos 184: <tool_call>find<arg_key>area", code=500
    ),
    "Ollama": fails(
        500,
        "error parsing tool call: raw='{\"area\": north}', err=invalid character 'o' in literal "
        "null (expecting 'u')",
        type="api_error",
    ),
    "Ollama's own": lambda handler: handler.send(
        b'{"error": "error parsing tool call: raw=\'x\', err=invalid character"}', 500
    ),
    "SGLang": lambda handler: handler.send(
        b'{"object": "error", "message": "400", "code": 400, "param": null, '
        b'"type": "Failed to parse fc related info to json format!"}',
        400,
    ),
    "vLLM": fails(
        500, "Expecting ',' delimiter: line 1 column 31 (char 30)", type="InternalServerError"
    ),
    "old vLLM": lambda handler: handler.send(
        b'{"object": "error", "message": "Expecting value: line 1 column 1 (char 0)", '
        b'"type": "BadRequestError", "param": null, "code": 400}',
        400,
    ),
    "vLLM, gpt-oss": fails(500, "Unexpected token 12606 while expecting start token 200006"),
    "TGI": lambda handler: handler.send(
        b'{"error": "Tool error: Failed to parse generated text: EOF while parsing a string", '
        b'"error_type": "tool_error"}',
        422,
    ),
}


@pytest.mark.parametrize("service", UNREADABLE)
def test_what_a_server_cannot_read_is_the_models_mistake(
    server: ChatServer, service: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.default = UNREADABLE[service]
    with OpenAIBackend.connect("m", server.url, patience=QUICK) as backend:
        agent = ToolCallingAgent(backend, "system", tools=(FIND,))
        for _ in range(2):
            said = agent.act([Message("user", "Hi.")], seed=1)
            assert said.mistake == "wrong keys" and said.call is None
            assert said.usage is not None and said.usage.calls == 1
    assert len(server.requests) == 2, "at once: the same request would end so again"
    assert [": 2 times: " in line for line in caplog.messages] == [False, True]


def test_what_the_model_wrote_is_kept(server: ChatServer) -> None:
    server.default = UNREADABLE["Groq"]
    assert "<function=find>" in json.loads(ask(server).text)["tool_call"]
    # In plain text, a service may take for a call what is one, but not in its own format.
    server.default = UNREADABLE["Groq, thoughts"]
    assert parse_action(ask(server, tools=False).text).call == NORTH
    server.default = UNREADABLE["Ollama"]
    assert ask(server, tools=False).text == "", "the parser's words are said to nobody"


def test_a_mistake_costs_what_the_error_says(server: ChatServer) -> None:
    error = {"message": "no", "code": "tool_use_failed", "failed_generation": "find("}
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    body = json.dumps({"error": error, "usage": usage}).encode()
    server.default = lambda handler: handler.send(body, 400)
    assert ask(server).usage == Usage(10, 5)
    server.default = UNREADABLE["Groq"]
    assert ask(server).usage == Usage(0, 0)


@pytest.mark.parametrize(
    "fault",
    [
        fails(400, "An assistant message with 'tool_calls' must be followed by tool messages"),
        fails(400, "Invalid parameter: messages[3].tool_calls[0].function: failed to parse"),
        fails(400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser'),
        fails(400, "m does not support tools"),
        fails(400, "tool_call_id 'call00002' not found: error parsing tool calls"),
    ],
)
def test_errors_over_the_request_stay_errors(server: ChatServer, fault: Behaviour) -> None:
    server.default = fault
    with pytest.raises(BackendError, match="HTTP 400"):
        ask(server)


@pytest.mark.parametrize(
    "fault",
    [
        fails(500, "Internal Server Error"),
        fails(500, "Expecting value: line 1 column 1 (char 0)"),
        lambda handler: handler.send(b"Internal Server Error", 500, {"Content-Type": "text/plain"}),
    ],
)
def test_a_server_that_breaks_down_at_one_prompt_alone(
    server: ChatServer, fault: Behaviour
) -> None:
    """Whether it is alive is tried with another prompt, and the same tools."""

    def trips(handler: Handler) -> None:
        """Fail at the prompt, and at no other."""
        asked = handler.state.requests[-1]
        (fault if asked["messages"] == PROMPT else says("Hello!"))(handler)

    server.default = trips
    answer = ask(server)
    assert parse_action(answer.text).mistake == "wrong keys"
    assert (answer.usage, answer.usage.calls, answer.usage.retries) == (Usage(10, 2), 1, 2)
    assert [r["tools"] for r in server.requests] == [server.requests[0]["tools"]] * 5
    with pytest.raises(BackendError, match=r"HTTP 500: .*\(3 tries\)"):
        ask(server, tools=False)  # no parser is at work there


def test_a_server_that_breaks_down_at_every_prompt(server: ChatServer) -> None:
    server.default = fails(500, "oops")
    with pytest.raises(BackendError, match=r"HTTP 500: oops \(3 tries\)"):
        ask(server)
    server.script, server.default = [fails(500, "oops")] * QUICK.tries, says("Hello!")
    assert ask(server).text == "Hello!", "it was down, and is back"
    server.script = [fails(503, "busy")] * QUICK.tries
    with pytest.raises(BackendError, match="busy"):
        ask(server)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ({"message": "slow down", "code": 429}, r"HTTP 429: slow down \(3 tries\)"),
        ({"message": "upstream", "code": "x"}, r"HTTP 500: upstream \(3 tries\)"),
        ("no", r"HTTP 500: no \(3 tries\)"),
        ({"message": "wrong key", "code": 401}, "API key .*: HTTP 401: wrong key$"),
    ],
)
def test_an_error_that_looks_like_a_good_answer(
    server: ChatServer, error: object, said: str
) -> None:
    server.default = answers({"error": error, "choices": None})
    with pytest.raises(BackendError, match=said):
        ask(server)
    generation = {"message": "no", "code": 400, "failed_generation": "find("}
    server.default = answers({"error": generation})
    assert parse_action(ask(server).text).error is not None


# JSON that Python does not read.


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices": ' + b"[" * 100_000,
        b'{"choices": ' + b'{"a":' * 100_000,
        b'{"created": ' + b"1" * 5_000 + b', "choices": []}',
        b"[" * 1_000_000,
    ],
    ids=["lists", "objects", "digits", "a million"],
)
def test_json_that_cannot_be_read_is_a_broken_answer(server: ChatServer, body: bytes) -> None:
    server.script = [writes(body)]
    assert ask(server).usage.retries == 1
    server.script = [lambda handler: handler.send(body, 400)]
    with pytest.raises(BackendError, match="HTTP 400"):
        ask(server)


@pytest.mark.parametrize(
    "arguments", ["[" * 100_000, '{"a":' * 3_000, '{"a": ' + "1" * 5_000 + "}"]
)
def test_arguments_that_cannot_be_read_are_a_mistake(server: ChatServer, arguments: str) -> None:
    server.default = answers(completion(choices=[{"message": finding(arguments)}]))
    assert parse_action(ask(server).text).error is not None
    assert len(server.requests) == 1


@pytest.mark.parametrize("depth", [100, 400, 700, 900, 950, 980])
def test_arguments_as_deep_as_python_reads(server: ChatServer, depth: int) -> None:
    body = json.dumps(completion(choices=[{"message": finding("HERE")}]))
    server.script = [writes(body.replace('"HERE"', '{"a":' * depth + "{}" + "}" * depth).encode())]
    assert parse_action(ask(server).text).mistake in ("nested too deeply", None)
