"""The built-in world: a fictional city and as many tasks in it as anyone wants.

Everything follows from a seed, with the same bytes on every machine: the city's tables in
MultiWOZ's columns, and goals in MultiWOZ's shape, which then take the same road as MultiWOZ's own.
The splits are disjoint by construction: a hash of a task's goal calls says where it belongs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from hashlib import sha256
from typing import Any, overload

from toolwoz_gym.seeding import Luck, derive
from toolwoz_gym.toolwoz import VERSIONS, ToolWOZ
from toolwoz_gym.toolwoz.goals import derive_wishes, found
from toolwoz_gym.toolwoz.tables import Tables
from toolwoz_gym.toolwoz.task import ToolWOZTask, make_task, task_to_json
from toolwoz_gym.toolwoz.tools import DAYS, KEYS
from toolwoz_gym.types import UsageError

Row = dict[str, Any]
Goal = dict[str, Any]

SHARES = {"train": range(8), "val": range(8, 9), "test": range(9, 10)}
"""Which tenths of all conceivable tasks belong to which split."""

CITY = "larkhaven"
_TOWNS = ("osterby", "brackenmoor", "pell cross", "wexcombe", "saint orla")
_AREAS = ("north", "south", "east", "west", "centre")
_PRICES = ("cheap", "moderate", "expensive")
_FOODS = (
    "italian", "indian", "chinese", "french", "thai", "british",
    "japanese", "mexican", "turkish", "spanish", "korean", "seafood",
)  # fmt: skip
_SIGHTS = (
    "museum", "park", "theatre", "cinema", "college", "swimmingpool",
    "nightclub", "boat", "architecture", "concerthall",
)  # fmt: skip
_FIRST = (
    "copper", "amber", "willow", "silver", "harbour", "lantern", "juniper", "marble",
    "russet", "velvet", "bramble", "cobalt", "thistle", "ivory", "meadow", "falcon",
    "hazel", "crimson", "misty", "quiet",
)  # fmt: skip
_SECOND = {
    "restaurant": ("ladle", "table", "spoon", "kitchen", "oven", "pantry", "grill", "plate"),
    "hotel": ("lodge", "house", "inn", "rooms", "court", "manor"),
    "attraction": ("hall", "gardens", "gallery", "corner", "wharf", "tower"),
}
_STREETS = (
    "mill lane", "station road", "bell street", "orchard row", "quay side",
    "castle hill", "market square", "chapel walk", "garden street", "long lane",
)  # fmt: skip
_SIZES = {"restaurant": 90, "hotel": 40, "attraction": 60}

_CONSTRAINTS = {
    "restaurant": ("food", "area", "pricerange"),
    "hotel": ("area", "pricerange", "stars", "type", "parking", "internet"),
    "attraction": ("type", "area"),
}
_REQUESTS = {
    "restaurant": ("phone", "address", "postcode", "food", "pricerange", "area"),
    "hotel": ("phone", "address", "postcode", "stars", "pricerange", "area"),
    "attraction": ("phone", "address", "postcode", "entrance fee", "area", "type"),
    "train": ("price", "duration", "leaveAt", "arriveBy"),
}


@dataclass(frozen=True, slots=True)
class CityOptions:
    """What the built-in world is made of. Ranges are inclusive on both sides."""

    seed: int = 0
    """Another seed, another city with other tasks."""
    domains: tuple[int, int] = (1, 3)
    """How many domains a task touches, 1 to 4."""
    constraints: tuple[int, int] = (1, 3)
    """How many constraints the customer has in each domain (as far as the domain has so many). Now
    and then it knows a place's name, and nothing else; a train always has both towns and the day,
    and from two constraints on a time."""
    failures: tuple[int, int] = (0, 2)
    """How many of the customer's first choices, searches or bookings, cannot be had (as far as the
    task has choices that can be made to fail)."""
    tasks: int = 10_000
    """How many tasks ``train`` has; ``val`` and ``test`` have a tenth. A task does not depend on
    how many there are."""

    def __post_init__(self) -> None:
        if not 1 <= self.domains[0] <= self.domains[1] <= len(KEYS):
            raise UsageError(f"domains: a range within 1 to {len(KEYS)}")
        if not 1 <= self.constraints[0] <= self.constraints[1]:
            raise UsageError("constraints: at least 1, and the range in order")
        if self.failures[0] > self.failures[1] or self.tasks < 10:
            raise UsageError("failures: a range in order; tasks: at least 10")

    @classmethod
    def parse(cls, text: str) -> CityOptions:
        """Read options such as ``domains=1,constraints=1-2,seed=7``.

        Raises:
            UsageError: There is no such option, or its value makes no sense.
        """
        values: dict[str, Any] = {}
        names = {field.name for field in fields(cls)}
        for part in filter(None, text.split(",")):
            name, _, value = part.partition("=")
            if name not in names:
                raise UsageError(
                    f"the built-in world has no option {name!r}; it has {', '.join(sorted(names))}"
                )
            single = name in ("seed", "tasks")
            low, dash, high = value.partition("-")
            if not low.isdecimal() or (dash and (single or not high.isdecimal())):
                example = "" if single else f", or a range such as {name}=1-2"
                raise UsageError(f"{name}={value}: write a number{example}")
            values[name] = int(low) if single else (int(low), int(high if dash else low))
        return cls(**values)


@lru_cache(maxsize=8)
def load_builtin(options: CityOptions = CityOptions(), version: int = 0) -> ToolWOZ:  # noqa: B008
    """Return the built-in world, scored as that version of ToolWOZ does."""
    rows = make_tables(options.seed)
    tables = Tables(rows)
    sizes = {"train": options.tasks, "val": options.tasks // 10, "test": options.tasks // 10}
    tasks = {split: CityTasks(options, tables, rows, split, n) for split, n in sizes.items()}
    sample = [task_to_json(tasks[split][i]) for split, n in sizes.items() for i in range(min(3, n))]
    recipe = {f.name: getattr(options, f.name) for f in fields(options)}
    digest = sha256(json.dumps([recipe, rows, sample]).encode()).hexdigest()
    return VERSIONS[version]("builtin", tables, tasks, fingerprint=f"{digest}-v{version}")


def make_tables(seed: int) -> dict[str, list[Row]]:
    """Return the rows of the city's tables, by domain."""
    tables = {domain: _places(seed, domain) for domain in ("attraction", "hotel", "restaurant")}
    tables["train"] = _trains(seed)
    return tables


