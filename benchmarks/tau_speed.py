"""What is timed of τ-bench, beside what the original needs for the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from josh_search.search import SearchOptions, search
from josh_search.tree import Tree
from toolwoz_gym import Dialogue, DialogueEnv, make_env
from toolwoz_gym.actions import format_call
from toolwoz_gym.tau_bench.domain import TRANSFER, TauBench, TauTask
from toolwoz_gym.tau_bench.tables import Base
from toolwoz_gym.types import Episode, Message, Task, ToolCall

if TYPE_CHECKING:
    from benchmarks.speed import Operations

TREE = "tree: 15 steps, beam 8, no model"

REFERENCE: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "retail": {
        "open: make and reset": (10_000, 10_000),
        "fork": (30_000, 30_000),
        "reward": (152_000, 152_000),
        "table hash": (65_000, 65_000),
        TREE: (600_000, 600_000),
    },
    "airline": {
        "open: make and reset": (33_000, 33_000),
        "fork": (86_000, 100_000),
        "reward": (425_000, 425_000),
        "table hash": (242_000, 242_000),
        TREE: (1_600_000, 1_600_000),
    },
}
"""What the original needs, in microseconds, lowest and highest, by domain: recorded once, on a
machine of the same kind."""

WANTED = {"open: make and reset": 1000, "fork": 5, "reward": 100, TREE: 20_000}
"""Microseconds that an operation is to stay under."""

GROWTH = ("fork", "call: read", "call: write", "reward")
"""The operations of the growth table."""


@dataclass(frozen=True, slots=True)
class GoldRun:
    """The gold actions of a task, made one after the other."""

    writes: tuple[tuple[Episode, ToolCall], ...]
    """Each action that changes a record, and the dialogue that it is made in."""
    end: Episode
    """The dialogue after all actions, its outputs said."""


def gold_run(dialogue: Dialogue, task: Task, seed: int) -> GoldRun:
    """Make a task's gold actions, less the one that hands the customer over to a person."""
    assert isinstance(task, TauTask)
    episode, writes = dialogue.start(task, seed=seed), []
    for goal in task.goals:
        if goal.name != TRANSFER:
            after = dialogue.act(episode, Message("assistant", call=goal))
            if after.world.changes is not episode.world.changes:
                writes.append((episode, goal))
            episode = after
    end = dialogue.act(episode, Message("assistant", " ; ".join(task.outputs)))
    return GoldRun(tuple(writes), end)


def look(task: Task) -> ToolCall:
    """Return the call that reads the customer's record."""
    assert isinstance(task, TauTask)
    return ToolCall("get_user_details", {"user_id": task.user_id})


@dataclass(frozen=True, slots=True)
class BusyAgent:
    """Makes one call a turn, and keeps the customer talking for as long as the tree grows.

    Its calls are the gold actions, and then one look after another at the customer's record.
    """

    task: TauTask

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        """Return the agent's next message."""
        if view[-1].role == "tool":
            return Message("assistant", "Shall I go on? (yes/no)")
        made = sum(message.call is not None for message in view)
        actions = [g for g in self.task.goals if g.name != TRANSFER]
        return Message("assistant", call=actions[made] if made < len(actions) else look(self.task))


def grow_tree(dialogue: Dialogue, task: Task, seed: int) -> Tree:
    """Grow the tree of a busy agent: every branch lives to the last step."""
    assert isinstance(task, TauTask)
    options = SearchOptions(strategy="josh", beam=8, max_steps=15, reward="terminal")
    return search(dialogue, BusyAgent(task), task, seed=seed, options=options)


def untouched(domain: TauBench) -> TauBench:
    """Return a domain that has worked out nothing yet, on the same tables."""
    base = Base(domain.base.tables)
    return TauBench(domain.name, base, {}, policy="", tools=(), fingerprint="")


def operations(env: DialogueEnv, runs: Sequence[GoldRun]) -> Operations:
    """Return what is timed, all that is worked out once being worked out."""
    dialogue, domain = env.dialogue, env.dialogue.domain
    assert isinstance(domain, TauBench)
    for run in runs:
        domain.score(run.end)
        domain.digest(run.end.world)
    fork = env.fork()
    fork.restore(runs[0].end)
    starts = [(run.end.task, run.end.seed) for run in runs]

    def open_env(seed: int) -> object:
        return make_env("TauBench-v0", world=domain.name, split=env.split).reset(seed=seed)

    def open_episode(task: Task, seed: int) -> object:
        return dialogue.start(task, seed=seed)

    def call(episode: Episode, call: ToolCall) -> object:
        return domain.call(episode.task, episode.world, call)

    def first_reward(episode: Episode) -> object:
        return untouched(domain).score(episode)

    def first_digest() -> object:
        return untouched(domain).base.digest({})

    def tree(task: Task, seed: int) -> object:
        return grow_tree(dialogue, task, seed)

    return {
        "open: make and reset": (open_env, [(seed,) for seed in range(len(runs))]),
        "open: an episode": (open_episode, starts),
        "fork": (fork.fork, [()]),
        "call: read": (call, [(run.end, look(run.end.task)) for run in runs]),
        "call: write": (call, [write for run in runs for write in run.writes]),
        "reward": (domain.score, [(run.end,) for run in runs]),
        "reward: the task's first": (first_reward, [(run.end,) for run in runs]),
        "table hash": (domain.digest, [(run.end.world,) for run in runs]),
        "table hash: the first": (first_digest, [()]),
        TREE: (tree, starts),
    }


def hold_forks(
    env: DialogueEnv,
    writes: Sequence[tuple[Episode, ToolCall]],
    held: list[DialogueEnv],
    number: int,
) -> None:
    """Fork until so many forks are held, each of which has written to the tables."""
    for index in range(len(held), number):
        fork = env.fork()
        episode, call = writes[index % len(writes)]
        fork.restore(episode)
        fork.step(format_call(call))
        held.append(fork)


def idle_forks(env: DialogueEnv, number: int) -> list[DialogueEnv]:
    """Return forks that do nothing."""
    return [env.fork() for _ in range(number)]
