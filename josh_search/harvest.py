"""Harvesting: search trees for many tasks at once, into a folder that a later run goes on with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from agents.base import AgentFactory
from josh_search.report import write_report
from josh_search.rows import make_rows
from josh_search.search import SearchOptions, search
from josh_search.tree import Tree, tree_key, tree_to_json
from toolwoz_gym.dialogue import Dialogue
from toolwoz_gym.pools import as_finished
from toolwoz_gym.records import RunFolder, read_jsonl, write_json, write_jsonl
from toolwoz_gym.seeding import derive
from toolwoz_gym.types import Task


@dataclass(slots=True)
class Tally:
    """How far a harvest has come: what its records hold, and the trees that still grow."""

    tasks: int
    finished: int = 0
    before: int = 0
    """Of the finished, those that an earlier session had finished."""
    solved: int = 0
    goals_met: int = 0
    goals_total: int = 0
    turns: int = 0
    """Agent turns played: nodes of the finished trees but their roots."""
    usage: dict[str, dict[str, int]] = field(
        default_factory=lambda: {r: {"prompt": 0, "completion": 0} for r in ("agent", "user")}
    )
    live: dict[str, int] = field(default_factory=dict)
    """Live leaves of the trees that still grow, by key."""

    def add(self, record: Mapping[str, Any]) -> None:
        """Count a finished tree."""
        self.finished += 1
        self.solved += record["solved"]
        self.goals_met += len(record["goals_met"])
        self.goals_total += len(record["goals"])
        self.turns += len(record["nodes"]) - 1
        for role, usage in record["usage"].items():
            for kind, tokens in usage.items():
                self.usage[role][kind] += tokens
        self.live.pop(record["key"], None)

    def to_json(self) -> dict[str, Any]:
        """Return the figures that go into ``summary.json``."""
        return {
            "tasks": self.tasks,
            "finished": self.finished,
            "solved": self.solved,
            "goals_met": self.goals_met,
            "goals_total": self.goals_total,
            "progress": self.goals_met / self.goals_total if self.goals_total else 0.0,
            "leaves": self.turns,
            "usage": self.usage,
        }


class Watcher(Protocol):
    """Shows how a harvest gets on."""

    def update(self, tally: Tally, record: Mapping[str, Any] | None) -> None:
        """Show the tally; ``record`` is the tree that has just been finished, if one has."""
        ...


def harvest(
    dialogue: Dialogue,
    make_agent: AgentFactory,
    tasks: Sequence[Task],
    folder: RunFolder,
    *,
    seed: int,
    options: SearchOptions,
    trees_at_once: int,
    watcher: Watcher,
) -> Tally:
    """Search a tree for every task that the folder has no record of yet.

    Args:
        dialogue: The rules of play.
        make_agent: Makes the agent of a task.
        tasks: What to play.
        folder: Where ``trees.jsonl`` grows by a line for each finished tree.
        seed: A task's seed is derived from it and from the task's id, so that a tree does not
            depend on the others.
        options: How trees grow.
        trees_at_once: How many trees grow at a time; their model calls are in flight together.
        watcher: Is told of every step of every tree.

    Raises:
        BackendError: A model did not answer. Trees that were finished are in the folder.
    """
    tally = Tally(len(tasks))
    log = folder.log("trees")
    wanted = {tree_key(task, trial=0): task for task in tasks}

    def grow(key: str, task: Task) -> Tree:
        def on_step(tree: Tree, live: int) -> None:
            tally.live[key] = live
            watcher.update(tally, None)

        return search(
            dialogue,
            make_agent(task),
            task,
            seed=derive(seed, task.id),
            options=options,
            mapper=leaf_pool.map,
            on_step=on_step,
        )

    with (
        closing(log),
        ThreadPoolExecutor(trees_at_once * options.beam) as leaf_pool,
        ThreadPoolExecutor(trees_at_once) as tree_pool,
    ):
        for record in read_jsonl(log.path):
            if wanted.pop(record["key"], None):
                tally.add(record)
        tally.before = tally.finished
        watcher.update(tally, None)
        growing = (tree_pool.submit(grow, key, task) for key, task in wanted.items())
        try:
            with closing(as_finished(growing)) as groups:
                for done in groups:
                    # What is finished is kept before an error breaks off.
                    for future in sorted(done, key=lambda future: future.exception() is not None):
                        record = tree_to_json(future.result(), trial=0)
                        log.append(record)
                        tally.add(record)
                        watcher.update(tally, record)
        finally:  # an error, or an interrupt from the keyboard: begin nothing more
            tree_pool.shutdown(wait=False, cancel_futures=True)
            leaf_pool.shutdown(wait=False, cancel_futures=True)
    return tally


def finish(run: Path, tally: Tally, system: str, **more: Any) -> dict[str, Any]:
    """Write what follows from the trees: the rows, the summary and the report.

    Args:
        run: The run's folder.
        tally: What the harvest counted.
        system: The system prompt that the model was shown.
        **more: Further entries of the summary.

    Returns:
        The summary.
    """
    rows = make_rows(read_jsonl(run / "trees.jsonl"), system)
    for name in ("kto", "sft", "dpo"):
        write_jsonl(run / f"{name}.jsonl", getattr(rows, name))
    summary = {"run": run.name, **tally.to_json(), "rows": rows.counts(), **more}
    write_json(run / "summary.json", summary)
    write_report(run)
    return summary
