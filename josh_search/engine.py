"""Engines grow the trees of a harvest: :class:`LocalEngine` does so in threads of this process."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import Any, Protocol, TypeAlias

from agents.base import AgentFactory, BackendError, RunStopped
from josh_search.josh import Mapper
from josh_search.search import SearchOptions, search
from josh_search.tree import Tree, tree_to_json
from toolwoz_gym.dialogue import Dialogue
from toolwoz_gym.pools import as_finished, map_beside
from toolwoz_gym.seeding import derive
from toolwoz_gym.types import Task, one_line

Job: TypeAlias = tuple[str, Task]
"""The key of a tree's record, and the task to play."""

OnStep: TypeAlias = Callable[[str, int], None]
"""Is told the key of a tree and how many leaves of it are live; may be called from any thread."""


@dataclass(frozen=True, slots=True)
class Grown:
    """What became of a job."""

    key: str
    record: dict[str, Any] | None
    """The tree, as a line of ``trees.jsonl``; None when the tree was lost."""
    error: str | None = None
    """Why it was lost, in one line: a model behind it did not answer."""


class Engine(Protocol):
    """Grows trees, many at once. It writes nothing: the harvest alone does."""

    def grow(self, jobs: Iterable[Job], on_step: OnStep) -> Generator[Grown, None, None]:
        """Grow a tree for every job, and yield what became of them in the order they finish.

        Args:
            jobs: What to do. A job is taken, in the caller's thread, when there is room for it;
                whether there is another one may depend on what was yielded before.
            on_step: Is told how trees get on. An engine that cannot know need not tell.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        ...


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """Grows trees in threads: one for each tree, and a pool for the model calls of all of them."""

    dialogue: Dialogue
    """The rules of play."""
    make_agent: AgentFactory
    """Makes the agent of a task."""
    seed: int
    """A tree's seed is derived from it and from the task's id: no tree depends on another."""
    options: SearchOptions
    """How trees grow."""
    trees_at_once: int
    """How many trees grow at a time."""
    calls_at_once: int = 256
    """How many model calls are in flight at a time, of all trees together, beside one that each
    tree makes in its own thread: first come, first served."""

    def grow(self, jobs: Iterable[Job], on_step: OnStep) -> Generator[Grown, None, None]:
        """Grow a tree for every job: see :class:`Engine`."""
        stopped = Event()

        def step(key: str, live: int) -> None:
            if stopped.is_set():
                raise CancelledError
            on_step(key, live)

        # Trees wait for calls, and calls for nothing: with a pool each, there is no deadlock.
        with (
            ThreadPoolExecutor(self.calls_at_once) as calls,
            ThreadPoolExecutor(self.trees_at_once) as trees,
        ):

            def begin(job: Job) -> Future[Grown]:
                return trees.submit(
                    grow_tree,
                    job,
                    self.dialogue,
                    self.make_agent,
                    seed=self.seed,
                    options=self.options,
                    mapper=partial(map_beside, calls),
                    on_step=step,
                )

            try:
                with closing(as_finished(map(begin, jobs), at_once=self.trees_at_once)) as groups:
                    for done in groups:
                        # What is finished is handed over before a bug breaks off.
                        for future in sorted(done, key=lambda f: f.exception() is not None):
                            yield future.result()
            finally:  # an error, or an interrupt from the keyboard: begin nothing more
                stopped.set()
                trees.shutdown(wait=False, cancel_futures=True)
                calls.shutdown(wait=False, cancel_futures=True)


def grow_tree(
    job: Job,
    dialogue: Dialogue,
    make_agent: AgentFactory,
    *,
    seed: int,
    options: SearchOptions,
    mapper: Mapper = map,
    on_step: OnStep = lambda key, live: None,
) -> Grown:
    """Do a job: search the tree of its task.

    Args:
        job: What to do.
        dialogue: The rules of play.
        make_agent: Makes the agent of a task.
        seed: The harvest's seed. The tree's is derived from it and from the task's id.
        options: How the tree grows.
        mapper: Plays the tree's live leaves: see :func:`~josh_search.search.search`.
        on_step: Is told of every step.

    Returns:
        The tree's record, or why there is none.
    """
    key, task = job

    def step(tree: Tree, live: int) -> None:
        on_step(key, live)

    try:
        tree = search(
            dialogue,
            make_agent(task),
            task,
            seed=derive(seed, task.id),
            options=options,
            mapper=mapper,
            on_step=step,
        )
    except RunStopped:  # so would every other tree be lost
        raise
    except BackendError as error:
        return Grown(key, None, one_line(error))
    return Grown(key, tree_to_json(tree, trial=0))
