"""Agents that deserve nothing: a benchmark that rewards one of them can be gamed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, product
from typing import Any

from agents.base import Agent
from agents.scripted import ExpertAgent, answer
from toolwoz_gym.toolwoz.lexicon import ATTENTION, asked_attributes, mended
from toolwoz_gym.toolwoz.tables import Table, Tables
from toolwoz_gym.toolwoz.task import ToolWOZTask
from toolwoz_gym.toolwoz.tools import DAYS, DOMAINS, KEYS, PARAMETERS, TOOLS
from toolwoz_gym.types import END_CONVERSATION, Message, Task, ToolCall


class SilentAgent:
    """Says nothing that means anything."""

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        """Return the agent's next message."""
        return Message("assistant", "...")


class QuittingAgent:
    """Says goodbye at once, with the customer's own word for it."""

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        """Return the agent's next message."""
        return Message("assistant", f"Thank you, goodbye! {END_CONVERSATION}")


class EmptyCallsAgent:
    """Calls every tool without arguments, and passes on whatever that shows."""

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        """Return the agent's next message."""
        done = sum(m.role == "assistant" for m in view)
        if done < len(PARAMETERS):
            return Message("assistant", call=ToolCall(list(PARAMETERS)[done], {}))
        return Message("assistant", f"This is what I have found: {_shown(view)}")


class BookEverythingAgent:
    """Books whatever it can find, for anybody at any time."""

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        """Return the agent's next message."""
        done = sum(m.role == "assistant" for m in view)
        if done < len(DOMAINS):
            return Message("assistant", call=ToolCall(f"search_{DOMAINS[done]}", {}))
        call = next(islice(_bookings(_shown(view)), done - len(DOMAINS), None), None)
        if call is None:
            return Message("assistant", "It is all booked.")
        return Message("assistant", call=call)


class RecitingAgent:
    """Makes the same searches in every dialogue and tells all that they show: it never listens."""

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        """Return the agent's next message."""
        done = sum(m.role == "assistant" for m in view)
        if done < len(_SEARCHES):
            return Message("assistant", call=_SEARCHES[done])
        facts = (
            answer([name for name in row if isinstance(row[name], str)], row).content
            for _, row in _shown(view)
        )
        return Message("assistant", " ".join(facts))


def _searches() -> Iterator[ToolCall]:
    """Yield searches for every kind of thing, by what tools list and by the places' types."""
    for tool in TOOLS:
        for name, schema in tool.parameters.items():
            if tool.name.startswith("search_"):
                yield from (ToolCall(tool.name, {name: value}) for value in schema.get("enum", ()))
    for kind in ("museum", "park", "college", "theatre", "swimmingpool", "boat", "architecture"):
        yield ToolCall("search_attraction", {"type": kind})


_SEARCHES = tuple(_searches())


