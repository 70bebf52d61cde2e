"""Chats as tokens, and tokens as texts: for the backends that run a model by its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from agents.base import ChatMessage
from agents.tool_formats import encodable, native_chat, read_native, tool_schema
from toolwoz_gym.types import ToolSpec, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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

    def decode(self, tokens: Sequence[int], *, native: bool) -> str:
        """Return what a model wrote.

        Args:
            tokens: All that it wrote, but for the token that ended it.
            native: It was to call tools in its own format: the text is given as an action.
        """
        with self._lock:
            # The marks of a call can be special tokens.
            text: str = self._tokenizer.decode(
                list(tokens), skip_special_tokens=not native, clean_up_tokenization_spaces=False
            )
        return read_native(text) if native else text