class CityTasks(Sequence[ToolWOZTask]):
    """The tasks of a split, each made when asked for."""

    def __init__(
        self,
        options: CityOptions,
        tables: Tables,
        rows: Mapping[str, Sequence[Row]],
        split: str,
        size: int,
    ) -> None:
        self._options = options
        self._tables = tables
        self._rows = rows
        self._split = split
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[ToolWOZTask]:
        return map(self._make, range(self._size))

    @overload
    def __getitem__(self, index: int) -> ToolWOZTask: ...
    @overload
    def __getitem__(self, index: slice) -> list[ToolWOZTask]: ...
    def __getitem__(self, index: int | slice) -> ToolWOZTask | list[ToolWOZTask]:
        """Return the task at a position, or those of a slice."""
        if isinstance(index, slice):
            return [self._make(i) for i in range(self._size)[index]]
        return self._make(range(self._size)[index])

    def by_id(self, task_id: str) -> ToolWOZTask | None:
        """Return the task with an id, or None."""
        head, _, number = task_id.rpartition("-")
        if not number.isdecimal() or len(number) > 18 or int(number) >= self._size:
            return None
        task = self._make(int(number))
        return task if task.id == task_id else None

    def _make(self, index: int) -> ToolWOZTask:
        """Make a task: draw goals until one falls into this split's share."""
        attempt = 0
        while True:
            luck = Luck(self._options.seed, "task", self._split, index, attempt)
            goal, booked = _draw_goal(luck, self._options, self._tables, self._rows)
            wishes = derive_wishes(goal, booked, self._tables)
            task = make_task(
                f"builtin-{self._split}-{index:06d}", self._split, _instruction(goal), wishes
            )
            calls = sorted(f"{g.name}{sorted(g.arguments.items())}" for g in task.goals)
            if derive(*calls) % 10 in SHARES[self._split]:
                return task
            attempt += 1


