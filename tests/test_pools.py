"""Waiting for threads: every future comes once, and Ctrl-C breaks no lock."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from threading import Event, Thread

import pytest

from toolwoz_gym.pools import as_finished


def test_every_future_comes_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with ThreadPoolExecutor(4) as pool:
        groups = list(as_finished(pool.submit(abs, -n) for n in range(50)))
    assert sorted(future.result() for group in groups for future in group) == list(range(50))
    assert signal.getsignal(signal.SIGINT) is before
    assert list(as_finished([])) == []


def test_an_interrupt_waits_until_a_group_is_dealt_with() -> None:
    before = signal.getsignal(signal.SIGINT)
    dealt_with, go_on = 0, Event()
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(abs, -1), pool.submit(go_on.wait)]
        with pytest.raises(KeyboardInterrupt), closing(as_finished(futures)) as groups:
            for _ in groups:
                os.kill(os.getpid(), signal.SIGINT)  # no exception here
                dealt_with += 1
        go_on.set()
    assert dealt_with == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_gives_the_keyboard_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with (
        ThreadPoolExecutor(1) as pool,
        pytest.raises(ZeroDivisionError),
        closing(as_finished([pool.submit(lambda: 1 // 0)])) as groups,
    ):
        for group in groups:
            group.pop().result()
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_leave_the_keyboard_alone() -> None:
    seen: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(abs, -3)
        thread = Thread(
            target=lambda: seen.extend(f.result() for g in as_finished([future]) for f in g)
        )
        thread.start()
        thread.join()
    assert seen == [3]
