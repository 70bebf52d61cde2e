"""Growing the trees of a harvest on many machines: workers on a Ray cluster, and one driver.

The driver is the process of the harvest. It hands out trees one by one, to whichever worker has
room, and gets their records back; it alone writes. A worker has its own environment and its own
model (or the address of one that all share), and grows several trees at a time.

What a tree says follows from its task and the harvest's seed, so it does not matter who grows it,
nor how often: a worker that dies is replaced, and its trees are begun again elsewhere. With a tree
come the completions that its worker's models have written since the last one: they are the run's
journal, as on one machine.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import socket
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from threading import current_thread, main_thread
from typing import Any, TypeAlias

from agents.backends.journal import Journal, Notes
from agents.backends.spending import BudgetSpent
from agents.base import AgentFactory, BackendError
from josh_search.engine import Grown, Job, OnStep, grow_tree
from josh_search.search import SearchOptions
from toolwoz_gym.dialogue import Dialogue
from toolwoz_gym.env import DialogueEnv, find_task
from toolwoz_gym.pools import interrupts_as_none, map_beside
from toolwoz_gym.types import Usage, UsageError, one_line

DEATHS = 3
"""A worker that dies so often in a row, without a tree, is not replaced any more; and a tree that
so many workers died with is given up."""

_CONNECT_SECONDS = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a worker is told once. It is pickled, and so is what the two functions refer to."""

    make_env: Callable[[], DialogueEnv]
    """Makes the environment: the rules of play, and the tasks, which are then named by their id."""
    open_players: Callable[[Dialogue, Notes], AbstractContextManager[tuple[Dialogue, AgentFactory]]]
    """Loads who plays, as :meth:`agents.options.PlayOptions.open_players` does: the worker's own
    models, or the way to those that all workers share."""
    spent: Usage
    """What earlier sessions of the run have spent: it counts against each worker's limits."""
    world: str
    """The fingerprint of the driver's domain, which a worker's must equal."""
    seed: int
    """The harvest's: see :class:`~josh_search.engine.LocalEngine`."""
    options: SearchOptions
    """How trees grow."""
    trees_at_once: int
    """How many trees a worker grows at a time."""
    calls_at_once: int = 256
    """How many model calls a worker has in flight at a time, of all its trees together."""