def _places(seed: int, domain: str) -> list[Row]:
    """Make the rows of a table of places, their names all different."""
    luck = Luck(seed, domain)
    names = luck.sample([f"{a} {b}" for a in _FIRST for b in _SECOND[domain]], _SIZES[domain])
    rows = []
    for number, name in enumerate(names):
        area = luck.choice(_AREAS)
        common = {
            "address": f"{1 + luck.below(90)} {luck.choice(_STREETS)}",
            "area": area,
            "id": str(number),
            "location": [50 + luck.below(10**6) / 10**6, luck.below(10**6) / 10**6],
            "name": name,
            "phone": "01970" + "".join(str(luck.below(10)) for _ in range(6)),
            "postcode": f"lk{1 + _AREAS.index(area)}{luck.below(10)}{luck.choice('abdefgh')}"
            f"{luck.choice('jlnpqr')}",
        }
        rows.append(dict(sorted({**common, **_particulars(luck, domain)}.items())))
    return rows


def _particulars(luck: Luck, domain: str) -> Row:
    """Make the columns that only tables of this domain have."""
    price = luck.choice(_PRICES)
    if domain == "restaurant":
        return {"food": luck.choice(_FOODS), "pricerange": price, "type": "restaurant"}
    if domain == "hotel":
        single = 30 + 25 * _PRICES.index(price) + luck.below(20)
        return {
            "internet": "yes" if luck.chance(0.7) else "no",
            "parking": "yes" if luck.chance(0.6) else "no",
            "price": {"single": str(single), "double": str(single + 20 + luck.below(20))},
            "pricerange": price,
            "stars": str(luck.below(5) + 1),
            "takesbookings": "yes",
            "type": luck.choice(("hotel", "guesthouse")),
        }
    fee = "free" if luck.chance(0.4) else f"{2 + luck.below(9)} pounds"
    return {
        "entrance fee": fee,
        "openhours": f"{8 + luck.below(4):02d}:00 - {16 + luck.below(7):02d}:00",
        "pricerange": "free" if fee == "free" else price,
        "type": luck.choice(_SIGHTS),
    }


def _trains(seed: int) -> list[Row]:
    """Make the timetable: each town both ways, every day, from early to late."""
    luck = Luck(seed, "train")
    numbers = iter(luck.sample(range(1000, 10_000), 2 * len(_TOWNS) * len(DAYS) * 9))
    rows = []
    for town in _TOWNS:
        minutes = 25 + luck.below(80)
        price = f"{8 + minutes // 4}.{luck.below(10)}0 pounds"
        for departure, destination in ((CITY, town), (town, CITY)):
            offset = luck.below(60)
            for day in DAYS:
                for hour in range(5, 22, 2):
                    leave = hour * 60 + offset
                    rows.append(
                        {
                            "arriveBy": _clock(leave + minutes),
                            "day": day,
                            "departure": departure,
                            "destination": destination,
                            "duration": f"{minutes} minutes",
                            "leaveAt": _clock(leave),
                            "price": price,
                            "trainID": f"TR{next(numbers)}",
                        }
                    )
    return rows


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


def _draw_goal(
    luck: Luck, options: CityOptions, tables: Tables, rows: Mapping[str, Sequence[Row]]
) -> tuple[Goal, dict[str, Row]]:
    """Draw a goal in MultiWOZ's shape, and the entities that its bookings return."""
    count = _within(luck, options.domains)
    goal: Goal = {}
    booked: dict[str, Row] = {}
    for domain in luck.sample(list(KEYS), count):
        row = luck.choice(rows[domain])
        section: Goal = {"info": _draw_info(luck, options, domain, row), "fail_info": {}}
        section["book"] = _draw_booking(luck, domain)
        section["fail_book"] = {}
        if section["book"]:
            key = KEYS[domain]
            letters = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
            reference = "".join(luck.choice(letters) for _ in range(8))
            booked[domain] = {key: row[key], "reference": reference}
        free = [name for name in _REQUESTS[domain] if name not in section["info"]]
        least = 0 if section["book"] else 1
        section["reqt"] = luck.sample(free, max(least, luck.below(3)))
        goal[domain] = section
    _draw_failures(luck, _within(luck, options.failures), goal, tables, rows)
    return goal, booked


