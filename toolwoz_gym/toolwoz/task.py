"""What a ToolWOZ customer wants: one :class:`Wish` per domain, and the goal calls they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolwoz_gym.types import Task, ToolCall


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


@dataclass(frozen=True, slots=True)
class ToolWOZTask(Task):
    """A task made of wishes; ``goals`` are the wishes' goal calls, in order."""

    wishes: tuple[Wish, ...] = ()


def make_task(id: str, split: str, instruction: str, wishes: tuple[Wish, ...]) -> ToolWOZTask:
    """Build a task, its goals taken from its wishes."""
    goals = tuple(goal for wish in wishes for goal in wish.goals())
    return ToolWOZTask(id, split, instruction, goals, wishes)


def task_to_json(task: ToolWOZTask) -> dict[str, Any]:
    """Return a task as JSON data, without the goals, which follow from the wishes."""
    wishes = [{name: getattr(wish, name) for name in Wish.__slots__} for wish in task.wishes]
    return {
        "id": task.id,
        "split": task.split,
        "instruction": task.instruction,
        "wishes": [{name: v for name, v in wish.items() if v not in (None, ())} for wish in wishes],
    }


def task_from_json(data: Mapping[str, Any]) -> ToolWOZTask:
    """Return the task that :func:`task_to_json` wrote."""
    wishes = (Wish(**{**w, "requests": tuple(w.get("requests", ()))}) for w in data["wishes"])
    return make_task(data["id"], data["split"], data["instruction"], tuple(wishes))
