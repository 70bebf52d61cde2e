"""What a ToolWOZ customer wants: one :class:`Wish` per domain, and the goal calls they make.

Tasks are kept in files of one JSON object a line, sorted by id: the task as ToolWOZ-v0 plays it,
and the ``repaired`` wishes and their instruction where ToolWOZ-v1 has others.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, overload
from weakref import WeakValueDictionary

import numpy as np

from toolwoz_gym.toolwoz.tools import PARAMETERS
from toolwoz_gym.types import Task, ToolCall, UsageError


@dataclass(frozen=True, slots=True)
class Wish:
    """What the customer wants of one domain.

    All parameter mappings hold every parameter of their tool, with ``""`` where it does not matter.
    """

    domain: str
    """``hotel``, ``attraction``, ``train`` or ``restaurant``."""
    search: Mapping[str, str] | None = None
    """The search that finds it; None when there is nothing to search for."""
    book: Mapping[str, str] | None = None
    """The booking, the entity's key among its parameters; None when nothing is to be booked."""
    booked: Mapping[str, str] | None = None
    """What a successful booking returns: the entity's key, and ``reference``."""
    failing_search: Mapping[str, str] | None = None
    """What the customer tries first, and will not find."""
    failing_book: Mapping[str, str] | None = None
    """The booking that the customer tries first, and will not get."""
    requests: tuple[str, ...] = ()
    """Attributes of the entity that the customer was told to find out."""

    def goals(self) -> tuple[ToolCall, ...]:
        """Return the goal calls of the wish: its search, then its booking."""
        calls = []
        if self.search is not None:
            calls.append(ToolCall(f"search_{self.domain}", self.search))
        if self.book is not None:
            calls.append(ToolCall(f"book_{self.domain}", self.book))
        return tuple(calls)


@dataclass(frozen=True, slots=True, weakref_slot=True)
class ToolWOZTask(Task):
    """A task made of wishes; ``goals`` are the wishes' goal calls, in order."""

    wishes: tuple[Wish, ...] = ()
    turns: tuple[str, ...] = ()
    """What a person who played this customer said, turn by turn; empty when nobody has."""


def make_task(
    id: str, split: str, instruction: str, wishes: tuple[Wish, ...], turns: tuple[str, ...] = ()
) -> ToolWOZTask:
    """Build a task, its goals taken from its wishes."""
    goals = tuple(goal for wish in wishes for goal in wish.goals())
    return ToolWOZTask(id, split, instruction, goals, wishes, turns)


def task_to_json(task: ToolWOZTask) -> dict[str, Any]:
    """Return a task as JSON data, without the goals, which follow from the wishes."""
    turns = {"turns": list(task.turns)} if task.turns else {}
    return {
        "id": task.id,
        "split": task.split,
        "instruction": task.instruction,
        **turns,
        "wishes": _wishes_to_json(task.wishes),
    }


def task_to_line(
    task: ToolWOZTask, repaired: Sequence[Wish] | None, instruction: str, reasons: Sequence[str]
) -> bytes:
    """Return a task's line in a file of tasks.

    Args:
        task: As ToolWOZ-v0 plays it.
        repaired: The wishes that v1 plays: None where they are the task's own, empty where v1 drops
            the task.
        instruction: The instruction that v1 plays.
        reasons: Why v1 repairs or drops it.
    """
    mended = None if repaired is None else _wishes_to_json(repaired)
    record = {
        **task_to_json(task),
        "reasons": list(reasons),
        "repaired_instruction": None if instruction == task.instruction else instruction,
        "repaired": mended,  # comes last: a line's end says whether v1 has the task
    }
    return (json.dumps(record, separators=(",", ":")) + "\n").encode("ascii")


def _wishes_to_json(wishes: Sequence[Wish]) -> list[dict[str, Any]]:
    fields = ({name: getattr(wish, name) for name in Wish.__slots__} for wish in wishes)
    return [{name: v for name, v in wish.items() if v not in (None, ())} for wish in fields]


def task_from_json(data: Mapping[str, Any], version: int = 0) -> ToolWOZTask:
    """Return the task that :func:`task_to_json` wrote, or that a row of a prepared data set holds.

    Args:
        data: The task. What a wish lacks may be absent or None.
        version: 0 takes the ``wishes``, 1 takes what is ``repaired``, if anything is.
    """
    repaired = data.get("repaired") if version > 0 else None
    retold = data.get("repaired_instruction") if version > 0 else None
    wishes = tuple(_wish(w) for w in (data["wishes"] if repaired is None else repaired))
    turns = tuple(data.get("turns") or ())
    return make_task(data["id"], data["split"], retold or data["instruction"], wishes, turns)