def _draw_info(luck: Luck, options: CityOptions, domain: str, row: Row) -> dict[str, str]:
    count = _within(luck, options.constraints)
    if domain != "train":
        names = luck.sample(_CONSTRAINTS[domain], count)
        if luck.chance(0.1):  # the customer knows which one it wants
            names = ["name"]
        return {name: row[name] for name in names}
    info = {name: row[name] for name in ("departure", "destination", "day")}
    if count > 1:
        # A little before or after the train's own time, since v0 compares strictly.
        column = "leaveAt" if luck.chance(0.5) else "arriveBy"
        hour, minute = map(int, row[column].split(":"))
        slack = 5 + 5 * luck.below(10)
        time = hour * 60 + minute + (slack if column == "arriveBy" else -slack)
        info[column] = _clock(min(max(0, time), 23 * 60 + 59))
    return info


def _draw_booking(luck: Luck, domain: str) -> dict[str, str]:
    """Draw what a booking needs besides the entity; empty when the customer books nothing."""
    if domain == "attraction" or luck.chance(0.2):
        return {}
    people = str(1 + luck.below(8))
    if domain == "train":
        return {"people": people}
    if domain == "hotel":
        return {"people": people, "day": luck.choice(DAYS), "stay": str(1 + luck.below(5))}
    time = _clock(11 * 60 + 15 * luck.below(40))
    return {"people": people, "day": luck.choice(DAYS), "time": time}


def _draw_failures(
    luck: Luck,
    count: int,
    goal: Goal,
    tables: Tables,
    rows: Mapping[str, Sequence[Row]],
) -> None:
    """Give up to ``count`` of the goal's searches and bookings a first choice that fails."""
    places = [(d, kind) for d in goal for kind in ("search", "book") if d != "train"]
    for domain, kind in luck.sample(places, len(places)):
        if count == 0:
            return
        section = goal[domain]
        if kind == "book" and "day" in section["book"]:
            changed = luck.choice([name for name in section["book"] if name != "people"])
            values = [v for v in _booking_values(changed) if v != section["book"][changed]]
            section["fail_book"] = {**section["book"], changed: luck.choice(values)}
            count -= 1
        elif kind == "search" and (
            failing := _failing_info(luck, section["info"], domain, tables, rows[domain])
        ):
            section["fail_info"] = failing
            count -= 1


def _booking_values(name: str) -> list[str]:
    if name == "day":
        return list(DAYS)
    if name == "stay":
        return [str(n) for n in range(1, 6)]
    return [_clock(11 * 60 + 15 * n) for n in range(40)]


def _failing_info(
    luck: Luck, info: Mapping[str, str], domain: str, tables: Tables, rows: Sequence[Row]
) -> dict[str, str]:
    """Change one constraint so that nothing in the table matches; empty if there is no such way."""
    if "name" in info:
        return {"name": f"{luck.choice(_FIRST)} {luck.choice(('goose', 'anchor', 'crown'))}"}
    candidates = [
        {**info, name: value}
        for name in info
        for value in sorted({str(row[name]) for row in rows})
        if value != info[name]
    ]
    failing = [c for c in candidates if not found(tables[domain], c)]
    return luck.choice(failing) if failing else {}


def _within(luck: Luck, bounds: tuple[int, int]) -> int:
    return bounds[0] + luck.below(bounds[1] - bounds[0] + 1)


def _instruction(goal: Goal) -> str:
    """Tell the goal in English, for customers that are people or language models."""
    lines = []
    for domain, section in goal.items():
        info, fail = section["info"], section["fail_info"]
        lines.append(f"You want {_ARTICLES[domain]} {domain}: {_listed(fail or info)}.")
        if fail:
            lines.append(f"If there is none, you take one with {_listed(info)}.")
        if book := section["book"]:
            lines.append(f"Book it: {_listed(section['fail_book'] or book)}.")
            if section["fail_book"]:
                lines.append(f"If that is not possible, book it with {_listed(book)}.")
        if section["reqt"]:
            lines.append(f"Find out its {', '.join(section['reqt'])}.")
    return "\n".join(lines)


_ARTICLES = {"attraction": "an", "hotel": "a", "restaurant": "a", "train": "a"}


def _listed(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
