"""Evaluation: models play the same held-out tasks with the same seeds, and are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from agents.advice import advice
from agents.base import BackendError
from agents.customers import FORMS
from agents.models import BUNDLED
from agents.options import INDIFFERENT, SCRIPTS, SHOWN, PlayOptions, shown_to_json
from benchmarks.comparison import Comparison, compare, tables
from benchmarks.episodes import TRAJECTORIES, play_all
from benchmarks.progress import Progress, fitted
from toolwoz_gym import make_env
from toolwoz_gym.cli import Count, check_counts, how_many
from toolwoz_gym.records import (
    RunFolder,
    check_replay,
    parse_json,
    read_config,
    read_log,
    write_json,
    write_text,
)
from toolwoz_gym.types import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateOptions(PlayOptions):
    """Play held-out tasks with one or several models, and compare the others with the first."""

    adapter: Path | None = None
    """Folder of a trained adapter, to compare with the model: unless told, with the one that it was
    trained from."""
    also: tuple[str, ...] = ()
    """Further models to compare with the model, named as for --model; or scripts: expert, erring,
    random."""
    run: Path = Path("runs/demo/evaluation")
    """Folder of the evaluation. One that was interrupted goes on where it was."""
    env: str = "ToolWOZ-v1"
    """Environment, as gymnasium.make knows it."""
    world: str = "builtin:domains=1"
    """World: builtin, builtin:<options>, multiwoz or auto; for TauBench-v0 retail or airline."""
    split: str = "val"
    """Split of the world's tasks."""
    tasks: Count = 40
    """How many tasks to play: the first of the split, or all."""
    trials: int = 1
    """How often each model plays each task."""
    max_steps: int | None = None
    """An episode is cut off after so many messages of the model's. Unless told, where the
    environment does so: 45 in ToolWOZ, 30 in τ-bench."""
    episodes_at_once: int = 16
    """Episodes that are played at a time."""
    seed: int = 0
    """Everything random follows from it."""

    def players(self) -> dict[str, PlayOptions]:
        """Return who plays, by label: all with the same customer.

        Raises:
            UsageError: A model is named twice.
        """
        first = replace(self, user_model=self.user_model or self.model)
        players: dict[str, PlayOptions] = {self.model if self.needs_model else self.agent: first}
        for name in (*([self.adapter.as_posix()] if self.adapter else []), *self.also):
            if name in players:
                raise UsageError(f"{name} is named twice: it would be compared with itself")
            if name in SCRIPTS:
                players[name] = replace(first, agent=name)  # type: ignore[arg-type]  # is a Literal
            else:
                agent = self.agent if self.needs_model else "tool_calling"
                players[name] = replace(first, agent=agent, model=name)
        return players

    def decisive(self) -> dict[str, Any]:
        """Return the options that decide what the records say, as JSON data."""
        values = asdict(self) | {"adapter": self.adapter.as_posix() if self.adapter else None}
        players = self.players().values()
        unused = frozenset.intersection(*(player.unused() for player in players))
        ignored = INDIFFERENT | unused | {"episodes_at_once"}
        return {name: value for name, value in values.items() if name not in ignored}


