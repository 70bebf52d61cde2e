"""Language models that need none: what they write is given beforehand, or was once recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock

from agents.backends.journal import Recording, call_key
from agents.base import BackendError, ChatMessage, Completion, Sampling
from toolwoz_gym.types import ToolSpec, Usage


class CannedBackend:
    """Writes what a function says, or texts in their order. A word counts as a token."""

    def __init__(
        self, script: Callable[[Sequence[ChatMessage], Sampling], str] | Sequence[str]
    ) -> None:
        """Prepare the answers.

        Args:
            script: A function of prompt and sampling, or texts to write one after the other.
        """
        self._write = script if callable(script) else _InOrder(script)

    def complete(
        self, prompt: Sequence[ChatMessage], sampling: Sampling, tools: Sequence[ToolSpec] = ()
    ) -> Completion:
        """Write the next message of a chat.

        Raises:
            BackendError: All texts are written.
        """
        text = self._write(prompt, sampling)
        words = sum(len(message["content"].split()) for message in prompt)
        return Completion(text, Usage(words, len(text.split()), calls=1), "stop")


class ReplayBackend:
    """Writes what a model wrote in a recorded run, tokens and time as they were then."""

    def __init__(self, recording: Recording, model: str) -> None:
        """Replay a model.

        Args:
            recording: What was written in the run.
            model: The model's name there.
        """
        self._recording = recording
        self._model = model

    def complete(
        self, prompt: Sequence[ChatMessage], sampling: Sampling, tools: Sequence[ToolSpec] = ()
    ) -> Completion:
        """Write the next message of a chat.

        Raises:
            BackendError: The recorded run has made no such call, or had no answer to it.
        """
        found = self._recording.find(call_key(self._model, prompt, sampling, tools))
        if found is None:
            raise BackendError(
                f"{self._recording.path} has no answer of {self._model} to a call: the run had "
                "none, or was made by another version"
            )
        return found


class _InOrder:
    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = iter(texts)
        self._lock = Lock()

    def __call__(self, prompt: Sequence[ChatMessage], sampling: Sampling) -> str:
        with self._lock:
            for text in self._texts:
                return text
        raise BackendError("all canned texts are written")
