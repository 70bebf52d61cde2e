"""Grammars of what agents write, so that no tool call is malformed.

The notation is llama.cpp's (GBNF); xgrammar and vLLM read it too. A call names a tool that is
offered and parameters that the tool has, with values of the right type, those of an enumeration
letter by letter. Parameters come in any order, as the model likes; that all required ones are there
is left to the tool.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from toolwoz_gym.types import ToolSpec

_SPACES = r" \t\n\x0b\x0c\r\x1c-\x1f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"

SPEECH = rf"""
speech ::= first any*
first ::= [^{{{_SPACES}]
any ::= [^\x00]
"""
"""Words: what does not begin with a brace, or with a space, before which there might be one."""

WORDS = {"type": "string", "pattern": r"^\S"}
"""The schema of words in a call: a text that does not begin with a space, and has something."""

_JSON = rf"""
ws ::= " "?
value ::= string | number | boolean | "null" | array | object
string ::= "\"" char* "\""
words ::= "\"" ([^"\\\x00-\x1f{_SPACES}] | "\\" ["\\/]) char* "\""
char ::= [^"\\\x00-\x1f] | "\\" (["\\/bfnrt] | "u" hex hex hex hex)
hex ::= [0-9a-fA-F]
integer ::= "-"? ("0" | [1-9] [0-9]{{0,14}})
number ::= integer ("." [0-9]+)?
boolean ::= "true" | "false"
array ::= "[" ws (value (ws "," ws value)*)? ws "]"
object ::= "{{" ws (member (ws "," ws member)*)? ws "}}"
member ::= string ws ":" ws value
"""

_TYPES = ("string", "integer", "number", "boolean", "array", "object")


def call_rules(tools: Sequence[ToolSpec]) -> str:
    """Write the rule ``call``, and those that it needs: one call of one of the tools."""
    calls = (
        f'"{{" ws {_pair("name", _literal(tool.name))} ws "," ws '
        f'{_pair("arguments", _object(tool.parameters, tool.required))} ws "}}"'
        for tool in tools
    )
    return f"call ::= {_choice(calls)}\n{_JSON.lstrip()}"


def _object(parameters: Mapping[str, Mapping[str, Any]], required: Sequence[str] = ()) -> str:
    """Write an object with some of these keys, in any order; with one, if any is required."""
    if not parameters:
        return '"{" ws "}"'
    pair = _choice(_pair(name, _value(schema)) for name, schema in parameters.items())
    return f'"{{" ws ({pair} (ws "," ws {pair})*){"" if required else "?"} ws "}}"'


def _value(schema: Mapping[str, Any]) -> str:
    """Write what a JSON schema allows, as far as tools describe their parameters."""
    if "enum" in schema:
        return _choice(map(_literal, schema["enum"]))
    if schema.get("pattern") == WORDS["pattern"]:
        return "words"
    if schema.get("type") == "object" and "properties" in schema:
        return _object(schema["properties"])
    if schema.get("type") == "array" and "items" in schema:
        item = _value(schema["items"])
        return f'"[" ws ({item} (ws "," ws {item})*)? ws "]"'
    kind = schema.get("type")
    return kind if kind in _TYPES else "value"


def _pair(name: str, value: str) -> str:
    return f'{_literal(name)} ws ":" ws {value}'


def _literal(value: Any) -> str:
    """Write a JSON value as text of the grammar."""
    return json.dumps(json.dumps(value, ensure_ascii=False), ensure_ascii=False)


def _choice(options: Iterable[str]) -> str:
    return f"({' | '.join(options)})"
