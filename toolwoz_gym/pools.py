"""Waiting for a pool of threads, with an interrupt from the keyboard that breaks nothing."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from threading import Event, current_thread, main_thread
from typing import TypeVar

T = TypeVar("T")

_GLANCE = 0.2
"""Seconds between two looks at the keyboard."""


def as_finished(futures: Iterable[Future[T]]) -> Generator[set[Future[T]], None, None]:
    """Yield futures as they finish, in groups.

    Python raises an interrupt wherever the main thread happens to be. If that is inside a future's
    lock, nobody ever opens it again, and the program waits for its threads forever. So the
    interrupt is held back and raised here, after a group has been dealt with. Close the generator
    (``contextlib.closing``) to give the keyboard back.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    pressed = Event()
    in_main = current_thread() is main_thread()  # no other thread is ever interrupted
    before = signal.signal(signal.SIGINT, lambda *_: pressed.set()) if in_main else None
    try:
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=_GLANCE, return_when=FIRST_COMPLETED)
            if done:
                yield done
            if pressed.is_set():
                raise KeyboardInterrupt
    finally:
        if in_main:
            signal.signal(signal.SIGINT, before)
