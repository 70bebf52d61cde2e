"""A dialogue as a Gymnasium environment."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Sequence
from typing import Any, Self, SupportsFloat

import gymnasium as gym
import numpy as np

from toolwoz_gym.actions import CALL_FORM, MAX_CHARS, format_action, parse_action
from toolwoz_gym.dialogue import Dialogue
from toolwoz_gym.seeding import derive
from toolwoz_gym.spaces import UnicodeText
from toolwoz_gym.types import Episode, Task, UsageError

MAX_OBSERVATION = 1 << 20
"""Longest observation, in characters."""

MAX_SEED_BITS = 4096
"""Python writes no number in decimal that is much longer, and a seed is hashed as it is written."""


class DialogueEnv(gym.Env[str, str]):
    """A customer, some tools, and an agent at the desk between them.

    ## Description

    A simulated customer wants something that the agent can only get by calling tools. The customer
    speaks first. The agent answers a step at a time, with a tool call or with words. When the
    customer says goodbye, the episode is scored, all or nothing.

    ## Action Space

    A text. A JSON object with exactly ``name`` and ``arguments`` calls a tool:
    ``{"name": "search_hotel", "arguments": {"area": "north"}}``. Text that does not begin with
    ``{`` is said to the customer. Anything else is answered by an observation that begins with
    ``Error: ``, and costs a step like every action.

    ## Observation Space

    A text: what the tool returned, or what the customer said.

    ## Rewards

    0.0 at every step but the last; 1.0 at the last one if the task is solved, else 0.0.

    ## Episode End

    Termination: the customer ends the dialogue (``END_CONVERSATION``), or cannot go on.
    Truncation: after ``max_steps`` actions. The limit is counted inside the episode, so a restored
    snapshot has exactly the steps left that it had when it was taken.

    ## Information

    ``task_id``, ``split``, ``world`` (digest of the data), ``goals_met`` (sorted tuple of indices
    into the domain's ``goals(task)``), ``goals_total``, ``progress`` (their ratio; the reward,
    where a task has no goals) and ``outcome`` (None, then ``success``, ``failure``, ``truncated``
    or ``user_fault``).

    ## Arguments

    See :func:`toolwoz_gym.make_toolwoz` for the arguments of ``gym.make("ToolWOZ-v0", ...)``.

    ## Version History

    * v0: scores as the published ToolWOZ does.
    * v1: the repaired benchmark.
    """

    metadata = {"render_modes": ["ansi", "human"], "render_fps": 1}

    def __init__(self, dialogue: Dialogue, *, split: str, render_mode: str | None = None) -> None:
        """Set up the environment.

        Args:
            dialogue: Domain, customer and step limit.
            split: The split from which ``reset`` draws its tasks.
            render_mode: ``ansi`` (``render`` returns the dialogue as text), ``human`` (each step
                prints what was said) or None.

        Raises:
            UsageError: The domain has no such split, or there is no such render mode.
        """
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise UsageError(f"no render mode {render_mode!r}: choose ansi or human")
        self.dialogue = dialogue
        self.split = split
        self.render_mode = render_mode
        self.tasks: Sequence[Task] = dialogue.domain.tasks(split)
        self.action_space = UnicodeText(MAX_CHARS)
        self.observation_space = UnicodeText(MAX_OBSERVATION)
        self._episode: Episode | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: Everything random in the episode follows from it, the choice of the task included.
                Without it the seed follows from the previous episode's, or is drawn afresh.
            options: ``{"task_id": ...}`` plays that task of the split; a whole number is taken as
                the task's position.

        Returns:
            The customer's opening, and the info.

        Raises:
            UsageError: The split has no such task, or there is no such option.
            gymnasium.error.Error: The seed is no whole number from 0 on.
        """
        if options is not None and not (
            isinstance(options, dict) and options.keys() <= {"task_id"}
        ):
            raise UsageError("reset has the one option task_id: options={'task_id': ...}")
        if isinstance(seed, bool):  # which Gymnasium takes for a number
            raise gym.error.Error(f"the seed is {seed}: it must be a whole number from 0 on")
        if isinstance(seed, int) and seed.bit_length() > MAX_SEED_BITS:
            raise UsageError(f"the seed has more than {MAX_SEED_BITS} bits")
        task_id = (options or {}).get("task_id")
        chosen = None if task_id is None else find_task(self.tasks, task_id)
        super().reset(seed=seed)
        if seed is None and self._episode is not None:
            seed = derive(self._episode.seed, "next")
        elif seed is None:
            seed = int(self.np_random.integers(1 << 62))
        task = chosen or self.tasks[derive(seed, "task") % len(self.tasks)]
        self._episode = self.dialogue.start(task, seed=seed)
        self._show(0)
        return self._episode.messages[-1].content, self._info(self._episode)

    def step(self, action: str) -> tuple[str, SupportsFloat, bool, bool, dict[str, Any]]:
        """Play one assistant message.

        Returns:
            Observation, reward, terminated, truncated, info.

        Raises:
            gymnasium.error.ResetNeeded: The episode has ended, or none has begun.
            TypeError: The action is no text.
        """
        if not isinstance(action, str):
            kind = type(action).__name__
            raise TypeError(f"an action is a text, and no {kind}: a tool call is {CALL_FORM!r}")
        before = self.snapshot()
        if before.outcome is not None:
            raise gym.error.ResetNeeded("the episode has ended: call reset() or restore()")
        episode = self.dialogue.act(before, parse_action(str.__str__(action)))
        if episode.awaits_user:
            episode = self.dialogue.listen(episode)
        self._episode = episode
        self._show(len(before.messages))
        truncated = episode.truncated
        terminated = episode.outcome is not None and not truncated
        observation = episode.messages[-1].content
        return observation, episode.reward, terminated, truncated, self._info(episode)

    def snapshot(self) -> Episode:
        """Return the running episode: an immutable value to keep, to share, to pickle.

        Raises:
            gymnasium.error.ResetNeeded: No episode has begun.
        """
        if self._episode is None:
            raise gym.error.ResetNeeded("no episode has begun: call reset() or restore()")
        return self._episode

    def restore(self, episode: Episode) -> None:
        """Go on from a snapshot, of this environment or of any other of the same world and version.

        Customer and step limit are this environment's from here on.

        Raises:
            TypeError: It is no snapshot.
            UsageError: It is of another world, domain or version. The episode here stays as it was.
        """
        if not isinstance(episode, Episode):
            kind = type(episode).__name__
            raise TypeError(f"restore takes what snapshot() returns, and no {kind}")
        # One that an older version of the class has pickled lacks the field.
        if getattr(episode, "fingerprint", "") != self.dialogue.domain.fingerprint:
            raise UsageError(
                "the snapshot is of another world, of other data or of another version than this "
                f"environment's {self.dialogue.domain.name!r}: restore it in one like its own"
            )
        self._episode = episode

    def fork(self) -> Self:
        """Return a second environment in the same state; the two then go their own ways."""
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)  # what copy.copy would do, at a fifth of the time
        twin._np_random = None  # a generator has a state, which twins must not share
        return twin

    def render(self) -> str | None:
        """Return the dialogue so far as text (``ansi``); ``human`` prints as it goes."""
        return self._transcript(0) if self.render_mode == "ansi" else None

    def _show(self, start: int) -> None:
        if self.render_mode == "human":
            encoding = sys.stdout.encoding or "utf-8"  # which may lack what was said
            text = self._transcript(start).encode(encoding, "backslashreplace").decode(encoding)
            print(text, flush=True)

    def _transcript(self, start: int) -> str:
        messages = self._episode.messages[start:] if self._episode else ()
        return "\n".join(f"{m.role:>9}: {format_action(m)}" for m in messages)

    def _info(self, episode: Episode) -> dict[str, Any]:
        met = self.dialogue.goals_met(episode)
        total = len(self.dialogue.domain.goals(episode.task))
        return {
            "task_id": episode.task.id,
            "split": episode.task.split,
            "world": self.dialogue.domain.fingerprint,
            "goals_met": tuple(sorted(met)),
            "goals_total": total,
            "progress": len(met) / total if total else episode.reward,
            "outcome": episode.outcome,
        }


def find_task(tasks: Sequence[Task], task_id: str | int) -> Task:
    """Return a task by its id or by its position.

    Raises:
        UsageError: There is none.
    """
    if isinstance(task_id, (int, np.integer)) and not isinstance(task_id, bool):
        if 0 <= task_id < len(tasks):
            return tasks[int(task_id)]
        raise UsageError(f"no task has that number: the split has {len(tasks)}, from 0 on")
    if not isinstance(task_id, str):
        raise UsageError(f"no task of type {type(task_id).__name__}: name its id or its position")
    by_id = getattr(tasks, "by_id", None)
    task = by_id(task_id) if by_id else next((t for t in tasks if t.id == task_id), None)
    if task is None:
        shown = reprlib.repr(task_id)
        raise UsageError(f"no task {shown} in the split: its ids look like {tasks[0].id!r}")
    return task
