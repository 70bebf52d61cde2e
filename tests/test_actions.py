"""The action format: any text at all is understood as something, and nothing raises."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolwoz_gym import DialogueEnv, make_toolwoz
from toolwoz_gym.actions import MAX_CHARS, MAX_DEPTH, format_action, format_call, parse_action
from toolwoz_gym.records import dump, message_from_json, message_to_json
from toolwoz_gym.toolwoz.tools import TOOLS
from toolwoz_gym.types import Message, Mistake, ToolCall

texts = st.text(st.characters(codec=None))  # lone surrogates included
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
calls = st.builds(ToolCall, texts, st.dictionaries(texts, values, max_size=4))

HOPELESS = {
    "blank": " \n\t",
    "empty": "",
    "not JSON": '{"name": "search_hotel", "arguments": {}',
    "two objects": '{"name": "a", "arguments": {}} {"name": "a", "arguments": {}}',
    "words after it": '{"name": "search_hotel", "arguments": {}} There you are.',
    "nested beyond the parser": '{"name": "a", "arguments": ' + "[" * 8000,
    "nested and closed": '{"name": "a", "arguments": {"a": ' + "[" * 5000 + "]" * 5000 + "}}",
    "nested too deeply": '{"name": "a", "arguments": {"a": '
    + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}}",
    "NaN": '{"name": "search_hotel", "arguments": {"stars": NaN}}',
    "Infinity": '{"name": "search_hotel", "arguments": {"stars": Infinity}}',
    "minus Infinity": '{"name": "search_hotel", "arguments": {"stars": -Infinity}}',
    "a number beyond all floats": '{"name": "search_hotel", "arguments": {"stars": 1e400}}',
    "and below": '{"name": "search_hotel", "arguments": {"stars": [{"a": -1e400}]}}',
    "an integer beyond conversion": '{"name": "a", "arguments": {"n": ' + "9" * 5000 + "}}",
    "too long": '{"name": "a", "arguments": {"a": "' + "x" * 100_000 + '"}}',
    "too long a reply": "x" * 100_000,
    "no arguments": '{"name": "search_hotel"}',
    "another key": '{"name": "search_hotel", "arguments": {}, "id": 1}',
    "a set": "{1, 2}",
    "empty object": "{}",
    "name is no string": '{"name": 1, "arguments": {}}',
    "arguments in a list": '{"name": "search_hotel", "arguments": []}',
    "arguments in a string": '{"name": "search_hotel", "arguments": "{}"}',
}  # fmt: skip


@pytest.fixture(scope="module")
def env() -> DialogueEnv:
    env = make_toolwoz(world="builtin", max_steps=10)
    env.reset(seed=0)
    return env


def step(env: DialogueEnv, action: str) -> str:
    """Play an action at the opening, and check all that holds for every action."""
    opening = env.snapshot()
    observation, reward, terminated, truncated, info = env.step(action)
    assert observation in env.observation_space
    assert (reward, terminated, truncated, info["outcome"]) == (0.0, False, False, None)
    assert env.snapshot().steps == 1
    for message in env.snapshot().messages:  # whatever was played can be kept on record
        assert message_from_json(json.loads(dump(message_to_json(message)))) == message
    env.restore(opening)
    return observation


@given(texts)
def test_any_text_is_some_action(text: str) -> None:
    message = parse_action(text)
    assert message.role == "assistant"
    kinds = [message.call is not None, message.error is not None]
    if not any(kinds):
        assert message.content == text.strip() != ""
    assert sum(kinds) <= 1


@given(texts.map(lambda text: "{" + text) | values.map(json.dumps))
def test_any_text_like_json_is_a_call_a_mistake_or_no_object(text: str) -> None:
    message = parse_action(text)
    if text.lstrip().startswith("{"):
        assert (message.call is None) != (message.error is None)


@given(calls)
def test_a_call_reads_as_it_is_written(call: ToolCall) -> None:
    message = Message("assistant", call=call)
    assert parse_action(format_action(message)) == message
    assert parse_action(f"\n {format_call(call)} ") == message


@given(texts.map(str.strip).filter(lambda text: text and text[0] != "{"))
def test_a_reply_reads_as_it_is_written(text: str) -> None:
    message = Message("assistant", text)
    assert parse_action(format_action(message)) == message
    assert parse_action(f"  {text}\n") == message


@pytest.mark.parametrize("text", HOPELESS.values(), ids=HOPELESS)
def test_mistakes_are_observations(text: str, env: DialogueEnv) -> None:
    message = parse_action(text)
    assert message.content == text and message.error
    assert len(message.error) < 300 and "\n" not in message.error
    assert get_args(Mistake).count(message.mistake) == 1
    observation = step(env, text)
    assert observation.startswith(f"Error: {message.error}")
    schema = observation.removeprefix(f"Error: {message.error}")
    assert bool(schema) == ('"name": "search_hotel"' in text)
    if schema:
        takes = json.loads(schema.removeprefix("; search_hotel takes "))
        tool = next(tool for tool in TOOLS if tool.name == "search_hotel")
        assert takes == {"properties": tool.parameters, "required": list(tool.required)}


@pytest.mark.parametrize(
    "text", ['"quoted"', "[1, 2]", "null", "1e400", "}{", "\ufeff{}", "\ud800"]
)
def test_what_does_not_begin_with_a_brace_is_said(text: str) -> None:
    assert parse_action(text) == Message("assistant", text)


def test_limits_are_inclusive() -> None:
    nested: Any = "x"
    for _ in range(MAX_DEPTH - 1):
        nested = [nested]
    assert parse_action(format_call(ToolCall("a", {"a": nested}))).call
    assert parse_action(format_call(ToolCall("a", {"a": [nested]}))).error
    assert parse_action("x" * MAX_CHARS).error is None
    assert parse_action("x" * (MAX_CHARS + 1)).error


def test_the_last_of_duplicate_keys_counts() -> None:
    message = parse_action('{"name": "a", "name": "b", "arguments": {"x": 1, "x": 2}}')
    assert message.call == ToolCall("b", {"x": 2})


@given(texts)
def test_the_environment_takes_any_text(env: DialogueEnv, text: str) -> None:
    observation = step(env, text)
    assert observation.startswith("Error: ") == (parse_action(text).error is not None)


names = st.sampled_from([tool.name for tool in TOOLS]) | texts
parameters = st.sampled_from(sorted({name for tool in TOOLS for name in tool.parameters})) | texts


@given(st.builds(ToolCall, names, st.dictionaries(parameters, values, max_size=4)))
def test_the_environment_takes_any_call(env: DialogueEnv, call: ToolCall) -> None:
    observation = step(env, format_call(call))
    tool = next((tool for tool in TOOLS if tool.name == call.name), None)
    right = tool is not None and all(
        name in tool.parameters and not isinstance(value, (list, dict))
        for name, value in call.arguments.items()
    )
    assert observation.startswith("Error: ") != right
