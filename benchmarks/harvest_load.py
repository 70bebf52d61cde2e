"""How busy a harvest keeps the model behind it, and what its own work costs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from heapq import heapreplace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

from agents.base import Agent
from agents.options import expert
from josh_search.engine import LocalEngine, grow_tree
from josh_search.harvest import Tally, harvest
from josh_search.search import SearchOptions
from toolwoz_gym import make_env
from toolwoz_gym.records import RunFolder, dump
from toolwoz_gym.types import Message, Task, UserSimulator

SLOTS = 64
"""So many calls the model answers at a time."""

TREES_AT_ONCE = 256

TREES = 3 * TREES_AT_ONCE


@dataclass(frozen=True, slots=True)
class Load:
    """What a harvest made of a model with a fixed latency, until its last tree was begun."""

    latency: float
    """Seconds that the model takes for a call."""
    seconds: float
    """How long it took until then."""
    calls: int
    """Calls that the model began to answer until then."""
    busy: float
    """The share of the time that the model's slots were busy."""
    own: float
    """The process's CPU time, less the agent's and the customer's, as a share of the time: search,
    rules of play, threads and records."""
    customer: float
    """The scripted customer's CPU time, as a share of the time."""

    @property
    def own_us(self) -> float:
        """Microseconds of the process's own work for each call."""
        return self.own * self.seconds / self.calls * 1e6


class CpuMeter:
    """Adds up the CPU time of what is done within it, in any thread."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = Lock()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what this thread does within."""
        began = time.thread_time()
        yield
        with self._lock:
            self.seconds += time.thread_time() - began


class ModelStub:
    """A model of some slots, each busy for a fixed time with a call: first come, first served.

    A slot goes on to the next waiting call by itself, as a model server's does. So it is idle only
    when no call waits, however late a caller wakes up.
    """

    def __init__(self, slots: int, latency: float) -> None:
        """Prepare the slots.

        Args:
            slots: How many calls are answered at a time.
            latency: Seconds that each takes.
        """
        self.latency = latency
        self.begun: list[float] = []
        """When each call was begun to be answered, in monotonic seconds."""
        self._free = [0.0] * slots  # a heap: when each slot is free again
        self._lock = Lock()

    def call(self) -> None:
        """Wait as long as the model would take for a call."""
        now = time.monotonic()
        with self._lock:
            begins = max(now, self._free[0])
            heapreplace(self._free, begins + self.latency)
            self.begun.append(begins)
        time.sleep(max(0.0, begins + self.latency - time.monotonic()))

    def busy(self, start: float, end: float) -> float:
        """Return the share of a time in which slots were busy."""
        overlaps = (min(end, at + self.latency) - max(start, at) for at in self.begun)
        return sum(max(0.0, seconds) for seconds in overlaps) / (len(self._free) * (end - start))


@dataclass(frozen=True, slots=True)
class StubAgent:
    """The expert, as slow as the model."""

    expert: Agent
    model: ModelStub
    meter: CpuMeter

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        """Return the agent's next message."""
        self.model.call()
        with self.meter.running():
            return self.expert.act(view, seed=seed)


@dataclass(frozen=True, slots=True)
class MeteredUser:
    """A customer whose CPU time is counted."""

    user: UserSimulator
    meter: CpuMeter

    def reply(self, task: Task, messages: Sequence[Message], *, seed: int) -> Message:
        """Return the customer's next message."""
        with self.meter.running():
            return self.user.reply(task, messages, seed=seed)


class _Stage:
    """A world, and who plays there: a model of a fixed latency, and a customer, both metered."""

    def __init__(self, latency: float) -> None:
        self.env = make_env("ToolWOZ-v0", world="builtin:domains=1", split="train")
        self.model, self.agent, self.customer = ModelStub(SLOTS, latency), CpuMeter(), CpuMeter()
        user = MeteredUser(self.env.dialogue.user, self.customer)
        self.dialogue = replace(self.env.dialogue, user=user)
        self.options = SearchOptions(strategy="josh")

    def make_agent(self, task: Task) -> Agent:
        return StubAgent(expert(task), self.model, self.agent)


class _Clock:
    """A watcher that notes when the last tree is begun: the tail of the last trees is apart."""

    def __init__(self, agent: CpuMeter, customer: CpuMeter) -> None:
        self._meters = agent, customer
        self.marks: list[tuple[float, ...]] = []
        """Time, and CPU time of the process, of the agent and of the customer: at the beginning,
        and when the tail begins."""

    def update(self, tally: Tally, record: Mapping[str, Any] | None) -> None:
        begins = record is None and not self.marks
        if begins or (record is not None and tally.finished == tally.tasks - TREES_AT_ONCE):
            cpu = (meter.seconds for meter in self._meters)
            self.marks.append((time.monotonic(), time.process_time(), *cpu))

    def wait(self, tally: Tally, seconds: float) -> None:
        raise AssertionError("the model always answers")


def search_us(trees: int = 300) -> float:
    """Return the CPU time of search, rules and record for a model call, in microseconds.

    The trees grow one after the other in this thread, so nothing is spent on waking others.

    Args:
        trees: Tasks of the built-in world to play.
    """
    stage = _Stage(0.0)
    began = time.process_time()
    for number in range(trees):
        task = stage.env.tasks[number]
        grown = grow_tree(
            (task.id, task), stage.dialogue, stage.make_agent, seed=0, options=stage.options
        )
        dump(grown.record)
    own = time.process_time() - began - stage.agent.seconds - stage.customer.seconds
    return own / len(stage.model.begun) * 1e6


def measure_load(latency: float, trees: int = TREES) -> Load:
    """Harvest with a model of a fixed latency, and return how busy it was.

    Args:
        latency: Seconds that the model takes for a call.
        trees: Tasks of the built-in world to play, more than :data:`TREES_AT_ONCE`.
    """
    stage = _Stage(latency)
    clock = _Clock(stage.agent, stage.customer)
    engine = LocalEngine(
        stage.dialogue,
        stage.make_agent,
        seed=0,
        options=stage.options,
        trees_at_once=TREES_AT_ONCE,
    )
    with TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / "run", {})
        if harvest(engine, stage.env.tasks, run, watcher=clock, number=trees).interrupted:
            raise KeyboardInterrupt
    start, end = clock.marks[0][0], clock.marks[1][0]
    process, of_agent, of_customer = (
        (after - before) / (end - start)
        for before, after in zip(clock.marks[0][1:], clock.marks[1][1:], strict=True)
    )
    return Load(
        latency=latency,
        seconds=end - start,
        calls=sum(at < end for at in stage.model.begun),
        busy=stage.model.busy(start, end),
        own=process - of_agent - of_customer,
        customer=of_customer,
    )
