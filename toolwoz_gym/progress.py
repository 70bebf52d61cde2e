"""What a person sees while a long run works: a live line in a terminal, else a line per result."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


class LiveLine:
    """A bar with figures that stays below the lines that are printed; a context manager."""

    def __init__(self, unit: str, console: Console | None = None) -> None:
        """Show on ``console``, standard output unless told otherwise.

        Args:
            unit: What is being finished, in the plural.
            console: Where to show it.
        """
        from rich.console import Console
        from rich.live import Live

        self._unit = unit
        self._console = console or Console(highlight=False)
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._before: int | None = None
        """How much an earlier run had finished."""
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        """Begin to show."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was."""
        self._live.stop()

    def show(self, done: int, total: int, figures: Sequence[Text], line: Text | None) -> None:
        """Show where the run stands, and print a line for what has just been finished.

        What is done at the first call was done by an earlier run.
        """
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        with self._lock:
            if self._before is None:
                self._before = done
                if done:
                    self._console.print(f"going on: {done} of {total} {self._unit} are done")
            if line is not None:
                self._console.print(line, soft_wrap=True)
            bar = Table.grid(padding=(0, 2))
            bar.add_row(
                ProgressBar(total=max(1, total), completed=done, width=20),
                Text(f"{done}/{total} {self._unit}"),
                *figures,
                Text(self._time_left(done - self._before, total - done), "dim"),
            )
            self._live.update(bar)

    def _time_left(self, done: int, left: int) -> str:
        elapsed = time.monotonic() - self._began
        return f"{clock(elapsed / done * left)} left" if done else f"{clock(elapsed)} so far"


def clock(seconds: float) -> str:
    """Write a time as minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
