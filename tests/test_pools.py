"""Waiting for threads: every future comes once, and Ctrl-C breaks no lock."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import closing
from threading import Event, Thread, Timer, current_thread

import pytest

from toolwoz_gym.pools import as_finished, map_beside


def test_every_future_comes_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with ThreadPoolExecutor(4) as pool:
        groups = list(as_finished(pool.submit(abs, -n) for n in range(50)))
    assert sorted(future.result() for group in groups for future in group) == list(range(50))
    assert signal.getsignal(signal.SIGINT) is before
    assert list(as_finished([])) == []


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_futures_are_taken_a_few_at_a_time(at_once: int) -> None:
    taken = dealt_with = 0

    def futures(pool: ThreadPoolExecutor) -> Iterator[Future[int]]:
        nonlocal taken
        for n in range(20):
            taken += 1
            assert taken - dealt_with <= at_once
            yield pool.submit(abs, -n)

    found = []
    with ThreadPoolExecutor(2) as pool:
        for group in as_finished(futures(pool), at_once):
            found += [future.result() for future in group]
            dealt_with += len(group)
    assert sorted(found) == list(range(20)) and taken == 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_an_interrupt_nothing_more_is_begun(number: signal.Signals) -> None:
    """Not even what there would be room for, and not if all else is done already."""
    begun = []

    def futures(pool: ThreadPoolExecutor) -> Iterator[Future[int]]:
        for n in range(5):
            begun.append(n)
            yield pool.submit(abs, -n)

    usual = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with (
            ThreadPoolExecutor(1) as pool,
            pytest.raises(KeyboardInterrupt),
            closing(as_finished(futures(pool), 1)) as groups,
        ):
            for _ in groups:
                os.kill(os.getpid(), number)
    finally:
        signal.signal(signal.SIGTERM, usual)
    assert begun == [0]


def test_an_interrupt_ends_the_wait() -> None:
    go_on = Event()
    with ThreadPoolExecutor(1) as pool:
        Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        with (
            pytest.raises(KeyboardInterrupt),
            closing(as_finished([pool.submit(go_on.wait)])) as groups,
        ):
            next(groups)
        go_on.set()


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


def test_items_are_mapped_at_once_and_in_order() -> None:
    """Each of three waits for the next: they would never end one after the other."""
    done = [Event() for _ in range(4)]
    done[3].set()

    def work(item: int) -> tuple[int, str]:
        assert done[item + 1].wait(30)
        done[item].set()
        return item, current_thread().name

    with ThreadPoolExecutor(2, "helper") as pool:
        found = map_beside(pool, work, [0, 1, 2])
        assert [item for item, _ in found] == [0, 1, 2]
        assert found[0][1] == current_thread().name
        assert all(name.startswith("helper") for _, name in found[1:])
        assert map_beside(pool, abs, []) == []


def test_an_error_leaves_no_items_behind() -> None:
    begun, go_on = [], Event()

    def work(item: int) -> None:
        begun.append(item)
        if item == 0:
            raise ZeroDivisionError
        go_on.wait(30)

    with ThreadPoolExecutor(1) as pool:
        blocked = pool.submit(go_on.wait, 30)
        with pytest.raises(ZeroDivisionError):
            map_beside(pool, work, [0, 1, 2])
        go_on.set()
        assert blocked.result()
    assert begun == [0]


def test_a_pool_that_is_shut_down_cancels_what_waits() -> None:
    begun, go_on = Event(), Event()

    def first(item: int) -> None:
        begun.set()
        go_on.wait(30)

    with ThreadPoolExecutor(1) as pool, ThreadPoolExecutor(1) as caller:
        pool.submit(go_on.wait, 30)
        mapped = caller.submit(map_beside, pool, first, [0, 1])
        assert begun.wait(30)
        pool.shutdown(wait=False, cancel_futures=True)
        go_on.set()
        with pytest.raises(CancelledError):
            mapped.result()
