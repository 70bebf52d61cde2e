"""The completions of a run, kept as they come: ``completions.jsonl``.

They are found again by what was asked for. So a run that goes on asks for nothing twice: trees that
were broken off grow again from what their models have already written. And a run can be played
again without any model (:mod:`agents.backends.canned`). Workers of a cluster hand theirs to the
driver, which has the file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, Self

from agents.base import Backend, BackendError, ChatMessage, Completion, Sampling
from toolwoz_gym.records import Log, ledger_to_json, read_lines, usage_to_json
from toolwoz_gym.seeding import derive
from toolwoz_gym.types import ToolSpec, Usage, UsageError

COMPLETIONS = "completions.jsonl"
"""Name of the file in a run's folder."""

RECENT = 65_536
"""So many completions a worker of a cluster remembers: more than its trees under way have made."""


def call_key(
    model: str, prompt: Sequence[ChatMessage], sampling: Sampling, tools: Sequence[ToolSpec] = ()
) -> int:
    """Return the key of a call: equal calls of equal models have equal keys.

    Args:
        model: The model's name.
        prompt: The chat.
        sampling: How the completion is drawn.
        tools: Tools that the model is shown.
    """
    said = (part for message in prompt for part in (message["role"], message["content"]))
    return derive(model, repr(sampling), len(tools), *map(repr, tools), *said)


class Notebook(Protocol):
    """Where the completions of a run are kept."""

    replays: Recording | None
    """The recording that the run plays again, if it does."""
    spent: Usage
    """What those took together that are charged to a budget."""

    def find(self, key: int) -> Completion | None:
        """Return the completion of a call; None if there is none."""
        ...

    def keep(self, record: Mapping[str, Any]) -> None:
        """Keep the record of a completion, as :func:`to_record` writes it."""
        ...


class Recording:
    """The completions that a file holds. They stay there: only their places are in memory."""

    def __init__(self, path: Path) -> None:
        """Find out what there is.

        Args:
            path: A ``completions.jsonl``; need not exist.

        Raises:
            UsageError: It cannot be read.
        """
        self.path = path
        self.spent = Usage()
        self._places: dict[int, int] = {}
        if path.exists():
            self._read()

    @classmethod
    def of(cls, run: Path) -> Self:
        """Return the recording of a run.

        Raises:
            UsageError: There is none.
        """
        if not (run / COMPLETIONS).is_file():
            raise UsageError(
                f"there is no {COMPLETIONS} in {run}: give the folder of a run that a language "
                "model has played"
            )
        return cls(run / COMPLETIONS)

    def keys(self) -> Collection[int]:
        """Return the keys of all calls."""
        return self._places.keys()

    def find(self, key: int) -> Completion | None:
        """Return the completion of a call; None if there is none."""
        place = self._places.get(key)
        if place is None:
            return None
        return _completion(self._record_at(place)[1])

    def _record_at(self, place: int) -> tuple[bytes, dict[str, Any]]:
        """Return a line of the file, and its record."""
        for _, line, record in read_lines(self.path, place):
            return line, record
        raise UsageError(f"{self.path} is shorter than it was")

    def _read(self) -> None:
        for place, line, record in read_lines(self.path):
            try:
                before = self._places.get(record["key"])
                if before is None or self._record_at(before)[0] != line:
                    self._add(record, place)
            except (KeyError, TypeError) as error:
                raise UsageError(f"{self.path} holds other records: no {error}") from None

    def _add(self, record: Mapping[str, Any], place: int) -> None:
        """Take in a completion.

        Of equal calls the last counts, though all were paid for: a tree that was begun anew
        elsewhere has its answers. A line that is there twice is one call.
        """
        self._places[record["key"]] = place
        if record["billed"]:
            self.spent += Usage(**record["usage"])


