"""What a server's chat completion says: the shapes that it comes in, and what is made of each.

Servers that speak one protocol write the same answer in many ways. Whatever says what the model
wrote is read; what cannot be read besides it, such as token counts in words, is not known.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from agents.backends.transport import BrokenAnswer
from agents.base import BackendError, Completion
from agents.tool_formats import read_native, written_call
from toolwoz_gym.actions import parse_action
from toolwoz_gym.types import Usage

_MOST_TOKENS = 10_000_000
"""More tokens than any model reads: who counts more is not believed."""

_MOST_OF_A_REASON = 40
"""Characters of a reason for finishing that are shown."""

Ending: TypeAlias = Literal["whole", "cut off", "filtered", "broken off", "malformed", "unknown"]

_ENDINGS: tuple[tuple[Ending, re.Pattern[str]], ...] = (
    ("malformed", re.compile(r".*(malformed|(unexpected|invalid|toomany)(tool|function)).*")),
    (
        "filtered",
        re.compile(
            r".*(filter|safety|recitation|block|prohibit|guardrail|spii|moderat|flag|policy"
            r"|violat|sensitive|harm).*"
        ),
    ),
    (
        "broken off",
        re.compile(
            r".*(abort|error|cancel|fail|insufficient|exhaust|timeout|timedout|interrupt|overload"
            r"|unavail|preempt|disconnect|shutdown|ratelimit).*"
        ),
    ),
    ("cut off", re.compile(r".*(length|limit|truncat|incomplete|context|window|cutoff).*|max.*")),
    (
        "whole",
        re.compile(
            r"|none|null|(tool|function)(calls?|use)|e(os|ot|om)(token)?"
            r"|(stop|end|finish|complete|done|success).*"
        ),
    ),
)
"""What the reasons for finishing mean, of which the small letters alone are compared."""


def ending(reason: object) -> Ending:
    """Return what a reason for finishing means."""
    name = reason.get("type") if isinstance(reason, Mapping) else reason
    letters = re.sub(r"[^a-z]", "", str(name or "")[:100].lower())
    for meaning, pattern in _ENDINGS:
        if pattern.fullmatch(letters):
            return meaning
    return "unknown"


def read_answer(answer: object, usage: Usage, *, native: bool) -> tuple[Completion, str | None]:
    """Read a chat completion.

    Args:
        answer: Its JSON.
        usage: What it cost.
        native: Whether the model was shown tools.

    Returns:
        The completion, and the reason for finishing where it is one that is not known: then the
        message counts as whole.

    Raises:
        BrokenAnswer: It is no chat completion, or the server did not finish it.
        BackendError: A content filter ended it.
    """
    if not isinstance(answer, Mapping):
        raise BrokenAnswer("the answer is no chat completion")
    choice = next((c for c in _list(answer.get("choices")) if isinstance(c, Mapping)), None)
    if choice is None:
        raise BrokenAnswer("the answer is no chat completion (no choices)")
    message = choice.get("message")
    if not isinstance(message, Mapping):
        raise BrokenAnswer("the answer is no chat completion (no message)")
    meaning = ending(choice.get("finish_reason"))
    reason = " ".join(str(choice.get("finish_reason")).split())[:_MOST_OF_A_REASON]
    if meaning == "filtered":
        raise BackendError(f"a content filter ended the answer ({reason})")
    if meaning == "broken off":
        raise BrokenAnswer(f"the server did not finish its answer ({reason})")
    text = _text(message.get("content"))
    call = _call(message)
    if call is not None and (native or not text.strip()):
        text = call
    else:
        text = text if text.strip() else _text(message.get("refusal")) or text
        text = read_native(text) if native else text
        if meaning == "malformed":
            text = malformed(text or f"({reason})" * native, native=native)
    if meaning == "unknown" and not text.strip():
        raise BrokenAnswer(f"the answer is empty, and ended for an unknown reason ({reason})")
    finish: Literal["stop", "length"] = "length" if meaning == "cut off" else "stop"
    odd = reason if meaning == "unknown" else None
    return Completion(text, usage, finish, _logprob(choice)), odd


def malformed(written: str, *, native: bool) -> str:
    """Return what a model wrote and its server could not read as an action that is a mistake.

    Args:
        written: By the model, or by the server about it.
        native: Whether the model was shown tools. If not, what it wrote is what it did.
    """
    if not native or parse_action(written).error is not None:
        return written
    return json.dumps({"tool_call": written}, ensure_ascii=False)


def tokens(answer: object) -> Usage:
    """Return how many tokens an answer took, which may be broken otherwise; None: not known."""
    usage = answer.get("usage") if isinstance(answer, Mapping) else None
    said = usage if isinstance(usage, Mapping) else {}
    details = said.get("prompt_tokens_details")
    prompt = _count(said.get("prompt_tokens"))
    cached = _count(details.get("cached_tokens")) if isinstance(details, Mapping) else None
    if prompt is not None and cached is not None and cached > prompt:
        cached = None
    return Usage(prompt, _count(said.get("completion_tokens")), cached)


def _count(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if not 0 <= value <= _MOST_TOKENS or value != int(value):
        return None
    return int(value)


def _list(value: object) -> list[Any]:
    """Return a list; one of a single value where there is just that."""
    return value if isinstance(value, list) else [value] if isinstance(value, Mapping) else []


def _text(content: object) -> str:
    """Return the words of a content, which may come in parts. Thoughts are none."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, (list, Mapping)):
        raise BrokenAnswer("the answer is no chat completion (its content is no text)")
    said = []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, Mapping):
            is_thought = re.search(r"think|thought|reason", str(part.get("type")))
            part = None if is_thought else part.get("text") or part.get("refusal")
        if isinstance(part, str):
            said.append(part)
    return "".join(said)


def _call(message: Mapping[str, Any]) -> str | None:
    """Return the first call of a message as the action that it is; None: it makes none.

    A turn is one action, so further calls are dropped, and so are words beside a call.
    """
    listed = [*_list(message.get("tool_calls")), *_list(message.get("function_call"))]
    made = [call for call in listed if isinstance(call, Mapping)]
    for call in made:
        function = call.get("function", call)
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            return written_call(function["name"], _arguments(function.get("arguments")))
    return malformed(json.dumps(made, ensure_ascii=False), native=True) if made else None


def _arguments(said: object) -> str:
    """Return the arguments of a call as the JSON of an object, if they are one in any shape."""
    text = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
    value = said
    for _ in range(3):  # encoded once, twice, and to be sure
        if isinstance(value, str):
            try:
                value = json.loads(value) if value.strip() else {}
            except (ValueError, RecursionError):
                break
    if value is None or value == []:
        value = {}
    if isinstance(value, dict) and not text.lstrip().startswith("{"):
        return json.dumps(value, ensure_ascii=False)
    return text


def _logprob(choice: Mapping[str, Any]) -> float | None:
    """Return the log-probability of all tokens that the server lists; None if it lists none."""
    listed = choice.get("logprobs")
    content = listed.get("content") if isinstance(listed, Mapping) else None
    each = [t.get("logprob") if isinstance(t, Mapping) else None for t in _list(content)]
    total = 0.0
    for logprob in each:
        if not isinstance(logprob, (int, float)) or not logprob <= 0:
            return None
        total += logprob
    return round(total, 6) if each and math.isfinite(total) else None
