"""A customer that says given lines in order, whatever it hears."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from toolwoz_gym.types import Message, Task, UsageError, UserFault


@dataclass(frozen=True, slots=True)
class ReplayUser:
    """Says its lines in order; out of lines, it cannot go on."""

    lines: tuple[str, ...]
    """What it says; the first line is the opening."""

    def __post_init__(self) -> None:
        """Refuse a customer that could not even open the dialogue."""
        if not self.lines:
            raise UsageError("the replayed customer has no line: it needs at least an opening")

    def reply(self, task: Task, messages: Sequence[Message], *, seed: int) -> Message:
        """Return the next line.

        Raises:
            UserFault: There is none left.
        """
        said = sum(m.role == "user" for m in messages)
        if said >= len(self.lines):
            raise UserFault("the recorded customer has nothing left to say")
        return Message("user", self.lines[said])