@contextmanager
def open_ray(
    plan: Plan,
    address: str,
    *,
    journal: Journal,
    check_budget: Callable[[], None],
    workers: int | None = None,
    gpus: int | None = None,
    cpus: int = 1,
) -> Iterator[RayEngine]:
    """Be the driver on a Ray cluster, and have workers there until the end of the context.

    Args:
        plan: What the workers do.
        address: ``host:port`` of the cluster's head, or ``auto``: what ``RAY_ADDRESS`` says, else
            the cluster that this machine is part of.
        journal: The run's: gets the completions of all workers.
        check_budget: Raises ``BudgetSpent`` once the workers together have spent what they may.
            Then no tree is begun any more, and those under way are finished.
        workers: How many workers to have. Those that find no room wait for it. None: as many as
            there is room for, and where they need no GPU, one on each machine.
        gpus: GPUs that a worker reserves. None: one if the cluster has any.
        cpus: CPUs that a worker reserves.

    Raises:
        UsageError: Ray is not installed, there is no such cluster, or no machine of it has room for
            a worker; or the first worker cannot do its work.
        BackendError: See :class:`RayEngine`.
    """
    if (workers is not None and workers < 1) or cpus < 1 or (gpus is not None and gpus < 0):
        raise UsageError("workers and their CPUs must be at least 1, their GPUs at least 0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray.exceptions import AuthenticationError
    except ImportError:
        raise UsageError("Ray is not installed: pip install 'toolwoz-gym[ray]'") from None

    try:
        found = _find(address)
        ends_by = signal.getsignal(signal.SIGTERM)
        ray.init(found, log_to_driver=False, logging_level=logging.ERROR)
        if current_thread() is main_thread():  # Ray has put a handler of its own there
            signal.signal(signal.SIGTERM, ends_by)
    except SystemExit:  # Ray's, when whoever is there has said nothing sensible for minutes
        raise UsageError(f"no Ray cluster answers at {found}") from None
    except (OSError, ValueError, RuntimeError, AuthenticationError) as error:
        raise UsageError(f"cannot reach the Ray cluster {address!r}: {one_line(error)}") from None
    try:
        gpus = int("GPU" in ray.cluster_resources()) if gpus is None else gpus
        room = _count_room(gpus, cpus)
        yield RayEngine(plan, journal, check_budget, workers=workers or room, gpus=gpus, cpus=cpus)
    finally:
        ray.shutdown()


def _find(address: str) -> str:
    """Return the ``host:port`` that an address means, once somebody listens there.

    Ray itself would try for minutes, and then exit: an address that is gone is still what ``auto``
    finds if the cluster was killed.

    Raises:
        OSError: Nobody does.
        ValueError: It is no address.
    """
    from ray._private.services import canonicalize_bootstrap_address

    found = canonicalize_bootstrap_address(address)
    host, _, port = (found or address).rpartition(":")
    if not port.isdecimal():
        raise ValueError("it is no host:port")
    socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    return f"{host}:{port}"


def _count_room(gpus: int, cpus: int) -> int:
    """Return how many workers the machines have room for; where they need no GPU, one each."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    able = [m for m in machines if m.get("CPU", 0) >= cpus and m.get("GPU", 0) >= gpus]
    if not able:
        raise UsageError(
            f"no machine of the Ray cluster has what a worker needs: CPUs {cpus}, GPUs {gpus}"
        )
    if gpus == 0:
        return len(able)
    return sum(int(min(m["CPU"] // cpus, m["GPU"] // gpus)) for m in able)


def _last_line(error: BaseException) -> str:
    """Return what matters of Ray's many lines about a death."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__


@dataclass(slots=True, eq=False)
class _Hand:
    """A worker, as the driver knows it."""

    actor: Any
    deaths: int
    """Workers that died in this one's place, in a row, without a tree."""
    is_ready: bool = False
    """Whether it has loaded its model."""
    jobs: dict[str, Job] = field(default_factory=dict)
    """What it is growing, by key."""


_News: TypeAlias = tuple[_Hand, str | None, "Future[Any]"]
"""A worker's answer: about the job of a key, or, without one, about its being ready."""


class RayEngine:
    """Grows trees in the workers of a Ray cluster: an :class:`~josh_search.engine.Engine`.

    :func:`open_ray` makes one. It is used up when :meth:`grow` has been broken off.
    """

    def __init__(
        self,
        plan: Plan,
        journal: Journal,
        check_budget: Callable[[], None],
        *,
        workers: int,
        gpus: int,
        cpus: int,
    ) -> None:
        """Start the workers, and wait for the first of them.

        Raises:
            UsageError: A worker lacks data or a model, or has another world than the driver.
            BackendError: The model cannot be opened, or no worker lives until it has loaded it.
        """
        import ray

        self._room = plan.trees_at_once
        self._plan = plan
        self._journal = journal
        self._check_budget = check_budget
        self._remote = ray.remote(Worker).options(
            num_cpus=cpus,
            num_gpus=gpus,
            max_concurrency=plan.trees_at_once,
            scheduling_strategy="SPREAD",
        )
        self._hands: list[_Hand] = []
        self._news: SimpleQueue[_News | None] = SimpleQueue()  # None: Ctrl-C
        self._again: deque[Job] = deque()
        self._died_with: Counter[str] = Counter()
        for _ in range(workers):
            self._hire(deaths=0)
        while not any(hand.is_ready for hand in self._hands):
            self._hear()

    def grow(self, jobs: Iterable[Job], on_step: OnStep) -> Generator[Grown, None, None]:
        """Grow a tree for every job: see :class:`~josh_search.engine.Engine`.

        Steps are not reported.

        Raises:
            UsageError, BackendError: See above: workers can come later, or be replaced.
            BudgetSpent: The workers have spent what they may, and there are jobs left.
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        coming = iter(jobs)
        with interrupts_as_none(self._news) as pressed:
            while True:
                while not pressed and (hand := self._free_hand()):
                    job = self._next(coming)
                    if job is None:
                        if not any(hand.jobs for hand in self._hands):
                            if self._again or next(coming, None) is not None:
                                self._check_budget()
                            return
                        break
                    self._give(hand, job)
                yield from self._hear()

    def _next(self, coming: Iterator[Job]) -> Job | None:
        """Return what is to be grown next; None: nothing, or nothing more may be spent."""
        try:
            self._check_budget()
        except BudgetSpent:
            return None
        return self._again.popleft() if self._again else next(coming, None)

    def _free_hand(self) -> _Hand | None:
        """Return the worker that has most room, if one has any."""
        ready = [hand for hand in self._hands if hand.is_ready and len(hand.jobs) < self._room]
        return min(ready, key=lambda hand: len(hand.jobs), default=None)

    def _hire(self, deaths: int) -> None:
        hand = _Hand(self._remote.remote(self._plan), deaths)
        self._hands.append(hand)
        self._await(hand, None, hand.actor.open.remote())

    def _give(self, hand: _Hand, job: Job) -> None:
        key, task = job
        hand.jobs[key] = job
        self._await(hand, key, hand.actor.grow.remote(key, task.id))

    def _await(self, hand: _Hand, key: str | None, answer: Any) -> None:
        future: Future[Any] = answer.future()
        future.add_done_callback(lambda done: self._news.put((hand, key, done)))

    def _hear(self) -> list[Grown]:
        """Wait for news, and return what became of jobs if that is what it is about."""
        from ray.exceptions import RayTaskError

        news = self._news.get()
        if news is None:
            raise KeyboardInterrupt
        hand, key, future = news
        if hand not in self._hands:
            return []  # it has died: what it had is somebody else's now
        error = future.exception()
        if isinstance(error, RayTaskError):
            raise error.cause if isinstance(error.cause, UsageError | BackendError) else error
        if error is not None:
            return self._replace(hand, _last_line(error))
        if key is None:
            hand.is_ready = True
            return []
        del hand.jobs[key]
        hand.deaths = 0
        grown, completions = future.result()
        for record in completions:
            self._journal.keep(record)
        return [grown]

    def _replace(self, hand: _Hand, reason: str) -> list[Grown]:
        """Have another worker in the place of one that has died, and its jobs done again.

        Returns:
            The jobs that are given up.

        Raises:
            BackendError: There have been too many deaths, and no worker is left.
        """
        import ray

        _log.warning("a worker has died with %d trees: %s", len(hand.jobs), reason)
        self._hands.remove(hand)
        ray.kill(hand.actor)  # if it is only out of reach, it need not go on
        self._died_with.update(hand.jobs.keys())
        given_up = {key for key in hand.jobs if self._died_with[key] >= DEATHS}
        self._again.extend(job for key, job in hand.jobs.items() if key not in given_up)
        if hand.deaths + 1 < DEATHS:
            self._hire(hand.deaths + 1)
        elif not self._hands:
            raise BackendError(f"the workers die: {reason}")
        return [Grown(key, None, f"{DEATHS} workers died with it") for key in sorted(given_up)]


# --- in the workers --------------------------------------------------------------------------


class Worker:
    """Grows trees, in a process of its own: a Ray actor whose methods run in threads."""

    def __init__(self, plan: Plan) -> None:
        """Take the plan. What can go wrong comes in :meth:`open`, which can say so."""
        self._plan = plan
        self._notes = Notes(plan.spent)
        self._opened = ExitStack()  # never closed: the process is ended when the work is done

    def open(self) -> None:
        """Load world and model.

        Raises:
            UsageError: Something is missing on this machine, or its data is not the driver's.
        """
        plan, here = self._plan, platform.node()
        try:
            env = plan.make_env()
            domain = env.dialogue.domain
            if domain.fingerprint != plan.world:
                raise UsageError(
                    f"its world is {domain.fingerprint}, the driver's {plan.world}: "
                    "give all machines the same data"
                )
            players = plan.open_players(env.dialogue, self._notes)
            dialogue, make_agent = self._opened.enter_context(players)
        except UsageError as error:
            raise UsageError(f"on the machine {here}: {error}") from None
        self._tasks, self._dialogue, self._make_agent = env.tasks, dialogue, make_agent
        self._calls = ThreadPoolExecutor(plan.calls_at_once)

    def grow(self, key: str, task_id: str) -> tuple[Grown, list[Mapping[str, Any]]]:
        """Grow the tree of a task, and hand over what models have written since the last one."""
        try:
            grown = grow_tree(
                (key, find_task(self._tasks, task_id)),
                self._dialogue,
                self._make_agent,
                seed=self._plan.seed,
                options=self._plan.options,
                mapper=partial(map_beside, self._calls),
            )
        except BudgetSpent as error:  # the driver ends the run when it has counted what was spent
            grown = Grown(key, None, str(error))
        return grown, self._notes.fetch()
