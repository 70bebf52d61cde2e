"""Waiting for a pool of threads, with an interrupt from the keyboard that breaks nothing."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from itertools import islice
from queue import Empty, SimpleQueue
from threading import current_thread, main_thread
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")
U = TypeVar("U")


def as_finished(
    futures: Iterable[Future[T]], at_once: int | None = None
) -> Generator[set[Future[T]], None, None]:
    """Yield futures as they finish, in groups.

    An interrupt is held back and raised here, after a group has been dealt with; until then, no
    further future is taken. Close the generator (``contextlib.closing``) to give the keyboard back.

    Args:
        futures: What to wait for.
        at_once: How many futures to wait for at a time; the next is taken from ``futures`` when
            another one has been dealt with. None takes all of them at the beginning.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    finished: SimpleQueue[Future[T] | None] = SimpleQueue()
    coming, waiting = iter(futures), 0
    with interrupts_as_none(finished) as pressed:
        while True:
            room = None if at_once is None else at_once - waiting
            while not pressed and room != 0 and (future := next(coming, None)):
                waiting += 1
                future.add_done_callback(finished.put)
                room = None if room is None else room - 1
            if not waiting and not pressed:
                break
            group = _take(finished)
            done = {future for future in group if future is not None}
            waiting -= len(done)
            if done:
                yield done
            if None in group:
                raise KeyboardInterrupt


@contextmanager
def interrupts_as_none(queue: SimpleQueue[Any]) -> Iterator[list[int]]:
    """Put None into a queue when a signal raises ``KeyboardInterrupt``, instead of letting it.

    Python raises an interrupt wherever the main thread happens to be. If that is inside a future's
    lock, nobody ever opens it again, and the program waits for its threads forever.

    Yields:
        The signals that have come so far.
    """
    pressed: list[int] = []
    in_main = current_thread() is main_thread()  # no other thread is ever interrupted
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)} if in_main else {}

    def hold_back(number: int, frame: FrameType | None) -> None:
        try:
            usual = before[signal.Signals(number)]
            assert callable(usual)
            usual(number, frame)
        except KeyboardInterrupt:
            pressed.append(number)
            queue.put(None)

    held = [number for number, handler in before.items() if callable(handler)]
    for number in held:
        signal.signal(number, hold_back)
    try:
        yield pressed
    finally:
        for number in held:
            signal.signal(number, before[number])


def map_beside(pool: Executor, function: Callable[[T], U], items: Iterable[T], /) -> list[U]:
    """Apply a function to items at once: to the first in this thread, to the others in a pool.

    Waking another thread costs more than a move of a dialogue, and a single item wakes none.

    Returns:
        The results, in the order of the items.

    Raises:
        CancelledError: The pool was shut down.
    """
    coming = iter(items)
    here = list(islice(coming, 1))
    futures = [pool.submit(function, item) for item in coming]
    try:
        return [*map(function, here), *(future.result() for future in futures)]
    finally:  # after an error the others are of no use
        for future in futures:
            future.cancel()


def _take(queue: SimpleQueue[T]) -> list[T]:
    """Wait for an item; return it and those that are there with it."""
    items = [queue.get()]
    while True:
        try:
            items.append(queue.get_nowait())
        except Empty:
            return items
