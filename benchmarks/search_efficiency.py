"""What a search finds for the tokens it spends: every strategy plays the same tasks on one budget.

A task's budget is so many tokens, written by agent and customer together. A strategy searches a
tree, and while the task is unsolved and the budget lasts, another one. So a strategy that gives up
early is not worse off, and one that goes on is not better off.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from agents.base import AgentFactory
from agents.options import INDIFFERENT, PlayOptions
from agents.tool_calling import system_prompt
from benchmarks.comparison import Table
from benchmarks.metrics import Estimate, Floats, ratio, relative_ratio, success_rate
from benchmarks.progress import fitted
from josh_search.rows import make_rows
from josh_search.search import SearchOptions, search
from josh_search.tree import tree_to_json
from toolwoz_gym import make_env
from toolwoz_gym.cli import Count, check_counts, how_many
from toolwoz_gym.dialogue import Dialogue
from toolwoz_gym.pools import as_finished
from toolwoz_gym.progress import phase
from toolwoz_gym.records import RunFolder, read_log, replacing, write_json, write_text
from toolwoz_gym.seeding import derive
from toolwoz_gym.types import Task, UsageError

CONTENDERS: Mapping[str, SearchOptions] = {
    "chains": SearchOptions(strategy="chains"),
    "josh, beam 2": SearchOptions(strategy="josh", beam=2),
    "josh, beam 4": SearchOptions(strategy="josh", beam=4),
    "josh, beam 8": SearchOptions(strategy="josh", beam=8),
    "go_explore": SearchOptions(strategy="go_explore"),
}
"""The strategies that are compared. Chains are independent dialogues: rejection sampling, as ReST
(arXiv 2308.08998) and STaR (arXiv 2203.14465) collect their data."""

TURNS = 15
"""Agent turns of a tree at most, for all of them: the paper's limit in ToolWOZ."""

BASELINE = "josh, beam 8"
"""What the others are compared with: the paper's setting."""

SEARCHES = "searches"
"""Name of the log: a line for each strategy and seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EfficiencyOptions(PlayOptions):
    """Search the same tasks by several strategies, with the same budget of tokens for each task."""

    run: Path = Path("runs/search_efficiency")
    """Folder of the comparison. One that was interrupted goes on where it was."""
    env: str = "ToolWOZ-v1"
    """Environment, as gymnasium.make knows it."""
    world: str = "builtin:domains=1"
    """World: builtin, builtin:<options>, multiwoz or auto; for TauBench-v0 retail or airline."""
    split: str = "train"
    """Split of the world's tasks."""
    tasks: Count = 16
    """How many tasks to play: the first of the split, or all."""
    skip: int = 0
    """Leaves out so many tasks before them. MultiWOZ's validation tasks of one domain begin at 646.
    """
    seeds: int = 3
    """How often, each time with other luck."""
    budget: int = 1000
    """Tokens that agent and customer may write on one task."""
    reward: Literal["goal_calls", "terminal"] = "goal_calls"
    """What solves a task: all goal calls, or the environment's 0/1 alone."""
    only: tuple[str, ...] = tuple(CONTENDERS)
    """Which strategies to compare."""
    trees: int = 24
    """Trees that grow at a time."""

    def decisive(self) -> dict[str, Any]:
        """Return the options that decide what the records say, as JSON data."""
        ignored = INDIFFERENT | self.unused() | {"only", "seeds"}
        return {name: value for name, value in asdict(self).items() if name not in ignored}


