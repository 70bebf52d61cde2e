"""``python -m josh_search``: harvest training rows from a world with JOSH."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from agents.backends.journal import Journal
from agents.base import BackendError
from agents.options import INDIFFERENT, PlayOptions
from josh_search.engine import Engine, LocalEngine
from josh_search.harvest import PATIENCE, finish, harvest
from josh_search.publish import ExportOptions, PublishOptions, export, publish
from josh_search.search import SearchOptions
from toolwoz_gym import make_env
from toolwoz_gym.cli import Count, how_many, main_cli
from toolwoz_gym.env import DialogueEnv
from toolwoz_gym.records import RunFolder
from toolwoz_gym.types import Task, UsageError

_WHERE = {"engine", "ray_address", "workers", "worker_gpus", "worker_cpus"}


@dataclass(frozen=True, kw_only=True)
class HarvestOptions(PlayOptions, SearchOptions):
    """Search dialogues for what earns the reward, and write training rows from what is found."""

    run: Path = Path("runs/demo")
    """Folder of the run. A run that was interrupted goes on where it was."""
    env: str = "ToolWOZ-v0"
    """Environment, as gymnasium.make knows it."""
    world: str = "builtin:domains=1"
    """World: builtin, builtin:<options>, multiwoz or auto; for TauBench-v0 retail or airline."""
    split: str = "train"
    """Split of the world's tasks."""
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


def _recorded_tasks(run: Path) -> set[str]:
    """Return the ids of the tasks that have a tree in a run, which may be written at the moment.

    Raises:
        UsageError: There is none.
    """
    trees = run / "trees.jsonl"
    if not trees.is_file():
        raise UsageError(f"{run} is no harvest: python -m benchmarks evaluate replays evaluations")
    try:
        with open(trees, "rb") as file:
            found = {json.loads(line)["task_id"] for line in file if line.endswith(b"\n")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"cannot read the trees in {trees}: {error}") from None
    if not found:
        raise UsageError(f"{run} has no trees yet: there is nothing to replay")
    return found


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
        make_env=partial(
            make_env, options.env, world=options.world, split=options.split, user=options.named_user
        ),
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
    if options.trees < 1:
        raise UsageError("trees must be at least 1")
    began = time.monotonic()
    asked, options = options, options.as_recorded(options.run)
    env = make_env(options.env, world=options.world, split=options.split, user=options.named_user)
    options.check_user(env)
    dialogue = env.dialogue
    config = {
        "options": options.decisive(),
        "world": dialogue.domain.fingerprint,
        "adapters": options.adapters(),
    }
    tasks: Sequence[Task] = env.tasks
    asked_for, patience, source = options.tasks, PATIENCE, f"the split {options.split!r}"
    if asked.backend == "canned":
        if options.engine == "ray":
            raise UsageError("a run is replayed on this machine: leave --engine ray out")
        config["replays"] = asked.model
        recorded = _recorded_tasks(Path(asked.model))
        tasks = [task for task in env.tasks if task.id in recorded]
        source = f"the recording {asked.model}"
        if asked_for == HarvestOptions.tasks:  # unless told, all
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
    shown = options.shown(dialogue.domain)
    whole = None if tally.before else seconds  # how long the other sessions took is not known
    played = options.model if options.needs_model else options.agent
    summary = finish(options.run, tally, *shown, model=played, seconds=whole)
    rows = summary["rows"]
    print(
        f"{tally.solved} of {tally.tasks} tasks solved, {tally.goals_met} of {tally.goals_total} "
        f"goals met, {clock(seconds)} minutes\n"
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
    print(f"look at {options.run / 'report.html'}")
    if tally.finished < tally.tasks:
        reason = str(tally.stopped or next(iter(tally.reasons())))
        is_down = not tally.stopped and asked.backend != "canned"
        why = f"the model did not answer ({reason})" if is_down else reason
        said = f"{tally.tasks - tally.finished} of {tally.tasks} trees have no record: {why}"
        raise UsageError(said) if asked.backend == "canned" else BackendError(said)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return main_cli(
        "python -m josh_search",
        "Harvest training rows with JOSH, and hand them on.",
        {
            "harvest": (HarvestOptions, run),
            "publish": (PublishOptions, publish),
            "export": (ExportOptions, export),
        },
        args,
        resumable=(BackendError,),
    )


if __name__ == "__main__":
    sys.exit(main())
