"""What the versions of ToolWOZ share: tables, tasks, and how calls are checked and explained."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from toolwoz_gym.toolwoz.goals import EMPTY
from toolwoz_gym.toolwoz.tables import Tables, plain
from toolwoz_gym.toolwoz.task import ToolWOZTask, Wish
from toolwoz_gym.toolwoz.tools import KEYS, PARAMETERS, POLICY, TOOLS
from toolwoz_gym.types import (
    END_CONVERSATION,
    Episode,
    Task,
    ToolCall,
    ToolError,
    ToolSpec,
    UsageError,
    Verdict,
    World,
)


class ToolWOZ:
    """A world of tables with its tasks; :mod:`.v0` and :mod:`.v1` say how it answers and scores."""

    version: int
    policy: str = POLICY
    tools: tuple[ToolSpec, ...] = TOOLS
    end_marker = END_CONVERSATION
    final_tools: frozenset[str] = frozenset()
    max_outputs: int | None = 3

    def __init__(
        self,
        name: str,
        tables: Tables,
        tasks: Mapping[str, Sequence[ToolWOZTask]],
        fingerprint: str,
    ) -> None:
        """Put a world together.

        Args:
            name: What the world is called, ``multiwoz`` or ``builtin``.
            tables: What the tools search.
            tasks: The tasks of each split.
            fingerprint: Digest of the data behind it all.
        """
        self.name = name
        self.tables = tables
        self.fingerprint = fingerprint
        self.splits = tuple(tasks)
        self._tasks = tasks

    def tasks(self, split: str) -> Sequence[ToolWOZTask]:
        """Return the tasks of a split, in their order.

        Raises:
            UsageError: There is no such split.
        """
        if split not in self._tasks:
            raise UsageError(
                f"the world {self.name!r} has no split {_quoted(split)}; "
                f"it has {', '.join(self.splits)}"
            )
        return self._tasks[split]

    def start(self, task: Task) -> World:
        """Return the world as a dialogue finds it."""
        raise NotImplementedError

    def call(self, task: Task, world: World, call: ToolCall) -> tuple[World, str]:
        """Answer a tool call.

        Returns:
            The world after the call, and JSON: for a search a list of rows (one or none), for a
            booking ``{"success": true or false, "return": the booked item or {}}``.

        Raises:
            ToolError: There is no such tool or parameter, or a value makes no sense.
        """
        raise NotImplementedError

    def calls_met(self, world: World) -> frozenset[int]:
        """Return the indices of the task's goal calls that are met."""
        raise NotImplementedError

    def goals(self, task: Task) -> tuple[ToolCall | str, ...]:
        """Return the goal calls."""
        return task.goals

    def goals_met(self, episode: Episode) -> frozenset[int]:
        """Return the indices of the goals that are met."""
        return self.calls_met(episode.world)

    def score(self, episode: Episode) -> float:
        """Return 1.0 if the customer got what it wanted, else 0.0."""
        raise NotImplementedError

    def is_spoiled(self, episode: Episode) -> bool:
        """Return False: what was met stays met, and whatever is missing can still be met."""
        return False

    def passes_idle(self, task: Task) -> bool:
        """Return whether there is no goal call to make, as in no task of ours."""
        return not task.goals

    def explain(self, episode: Episode) -> tuple[Verdict, ...]:
        """Say what became of each goal call: which call met it, or what it lacked."""
        met: dict[int, int] = {}
        for number, _, before, after in self.replay(episode):
            new = self.calls_met(after) - self.calls_met(before)
            met.update(dict.fromkeys(new, number))
        return tuple(
            self._verdict(episode, goal, met.get(index))
            for index, goal in enumerate(episode.task.goals)
        )

    def replay(self, episode: Episode) -> Iterator[tuple[int, ToolCall, World, World]]:
        """Make a dialogue's tool calls again.

        Yields:
            For each call that was answered the index of its message, the call, and the world before
            and after it.
        """
        world = self.start(episode.task)
        for number, message in enumerate(episode.messages):
            if message.call is None:
                continue
            before = world
            try:
                world, _ = self.call(episode.task, world, message.call)
            except ToolError:
                continue
            yield number, message.call, before, world

    def _verdict(self, episode: Episode, goal: ToolCall, met: int | None) -> Verdict:
        wanted = {name: value for name, value in goal.arguments.items() if value not in EMPTY}
        demand = str(goal)
        if met is not None:
            return Verdict(demand, True, f"met by message {met}", met)
        made = [n for n, m in enumerate(episode.messages) if m.call and m.call.name == goal.name]
        if not made:
            return Verdict(demand, False, f"{goal.name} was never called")
        differences = [
            (_differences(wanted, call.arguments, typed=self.version == 0), number)
            for number, call, _, _ in self.replay(episode)
            if call.name == goal.name
        ]
        if not differences:
            error = episode.messages[made[-1] + 1].content
            return Verdict(demand, False, f"closest: message {made[-1]}. {error}", made[-1])
        (_, how), number = min(differences, key=lambda found: (found[0][0], -found[1]))
        why = how or _refusal(goal, episode.messages[number + 1].content)
        return Verdict(demand, False, f"closest: message {number}, {why}", number)


