"""A customer that says given lines in order, whatever it hears."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from toolwoz_gym.toolwoz.task import ToolWOZTask
from toolwoz_gym.types import END_CONVERSATION, Message, Task, UsageError, UserFault


@dataclass(frozen=True, slots=True)
class ReplayUser:
    """Says its lines in order; out of lines, it cannot go on."""

    lines: tuple[str, ...] | None = None
    """What it says; the first line is the opening. None replays what the person said who played
    this customer when the task's dialogue was recorded, and ends the dialogue after that."""

    def __post_init__(self) -> None:
        """Refuse a customer that could not even open the dialogue."""
        if self.lines is not None and not self.lines:
            raise UsageError("the replayed customer has no line: it needs at least an opening")

    def reply(self, task: Task, messages: Sequence[Message], *, seed: int) -> Message:
        """Return the next line.

        Raises:
            UserFault: There is none left.
            UsageError: The task's recorded lines are wanted, and it has none.
        """
        lines = _recorded(task) if self.lines is None else self.lines
        said = sum(m.role == "user" for m in messages)
        if said >= len(lines):
            raise UserFault(
                "the recorded customer has nothing left to say", kind="has nothing left to say"
            )
        return Message("user", lines[said])


def _recorded(task: Task) -> tuple[str, ...]:
    """Return what a person said as the customer of a task; the last words end the dialogue."""
    if not isinstance(task, ToolWOZTask) or not task.turns:
        raise UsageError(
            f"nobody was recorded as the customer of task {task.id}: "
            "user='replay' needs world='multiwoz'"
        )
    opening, *later = task.turns
    # An opening that ended the dialogue would leave the agent no turn.
    farewell = f"{later.pop()} {END_CONVERSATION}" if later else END_CONVERSATION
    return (opening, *later, farewell)
