"""Which MultiWOZ tasks ToolWOZ-v1 repairs or drops, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolwoz_gym.toolwoz.tables import Tables
from toolwoz_gym.toolwoz.task import Wish


@dataclass(frozen=True, slots=True)
class Repair:
    """What v1 makes of the wishes of a dialogue."""

    wishes: tuple[Wish, ...] | None
    """The wishes that v1 plays; None when it drops the task."""
    reasons: tuple[str, ...] = ()
    """What was wrong, and what was done about it; empty when nothing was."""


def repair(wishes: tuple[Wish, ...], log: Sequence[Mapping[str, Any]], tables: Tables) -> Repair:
    """Repair a task whose goal contradicts its own database.

    Args:
        wishes: What v0 derives from the dialogue's goal.
        log: The dialogue's turns, as MultiWOZ has them.
        tables: The world.
    """
    return Repair(wishes)
