"""A fake language model, for tests: what it writes is given beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock

from agents.base import BackendError, ChatMessage, Completion, Sampling
from toolwoz_gym.types import Usage


class CannedBackend:
    """Writes what a function says, or texts in their order. A word counts as a token."""

    def __init__(
        self, script: Callable[[Sequence[ChatMessage], Sampling], str] | Sequence[str]
    ) -> None:
        """Prepare the answers.

        Args:
            script: A function of prompt and sampling, or texts to write one after the other.
        """
        self._write = script if callable(script) else _Replay(script)

    def complete(self, prompt: Sequence[ChatMessage], sampling: Sampling) -> Completion:
        """Write the next message of a chat.

        Raises:
            BackendError: All texts are written.
        """
        text = self._write(prompt, sampling)
        words = sum(len(message["content"].split()) for message in prompt)
        return Completion(text, Usage(words, len(text.split())), "stop")


class _Replay:
    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = iter(texts)
        self._lock = Lock()

    def __call__(self, prompt: Sequence[ChatMessage], sampling: Sampling) -> str:
        with self._lock:
            for text in self._texts:
                return text
        raise BackendError("all canned texts are written")
