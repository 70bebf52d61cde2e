"""``python -m josh_search``: harvest training rows from a world by search, and hand them on."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from agents.advice import advice
from agents.backends.journal import Journal
from agents.base import BackendError
from agents.options import (
    INDIFFERENT,
    SCRIPTS,
    SHOWN,
    PlayOptions,
    shown_from_json,
    shown_to_json,
)
from josh_search.engine import Engine, LocalEngine
from josh_search.harvest import PATIENCE, Tally, finish, harvest, take_stock
from josh_search.publish import ExportOptions, PublishOptions, export, publish
from josh_search.search import SearchOptions
from toolwoz_gym import make_env
from toolwoz_gym.cli import Count, check_counts, how_many, main_cli
from toolwoz_gym.env import DialogueEnv
from toolwoz_gym.records import RunFolder, check_replay, read_config, read_log, read_sealed
from toolwoz_gym.types import Task, UsageError

_WHERE = {"engine", "ray_address", "workers", "worker_gpus", "worker_cpus"}


@dataclass(frozen=True, kw_only=True)
class HarvestOptions(PlayOptions, SearchOptions):
    """Search dialogues for what earns the reward, and write training rows from what is found."""

    run: Path = Path("runs/demo")
    """Folder of the run. A run that was interrupted goes on where it was."""
    env: str = "ToolWOZ-v1"
    """Environment, as gymnasium.make knows it."""
    world: str = "builtin:domains=1"
    """World: builtin, builtin:<options>, multiwoz or auto; for TauBench-v0 retail or airline."""
    split: str | None = None
    """Split of the world's tasks. By default train, or the only one that a world of τ-bench has."""
    tasks: Count = 24
    """How many tasks to play: the first of the split, or all."""
    trees: int = 16
    """Trees that grow at a time, in each worker."""
    engine: Literal["local", "ray"] = "local"
    """Where trees grow: in this process, or in the workers of a Ray cluster (docs/cluster.md)."""
    ray_address: str = "auto"
    """host:port of the cluster's head; auto: what RAY_ADDRESS says, else this machine's cluster."""
    workers: int | None = None
    """Workers on the cluster. Unless told: as many as its GPUs allow; without GPUs, one a machine.
    """
    worker_gpus: int | None = None
    """GPUs that a worker reserves. Unless told: 1 where the cluster has any. 0 if all share an
    endpoint."""
    worker_cpus: int = 1
    """CPUs that a worker reserves; a model on the CPU computes in as many threads."""
    seed: int = 0
    """Everything random follows from it."""

    def decisive(self) -> dict[str, Any]:
        """Return the options that decide what the records say, as JSON data."""
        ignored = INDIFFERENT | _WHERE | self.unused() | {"tasks"}
        options = asdict(self) | {"tool_format": self.resolved_format()}
        return {name: value for name, value in options.items() if name not in ignored}


@dataclass(frozen=True, kw_only=True, slots=True)
class RowsOptions:
    """Write rows, summary and report of the trees that a run has, however it ended."""

    run: Path = Path("runs/demo")
    """Folder of the run, which may be under way."""


def _count_trees(run: Path, tasks: Sequence[Task]) -> Tally:
    """Return what a run has, which may be under way.

    Raises:
        UsageError: It has no trees, or one that is damaged or of none of the tasks.
    """
    tally, _ = take_stock(run / "trees.jsonl", tasks, 0)
    if not tally.finished:
        raise UsageError(f"{run} has no trees yet")
    return tally


def _recorded(run: Path, tasks: Sequence[Task]) -> tuple[Path, Sequence[Task]]:
    """Return the trees of a run that is to be played again, and the tasks that have one.

    Raises:
        UsageError: It has no trees, or one that is damaged or of none of the tasks.
    """
    trees = run / "trees.jsonl"
    if not trees.exists():
        raise UsageError(f"{run} is no harvest: python -m benchmarks evaluate replays evaluations")
    _count_trees(run, tasks)
    recorded = {record["task_id"] for record in read_log(trees)}
    return trees, [task for task in tasks if task.id in recorded]


def _make_env(options: HarvestOptions) -> DialogueEnv:
    split = options.split or (None if options.env == "TauBench-v0" else "train")
    return make_env(options.env, world=options.world, split=split, user=options.named_user)


@contextmanager
def open_engine(options: HarvestOptions, env: DialogueEnv, journal: Journal) -> Iterator[Engine]:
    """Load what grows the trees.

    Raises:
        UsageError: There is no such model, device or cluster.
    """
    if options.engine == "local":
        with options.open_players(env.dialogue, journal) as (dialogue, make_agent):
            yield LocalEngine(
                dialogue,
                make_agent,
                seed=options.seed,
                options=options,
                trees_at_once=options.trees,
            )
        return
    from josh_search.distributed import Plan, open_ray

    plan = Plan(
        make_env=partial(_make_env, options),
        open_players=options.open_players,
        spent=journal.spent,
        world=env.dialogue.domain.fingerprint,
        seed=options.seed,
        options=options,
        trees_at_once=options.trees,
    )
    with open_ray(
        plan,
        options.ray_address,
        journal=journal,
        check_budget=lambda: options.open_budget(journal).check(),
        workers=options.workers,
        gpus=options.worker_gpus,
        cpus=options.worker_cpus,
    ) as engine:
        yield engine


