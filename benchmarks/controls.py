"""The proof that a benchmark can be solved and cannot be gamed: control agents play every task."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache

from agents.controls import CONTROLS, WITHHOLDING, liars
from agents.scripted import ExpertAgent
from benchmarks.comparison import Table
from benchmarks.progress import fitted
from toolwoz_gym import load_world, make_env
from toolwoz_gym.cli import Count, how_many
from toolwoz_gym.env import DialogueEnv
from toolwoz_gym.progress import watched
from toolwoz_gym.rollout import play
from toolwoz_gym.toolwoz import ToolWOZ
from toolwoz_gym.toolwoz.task import ToolWOZTask
from toolwoz_gym.types import UsageError

EXPERT = "expert"
"""The control that must solve every task; the others must solve none."""

_CHUNK = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlOptions:
    """Let control agents play every task: an expert must always be paid, the others never."""

    env: str = "ToolWOZ-v1"
    """Environment, as gymnasium.make knows it."""
    world: str = "builtin"
    """World: builtin, builtin:<options>, multiwoz or auto."""
    splits: tuple[str, ...] = ()
    """Splits of the world's tasks; none named takes all of them."""
    tasks: Count = "all"
    """How many tasks of each split, from the first."""
    seed: int = 0
    """Everything random follows from it."""


@dataclass(frozen=True, slots=True)
class Result:
    """What control agents made of a split."""

    split: str
    tasks: int
    played: Counter[str]
    """Tasks that were played, by control. Those that lie have no part in tasks without questions,
    nor in those where the customer is told everything before they ask."""
    rewarded: Counter[str]
    """Tasks that were rewarded, by control."""
    exceptions: tuple[tuple[str, str], ...]
    """Every task that breaks the proof: its id, and the control that was wrongly treated."""


def prove(options: ControlOptions) -> list[Result]:
    """Let every control play every task.

    Raises:
        UsageError: There is no such environment, world or split.
    """
    splits = options.splits or load_world(options.world).splits
    results = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for split in splits:
            count = len(_env(options.env, options.world, split).tasks)
            asked = options.tasks if options.tasks == "all" else min(options.tasks, count)
            numbers = range(how_many(asked, count, f"the split {split!r}"))
            chunks = [numbers[i : i + _CHUNK] for i in numbers[::_CHUNK]]
            parts = [pool.submit(_play, options, split, chunk) for chunk in chunks]
            ended = watched((part.result() for part in parts), len(parts), f"parts of {split}")
            results.append(_gather(split, len(numbers), list(ended)))
    return results


def run(options: ControlOptions) -> None:
    """Print the proof.

    Raises:
        UsageError: The options make no sense, or the proof fails.
    """
    results = prove(options)
    print(f"{options.env}, world {options.world}: tasks rewarded, of those that a control played")
    rows = [
        (name, *(f"{result.rewarded[name]} of {result.played[name]}" for result in results))
        for name in results[0].played
    ]
    print(fitted(Table(("", *(result.split for result in results)), tuple(rows))))
    exceptions = [exception for result in results for exception in result.exceptions]
    for task_id, name in exceptions[:20]:
        print(f"  {task_id}: {name}")
    if exceptions:
        raise UsageError(
            f"the proof fails in {len(exceptions)} plays "
            f"of {sum(result.played.total() for result in results)}"
        )
    print("the expert is rewarded for every task, and no other control for one that it spoils")


def _gather(split: str, tasks: int, parts: Iterable[list[tuple[str, str, float]]]) -> Result:
    plays = [play for part in parts for play in part]
    return Result(
        split,
        tasks,
        Counter(name for _, name, _ in plays),
        Counter(name for _, name, reward in plays if reward == 1.0),
        tuple(
            (id, name)
            for id, name, reward in plays
            if name != WITHHOLDING and (reward == 1.0) != (name == EXPERT)
        ),
    )


def _play(
    options: ControlOptions, split: str, numbers: Sequence[int]
) -> list[tuple[str, str, float]]:
    """Return task, control and reward of every play."""
    env = _env(options.env, options.world, split)
    plays = []
    for number in numbers:
        task = env.tasks[number]
        domain = env.dialogue.domain
        assert isinstance(domain, ToolWOZ) and isinstance(task, ToolWOZTask)
        agents = {EXPERT: ExpertAgent(task), **CONTROLS, **liars(task, domain.tables)}
        while agents:
            name, agent = next(iter(agents.items()))
            del agents[name]
            episode = play(env.dialogue, agent, task, seed=options.seed)
            plays.append((task.id, name, episode.reward))
            if name == WITHHOLDING and episode.reward == 1.0:  # nothing was left to lie about
                agents = {n: a for n, a in agents.items() if n == "overbooks"}
    return plays


@cache
def _env(env: str, world: str, split: str) -> DialogueEnv:
    return make_env(env, world=world, split=split)