class Journal(Recording):
    """The completions of a run that goes on. Safe to use from many threads."""

    def __init__(self, folder: Path, replays: Recording | None = None) -> None:
        """Read what there is. The file is begun with the first completion.

        Args:
            folder: The run's folder; need not exist yet.
            replays: The recording that the run plays again, if it does.

        Raises:
            UsageError: The file cannot be used, or another process has it open.
        """
        path = folder / COMPLETIONS
        # Before it is read: this cuts off a line that was torn by a kill.
        self._log = Log(path, sync=False) if path.exists() else None
        self._lock = Lock()
        self.replays = replays
        super().__init__(path)

    def keep(self, record: Mapping[str, Any]) -> None:
        """Write the record of a completion down.

        Raises:
            UsageError: The file cannot be written.
        """
        with self._lock:
            if self._log is None:
                log = Log(self.path, sync=False)
                self._read()  # another session may have written since
                self._log = log
            self._add(record, self._log.append(record))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            if self._log is not None:
                self._log.close()


class Notes:
    """The completions of a cluster's worker, until the driver fetches them for its journal."""

    def __init__(self, spent: Usage) -> None:
        """Begin without any.

        Args:
            spent: What earlier sessions of the run have spent.
        """
        self.replays: Recording | None = None
        self.spent = spent
        self._recent: dict[int, Completion] = {}
        self._new: list[Mapping[str, Any]] = []
        self._lock = Lock()

    def find(self, key: int) -> Completion | None:
        """Return the completion of a call, if it was among the last :data:`RECENT`."""
        return self._recent.get(key)

    def keep(self, record: Mapping[str, Any]) -> None:
        """Keep the record of a completion."""
        with self._lock:
            self._new.append(record)
            self._recent[record["key"]] = _completion(record)
            if len(self._recent) > RECENT:
                del self._recent[next(iter(self._recent))]

    def fetch(self) -> list[Mapping[str, Any]]:
        """Return the records since the last time."""
        with self._lock:
            new, self._new = self._new, []
        return new


class Recorded:
    """A backend that has every completion kept, and asks for none that is kept already."""

    def __init__(self, backend: Backend, notebook: Notebook, model: str, *, billed: bool) -> None:
        """Record a backend.

        Args:
            backend: What is asked for the completions that the notebook does not have.
            notebook: The run's.
            model: The model's name, as the run's options have it.
            billed: Whether the backend charges its calls to a budget.
        """
        self._billed = billed
        self._backend = backend
        self._notebook = notebook
        self._model = model
        self._asked: dict[int, Future[Completion]] = {}
        self._lock = Lock()

    def complete(
        self, prompt: Sequence[ChatMessage], sampling: Sampling, tools: Sequence[ToolSpec] = ()
    ) -> Completion:
        """Write the next message of a chat: see :meth:`~agents.base.Backend.complete`.

        While an equal call is under way, its answer or its error is the answer to this one.
        """
        key = call_key(self._model, prompt, sampling, tools)
        own: Future[Completion] = Future()
        with self._lock:
            call = self._asked.setdefault(key, own)
        if call is not own:
            with suppress(CancelledError):  # a bug broke it off: this one meets it, too
                return call.result()
            return self.complete(prompt, sampling, tools)
        try:
            own.set_result(self._find_or_ask(key, prompt, sampling, tools))
        except (BackendError, UsageError) as error:
            own.set_exception(error)
        finally:
            with self._lock:
                del self._asked[key]
            own.cancel()  # without effect but after a bug: then nobody must wait for it
        return own.result()

    def _find_or_ask(
        self,
        key: int,
        prompt: Sequence[ChatMessage],
        sampling: Sampling,
        tools: Sequence[ToolSpec],
    ) -> Completion:
        known = self._notebook.find(key)
        if known is not None:
            return known
        completion = self._backend.complete(prompt, sampling, tools)
        record = to_record(self._model, key, completion, billed=self._billed)
        self._notebook.keep(record)
        return _completion(record)  # seconds rounded, as a replay will read them


def to_record(model: str, key: int, completion: Completion, *, billed: bool) -> dict[str, Any]:
    """Write a completion as a line of ``completions.jsonl``.

    Args:
        model: The model's name.
        key: The key of the call.
        completion: What was written.
        billed: Whether it was charged to a budget.
    """
    return {
        "key": key,
        "model": model,
        "billed": billed,
        "text": completion.text,
        "finish": completion.finish,
        "logprob": completion.logprob,
        "usage": usage_to_json(completion.usage) | ledger_to_json(completion.usage),
    }


def _completion(record: Mapping[str, Any]) -> Completion:
    usage = Usage(**record["usage"])
    return Completion(record["text"], usage, record["finish"], record["logprob"])
