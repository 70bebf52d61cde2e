"""The tools of ToolWOZ and what the agent is told about its job."""

from __future__ import annotations

from typing import Any

from toolwoz_gym.types import ToolSpec

DOMAINS = ("hotel", "attraction", "train", "restaurant")
"""In the order in which a task's goals are listed."""

KEYS = {"hotel": "name", "attraction": "name", "train": "trainID", "restaurant": "name"}
"""The column that identifies an entity."""

POLICY = """You are the desk of a city's visitor service. Customers want restaurants, hotels, \
attractions and trains. Use the tools: search with all the wishes you have heard, book only when \
the customer asks for it, and give the reference number. If nothing is found or a booking fails, \
say so. Never make up facts. Ask for what a booking still needs."""

DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]


def _string(description: str, *, one_of: list[str] | None = None) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string", "description": description}
    if one_of:
        schema["enum"] = one_of
    return schema


_NAME = _string("its name")
_AREA = _string("part of town", one_of=["north", "south", "east", "west", "centre"])
_PRICE = _string("price range", one_of=["cheap", "moderate", "expensive"])
_YES_NO = ["yes", "no"]
_DAY = _string("day of the week", one_of=DAYS)
_PEOPLE = _string("how many people")
_TIME = "as hh:mm"

TOOLS = (
    ToolSpec(
        "search_restaurant",
        "Find a restaurant.",
        {"food": _string("cuisine"), "pricerange": _PRICE, "name": _NAME, "area": _AREA},
    ),
    ToolSpec(
        "book_restaurant",
        "Book a table.",
        {"time": _string(_TIME), "day": _DAY, "people": _PEOPLE, "name": _NAME},
    ),
    ToolSpec(
        "search_hotel",
        "Find a hotel or guesthouse.",
        {
            "name": _NAME,
            "area": _AREA,
            "parking": _string("free parking", one_of=_YES_NO),
            "pricerange": _PRICE,
            "stars": _string("number of stars"),
            "internet": _string("free wifi", one_of=_YES_NO),
            "type": _string("kind of house", one_of=["hotel", "guesthouse"]),
        },
    ),
    ToolSpec(
        "book_hotel",
        "Book rooms.",
        {"stay": _string("number of nights"), "day": _DAY, "people": _PEOPLE, "name": _NAME},
    ),
    ToolSpec(
        "search_attraction",
        "Find an attraction.",
        {"type": _string("kind of attraction"), "name": _NAME, "area": _AREA},
    ),
    ToolSpec("book_attraction", "Book an attraction.", {}),
    ToolSpec(
        "search_train",
        "Find a train.",
        {
            "leaveAt": _string(f"leaves after, {_TIME}"),
            "destination": _string("town it goes to"),
            "day": _DAY,
            "arriveBy": _string(f"arrives before, {_TIME}"),
            "departure": _string("town it leaves from"),
        },
    ),
    ToolSpec(
        "book_train",
        "Book train tickets.",
        {"people": _PEOPLE, "trainID": _string("number of the train")},
    ),
)
"""The eight tools, in the order in which an agent is offered them."""

PARAMETERS = {tool.name: tuple(tool.parameters) for tool in TOOLS}
"""The parameters of each tool, in the order in which goals list them."""
