"""Harvesting: search trees for many tasks at once, into a folder that a later run goes on with."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from agents.base import RunStopped
from josh_search.engine import Engine, Job
from josh_search.report import write_report
from josh_search.rows import KINDS, write_rows
from josh_search.tree import tree_key
from toolwoz_gym.records import (
    ROW_FILES,
    Log,
    RunFolder,
    file_digest,
    read_log,
    usages_from_json,
    usages_to_json,
    write_sealed,
)
from toolwoz_gym.types import Task, ToolSpec, Usage

PATIENCE: tuple[float, ...] = (1.0, 5.0, 25.0, 60.0)
"""Seconds to wait before lost trees are tried again, from one vain round to the next."""

MOST_LOST = 20
"""A round is broken off when so many trees in a row were lost: the model must be down."""


@dataclass(slots=True)
class Tally:
    """How far a harvest has come: what its records hold, and the trees that still grow."""

    tasks: int
    """How many trees the folder holds when all is done."""
    finished: int = 0
    before: int = 0
    """Of the finished, those that an earlier session had finished."""
    solved: int = 0
    goals_met: int = 0
    goals_total: int = 0
    turns: int = 0
    """Agent turns played: nodes of the finished trees but their roots."""
    dialogues: int = 0
    """Leaves of the finished trees: each is the end of a dialogue, or of what was played of it."""
    outputs: int = 0
    """Messages of the agent's in these turns, each as often as the model wrote it there."""
    malformed: Counter[str] = field(default_factory=Counter)
    """Those of them that were no action, by kind of mistake."""
    user_faults: Counter[str] = field(default_factory=Counter)
    """The dialogues that a fault of the customer's ended, by its kind."""
    usage: dict[str, Usage] = field(default_factory=lambda: {"agent": Usage(), "user": Usage()})
    """What the models of the finished trees took, by role."""
    live: dict[str, int] = field(default_factory=dict)
    """Live leaves of the trees that still grow, by key."""
    lost: dict[str, str] = field(default_factory=dict)
    """Why there is no record of a tree that was tried, by key: a model behind it did not answer."""
    stopped: RunStopped | None = None
    """Why no model answers any more."""
    interrupted: bool = False
    """Whether Ctrl-C has ended the harvest."""

    def add(self, record: Mapping[str, Any]) -> None:
        """Count a finished tree."""
        self.finished += 1
        self.solved += record["solved"]
        self.goals_met += len(record["goals_met"])
        self.goals_total += len(record["goals"])
        self.turns += len(record["nodes"]) - 1
        for node in record["nodes"]:
            for message in node["messages"]:
                self.outputs += node["visits"] if message["role"] == "assistant" else 0
                if "mistake" in message:
                    self.malformed[message["mistake"]] += node["visits"]
        inner = {node["parent"] for node in record["nodes"]}
        for leaf in (node for node in record["nodes"] if node["id"] not in inner):
            self.dialogues += 1
            if leaf["outcome"] == "user_fault":
                self.user_faults[leaf["messages"][-1].get("error", "other")] += 1
        for role, usage in usages_from_json(record).items():
            self.usage[role] += usage

    def reasons(self) -> dict[str, int]:
        """Return for which reasons trees were lost, and how many, the most frequent first."""
        return dict(Counter(self.lost.values()).most_common())

    def to_json(self) -> dict[str, Any]:
        """Return the figures that go into ``summary.json``."""
        return {
            "tasks": self.tasks,
            "finished": self.finished,
            "infra_error": len(self.lost),
            "infra_reasons": self.reasons(),
            "solved": self.solved,
            "goals_met": self.goals_met,
            "goals_total": self.goals_total,
            "progress": self.goals_met / self.goals_total if self.goals_total else 0.0,
            "leaves": self.turns,
            "malformed": dict(self.malformed.most_common()),
            "dialogues": self.dialogues,
            "user_fault": self.user_faults.total(),
            "user_fault_rate": self.user_faults.total() / self.dialogues if self.dialogues else 0.0,
            "user_fault_kinds": dict(self.user_faults.most_common()),
            **usages_to_json(self.usage),
        }


class Watcher(Protocol):
    """Shows how a harvest gets on. It may be called from any thread."""

    def update(self, tally: Tally, record: Mapping[str, Any] | None) -> None:
        """Show the tally; ``record`` is the tree that has just been finished, if one has."""
        ...

    def wait(self, tally: Tally, seconds: float) -> None:
        """Say that lost trees are tried again after so many seconds."""
        ...