def _wish(data: Mapping[str, Any]) -> Wish:
    domain = data["domain"]
    booked = data.get("booked")
    return Wish(
        domain,
        search=_parameters(f"search_{domain}", data.get("search")),
        book=_parameters(f"book_{domain}", data.get("book")),
        booked=booked and {name: value for name, value in booked.items() if value is not None},
        failing_search=_parameters(f"search_{domain}", data.get("failing_search")),
        failing_book=_parameters(f"book_{domain}", data.get("failing_book")),
        requests=tuple(data.get("requests") or ()),
    )


def _parameters(tool: str, values: Mapping[str, str] | None) -> dict[str, str] | None:
    # With the names that the tool has: a million tasks then hold no name twice.
    return None if values is None else {name: values[name] for name in PARAMETERS[tool]}


class TaskFile(Sequence[ToolWOZTask]):
    """The tasks of a file, each decoded when it is asked for.

    The file is mapped into memory, so that the processes of a machine share it. The mapping stays
    good when the file is deleted or replaced, but not when it is overwritten. A task that is in use
    is decoded once: all its episodes share it.
    """

    def __init__(self, path: Path, digest: str, version: int) -> None:
        """Map a file of tasks; see also :func:`open_tasks`.

        Args:
            path: The file.
            digest: SHA-256 of its content.
            version: For which version of ToolWOZ. For 1 the tasks that it drops are left out.

        Raises:
            OSError: It cannot be read.
            ValueError: Its content is another one.
        """
        self._opening = path, digest, version
        self._version = version
        with path.open("rb") as file:
            self._data = mmap(file.fileno(), 0, access=ACCESS_READ)
        if sha256(self._data).hexdigest() != digest:
            raise ValueError(f"{path} is not the file that was written")
        ends = np.flatnonzero(np.frombuffer(self._data, np.uint8) == ord("\n")) + 1
        lines = np.stack((np.append(0, ends[:-1]), ends), axis=1)
        if version > 0:
            lines = lines[[self._data[end - len(_DROPPED) : end] != _DROPPED for end in ends]]
        self._lines = lines
        self._in_use: WeakValueDictionary[int, ToolWOZTask] = WeakValueDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        return reopen_tasks, self._opening

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[ToolWOZTask]:
        return map(self._task, range(len(self)))

    @overload
    def __getitem__(self, index: int) -> ToolWOZTask: ...
    @overload
    def __getitem__(self, index: slice) -> list[ToolWOZTask]: ...
    def __getitem__(self, index: int | slice) -> ToolWOZTask | list[ToolWOZTask]:
        """Return the task at a position, or those of a slice."""
        if isinstance(index, slice):
            return [self._task(i) for i in range(len(self))[index]]
        return self._task(range(len(self))[index])

    def by_id(self, task_id: str) -> ToolWOZTask | None:
        """Return the task with an id, or None."""
        index = bisect_left(range(len(self)), task_id, key=self._id)
        return self._task(index) if index < len(self) and self._id(index) == task_id else None

    def _task(self, index: int) -> ToolWOZTask:
        task = self._in_use.get(index)
        if task is None:
            task = task_from_json(json.loads(self._line(index)), self._version)
            self._in_use[index] = task
        return task

    def _id(self, index: int) -> str:
        id: str = _DECODER.raw_decode(self._line(index), len('{"id":'))[0]
        return id

    def _line(self, index: int) -> str:
        start, end = self._lines[index]
        return self._data[start:end].decode("ascii")


@lru_cache(maxsize=16)
def open_tasks(path: Path, digest: str, version: int) -> TaskFile:
    """Return the tasks of a file: a process maps each file once. See :class:`TaskFile`."""
    return TaskFile(path, digest, version)


def reopen_tasks(path: Path, digest: str, version: int) -> TaskFile:
    """Return tasks that another process sends: they are sent as the name of their file.

    Raises:
        UsageError: The file is gone, or is another one by now.
    """
    try:
        return open_tasks(path, digest, version)
    except (OSError, ValueError):
        raise UsageError(
            f"the tasks in {path} are no longer those that the environment was made with: "
            "make it anew"
        ) from None


_DROPPED = b',"repaired":[]}\n'
_DECODER = json.JSONDecoder()