def run(options: EfficiencyOptions) -> None:
    """Compare.

    Raises:
        UsageError: An option makes no sense, or the run folder cannot be used.
        BackendError: A model did not answer. What was finished is in the folder.
    """
    check_counts(options, "seeds", "budget", "trees")
    import matplotlib  # noqa: F401 - is missed now, not when all is measured

    options.check_play()
    if not options.only:
        raise UsageError(f"name a strategy after --only: {'; '.join(CONTENDERS)}")
    for name in options.only:
        if name not in CONTENDERS:
            raise UsageError(f"there is no {name!r}; choose among: {'; '.join(CONTENDERS)}")
    env = make_env(options.env, world=options.world, split=options.split, user=options.named_user)
    options.check_user(env)
    if options.skip < 0:
        raise UsageError("skip must be at least 0")
    without = f" without the first {options.skip}" if options.skip else ""
    number = how_many(
        options.tasks,
        max(0, len(env.tasks) - options.skip),
        f"the split {options.split!r}{without}",
    )
    options = replace(options, tasks=number)
    domain = env.dialogue.domain
    config = {
        "options": options.decisive(),
        "world": domain.fingerprint,
        "adapters": options.adapters(),
    }
    folder = RunFolder(options.run, config)
    tasks = [env.tasks[options.skip + i] for i in range(number)]
    with closing(folder.log(SEARCHES)) as log:
        done = {record["key"] for record in read_log(log.path)}
        pairs = [(name, seed) for seed in range(options.seeds) for name in options.only]
        todo = [(name, seed) for name, seed in pairs if f"{name}/{seed}" not in done]
        if todo:
            with options.open_players(env.dialogue) as (dialogue, make_agent):
                for name, seed in todo:
                    with phase(f"{name}, seed {seed}"):
                        record = _play(dialogue, make_agent, tasks, options, name, seed)
                    log.append(record)
                    print(_line(record), flush=True)
    records = [
        r
        for r in read_log(options.run / f"{SEARCHES}.jsonl")
        if r["strategy"] in options.only and r["seed"] < options.seeds
    ]
    figures = {n: _figures(records, n) for n in options.only}
    table = tabulate(figures, options)
    print(f"\n{fitted(table)}", flush=True)
    write_json(options.run / "summary.json", {**config, "figures": _plain(figures)})
    write_text(options.run / "search_efficiency.md", table.markdown() + "\n")
    draw(records, options, options.run / "search_efficiency.png")
    print(f"table and plot are in {options.run}")


def _play(
    dialogue: Dialogue,
    make_agent: AgentFactory,
    tasks: Sequence[Task],
    options: EfficiencyOptions,
    name: str,
    seed: int,
) -> dict[str, Any]:
    """Let one strategy play all tasks once."""
    began = time.monotonic()
    how = replace(CONTENDERS[name], reward=options.reward, max_steps=TURNS)
    system = system_prompt(dialogue.domain.policy, dialogue.domain.tools)
    with (
        ThreadPoolExecutor(options.trees * how.beam) as leaves,
        ThreadPoolExecutor(options.trees) as trees,
    ):

        def work(task: Task) -> dict[str, Any]:
            records: list[dict[str, Any]] = []
            spent = 0
            while spent < options.budget and not (records and records[-1]["solved"]):
                tree = search(
                    dialogue,
                    make_agent(task),
                    task,
                    seed=derive(seed, task.id, len(records)),
                    options=replace(how, tree_tokens=options.budget - spent),
                    mapper=leaves.map,
                )
                if not tree.written:
                    raise UsageError(
                        "nobody counts the tokens that are written (a script's, or a server's that "
                        "does not say): a budget of them has no end"
                    )
                spent += tree.written
                records.append(tree_to_json(tree, trial=len(records)))
            rows = make_rows(records, system).counts()["kto"]
            return {
                "task_id": task.id,
                "solved": records[-1]["solved"],
                "goals": max(len(record["goals_met"]) for record in records),
                "tokens": spent,
                "trees": len(records),
                **rows,
            }

        try:
            futures = {trees.submit(work, task): i for i, task in enumerate(tasks)}
            played: list[dict[str, Any]] = [{}] * len(tasks)
            with closing(as_finished(futures)) as groups:
                for done in groups:
                    for future in done:
                        played[futures[future]] = future.result()
        finally:
            trees.shutdown(wait=False, cancel_futures=True)
            leaves.shutdown(wait=False, cancel_futures=True)
    return {
        "key": f"{name}/{seed}",
        "strategy": name,
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
        "tasks": played,
    }


@dataclass(frozen=True, slots=True)
class Figures:
    """What a strategy achieved."""

    solved: Estimate
    """Share of the tasks that were solved within the budget."""
    solved_per_million: Estimate
    """Solved tasks for a million tokens."""
    times_baseline: Estimate | None
    """The same, in multiples of what :data:`BASELINE` achieves on the same tasks; None without."""
    rows_per_million: Estimate
    """KTO rows, good and bad, for a million tokens."""
    good: int
    bad: int
    tokens: int
    seconds: float
    """Wall time."""


