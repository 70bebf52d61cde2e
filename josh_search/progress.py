"""What a person sees while a harvest runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from josh_search.harvest import Tally
from toolwoz_gym.progress import LiveLine
from toolwoz_gym.records import usages_from_json

_GLANCE = 0.25
"""Seconds between two looks at the steps of trees: there can be hundreds of steps a second."""


class Progress(LiveLine):
    """Shows a harvest's tally; a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        """Show on ``console``, standard output unless told otherwise."""
        super().__init__("trees", console)
        self._shown = float("-inf")

    def update(self, tally: Tally, record: Mapping[str, Any] | None) -> None:
        """Show the tally, and a line for a tree that has just been finished."""
        now = time.monotonic()
        if record is None and now < self._shown + _GLANCE:
            return
        self._shown = now
        self._show(tally, None if record is None else _tree_line(record, tally))

    def wait(self, tally: Tally, seconds: float) -> None:
        """Say that lost trees are tried again after so many seconds."""
        reason = next(iter(tally.reasons()))
        text = f"{len(tally.lost)} trees were lost ({reason}): trying again in {seconds:.0f} s"
        self._show(tally, Text(text, "red"))

    def _show(self, tally: Tally, line: Text | None) -> None:
        tokens = sum(usage.tokens or 0 for usage in tally.usage.values())
        figures = [
            Text(f"{tally.solved} solved", "green"),
            Text(f"{sum(tally.live.copy().values())} leaves live"),
            Text(f"goals {tally.goals_met}/{tally.goals_total}"),
            Text(f"{tokens / 1000:.0f}k tokens"),
        ]
        if tally.lost:
            figures.append(Text(f"{len(tally.lost)} lost", "red"))
        self.show(tally.finished, tally.tasks, figures, line)


def _tree_line(record: Mapping[str, Any], tally: Tally) -> Text:
    solved, met, total = record["solved"], len(record["goals_met"]), len(record["goals"])
    tokens = sum(usage.tokens or 0 for usage in usages_from_json(record).values())
    line = Text(f"{tally.finished:>4}/{tally.tasks}  ")
    line.append("solved  " if solved else "unsolved", "green" if solved else "yellow")
    line.append(f"  {record['task_id']}  goals {met}/{total}, {record['steps']} steps, ")
    line.append(f"{len(record['nodes']) - 1} agent turns, {tokens / 1000:.0f}k tokens")
    return line
