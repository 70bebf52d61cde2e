"""Chats as tokens, and tokens as texts: for the backends that run a model by its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from agents.base import ChatMessage
from agents.tool_formats import (
    encodable,
    native_chat,
    opening_mark,
    read_native,
    tool_schema,
    without_thoughts,
)
from toolwoz_gym.types import ToolSpec, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK_TOKENS = 16
"""No mark of a thought, with the line end after it, has more tokens."""


class ChatTokens:
    """A model's tokenizer and its chat template. Safe to use from many threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take a tokenizer with a chat template."""
        self._tokenizer = tokenizer
        self._lock = Lock()  # tokenizers are not made for several threads at once

    def encode(self, prompt: Sequence[ChatMessage], tools: Sequence[ToolSpec] = ()) -> list[int]:
        """Return the tokens of a chat, up to where the model's next message begins.

        Args:
            prompt: The chat.
            tools: Tools that the model may call in its own format: see
                :func:`agents.tool_formats.native_chat`.

        Raises:
            UsageError: The chat template refuses the chat.
        """
        how: dict[str, Any] = {"add_generation_prompt": True, "return_dict": False}
        said = [{**message, "content": encodable(message["content"])} for message in prompt]
        chat: Sequence[dict[str, Any]] = said
        if tools:
            chat = native_chat(said)
            how["tools"] = [tool_schema(tool) for tool in tools]
        try:
            with self._lock:
                return list(self._tokenizer.apply_chat_template(list(chat), **how))
        except (TemplateError, TypeError) as error:  # templates add what they are given to a text
            why = " ".join(str(error).split())
            raise UsageError(
                f"the chat template of {self._tokenizer.name_or_path!r} refuses the chat ({why}): "
                f"take {'--tool-format text' if tools else 'another model'}"
            ) from error

    def decode(
        self, tokens: Sequence[int], *, native: bool, cut_off_after: Sequence[int] = ()
    ) -> str:
        """Return what a model wrote.

        Args:
            tokens: All that it wrote, but for the token that ended it.
            native: It was to call tools in its own format: the text is given as an action.
            cut_off_after: The prompt, if a limit ended the message: thoughts that it has begun have
                then no mark in the message.
        """
        with self._lock:
            # The marks of a call can be special tokens, and so can those of thoughts.
            text, whole = (self._decode(tokens, bare=bare) for bare in (True, False))
            mark = opening_mark(self._decode(cut_off_after[-_MARK_TOKENS:], bare=False))
        if mark and without_thoughts(whole) == whole:
            whole = f"{mark}\n{whole}"
        if native:
            return read_native(whole)
        return text if without_thoughts(whole) == whole else whole

    def _decode(self, tokens: Sequence[int], *, bare: bool) -> str:
        text: str = self._tokenizer.decode(
            list(tokens), skip_special_tokens=bare, clean_up_tokenization_spaces=False
        )
        return text
