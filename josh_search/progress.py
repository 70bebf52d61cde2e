"""What a person sees while a harvest runs: a live line in a terminal, else a line per tree."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from josh_search.harvest import Tally


class Progress:
    """Shows a harvest's tally; a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        """Show on ``console``, standard output unless told otherwise."""
        self._console = console or Console(highlight=False)
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._before: int | None = None
        """Trees that an earlier run had finished."""
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        """Begin to show."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was."""
        self._live.stop()

    def update(self, tally: Tally, record: Mapping[str, Any] | None) -> None:
        """Show the tally, and a line for a tree that has just been finished."""
        with self._lock:
            if self._before is None:
                self._before = tally.finished
                if tally.finished:
                    self._console.print(
                        f"going on: {tally.finished} of {tally.tasks} trees are done"
                    )
            if record is not None:
                self._console.print(_tree_line(record, tally))
            self._live.update(self._status(tally))

    def _status(self, tally: Tally) -> Table:
        bar = Table.grid(padding=(0, 2))
        tokens = sum(sum(usage.values()) for usage in tally.usage.values())
        bar.add_row(
            ProgressBar(total=max(1, tally.tasks), completed=tally.finished, width=20),
            Text(f"{tally.finished}/{tally.tasks} trees"),
            Text(f"{tally.solved} solved", "green"),
            Text(f"{sum(tally.live.values())} leaves live"),
            Text(f"goals {tally.goals_met}/{tally.goals_total}"),
            Text(f"{tokens / 1000:.0f}k tokens"),
            Text(self._time_left(tally), "dim"),
        )
        return bar

    def _time_left(self, tally: Tally) -> str:
        done, elapsed = tally.finished - (self._before or 0), time.monotonic() - self._began
        if not done:
            return f"{clock(elapsed)} so far"
        return f"{clock(elapsed / done * (tally.tasks - tally.finished))} left"


def _tree_line(record: Mapping[str, Any], tally: Tally) -> Text:
    solved, met, total = record["solved"], len(record["goals_met"]), len(record["goals"])
    tokens = sum(sum(usage.values()) for usage in record["usage"].values())
    line = Text(f"{tally.finished:>4}/{tally.tasks}  ")
    line.append("solved  " if solved else "unsolved", "green" if solved else "yellow")
    line.append(f"  {record['task_id']}  goals {met}/{total}, {record['steps']} steps, ")
    line.append(f"{len(record['nodes']) - 1} agent turns, {tokens / 1000:.0f}k tokens")
    return line


def clock(seconds: float) -> str:
    """Write a time as minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
