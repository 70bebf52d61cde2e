"""Chats as tokens, and tokens as texts: for the backends that run a model by its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

from agents.base import ChatMessage
from agents.chat_template import message_ends, rendered
from agents.tool_formats import (
    encodable,
    native_chat,
    opening_mark,
    read_native,
    tool_schema,
    without_thoughts,
)
from toolwoz_gym.types import ToolSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK_TOKENS = 16
"""No mark of a thought, with the line end after it, has more tokens."""


class ChatTokens:
    """A model's tokenizer and its chat template. Safe to use from many threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take a tokenizer with a chat template.

        Raises:
            UsageError: The template does not come to an end.
        """
        self._tokenizer = tokenizer
        self._lock = Lock()  # tokenizers are not made for several threads at once
        self.ends = message_ends(tokenizer)
        """What ends the model's messages, by its chat template."""

    def encode(self, prompt: Sequence[ChatMessage], tools: Sequence[ToolSpec] = ()) -> list[int]:
        """Return the tokens of a chat, up to where the model's next message begins.

        Args:
            prompt: The chat.
            tools: Tools that the model may call in its own format: see
                :func:`agents.tool_formats.native_chat`.

        Raises:
            UsageError: The chat template refuses the chat.
        """
        said = [{**message, "content": encodable(message["content"])} for message in prompt]
        chat: Sequence[dict[str, Any]] = native_chat(said) if tools else said
        schemas = [tool_schema(tool) for tool in tools] or None
        how = {"add_generation_prompt": True, "return_dict": False, "tokenize": True}
        with self._lock:
            return list(rendered(self._tokenizer, chat, schemas, **how))

    def decode(
        self, tokens: Sequence[int], *, native: bool, cut_off_after: Sequence[int] = ()
    ) -> str:
        """Return what a model wrote.

        Args:
            tokens: All that it wrote, but for the token that ended it. A text that ended it is left
                out.
            native: It was to call tools in its own format: the text is given as an action.
            cut_off_after: The prompt, if a limit ended the message: thoughts that it has begun have
                then no mark in the message.
        """
        with self._lock:
            # The marks of a call can be special tokens, and so can those of thoughts.
            text, whole = (self._decode(tokens, bare=bare) for bare in (True, False))
            mark = opening_mark(self._decode(cut_off_after[-_MARK_TOKENS:], bare=False))
        if self.ends.text:
            text, whole = (said.partition(self.ends.text)[0] for said in (text, whole))
        if mark and without_thoughts(whole) == whole:
            whole = f"{mark}\n{whole}"
        if native:
            return read_native(whole)
        return text if without_thoughts(whole) == whole else whole

    def ended_by_text(self, tokens: Sequence[int]) -> bool:
        """Return whether what a model wrote has the text that ends its messages, if one does.

        Args:
            tokens: All that it wrote.
        """
        if not self.ends.text:
            return False
        with self._lock:  # a token has at least one byte, and a character four at most
            return self.ends.text in self._decode(tokens[-4 * len(self.ends.text) :], bare=False)

    def _decode(self, tokens: Sequence[int], *, bare: bool) -> str:
        text: str = self._tokenizer.decode(
            list(tokens), skip_special_tokens=bare, clean_up_tokenization_spaces=False
        )
        return text
