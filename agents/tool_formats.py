"""The formats in which models call tools and think by themselves, and the environment's own.

Hermes and Qwen write ``<tool_call>{"name": ..., "arguments": ...}</tool_call>``, Llama 3 a bare
object with ``parameters``, Mistral ``[TOOL_CALLS]`` and a list, or a name and its arguments. Which
of these a model was taught shows in its chat template; a backend shows it dialogues in that form
and gives back the environment's actions.

Thoughts stand between marks of many kinds. They are for the model itself: whoever reads a message,
an agent's or a customer's, takes them out by :func:`without_thoughts`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from os.path import commonprefix
from typing import Any

from agents.base import ChatMessage
from toolwoz_gym.actions import format_call, parse_action
from toolwoz_gym.types import ToolCall, ToolSpec

_MARK = re.compile(r"<tool_call>|\[TOOL_CALLS\]|<\|python_tag\|>")
"""What stands before a call."""

_TAG = (
    r"(?:ant|\w{1,20}[:_-])?(?:think(?:ing)?|thoughts?|reason(?:ing)?|analysis|reflection|scratchpad)"
    r"(?:[_-]\w{1,20})?"
)
_OPENING = re.compile(
    rf"<\|?{_TAG}(?:\|?|\s[^<>]{{0,99}})>|\[(?:THINK|THINKING|REASONING)\]|◁think▷"
    r"|<\|(?:inner_prefix|START_THINKING|begin_of_thought)\|>"
    r"|<\|channel\|?>\s{0,9}(?:analysis|thought)\b|\A\s{0,9}analysis(?=[A-Z])",
    re.IGNORECASE,
)
"""What begins a thought: tags, and the marks of Magistral, Kimi, Apertus, Command, Sky-T1, gpt-oss
and Gemma; of gpt-oss also what is left when special tokens are skipped."""
_CLOSING = re.compile(
    rf"<\|?/{_TAG}\|?>|\[/(?:THINK|THINKING|REASONING)\]|◁/think▷"
    r"|<\|(?:inner_suffix|END_THINKING|end_of_thought)\|>"
    r"|<channel\|>|<\|channel\|>\s{0,9}(?:final|commentary)\b(?:\s{0,9}<\|message\|>)?"
    r"|assistantfinal",
    re.IGNORECASE,
)
"""What ends one."""
_WRAPPING = (
    r"(?:</?(?:answer|response|output)>|<\|(?:START|END)_RESPONSE\|>"
    r"|<\|(?:begin|end)_of_solution\|>|<\|(?:end|return)\|>)"
)
_WRAPPED = re.compile(rf"\A\s*{_WRAPPING}|{_WRAPPING}\s*\Z", re.IGNORECASE)
"""What can stand around the message itself, after a thought."""
_SENTENCE_ENDS = ("", *".!?:)\"'")
_OPENED = re.compile(rf"(?:{_OPENING.pattern})\Z", re.IGNORECASE)

_BOUND = re.compile(
    rf"{_MARK.pattern}|</tool_call>|{_OPENING.pattern}|{_CLOSING.pattern}", re.IGNORECASE
)
"""What cannot be part of a call, unless it is in a text of its JSON."""

_HEAD = re.compile(r"[\s,;\[]*+(?:([\w.-]++)\s*+(?:\[CALL_ID\]\w*+)?(?:\[ARGS\])?\s*+)?(?=\{)")
"""What can stand before the JSON of a call: newer Mistral models write the tool's name there."""

_KEYS = {"parameters": "arguments"}
"""What Llama 3 calls otherwise."""

_NOT_ESSENTIAL = ("id", "type")
"""Further keys that templates teach."""

_PROBE = ToolSpec("probe", "Probe.", {"depth": {"type": "string", "description": "how deep"}})
_PROBING = ToolCall("probe", {"depth": "seven"})


def encodable(text: str) -> str:
    """Put "?" for halves of surrogate pairs: neither tokenizers nor servers take them.

    JSON can name them, so they can be in what a model called a tool with.
    """
    return text.encode("utf-8", "replace").decode("utf-8")