def run(options: EvaluateOptions) -> None:
    """Evaluate.

    Raises:
        UsageError: An option makes no sense, or the run folder cannot be used.
        BackendError: A model did not answer. Episodes that were finished are in the folder, and
            figures of the tasks of which all are.
    """
    check_counts(options, "trials", "max_steps", "episodes_at_once")
    if options.adapter and "model" not in options.given and options.model == BUNDLED:
        options = replace(options, model=_trained_from(options.adapter))
    options.check_play()
    asked, options = options, options.as_recorded(options.run)
    env = make_env(
        options.env,
        world=options.world,
        split=options.split,
        user=options.named_user,
        **({} if options.max_steps is None else {"max_steps": options.max_steps}),
    )
    options.check_user(env)
    number = how_many(options.tasks, len(env.tasks), f"the split {options.split!r}")
    options = replace(options, tasks=number)
    players = options.players()
    world = env.dialogue.domain.fingerprint
    config = {"options": options.decisive(), "world": world}
    if asked.backend == "canned":
        formats = read_config(Path(asked.model)).get("tool_formats")
        if formats is None:
            raise UsageError(
                f"{asked.model} is no evaluation: python -m josh_search harvest replays harvests"
            )
        players = {name: replace(p, tool_format=formats[name]) for name, p in players.items()}
        config["replays"] = asked.model
    elif options.adapter and not (options.adapter / "adapter_config.json").is_file():
        raise UsageError(f"there is no adapter in {options.adapter}: train one first")
    config["adapters"] = {name: player.adapters() for name, player in players.items()}
    config["tool_formats"] = {name: player.resolved_format() for name, player in players.items()}

    domain = env.dialogue.domain
    shown = {name: shown_to_json(*player.shown(domain)) for name, player in players.items()}
    folder = RunFolder(options.run, {**config, SHOWN: shown})
    with asked.open_journal(options.run) as journal, Progress() as progress:
        tally = play_all(
            env.dialogue,
            {
                label: partial(player.open_players, notebook=journal)
                for label, player in players.items()
            },
            [env.tasks[i] for i in range(number)],
            folder,
            seed=options.seed,
            trials=options.trials,
            episodes_at_once=options.episodes_at_once,
            watcher=progress,
        )
    trajectories = options.run / f"{TRAJECTORIES}.jsonl"
    records = read_log(trajectories)
    if tally.stopped and not tally.played:
        raise tally.stopped
    comparison = compare(records, list(players), trials=options.trials)
    lost = {"infra_error": tally.lost.total(), "infra_reasons": dict(tally.lost.most_common())}
    _print(comparison, players)
    write_json(options.run / "summary.json", {**config, **lost, **asdict(comparison)})
    if comparison.results:
        write_text(options.run / "evaluation.md", _markdown(options, number, world, comparison))
        print(f"tables and trajectories are in {options.run}")
    if tally.interrupted:
        raise KeyboardInterrupt
    missing = tally.episodes - tally.played.total()
    if missing:
        why = tally.stopped or tally.lost.most_common()[0][0]
        said = (
            f"{missing} of {tally.episodes} episodes have no record, and their tasks no part in "
            f"the figures: {why}"
        )
        raise UsageError(said) if asked.backend == "canned" else BackendError(said)
    if asked.backend == "canned":
        check_replay(Path(asked.model) / trajectories.name, trajectories)


def _print(comparison: Comparison, players: Mapping[str, PlayOptions]) -> None:
    """Print the tables of an evaluation, and what to do about outputs that were lost."""
    for table in tables(comparison) if comparison.results else ():
        print(fitted(table), flush=True)
    for result in comparison.results:
        for line in advice(
            players[result.model],
            outputs=result.steps,
            malformed=result.malformed,
            dialogues=result.tasks * result.trials,
            user_faults=result.user_faults,
        ):
            print(f"{result.model}: {line}" if len(players) > 1 else line)


def _trained_from(adapter: Path) -> str:
    """Return the model that an adapter was trained from; the bundled one where nothing says so.

    Raises:
        UsageError: What should say so is damaged.
    """
    record = adapter / "training.json"
    try:
        return str(parse_json(record.read_bytes())["options"]["model"])
    except FileNotFoundError:
        return BUNDLED
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{record} does not say what was trained: name it, --model") from None


def _markdown(options: EvaluateOptions, number: int, world: str, comparison: Comparison) -> str:
    trials = "1 trial" if options.trials == 1 else f"{options.trials} trials"
    left_out = number - comparison.results[0].tasks
    without = f" without {left_out} of which an episode is missing" if left_out else ""
    return "\n\n".join(
        [
            f"{options.env}, world `{options.world}` ({world[:12]}), first {number} tasks "
            f"of {options.split}{without}, {trials} each, seed {options.seed}, "
            f"{_agent(options)}, customer {_customer(options)}.",
            *(table.markdown() for table in tables(comparison)),
            "In brackets: 95 % confidence intervals over tasks (success: Wilson; progress: Agresti "
            "and Coull; differences, paired by task and seed: Bonett and Price). p: exact sign "
            "test over tasks.\n",
        ]
    )


def _agent(options: PlayOptions) -> str:
    if not options.needs_model:
        return f"agent {options.agent}"
    constrained = ", constrained" if options.constrain else ""
    return f"agent {options.agent}{constrained}, temperature {options.temperature:g}"


def _customer(options: PlayOptions) -> str:
    if options.user not in FORMS:
        return options.user
    model, temperature = options.customer_model().model, options.user_temperature
    return f"{options.user} ({model}, temperature {temperature:g})"
