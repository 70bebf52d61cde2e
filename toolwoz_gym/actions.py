"""The one action format: what an agent's text means.

A JSON object with exactly ``name`` and ``arguments`` is a tool call. Text that does not begin with
``{`` is said to the customer. Anything else is a mistake of the model's, answered by an observation
that begins with ``Error: ``.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from toolwoz_gym.types import Message, Mistake, ToolCall

MAX_CHARS = 16_384
"""Longest action that is read. Longer ones are answered by an error observation."""

MAX_DEPTH = 16
"""Deepest nesting of arguments that is read."""

CALL_FORM = '{"name": "<tool>", "arguments": {...}}'
"""What a tool call looks like, for error messages."""

_IS = f"a tool call is {CALL_FORM}"


def parse_action(text: str) -> Message:
    """Read an action as the assistant message that it is.

    Text that is no action is a legal move too: the message then says in ``error`` what is wrong
    with it, and the dialogue answers it with an error observation.
    """
    if len(text) > MAX_CHARS:
        return mistake(
            "too long",
            text,
            f"the message has {len(text)} characters; at most {MAX_CHARS} are read",
        )
    if not text.strip():
        return mistake("empty", text, f"the message is empty; {_IS}")
    if not text.lstrip().startswith("{"):
        return Message("assistant", text.strip())
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        return mistake("nested too deeply", text, f"the JSON is nested too deeply; {_IS}")
    except ValueError as error:
        return mistake("not JSON", text, f"not valid JSON ({error}); {_IS}")
    if set(value) != {"name", "arguments"}:
        return mistake(
            "wrong keys", text, f"a tool call has exactly the keys name and arguments: {CALL_FORM}"
        )
    name, arguments = value["name"], value["arguments"]
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return mistake(
            "wrong types", text, f"name is a string and arguments an object: {CALL_FORM}"
        )
    if _depth(arguments) > MAX_DEPTH:
        return mistake("nested too deeply", text, f"the arguments are nested too deeply; {_IS}")
    return Message("assistant", call=ToolCall(name, arguments))


_CALL_FORMS = re.compile(
    # marks: <tool_call>, <function=x>, [TOOL_CALLS], <|tool_calls_begin|>, <invoke name="x">, ...
    r"[<\[]\W{0,3}(?:tool|function)(?:[ _▁]?(?:calls?|code|use|name)(?![a-z])|=)|<\|python_tag\|>"
    r"|<invoke\b|<tools?>|</?[a-z]+(?:_[a-z]+)+>|<\|(?:start_)?action(?:_start)?\|>"
    r"|\bfunctions\.[a-z]{1,40}_|^\W{0,3}(?:tool|function|action)\W{1,4}[a-z]+_[a-z_]+\W{0,3}$"
    # JSON and its likes: {"name": "x", "arguments": {}}, {"search_hotel": {}}
    r"|[\"'](?:name|tool|tool_name|function|action)[\"']\s*:[^{}]{0,200}"
    r"[\"'](?:arguments|args|parameters|kwargs|\w{0,9}_?input)[\"']\s*:"
    r"|[\"'](?:arguments|args|parameters|kwargs)[\"']\s*:\s*[{\"'\[]"
    r"|\{\s*[\"'][a-z]+(?:_[a-z]+)+[\"']\s*:\s*\{|^\W{0,3}(?:arguments|action input)\W{0,3}:"
    # code: search_hotel(area="north"), search_hotel{"area": "north"}, calculate("2 + 2")
    r"|\b[a-z]+(?:_[a-z]+)+(?:\((?!e?s\))|\s?\(\s*[a-z_]+\s?=|\s+[a-z_]+=|(?:\[[a-z]+\]|[\s:])*\{)"
    r"|\b[a-z]\w{0,40}\(\s*(?:[\"'{]|[a-z_]\w{0,40}\s?=(?!=))",
    re.IGNORECASE | re.MULTILINE,
)


def holds_call(text: str) -> bool:
    """Return whether there is a tool call in a text, in any form in which models write them.

    Such a text is meant for a tool and not for a customer, whoever wrote it.
    """
    return _CALL_FORMS.search(text) is not None


def format_call(call: ToolCall) -> str:
    """Write a tool call as the action that makes it."""
    return json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)


def format_action(message: Message) -> str:
    """Write an assistant message as the action that it is: the inverse of :func:`parse_action`."""
    return message.content if message.call is None else format_call(message.call)


def mistake(kind: Mistake, text: str, error: str) -> Message:
    """Return a message that is no action.

    Args:
        kind: Of which kind the mistake is.
        text: What was written.
        error: What is wrong with it, and how an action is written: the model is shown this.
    """
    return Message("assistant", text, error=error, mistake=kind)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):  # 1e400: it could be read, but never be written again
        raise ValueError("a number is too large")
    return value


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)


def _depth(value: Any) -> int:
    """Return how deeply lists and objects are nested, without recursion."""
    depth, level = 0, [value]
    while level:
        containers = [v for v in level if isinstance(v, (dict, list))]
        depth += bool(containers)
        level = [x for v in containers for x in (v.values() if isinstance(v, dict) else v)]
    return depth
