"""What a model's chat template makes of a chat: whether it shows all of it, and where messages end.

A template is a program that comes with a model. It can leave messages out without a word, and then
an agent plays without its policy. So templates are tried on a chat of known words before anything
else is shown to the model, for agents, customers and training alike.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

from agents.tool_formats import template_errors, tool_schema
from toolwoz_gym.types import ToolSpec, UsageError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

PATIENCE = 20.0
"""Seconds that a template gets for a chat of probing words: most need some thousandths of one."""

_log = logging.getLogger(__name__)

_MESSAGES = 41
"""Length of the probing chat: some templates show the last few messages only."""

_LONG = "and so on " * 400
"""Is in the first message of each role: some templates cut long ones off."""

_TOOL = tool_schema(ToolSpec("probetool", "Probe.", {}))

_NAMES = {
    "system": "the system prompt",
    "user": "what the user says",
    "assistant": "what the assistant says",
    "tool": "the answers of tools",
}

# What is put before a template starts a line of its own, which the environment takes away again.
_FOLD = (
    "{%- if messages | length > 1 and messages[0].role == 'system' and messages[1].role == 'user'"
    " -%}{%- set messages = [dict(messages[1], content=messages[0].content ~ '\n\n' ~"
    " messages[1].content)] + messages[2:] -%}{%- endif %}\n"
)
_PARTS = (
    "{%- set in_parts = namespace(all=[]) -%}{%- for message in messages -%}{%- set in_parts.all ="
    " in_parts.all + [dict(message, content=[{'type': 'text', 'text': message.content}])] -%}"
    "{%- endfor -%}{%- set messages = in_parts.all %}\n"
)
_HELP = {
    _FOLD: "the system prompt is put before the user's first message",
    _PARTS: "texts are given as lists of parts",
}
"""What makes a template show all messages that would not without it, and what it does."""


class _Endless(UsageError):
    """A template does not come to an end."""


def rendered(
    tokenizer: PreTrainedTokenizerBase,
    chat: Sequence[dict[str, Any]],
    tools: Sequence[dict[str, Any]] | None = None,
    **how: Any,
) -> Any:
    """Apply a tokenizer's chat template.

    Args:
        tokenizer: A tokenizer with a chat template.
        chat: The messages, as templates take them.
        tools: The tools, as templates take them.
        **how: Further arguments of ``apply_chat_template``.

    Returns:
        What ``apply_chat_template`` returns, which is a text unless told otherwise.

    Raises:
        UsageError: The template refuses the chat.
    """
    how = {"tokenize": False, **how}
    try:
        return tokenizer.apply_chat_template(list(chat), tools=tools, **how)
    except template_errors() as error:
        raise UsageError(
            f"the chat template of {tokenizer.name_or_path!r} refuses the chat "
            f"({one_line(error)}): take {'--tool-format text' if tools else 'another model'}"
        ) from error


def in_time(tokenizer: PreTrainedTokenizerBase, render: Callable[[], T]) -> T:
    """Render a chat of probing words with a tokenizer's template, which can loop for ever.

    Raises:
        UsageError: It takes too long. The thread that renders goes on, until the process ends.
    """
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(render())
        except BaseException as error:  # whatever it is, the caller gets it
            result.set_exception(error)

    Thread(target=run, name="chat template", daemon=True).start()
    try:
        return result.result(PATIENCE)
    except TimeoutError:
        raise _Endless(
            f"the chat template of {tokenizer.name_or_path!r} has not rendered a chat within "
            f"{PATIENCE:g} seconds: take another model"
        ) from None


def unseen(
    tokenizer: PreTrainedTokenizerBase,
    chat: Sequence[dict[str, Any]],
    *,
    tools: bool = False,
) -> list[str]:
    """Return what a chat template leaves out of chats of a form.

    Args:
        tokenizer: A tokenizer with a chat template.
        chat: A chat of this form: the roles and tool calls count, the words do not.
        tools: Whether there are tools to be shown.

    Returns:
        Names of the kinds of messages that are not shown, or not whole.

    Raises:
        UsageError: The template refuses the chat, or does not come to an end.
    """
    probe, marks = [], []
    for place, message in enumerate(chat):
        begin, end = f"probe{place}a", f"probe{place}z"
        name = _NAMES.get(message["role"], f"messages of the role {message['role']}")
        if message.get("tool_calls"):
            function = {"name": begin, "arguments": {"value": end}}
            calls = [{**call, "function": function} for call in message["tool_calls"]]
            probe.append({**message, "tool_calls": calls})
            name = "tool calls"
        else:
            first = all(other["role"] != message["role"] for other in chat[:place])
            probe.append({**message, "content": f"{begin} {_LONG if first else ''}{end}"})
        marks += [(name, begin), (name, end)]
    shown = None
    if tools:
        shown = [_TOOL]
        marks.append(("the tools", "probetool"))
    asked = chat[-1]["role"] != "assistant"
    text = in_time(
        tokenizer, lambda: rendered(tokenizer, probe, shown, add_generation_prompt=asked)
    ).lower()
    if "'type': 'text'" in text:  # a list as Python writes it: this template wants no lists
        return ["texts in parts"]
    return list(dict.fromkeys(name for name, mark in marks if mark not in text))


def fit(tokenizer: PreTrainedTokenizerBase) -> None:
    """See to it that the chat template shows every message of a dialogue in plain text.

    Where it has no role for the system prompt, or wants texts as lists of parts, the template gets
    them so from now on, and a line says it.

    Raises:
        UsageError: It leaves messages out all the same, refuses them, or does not come to an end.
    """
    template, name = tokenizer.chat_template, tokenizer.name_or_path
    if isinstance(template, dict) and "default" not in template:
        raise UsageError(
            f"{name!r} has chat templates for {', '.join(map(str, template))}, but no default one: "
            "take another model"
        )
    talk = [{"role": ("user", "assistant")[i % 2], "content": ""} for i in range(_MESSAGES)]
    chat = [{"role": "system", "content": ""}, *talk]
    why = ""
    for helps in ((), (_FOLD,), (_PARTS,), (_FOLD, _PARTS)):
        before = "".join(helps)
        tokenizer.chat_template = (
            {key: before + text for key, text in template.items()}
            if isinstance(template, dict)
            else before + template
        )
        try:
            missing = unseen(tokenizer, chat)
        except _Endless:
            raise
        except UsageError as error:
            why = why or str(error)
            continue
        if not missing:
            if helps:
                done = ", and ".join(_HELP[before] for before in helps)
                _say(f"the chat template of {name!r} does not show all by itself: {done}")
            return
        why = why or (
            f"the chat template of {name!r} leaves out {', '.join(missing)}: take another model"
        )
    tokenizer.chat_template = template
    raise UsageError(why)


@cache
def _say(line: str) -> None:
    """Tell of something once."""
    _log.warning("%s", line)


@dataclass(frozen=True, slots=True)
class Ends:
    """How a model's messages end by its chat template."""

    tokens: frozenset[int]
    """Tokens that end a message."""
    text: str = ""
    """Text of several tokens that does; ``""``: a token does."""

    def within(self, tokens: Sequence[int], text: str) -> bool:
        """Return whether a message, as tokens and as text, has an end."""
        return not self.tokens.isdisjoint(tokens) or bool(self.text and self.text in text)