def harvest(
    engine: Engine,
    tasks: Sequence[Task],
    folder: RunFolder,
    *,
    watcher: Watcher,
    number: int | None = None,
    patience: Sequence[float] = PATIENCE,
) -> Tally:
    """Search a tree for every task that the folder has no record of yet.

    A tree is lost when a model behind it does not answer. It leaves no record, the others go on,
    and it is tried again after them: in this run for as long as ``patience`` lasts, and then in the
    next one.

    Args:
        engine: What grows the trees.
        tasks: What to play.
        folder: Where ``trees.jsonl`` grows by a line for each finished tree.
        watcher: Is told of every step of every tree.
        number: How many of the tasks to play, from the first on; None plays all.
        patience: Seconds to wait before lost trees are tried again, from one vain round to the
            next; a round that finishes a tree begins anew. When they are used up, the harvest ends;
            if there are none, no tree is tried again.

    Returns:
        What the folder holds now, which trees were lost, and what ended it before all was tried.

    Raises:
        UsageError: The folder cannot be written, since no space is left, for example; or it has a
            record that is damaged, or of none of the tasks.
    """
    with closing(folder.log("trees")) as log:
        tally, waiting = take_stock(log.path, tasks, len(tasks) if number is None else number)
        vain = 0
        try:
            watcher.update(tally, None)
            while waiting:
                before = tally.finished
                _play_round(engine, tasks, waiting, log, tally, watcher)
                vain = 0 if tally.finished > before else vain + 1
                if vain > len(patience) or not patience:
                    break
                if waiting:
                    seconds = patience[max(0, vain - 1)]
                    watcher.wait(tally, seconds)
                    time.sleep(seconds)
        except RunStopped as error:
            tally.stopped = error
        except KeyboardInterrupt:
            tally.interrupted = True
    return tally


def take_stock(trees: Path, tasks: Sequence[Task], number: int) -> tuple[Tally, deque[int]]:
    """Count what is finished, and return which of the first tasks are not, by their index.

    Args:
        trees: The file of trees.
        tasks: Those that there can be trees of.
        number: How many of them are wanted, from the first on.

    Raises:
        UsageError: A record is damaged, or of none of the tasks.
    """
    tally, finished = Tally(0), set()
    for record in read_log(trees, _Keys(tasks)):
        finished.add(record["key"])
        tally.add(record)
    waiting = deque(
        index
        for index in range(number)
        if not finished or tree_key(tasks[index], trial=0) not in finished
    )
    tally.before = tally.finished
    tally.tasks = tally.finished + len(waiting)
    return tally, waiting


@dataclass(slots=True)
class _Keys:
    """The keys of the trees of some tasks. They are looked up when the first one is asked for."""

    tasks: Sequence[Task]
    keys: frozenset[str] = frozenset()

    def __contains__(self, key: object) -> bool:
        self.keys = self.keys or frozenset(tree_key(task, trial=0) for task in self.tasks)
        return key in self.keys


def _play_round(
    engine: Engine,
    tasks: Sequence[Task],
    waiting: deque[int],
    log: Log,
    tally: Tally,
    watcher: Watcher,
) -> None:
    """Try each waiting task once, until all are tried or too many trees in a row are lost.

    What is finished leaves the queue; what is lost goes to its end.
    """
    playing: dict[str, int] = {}
    in_a_row = 0

    def jobs() -> Iterator[Job]:
        for _ in range(len(waiting)):
            if in_a_row >= MOST_LOST:
                return
            index = waiting.popleft()
            task = tasks[index]
            key = tree_key(task, trial=0)
            playing[key] = index
            yield key, task

    def on_step(key: str, live: int) -> None:
        tally.live[key] = live
        watcher.update(tally, None)

    with closing(engine.grow(jobs(), on_step)) as outcomes:
        for grown in outcomes:
            index = playing.pop(grown.key)
            tally.live.pop(grown.key, None)
            if grown.record is None:
                in_a_row += 1
                tally.lost[grown.key] = grown.error or ""
                waiting.append(index)
            else:
                in_a_row = 0
                log.append(grown.record)
                tally.lost.pop(grown.key, None)
                tally.add(grown.record)
            watcher.update(tally, grown.record)
    assert not playing, "an engine accounts for every job"


def finish(
    run: Path, tally: Tally, system: str, tools: Sequence[ToolSpec] = (), **more: Any
) -> dict[str, Any]:
    """Write what follows from the trees: the rows, the summary and the report.

    Args:
        run: The run's folder.
        tally: What the harvest counted.
        system: The system prompt that the model was shown.
        tools: The tools that it was shown in its own format.
        **more: Further entries of the summary.

    Returns:
        The summary.

    Raises:
        UsageError: The folder cannot be written. Its trees are whole.
    """
    rows = write_rows(run, system, tools)
    files = {f"{kind}.jsonl": file_digest(run / f"{kind}.jsonl") for kind in KINDS}
    figures = {"run": run.resolve().name, **tally.to_json(), "rows": rows}
    summary = {**figures, ROW_FILES: files, **more}
    write_sealed(run / "summary.json", summary)
    write_report(run)
    return summary