def _figures(records: Sequence[Mapping[str, Any]], name: str) -> Figures:
    arrays = _arrays(records, name)
    solved, tokens, rows = arrays["solved"], arrays["tokens"], arrays["good"] + arrays["bad"]
    others = _arrays(records, BASELINE)
    return Figures(
        success_rate(solved),
        solved_per_million=ratio(solved, tokens / 1e6, seed=0),
        times_baseline=relative_ratio(solved, tokens, others["solved"], others["tokens"], seed=0)
        if others
        else None,
        rows_per_million=ratio(rows, tokens / 1e6, seed=0),
        good=int(arrays["good"].sum()),
        bad=int(arrays["bad"].sum()),
        tokens=int(tokens.sum()),
        seconds=sum(record["seconds"] for record in records if record["strategy"] == name),
    )


def _arrays(records: Sequence[Mapping[str, Any]], name: str) -> dict[str, Floats]:
    """Return what became of a strategy's tasks, each figure of shape ``(tasks, seeds)``."""
    played = sorted((r for r in records if r["strategy"] == name), key=lambda r: r["seed"])
    return {
        figure: np.array([[task[figure] for task in r["tasks"]] for r in played], np.float64).T
        for figure in ("solved", "tokens", "good", "bad")
        if played
    }


def tabulate(figures: Mapping[str, Figures], options: EfficiencyOptions) -> Table:
    """Write the figures as a table, a line for each strategy."""
    header = (
        "Strategy",
        f"Solved within {options.budget:,} tokens, %",
        "Solved per million tokens",
        f"Times {BASELINE}",
        "Rows per million tokens",
        "Rows good : bad",
        "Tokens",
        "Seconds",
    )
    return Table(
        header,
        tuple(
            (
                name,
                _interval(f.solved, 100),
                _interval(f.solved_per_million),
                _interval(f.times_baseline, digits=2) if f.times_baseline else "-",
                _interval(f.rows_per_million),
                f"{f.good} : {f.bad}",
                f"{f.tokens:,}",
                f"{f.seconds:,.0f}",
            )
            for name, f in figures.items()
        ),
    )


def draw(records: Sequence[Mapping[str, Any]], options: EfficiencyOptions, file: Path) -> None:
    """Draw which share of the tasks is solved by so many tokens spent on each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    colours = ("#8a8a8a", "#f0c48a", "#e8a33d", "#c1440e", "#1b4965")
    for name, colour in zip(CONTENDERS, colours, strict=True):
        arrays = _arrays(records, name)
        if not arrays or name not in options.only:
            continue
        at = np.sort(arrays["tokens"][arrays["solved"] == 1.0])
        share = 100 * np.arange(len(at) + 1) / arrays["solved"].size
        axes.step(
            [0, *at, max(options.budget, *at, 0)],
            [*share, share[-1]],
            where="post",
            color=colour,
            label=name,
        )
    axes.set(
        xlabel="tokens written for a task", ylabel="tasks solved, %", ylim=(0, 104), xlim=(0, None)
    )
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    with replacing(file) as part:
        figure.savefig(part, format="png", dpi=150, metadata={"Software": None})
    pyplot.close(figure)


def _plain(figures: Mapping[str, Figures]) -> dict[str, Any]:
    """Return figures as JSON data, which knows no infinity."""
    return {
        name: {
            key: {k: v if np.isfinite(v) else None for k, v in value.items()}
            if isinstance(value, dict)
            else value
            for key, value in asdict(f).items()
        }
        for name, f in figures.items()
    }


def _interval(estimate: Estimate, scale: float = 1, digits: int | None = None) -> str:
    digits = (1 if scale == 100 else 0) if digits is None else digits
    value, low, high = (f"{scale * x:,.{digits}f}" for x in asdict(estimate).values())
    return f"{value} [{low}, {high}]"


def _line(record: Mapping[str, Any]) -> str:
    solved = sum(task["solved"] for task in record["tasks"])
    tokens = sum(task["tokens"] for task in record["tasks"])
    return (
        f"{record['strategy']}, seed {record['seed']}: {solved} of {len(record['tasks'])} solved, "
        f"{tokens:,} tokens, {record['seconds']:.0f} s"
    )