def message_ends(tokenizer: PreTrainedTokenizerBase) -> Ends:
    """Find out what a chat template puts after an assistant's message.

    That is the first token behind the last message of a chat that is no part of words, such as
    ``<|im_end|>``; where there is none, the first one between it and the user's next message. A
    template of words alone has a text there. Calls of tools can end with a token of their own. The
    tokenizer's end token counts too.
    """
    special = {
        number: str(token) for number, token in tokenizer.added_tokens_decoder.items()
        if str(token).strip()
    }  # fmt: skip

    def behind(word: str, *chat: dict[str, Any], tools: bool = False) -> str:
        shown = [_TOOL] if tools else None
        try:
            text = in_time(tokenizer, lambda: rendered(tokenizer, [user, *chat], shown))
        except _Endless:
            raise
        except UsageError:
            return ""
        return str(text.rpartition(word)[2] if word in text else "")

    def specials(text: str) -> list[int]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return [number for number in ids if number in special]

    user = {"role": "user", "content": "probeuser"}
    said = {"role": "assistant", "content": "probesaid"}
    function = {"name": "probetool", "arguments": {"value": "probecall"}}
    call = {"id": "call00001", "type": "function", "function": function}
    last = behind("probesaid", said)
    between = behind("probesaid", said, {**user, "content": "probenext"}).partition("probenext")[0]
    ends = {tokenizer.eos_token_id} - {None}
    text = ""
    if first := (specials(last) or specials(between))[:1]:
        ends |= {*first}
        calling = {"role": "assistant", "content": "", "tool_calls": [call]}
        after_call = specials(behind("probecall", calling, tools=True))
        if not ends & {*after_call}:
            ends |= {*after_call[-1:]}
    else:
        text = last.rstrip() or between.rstrip()
    return Ends(frozenset(ends), text)
