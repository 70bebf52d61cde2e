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
        self._script = script if callable(script) else iter(script)
        self._lock = Lock()

    def complete(
        self, prompt: Sequence[ChatMessage], sampling: Sampling, tools: Sequence[ToolSpec] = ()
    ) -> Completion:
        """Write the next message of a chat.

        Raises:
            BackendError: All texts are written.
        """
        if callable(self._script):
            text = self._script(prompt, sampling)
        else:
            with self._lock:
                said = next(self._script, None)
            if said is None:
                raise BackendError("all canned texts are written")
            text = said
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
