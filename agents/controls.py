"""Agents that deserve nothing: a benchmark that rewards one of them can be gamed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, product
from typing import Any

from agents.base import Agent
from toolwoz_gym.toolwoz.tools import DAYS, DOMAINS, KEYS, PARAMETERS
from toolwoz_gym.types import END_CONVERSATION, Message, ToolCall


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
}