def run(options: HarvestOptions) -> None:
    """Harvest.

    Raises:
        UsageError: An option makes no sense, or the run folder cannot be used.
    """
    options.check()
    options.check_play()
    check_counts(options, "trees")
    began = time.monotonic()
    asked, options = options, options.as_recorded(options.run)
    env = _make_env(options)
    options = replace(options, split=env.split)
    options.check_user(env)
    dialogue = env.dialogue
    config: dict[str, Any] = {
        "options": options.decisive(),
        "world": dialogue.domain.fingerprint,
        "adapters": options.adapters(),
        SHOWN: shown_to_json(*options.shown(dialogue.domain)),
    }
    tasks: Sequence[Task] = env.tasks
    asked_for, patience, source = options.tasks, PATIENCE, f"the split {options.split!r}"
    if asked.backend == "canned":
        if options.engine == "ray":
            raise UsageError("a run is replayed on this machine: leave --engine ray out")
        config["replays"] = asked.model
        recording, tasks = _recorded(Path(asked.model), env.tasks)
        source = f"the recording {asked.model}"
        if "tasks" not in asked.given and asked_for == HarvestOptions.tasks:  # unless told, all
            asked_for = "all"
        patience = ()  # what is not recorded does not come by waiting
    number = how_many(asked_for, len(tasks), source)
    RunFolder.check(options.run, config)

    from josh_search.progress import Progress
    from toolwoz_gym.progress import clock

    with (
        asked.open_journal(options.run) as journal,
        open_engine(options, env, journal) as engine,
        Progress() as progress,
    ):
        folder = RunFolder(options.run, config)
        tally = harvest(engine, tasks, folder, watcher=progress, number=number, patience=patience)
    if tally.stopped and not tally.finished:
        raise tally.stopped
    seconds = time.monotonic() - began
    whole = None if tally.before else seconds  # how long the other sessions took is not known
    played = options.model if options.needs_model else options.agent
    shown = shown_from_json(config[SHOWN])
    summary = finish(options.run, tally, *shown, model=played, seconds=whole)
    hints = advice(
        options,
        outputs=tally.outputs,
        malformed=tally.malformed,
        dialogues=tally.dialogues,
        user_faults=tally.user_faults,
    )
    _report(options.run, tally, summary, f", {clock(seconds)} minutes", hints)
    if tally.interrupted:
        raise KeyboardInterrupt
    if tally.finished < tally.tasks:
        reason = str(tally.stopped or next(iter(tally.reasons())))
        is_down = not tally.stopped and asked.backend != "canned"
        why = f"the model did not answer ({reason})" if is_down else reason
        said = f"{tally.tasks - tally.finished} of {tally.tasks} trees have no record: {why}"
        raise UsageError(said) if asked.backend == "canned" else BackendError(said)
    if asked.backend == "canned":
        check_replay(recording, options.run / "trees.jsonl")


def rows(options: RowsOptions) -> None:
    """Write what follows from a run's trees.

    What trees do not say, how many more there should be for example, is as in the summary that is
    there, if it is one of the same trees.

    Raises:
        UsageError: There is no such run, it is damaged, or its world is not there.
    """
    config = read_config(options.run)
    made_by = config["options"]
    if not (options.run / "trees.jsonl").exists():
        raise UsageError(f"{options.run} is no harvest: it has no trees.jsonl")
    env = make_env(made_by["env"], world=made_by["world"], split=made_by["split"])
    world = env.dialogue.domain.fingerprint
    if world != config["world"]:
        raise UsageError(f"{options.run} was played in the world {config['world']}, not {world}")
    tally = _count_trees(options.run, env.tasks)
    played = made_by["agent"] if made_by["agent"] in SCRIPTS else made_by["model"]
    more: dict[str, Any] = {"model": played, "seconds": None}
    with suppress(UsageError):  # there is none, or it is damaged
        before = read_sealed(options.run / "summary.json")
        if before["finished"] == tally.finished:
            kept = ("tasks", "infra_error", "infra_reasons", "seconds")
            more |= {name: before[name] for name in kept}
    summary = finish(options.run, tally, *shown_from_json(config[SHOWN]), **more)
    _report(options.run, tally, summary)


def _report(
    run: Path, tally: Tally, summary: Mapping[str, Any], took: str = "", hints: Iterable[str] = ()
) -> None:
    """Print what a harvest has brought."""
    rows = summary["rows"]
    print(
        f"{tally.solved} of {summary['tasks']} tasks solved, {tally.goals_met} of "
        f"{tally.goals_total} goals met{took}\n"
        f"rows: {rows['kto']['good']} good and {rows['kto']['bad']} bad for KTO, "
        f"{rows['sft']} for SFT, {rows['dpo']} pairs for DPO"
    )
    for role, usage in tally.usage.items():
        if usage.tokens != 0:
            print(f"{role}: {usage}")
    if tally.malformed:
        listed = ", ".join(f"{count} {kind}" for kind, count in tally.malformed.most_common())
        print(f"malformed: {tally.malformed.total()} outputs of the agent's ({listed})")
    kinds = "".join(f", {count} {kind}" for kind, count in tally.user_faults.most_common())
    print(
        f"user_fault: {summary['user_fault_rate']:.1%} of {tally.dialogues} dialogues ended by a "
        f"fault of the customer's{kinds}"
    )
    for reason, count in rows["dropped"].items():
        print(f"dropped: {count} {reason}")
    for reason, count in islice(tally.reasons().items(), 5):
        print(f"infra_error: {count} trees were lost: {reason}")
    for hint in hints:
        print(hint)
    print(f"look at {run / 'report.html'}")


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return main_cli(
        "python -m josh_search",
        "Harvest training rows by search, and hand them on.",
        {
            "harvest": (HarvestOptions, run),
            "rows": (RowsOptions, rows),
            "publish": (PublishOptions, publish),
            "export": (ExportOptions, export),
        },
        args,
        resumable=(BackendError,),
    )


if __name__ == "__main__":
    sys.exit(main())
