"""The episodes of an evaluation: played by one model after the other, and recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from threading import Event
from typing import Any, Protocol, TypeAlias

from agents.base import Agent, AgentFactory, BackendError, RunStopped
from toolwoz_gym.dialogue import Dialogue
from toolwoz_gym.pools import as_finished
from toolwoz_gym.records import (
    RunFolder,
    message_to_json,
    read_log,
    usage_of,
    usages_from_json,
    usages_to_json,
)
from toolwoz_gym.rollout import play
from toolwoz_gym.seeding import derive
from toolwoz_gym.types import Episode, Message, Task
from toolwoz_gym.users.faults import faults

TRAJECTORIES = "trajectories"
"""Name of the log of finished episodes."""

MOST_LOST = 20
"""An evaluation is broken off when so many episodes in a row were lost: the model must be down."""

Player: TypeAlias = Callable[[Dialogue], AbstractContextManager[tuple[Dialogue, AgentFactory]]]
"""Loads who plays, for as long as that takes, as :meth:`agents.options.PlayOptions.open_players`
does."""


@dataclass(slots=True)
class Tally:
    """How far an evaluation has come."""

    episodes: int
    played: Counter[str] = field(default_factory=Counter)
    """Finished episodes, by model."""
    solved: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    """Episodes without a record, by reason: a model behind them did not answer."""
    stopped: BackendError | None = None
    """Why no model answers any more."""
    interrupted: bool = False
    """Whether Ctrl-C has ended the evaluation."""

    def add(self, record: Mapping[str, Any]) -> None:
        """Count a finished episode."""
        self.played[record["model"]] += 1
        self.solved[record["model"]] += record["outcome"] == "success"
        self.tokens += sum(usage.tokens or 0 for usage in usages_from_json(record).values())


class Watcher(Protocol):
    """Shows how an evaluation gets on."""

    def update(self, tally: Tally, record: Mapping[str, Any] | None) -> None:
        """Show the tally; ``record`` is the episode that has just been finished, if one has."""
        ...


def play_all(
    dialogue: Dialogue,
    players: Mapping[str, Player],
    tasks: Sequence[Task],
    folder: RunFolder,
    *,
    seed: int,
    trials: int,
    episodes_at_once: int,
    watcher: Watcher,
) -> Tally:
    """Play every episode that the folder has no record of yet, one model after the other.

    An episode is lost when a model behind it does not answer. It leaves no record, the others go
    on, and the next run plays it again.

    Args:
        dialogue: The rules of play, with any customer.
        players: What loads each model and its customer, by label.
        tasks: What every model plays.
        folder: Where ``trajectories.jsonl`` grows by a line for each finished episode.
        seed: An episode's seed is derived from it, the task's id and the trial: it is the same for
            every model, and does not depend on the other episodes.
        trials: Episodes per model and task.
        episodes_at_once: How many episodes are played at a time; their model calls are in flight
            together.
        watcher: Is told of every finished episode.

    Returns:
        What the folder holds now, what was lost, and what ended it before all was played.

    Raises:
        UsageError: The folder cannot be written, or has a record that is damaged or of an episode
            that is none of these.
    """
    episodes = list(product(players, tasks, range(trials)))
    tally, finished = Tally(len(episodes)), set()
    with closing(folder.log(TRAJECTORIES)) as log:
        for record in read_log(log.path, {_key(*episode) for episode in episodes}):
            finished.add(record["key"])
            tally.add(record)
        watcher.update(tally, None)

        def play_one(
            model: str,
            seated: Dialogue,
            make_agent: AgentFactory,
            stopped: Event,
            task: Task,
            trial: int,
        ) -> dict[str, Any]:
            agent = _Stoppable(make_agent(task), stopped)
            episode = play(seated, agent, task, seed=derive(seed, task.id, trial))
            return _record(model, trial, episode, seated)

        def keep(record: dict[str, Any]) -> None:
            log.append(record)
            tally.add(record)
            watcher.update(tally, record)

        try:
            for model, player in players.items():
                wanted = [
                    (task, trial)
                    for task, trial in product(tasks, range(trials))
                    if _key(model, task, trial) not in finished
                ]
                if not wanted:
                    continue
                # Calls in flight are answered, and kept, before the model is closed.
                with (
                    player(dialogue) as (seated, make_agent),
                    ThreadPoolExecutor(episodes_at_once) as pool,
                ):
                    stopped = Event()
                    one = partial(play_one, model, seated, make_agent, stopped)
                    try:
                        _gather((pool.submit(one, *pair) for pair in wanted), tally, watcher, keep)
                    finally:  # no episode plays to its end
                        stopped.set()
                        pool.shutdown(wait=False, cancel_futures=True)
                if tally.stopped:
                    break
        except KeyboardInterrupt:
            tally.interrupted = True
    return tally


def _gather(
    playing: Iterable[Future[dict[str, Any]]],
    tally: Tally,
    watcher: Watcher,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Keep what one model plays, until all is played or no model answers any more."""
    in_a_row = 0
    with closing(as_finished(playing)) as groups:
        for done in groups:  # what is finished is kept before an error ends it
            for future in sorted(done, key=lambda f: f.exception() is not None):
                try:
                    record = future.result()
                except BackendError as error:
                    in_a_row += 1
                    if not isinstance(error, RunStopped):
                        tally.lost[str(error)] += 1
                        watcher.update(tally, None)
                    if isinstance(error, RunStopped) or in_a_row == MOST_LOST:
                        tally.stopped = error
                        return
                else:
                    in_a_row = 0
                    keep(record)


@dataclass(frozen=True, slots=True)
class _Stoppable:
    """Plays as an agent does, until that is in vain."""

    agent: Agent
    stopped: Event

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        if self.stopped.is_set():
            raise CancelledError
        return self.agent.act(view, seed=seed)


def _key(model: str, task: Task, trial: int) -> str:
    return f"{model}/{task.id}/{trial}"


def _record(model: str, trial: int, episode: Episode, dialogue: Dialogue) -> dict[str, Any]:
    """Return the record of a finished episode: a line of ``trajectories.jsonl``."""
    messages = episode.messages
    answers = [m for m in messages if m.role == "tool" and m.name is not None]
    return {
        "key": _key(model, episode.task, trial),
        "model": model,
        "task_id": episode.task.id,
        "trial": trial,
        "seed": episode.seed,
        "reward": episode.reward,
        "outcome": episode.outcome,
        "progress": dialogue.progress(episode),
        "goals_met": sorted(dialogue.goals_met(episode)),
        "goals_total": len(dialogue.domain.goals(episode.task)),
        "passes_idle": dialogue.domain.passes_idle(episode.task),
        "steps": episode.steps,
        "malformed": dict(Counter(m.mistake for m in messages if m.mistake is not None)),
        "tool_errors": sum(m.content.startswith("Error: ") for m in answers),
        "user_fault": messages[-1].error if episode.outcome == "user_fault" else None,
        "faults": dict(Counter(fault.kind for fault in faults(episode.task, messages))),
        **usages_to_json(
            {"agent": usage_of(messages, "assistant"), "user": usage_of(messages, "user")}
        ),
        "messages": [message_to_json(m) for m in messages],
    }
