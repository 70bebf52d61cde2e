"""What a person sees while a long run works: a live line in a terminal, else a line per result."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

EVERY = 60.0
"""Where there is no terminal to show a live line in, a line tells of it every so many seconds."""

_T = TypeVar("_T")


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
        self._now: Text | None = None
        """What the live line says."""
        self._printed = self._began
        """When the last line was printed."""
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        shown = self._live if self._console.is_terminal else _ticking(self._remind)
        self._stack.enter_context(shown)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

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
                self._print(line)
            count = Text(f"{done}/{total} {self._unit}")
            left = Text(self._time_left(done - self._before, total - done), "dim")
            self._now = Text("  ").join([count, *figures, left])
            bar = Table.grid(padding=(0, 2))
            bar.add_row(
                ProgressBar(total=max(1, total), completed=done, width=20), count, *figures, left
            )
            self._live.update(bar)

    def _print(self, line: Text) -> None:
        self._console.print(line, soft_wrap=True)
        self._printed = time.monotonic()

    def _remind(self) -> None:
        with self._lock:
            if self._now is not None and time.monotonic() - self._printed >= EVERY:
                self._print(self._now)

    def _time_left(self, done: int, left: int) -> str:
        elapsed = time.monotonic() - self._began
        return f"{clock(elapsed / done * left)} left" if done else f"{clock(elapsed)} so far"


def watched(items: Iterable[_T], total: int, unit: str) -> Iterator[_T]:
    """Show how far a loop has come.

    Args:
        items: What it goes through.
        total: How many there are.
        unit: What they are, in the plural.
    """
    with LiveLine(unit) as live:
        live.show(0, total, [], None)
        for done, item in enumerate(items, 1):
            yield item
            live.show(done, total, [], None)


@contextmanager
def phase(what: str) -> Iterator[None]:
    """Say what begins, and now and then that it still goes on."""
    began = time.monotonic()
    print(f"{what} ...", flush=True)
    with _ticking(lambda: print(f"{what} ... {clock(time.monotonic() - began)}", flush=True)):
        yield


@contextmanager
def _ticking(tick: Callable[[], None]) -> Iterator[None]:
    """Call a function every so many seconds, from a thread of its own."""
    over = threading.Event()

    def run() -> None:
        with suppress(BrokenPipeError):  # the main thread meets it, too
            while not over.wait(EVERY):
                tick()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def clock(seconds: float) -> str:
    """Write a time as minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
