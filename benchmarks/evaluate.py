"""Evaluation: models play the same held-out tasks with the same seeds, and are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from agents.models import resolve
from agents.options import INDIFFERENT, AgentOptions
from benchmarks.comparison import Comparison, compare, tables
from benchmarks.episodes import TRAJECTORIES, play_all
from benchmarks.progress import Progress, print_tables
from toolwoz_gym import make_env
from toolwoz_gym.records import RunFolder, read_jsonl, write_json, write_text
from toolwoz_gym.types import UsageError
from training.output import digest


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateOptions(AgentOptions):
    """Play held-out tasks with one or several models, and compare the others with the first."""

    adapter: Path | None = None
    """Folder of a trained adapter, to compare with the model."""
    also: tuple[str, ...] = ()
    """Further models to compare with the model, named as for --model; or expert, or random."""
    run: Path = Path("runs/demo/evaluation")
    """Folder of the evaluation. One that was interrupted goes on where it was."""
    env: str = "ToolWOZ-v0"
    """Environment, as gymnasium.make knows it."""
    world: str = "builtin:domains=1"
    """World: builtin, builtin:<options>, multiwoz or auto; for TauBench-v0 retail or airline."""
    split: str = "val"
    """Split of the world's tasks."""
    user: str = "scripted"
    """The customer: scripted, scripted:noise=0.3 (0 to 1) or replay."""
    tasks: int = 40
    """How many tasks to play: the first of the split."""
    trials: int = 1
    """How often each model plays each task."""
    max_steps: int = 30
    """An episode is cut off after so many messages of the model's; the expert needs 12 at most
    where customers want one thing, and 41 where they want four."""
    episodes_at_once: int = 16
    """Episodes that are played at a time."""
    seed: int = 0
    """Everything random follows from it."""

    def players(self) -> dict[str, AgentOptions]:
        """Return who plays, by label.

        Raises:
            UsageError: There is no such model or adapter, or one is named twice.
        """
        if self.adapter and not (self.adapter / "adapter_config.json").is_file():
            raise UsageError(f"there is no adapter in {self.adapter}: train one first")
        players: dict[str, AgentOptions] = {
            self.model if self.agent == "tool_calling" else self.agent: self
        }
        for name in (*([self.adapter.as_posix()] if self.adapter else []), *self.also):
            if name in players:
                raise UsageError(f"{name} is named twice: it would be compared with itself")
            if name in ("expert", "random"):
                players[name] = replace(self, agent=name)  # type: ignore[arg-type]  # is a Literal
            else:
                players[name] = replace(self, agent="tool_calling", model=name)
        return players

    def decisive(self) -> dict[str, Any]:
        """Return the options that decide what the records say, as JSON data."""
        values = asdict(self) | {"adapter": self.adapter.as_posix() if self.adapter else None}
        return {k: v for k, v in values.items() if k not in INDIFFERENT | {"episodes_at_once"}}


def run(options: EvaluateOptions) -> None:
    """Evaluate.

    Raises:
        UsageError: An option makes no sense, or the run folder cannot be used.
        BackendError: A model did not answer. Episodes that were finished are in the folder.
    """
    for name in ("tasks", "trials", "max_steps", "episodes_at_once"):
        if getattr(options, name) < 1:
            raise UsageError(f"{name} must be at least 1")
    env = make_env(
        options.env,
        world=options.world,
        split=options.split,
        user=options.user,
        max_steps=options.max_steps,
    )
    if options.tasks > len(env.tasks):
        raise UsageError(f"the split {options.split!r} has {len(env.tasks)} tasks only")
    players = options.players()
    world = env.dialogue.domain.fingerprint
    config = {"options": options.decisive(), "adapters": _adapters(players), "world": world}

    folder = RunFolder(options.run, config)
    with Progress() as progress:
        play_all(
            env.dialogue,
            {label: player.open for label, player in players.items()},
            [env.tasks[i] for i in range(options.tasks)],
            folder,
            seed=options.seed,
            trials=options.trials,
            episodes_at_once=options.episodes_at_once,
            watcher=progress,
        )
    records = read_jsonl(options.run / f"{TRAJECTORIES}.jsonl")
    comparison = compare(records, list(players), seed=options.seed)
    write_json(options.run / "summary.json", {**config, **asdict(comparison)})
    write_text(options.run / "evaluation.md", _markdown(options, world, comparison))
    print_tables(comparison)
    print(f"tables and trajectories are in {options.run}")


def _adapters(players: Mapping[str, AgentOptions]) -> dict[str, str]:
    """Return a digest of every adapter that plays: one trained anew is another one."""
    digests = {}
    for label, player in players.items():
        adapter = resolve(player.model).adapter if player.agent == "tool_calling" else None
        if adapter:
            digests[label] = digest(Path(adapter) / "adapter_model.safetensors")
    return digests


def _markdown(options: EvaluateOptions, world: str, comparison: Comparison) -> str:
    trials = "1 trial" if options.trials == 1 else f"{options.trials} trials"
    return "\n\n".join(
        [
            f"{options.env}, world `{options.world}` ({world[:12]}), first {options.tasks} tasks "
            f"of {options.split}, {trials} each, seed {options.seed}, "
            f"temperature {options.temperature:g}.",
            *(table.markdown() for table in tables(comparison)),
            "In brackets: 95 % confidence intervals (success: Wilson; progress and differences: "
            "bootstrap over tasks, paired by task and seed). p: exact sign test over tasks.\n",
        ]
    )