def _shown(view: Sequence[Message]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the rows that searches have shown, with their domains."""
    return [
        (message.name.removeprefix("search_"), row)
        for message in view
        if message.name and message.name.startswith("search_") and message.content[:1] == "["
        for row in json.loads(message.content)
    ]


def _bookings(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[ToolCall]:
    """Yield every booking of the rows, the people first in all of them."""
    for stay, time, day, people in product("12", ("18:00", "19:00"), DAYS, "123"):
        for domain, row in rows:
            key = KEYS[domain]
            values = {"stay": stay, "time": time, "day": day, "people": people, key: row[key]}
            tool = f"book_{domain}"
            yield ToolCall(tool, {name: values[name] for name in PARAMETERS[tool]})


CONTROLS: Mapping[str, Agent] = {
    "silent": SilentAgent(),
    "quitting": QuittingAgent(),
    "empty calls": EmptyCallsAgent(),
    "book everything": BookEverythingAgent(),
    "recite": RecitingAgent(),
}


class LyingAgent:
    """Does what the expert does, but answers the customer's questions with a lie."""

    def __init__(self, task: Task, lie: Callable[[str], str]) -> None:
        """Make it.

        Args:
            task: What the customer wants.
            lie: Returns what is said in place of the right answer.
        """
        assert isinstance(task, ToolWOZTask)
        self._task, self._expert, self._lie = task, ExpertAgent(task), lie

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        """Return the agent's next message."""
        message = self._expert.act(view, seed=seed)
        if message.call is not None or not _asked(self._task, view):
            return message
        return replace(message, content=self._lie(message.content))


class ListingAgent(LyingAgent):
    """Answers with every value that there is."""

    def __init__(self, task: Task, tables: Tables) -> None:
        """Make it: see :class:`LyingAgent`."""
        super().__init__(task, lambda words: words)
        self._tables = tables

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        """Return the agent's next message."""
        message = super().act(view, seed=seed)
        asked = _asked(self._task, view)
        if message.call is not None or not asked:
            return message
        domain, names = asked
        rows = {tuple(row.get(n) for n in names): row for row in self._tables[domain].rows}
        return replace(message, content=" ".join(answer(names, r).content for r in rows.values()))


class MisleadingAgent(LyingAgent):
    """Looks up another place when it is asked something, and tells what holds there."""

    def __init__(self, task: Task, tables: Tables) -> None:
        """Make it: see :class:`LyingAgent`."""
        super().__init__(task, lambda words: words)
        self._tables = tables

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        """Return the agent's next message."""
        looked_up = view[-1].role == "tool"
        before = view[:-2] if looked_up else view
        asked = _asked(self._task, before)
        shown = [row for domain, row in _shown(before) if asked and domain == asked[0]]
        if not asked or not shown:
            return super().act(view, seed=seed)
        domain, names = asked
        other = _another(names, self._tables[domain], shown[-1])
        if looked_up:
            return answer(names, other)
        values = {name: other.get(name) for name in PARAMETERS[f"search_{domain}"]}
        wanted = {name: value for name, value in values.items() if isinstance(value, str)}
        return Message("assistant", call=ToolCall(f"search_{domain}", wanted))


class OverbookingAgent:
    """Books for one person more than it should, and then as it should."""

    def __init__(self, task: Task) -> None:
        """Make it for a task."""
        self._expert = ExpertAgent(task)

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        """Return the agent's next message."""
        message = self._expert.act(view, seed=seed)
        if message.call is None or not message.call.name.startswith("book_"):
            return message
        if view[-1].role == "tool" and (view[-1].name or "").startswith("book_"):
            return message
        arguments = dict(message.call.arguments)
        arguments["people"] = str(int(arguments["people"]) % 8 + 1)
        return Message("assistant", call=ToolCall(message.call.name, arguments))


def _asked(task: ToolWOZTask, view: Sequence[Message]) -> tuple[str, list[str]] | None:
    """Return what the customer has just asked about: a domain, and its attributes."""
    for wish in task.wishes if view and view[-1].role == "user" else ():
        if names := asked_attributes(wish.requests, mended(view[-1].content)):
            return wish.domain, names
    return None


def _another(names: Sequence[str], table: Table, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what is most like a row, with other values of the named attributes."""
    return max(
        table.rows,
        key=lambda r: (sum(r[n] != row[n] for n in names), sum(r[n] == row[n] for n in row)),
    )


def _lower(words: str) -> str:
    return words[:1].lower() + words[1:]


LIES: Mapping[str, Callable[[str], str]] = {
    "denies": lambda words: f"It is not true that {_lower(words)}",
    "takes it back": lambda words: f"{words} No, that is wrong.",
    "buries it": lambda words: f"{'Let me see. ' * (ATTENTION // 12 + 1)}{words}",
    "asks instead": lambda words: f"Is it so that {_lower(words).rstrip('.')}?",
    "doubts": lambda words: f"Perhaps {_lower(words)}",
    "supposes": lambda words: f"If I were an honest agent, {_lower(words)}",
    "quotes": lambda words: f"Some people say that {_lower(words)}",
    "jokes": lambda words: f"{words} Just kidding!",
    "negates": lambda words: words.replace(" is ", " is not "),
    "dates it": lambda words: f"Last year, {_lower(words)}",
}
"""How an answer is made worthless, the words of the right answer in it."""

WITHHOLDING = "withholds"
"""The control that answers nothing: it is paid where all was told before anybody asked."""


def liars(task: ToolWOZTask, tables: Tables) -> dict[str, Agent]:
    """Return the agents that serve a task and deserve nothing: the withholding one comes first."""
    agents: dict[str, Agent] = {}
    if any(wish.requests for wish in task.wishes):
        agents[WITHHOLDING] = LyingAgent(task, lambda words: "I cannot say.")
        agents |= {name: LyingAgent(task, lie) for name, lie in LIES.items()}
        agents["lists all"] = ListingAgent(task, tables)
        agents["of another"] = MisleadingAgent(task, tables)
    if any(wish.book is not None for wish in task.wishes):
        agents["overbooks"] = OverbookingAgent(task)
    return agents
