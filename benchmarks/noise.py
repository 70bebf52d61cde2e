"""How a fixed agent copes with customers that are ever harder to understand.

The keyword agent stands for the systems that one measures, the expert for what can be achieved: it
reads typos, and knows what to listen for.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from agents.scripted import ExpertAgent, KeywordAgent
from benchmarks.comparison import Table, percent
from benchmarks.metrics import Estimate, Floats, mean, success_rate
from benchmarks.progress import fitted
from toolwoz_gym import Dialogue, load_world
from toolwoz_gym.cli import Count, check_counts, how_many
from toolwoz_gym.progress import watched
from toolwoz_gym.records import check_file, replacing
from toolwoz_gym.rollout import play
from toolwoz_gym.seeding import derive
from toolwoz_gym.types import UsageError
from toolwoz_gym.users.faults import faults
from toolwoz_gym.users.scripted import ScriptedUser

VERSIONS = (0, 1)
AGENTS = ("keyword", "expert")


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseOptions:
    """Let agents without a model serve scripted customers at several levels of noise."""

    world: str = "builtin"
    """World: builtin, builtin:<options>, multiwoz or auto. It is played as v0 and as v1."""
    split: str = "val"
    """Split of the world's tasks."""
    tasks: Count = 200
    """How many tasks to play: the first of the split, or all."""
    trials: int = 3
    """How often each task is played, each time with another customer."""
    levels: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    """Levels of noise, each from 0 to 1, in rising order."""
    max_steps: int = 60
    """A dialogue is cut off after so many messages of the agent's."""
    seed: int = 0
    """Everything random follows from it."""
    plot: Path | None = None
    """PNG file to draw the success in."""


@dataclass(frozen=True, slots=True)
class Level:
    """How an agent does at a level of noise."""

    version: int
    """Of ToolWOZ."""
    agent: str
    noise: float
    success: Estimate
    progress: Estimate
    """Mean fraction of a task's goals that were met."""
    steps: float
    """Messages of the agent's per dialogue."""
    faults: float
    """Faults of the customer's per dialogue."""


def run(options: NoiseOptions) -> None:
    """Measure, print the table and draw the plot.

    Raises:
        UsageError: An option makes no sense, or the plot cannot be written.
    """
    if options.plot is not None:
        import matplotlib  # noqa: F401 - is missed now, not when all is measured

        check_file(options.plot)
    levels = measure(options)
    print(fitted(table(levels)))
    if options.plot is not None:
        draw(levels, options.plot)
        print(f"the plot is in {options.plot}")


def measure(options: NoiseOptions) -> list[Level]:
    """Play every task at every level.

    Raises:
        UsageError: An option makes no sense.
    """
    for noise in options.levels:
        ScriptedUser(noise)
    if not options.levels or list(options.levels) != sorted(set(options.levels)):
        raise UsageError("levels: name some, in rising order")
    check_counts(options, "trials", "max_steps")
    there = len(load_world(options.world, split=options.split).tasks(options.split))
    number = how_many(options.tasks, there, f"the split {options.split!r}")
    cases = [(v, agent, noise) for v in VERSIONS for agent in AGENTS for noise in options.levels]
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        try:
            played = pool.map(_measure, repeat(options), repeat(number), cases)
            return list(watched(played, len(cases), "cases"))
        finally:  # an interrupt does not wait for what has not begun
            pool.shutdown(wait=False, cancel_futures=True)


def _measure(options: NoiseOptions, number: int, case: tuple[int, str, float]) -> Level:
    version, name, noise = case
    world = load_world(options.world, version, options.split)
    dialogue = Dialogue(world, ScriptedUser(noise), options.max_steps)
    keyword = KeywordAgent(world.tables)
    figures = []
    for task in world.tasks(options.split)[:number]:
        agent = keyword if name == "keyword" else ExpertAgent(task)
        for trial in range(options.trials):
            episode = play(dialogue, agent, task, seed=derive(options.seed, task.id, trial))
            found = len(faults(task, episode.messages))
            figures.append((episode.reward, dialogue.progress(episode), episode.steps, found))
    shape = (number, options.trials)
    reward, progress, steps, found_faults = (
        _array([figure[i] for figure in figures], shape) for i in range(4)
    )
    return Level(
        version,
        name,
        noise,
        success=success_rate(reward),
        progress=mean(progress),
        steps=float(steps.mean()),
        faults=float(found_faults.mean()),
    )


def _array(values: Sequence[float], shape: tuple[int, int]) -> Floats:
    return np.array(values, np.float64).reshape(shape)


def table(levels: Sequence[Level]) -> Table:
    """Write the figures as a table."""
    header = ("Agent, environment", "Noise", "Success, %", "Progress, %", "Steps", "Faults")
    return Table(
        header,
        tuple(
            (
                f"{level.agent}, v{level.version}",
                f"{level.noise:g}",
                percent(level.success),
                percent(level.progress),
                f"{level.steps:.1f}",
                f"{level.faults:.3f}",
            )
            for level in levels
        ),
    )


def draw(levels: Sequence[Level], file: Path) -> None:
    """Draw success against noise, with its 95 % confidence bands."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    colours = {"keyword": ("#c1440e", "#e8a33d"), "expert": ("#1b4965", "#5fa8d3")}
    for agent in reversed(AGENTS):
        for version in reversed(VERSIONS):
            line = [x for x in levels if (x.agent, x.version) == (agent, version)]
            noise = [level.noise for level in line]
            colour, style = colours[agent][version], "-" if version else "--"
            axes.plot(
                noise,
                [100 * level.success.value for level in line],
                style,
                color=colour,
                marker="o",
                markersize=4,
                label=f"{agent} agent, v{version}",
            )
            axes.fill_between(
                noise,
                [100 * level.success.low for level in line],
                [100 * level.success.high for level in line],
                color=colour,
                alpha=0.15,
                linewidth=0,
            )
    axes.set(xlabel="noise of the customer", ylabel="success, % of dialogues", ylim=(0, 104))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    with replacing(file) as part:
        figure.savefig(part, format="png", dpi=150, metadata={"Software": None})
    pyplot.close(figure)