def tool_schema(tool: ToolSpec) -> dict[str, Any]:
    """Write a tool as chat templates and OpenAI's protocol take it."""
    parameters = {
        "type": "object",
        "properties": dict(tool.parameters),
        "required": list(tool.required),
    }
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def native_chat(prompt: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Write a chat with its tool calls as chat templates take them.

    Templates refuse a call without an answer and an answer without a call. So a call is one only if
    a ``tool`` message follows, and a ``tool`` message after anything else is shown as the user's,
    in one message with what the user says after it.

    Args:
        prompt: The chat: actions of the assistant, and ``tool`` messages with the answers.
    """
    chat: list[dict[str, Any]] = []
    call = None
    for position, message in enumerate(prompt):
        if message["role"] == "tool" and call is not None:
            chat[-1] = _calling(call, position - 1)
            answered = chat[-1]["tool_calls"][0]
            ids = {"tool_call_id": answered["id"], "name": answered["function"]["name"]}
            chat.append({"role": "tool", "content": message["content"], **ids})
        else:
            role = "user" if message["role"] == "tool" else message["role"]
            if chat and chat[-1]["role"] == role == "user":
                chat[-1]["content"] += f"\n{message['content']}"
            else:
                chat.append({"role": role, "content": message["content"]})
        call = _call_of(message)
    return chat


def native_answer(prompt: Sequence[ChatMessage], action: str) -> dict[str, Any]:
    """Write the assistant's message after a prompt as chat templates take it.

    Args:
        prompt: The chat before it.
        action: What the assistant does.
    """
    message = {"role": "assistant", "content": action}
    call = _call_of(message)
    return message if call is None else _calling(call, len(prompt))


def in_protocol(message: Mapping[str, Any]) -> dict[str, Any]:
    """Write a message for chat templates as OpenAI's protocol does: arguments are text there."""
    shown = {key: value for key, value in message.items() if key != "name"}
    if "tool_calls" in message:
        shown |= {"content": None, "tool_calls": [_in_text(c) for c in message["tool_calls"]]}
    return shown


def written_call(name: str, arguments: str) -> str:
    """Write a call, whose arguments may be no JSON, as the action that it is.

    Args:
        name: The tool's.
        arguments: As the model wrote them. If they are no JSON, the action is refused.
    """
    action = f'{{"name": {json.dumps(name)}, "arguments": {arguments}}}'
    try:
        json.loads(arguments)
    except (ValueError, RecursionError):
        if parse_action(action).call is not None:  # '{}, "name": "another"'
            return json.dumps({"name": name, "arguments": arguments})
    return action


def read_native(text: str) -> str:
    """Return what a model wrote in its own format as the environment's action.

    Thoughts are left out, and so are words before a marked call. Of several calls the first
    counts, as in τ-bench. What is no call although it is marked as one stays something
    that :func:`~toolwoz_gym.actions.parse_action` refuses. Marks in the arguments of a call are
    text.

    Args:
        text: What the model wrote, special tokens included but for the one that ended it.
    """
    said = without_thoughts(text.strip())
    if said.startswith("{"):
        return _action(said)
    mark = _MARK.search(said)
    return said if mark is None else _action(said[mark.end() :].strip())


def without_thoughts(text: str) -> str:
    """Return what a model says besides what it thinks: the text as it is if it thinks nothing.

    A thought whose end is not to be seen was cut off, and goes on to the end of the text. One whose
    beginning is not to be seen was begun by the chat template, or had another thought inside. Marks
    in the arguments of a call are text; so is one that only opens, in the midst of a sentence.
    """
    said: list[str] = []
    begin, place = 0, _end_of_calls(text, 0)
    while bound := _BOUND.search(text, place):
        place = bound.end()
        before = text[begin : bound.start()]
        if _CLOSING.match(text, bound.start()):
            begin = place
        elif _OPENING.match(text, bound.start()):
            closing = _CLOSING.search(text, place)
            words = before.rstrip()
            if closing or words[-1:] in _SENTENCE_ENDS or "\n" in before[len(words) :]:
                said.append(before)
                begin = place = closing.end() if closing else len(text)
        place = _end_of_calls(text, place)
    if not begin:
        return text
    words = _WRAPPED.sub("", text[begin:])
    return " ".join(part for part in map(str.strip, [*said, words]) if part)


def opening_mark(prompt: str) -> str:
    """Return the mark with which the end of a prompt begins the model's thoughts, if it does."""
    found = _OPENED.search(prompt.rstrip())
    return found[0] if found else ""


def template_errors() -> tuple[type[Exception], ...]:
    """Return what chat templates fail with: they refuse chats, compute and look things up."""
    from jinja2 import TemplateError

    looked_up = (LookupError, AttributeError, TypeError, ValueError)
    return (TemplateError, ArithmeticError, RecursionError, MemoryError, *looked_up)


def is_native(template: Callable[..., str], *, silences: bool = False) -> bool:
    """Return whether a chat template shows tools, calls and answers, in a format that we read.

    Args:
        template: A tokenizer's ``apply_chat_template``, told not to tokenize.
        silences: Whether it must also show a customer who speaks right after a tool, as one does to
            an agent that has fallen silent. Mistral's refuses that.
    """

    def render(*messages: ChatMessage) -> str:
        chat = native_chat([{"role": "user", "content": "Go."}, *messages])
        return template(chat, tools=[tool_schema(_PROBE)])

    action = {"role": "assistant", "content": format_call(_PROBING)}
    answer = {"role": "tool", "content": "ANSWER"}
    try:
        spoken = render({"role": "assistant", "content": "SPOKEN"})
        called = render(action, answer, *([{"role": "user", "content": "Well?"}] * silences))
    except template_errors():
        return False
    end = spoken.partition("SPOKEN")[2].strip()
    call = called[len(commonprefix([spoken, called])) :]
    if not end or _PROBE.description not in spoken or "ANSWER" not in called:
        return False
    return parse_action(read_native(call.partition(end)[0])).call == _PROBING


def _end_of_calls(text: str, place: int) -> int:
    """Return where the calls end that begin at a place, with no mark between them."""
    while found := _decode(text, place):
        _, _, place = found
    return place


def _decode(text: str, place: int) -> tuple[str | None, dict[str, Any], int] | None:
    """Decode the JSON of a call that begins at a place.

    Returns:
        The tool's name where it stands before the JSON, the JSON, and where it ends; None if there
        is none.
    """
    head = _HEAD.match(text, place)
    if head is None:
        return None
    try:
        value, end = json.JSONDecoder().raw_decode(text, head.end())
    except (ValueError, RecursionError):
        return None
    return head[1], value, end


def _action(body: str) -> str:
    """Write what a model marked as a call as an action, valid or not."""
    if found := _decode(body, 0):
        name, value, end = found
        rest = body[end:].lstrip()
        following = (",", "]") if body.startswith("[") else (";", "{")
        if not rest or rest.startswith(following) or _BOUND.match(rest):
            call = {"name": name, "arguments": value} if name else value
            action = {_KEYS.get(k, k): v for k, v in call.items() if k not in _NOT_ESSENTIAL}
            if not {*_KEYS, *_KEYS.values()} <= call.keys():  # one of them is the arguments
                return json.dumps(action, ensure_ascii=False)
    body = _BOUND.split(body)[0].strip()
    head = _HEAD.match(body)
    if head and head[1]:
        return written_call(head[1], body[head.end() :])
    return body if body.startswith("{") else json.dumps({"tool_call": body})


def _call_of(message: ChatMessage) -> ToolCall | None:
    return parse_action(message["content"]).call if message["role"] == "assistant" else None


def _calling(call: ToolCall, position: int) -> dict[str, Any]:
    """Write a call at a position of a chat."""
    function = json.loads(encodable(format_call(call)))
    made = {"id": _call_id(position), "type": "function", "function": function}
    return {"role": "assistant", "content": "", "tool_calls": [made]}


def _in_text(call: Mapping[str, Any]) -> dict[str, Any]:
    """Write a call with its arguments as text."""
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"])}}


def _call_id(position: int) -> str:
    """Name the call at a position of a chat: nine letters and digits, as Mistral wants it."""
    return f"call{position:05}"