def _differences(
    wanted: Mapping[str, str], made: Mapping[str, Any], *, typed: bool
) -> tuple[int, str]:
    """Say how the arguments of a call differ from those that were wanted.

    Args:
        wanted: The goal's arguments that ask for something.
        made: The call's arguments.
        typed: Whether a number differs from the text of the same digits.

    Returns:
        How many arguments differ, and how, in words.
    """
    asked = {name: value for name, value in made.items() if value not in (None, *EMPTY)}
    lacking = {name: value for name, value in wanted.items() if name not in asked}
    extra = {name: value for name, value in asked.items() if name not in wanted}
    other = []
    for name in wanted.keys() & asked.keys():
        if plain(asked[name]) != plain(wanted[name]):
            other.append(f"{name} is {asked[name]}, not {wanted[name]}")
        elif typed and not isinstance(asked[name], str):
            other.append(f"{name} is a number, not a text")
    words = [f"without {_listed(lacking)}"] if lacking else []
    words += sorted(other)
    words += [f"with {_listed(extra)} besides"] if extra else []
    return len(lacking) + len(other) + len(extra), "; ".join(words)


def _listed(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in arguments.items())


def _refusal(goal: ToolCall, answer: str) -> str:
    """Say what came of a call that is the goal's own, to the letter, and did not meet it."""
    if goal.name.startswith("book_"):
        return "was refused"
    rows = json.loads(answer)
    if not rows:
        return "found nothing"
    return f"found {rows[0][KEYS[goal.name.removeprefix('search_')]]}, which was not meant"


def wish_for(task: Task, domain: str) -> Wish | None:
    """Return what the customer wants of a domain, if anything."""
    assert isinstance(task, ToolWOZTask)
    return next((wish for wish in task.wishes if wish.domain == domain), None)


def dump(answer: Any) -> str:
    """Write what a tool returned as the agent is shown it."""
    return json.dumps(answer, ensure_ascii=False)


def check_call(call: ToolCall) -> None:
    """Refuse a call that the tools cannot make sense of."""
    if not isinstance(call.name, str) or call.name not in PARAMETERS:
        raise ToolError(f"there is no tool {_quoted(call.name)}; the tools are {_ALL_TOOLS}")
    if not isinstance(call.arguments, Mapping):
        raise ToolError(f"the arguments of {call.name} must be an object")
    allowed = PARAMETERS[call.name]
    for name, value in call.arguments.items():
        if name not in allowed:
            raise ToolError(
                f"{call.name} has no parameter {_quoted(name)}; "
                + (f"its parameters are {', '.join(allowed)}" if allowed else "it takes none")
            )
        if not (value is None or isinstance(value, (str, int, float))):
            raise ToolError(f"the value of {name} must be a string, not a list or an object")


_ALL_TOOLS = ", ".join(PARAMETERS)


def _quoted(name: object) -> str:
    """Return what the model wrote, safe to show: plain ASCII and never long."""
    text = ascii(name) if isinstance(name, str) else type(name).__name__
    return text if len(text) <= 60 else f"{text[:60]}..."
