"""How fast the environments are, how much memory an episode takes, and how both grow."""

from __future__ import annotations

import math
import pickle
import platform
import resource
import tracemalloc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count, cycle, islice, repeat
from pathlib import Path
from time import perf_counter_ns
from typing import Any, TypeAlias

import numpy as np

from benchmarks import harvest_load, tau_speed
from benchmarks.comparison import Table
from benchmarks.progress import fitted
from toolwoz_gym import Dialogue, DialogueEnv, make_env, make_toolwoz
from toolwoz_gym.actions import MAX_CHARS, format_call, parse_action
from toolwoz_gym.records import check_file, write_json
from toolwoz_gym.tau_bench.data import PREPARE, TABLES, is_prepared, load_tau_bench
from toolwoz_gym.toolwoz import ToolWOZ
from toolwoz_gym.toolwoz.tables import Row, Tables
from toolwoz_gym.toolwoz.tools import DOMAINS, KEYS
from toolwoz_gym.types import Episode, Task, ToolCall, UsageError

TASKS = 100
"""The operations are timed on the calls of so many tasks."""

TAU = "TauBench-v0"

MAX_FORKS = 10_000
"""So many forks of τ-bench are held at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedOptions:
    """Time every operation of the environments, and show how time and memory grow."""

    env: tuple[str, ...] = ("ToolWOZ-v0", "ToolWOZ-v1", "TauBench-v0")
    """Environments to time, as gymnasium.make knows them."""
    world: str = "builtin"
    """World of ToolWOZ: builtin, builtin:<options>, multiwoz or auto. Of TauBench both domains are
    timed, where they are prepared."""
    split: str = "train"
    """Split of ToolWOZ's tasks. Of TauBench the first split of each domain is played."""
    repetitions: int = 400
    """How often each operation is timed, on one case after the other."""
    open: tuple[int, ...] = (1, 10, 100, 1000, 10_000, 100_000)
    """Numbers of episodes to hold open while the operations are timed, in rising order. Of
    TauBench so many forks are held that have each written to the tables, at most 10,000."""
    rows: tuple[int, ...] = (1, 10, 100)
    """ToolWOZ's rows are repeated so many times while the operations are timed."""
    latency: tuple[float, ...] = (0.05, 0.5)
    """Harvests run against a model stub that takes so many seconds for a call."""
    out: Path | None = None
    """JSON file to write all figures to."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long an operation takes, in microseconds."""

    median: float
    low: float
    """The 5th percentile."""
    high: float
    """The 95th percentile."""


Operations: TypeAlias = Mapping[str, tuple[Callable[..., object], Sequence[tuple[Any, ...]]]]
"""Functions to time and the arguments to call them with in turn, by name."""

REFERENCE = {
    "open": (4300.0, 4300.0),
    "search: goal": (250.0, 800.0),
    "search: unconstrained": (55_000.0, 55_000.0),
    "fork": (200.0, 500.0),
}
"""What the published implementation needs, in microseconds, lowest and highest: recorded once, on
another machine."""

SIZES = {
    "KB of an open episode": (1700.0, 1700.0),
    "KB of a task that is drawn": None,
    "KB of a pickled episode": None,
}
"""Kilobytes that are measured, and what the reference needs, from the same record."""


def run(options: SpeedOptions) -> None:
    """Measure, and print the tables.

    Raises:
        UsageError: An option makes no sense, or the figures cannot be written.
    """
    if not options.env or options.repetitions < 1:
        raise UsageError("name at least one environment, and at least one repetition")
    if min((*options.open, *options.rows), default=1) < 1:
        raise UsageError("numbers of open episodes and of rows are at least 1")
    if min(options.latency, default=1.0) <= 0:
        raise UsageError("a model's latency is more than 0 seconds")
    if options.out:
        check_file(options.out)
    toolwoz = [name for name in options.env if name != TAU]
    envs = {name: make_env(name, world=options.world, split=options.split) for name in toolwoz}
    report: dict[str, Any] = {
        "options": {**asdict(options), "out": None},
        "machine": f"{platform.python_implementation()} {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}",
        "calibration_ms": calibration(options.repetitions),
        "env": {},
        "tau_bench": {},
        "harvest": [],
    }
    print(
        f"{report['machine']}; a loop of 100,000 additions takes "
        f"{report['calibration_ms']:.2f} ms here\n"
    )
    if envs:
        report["env"] = _time_toolwoz(envs, options)
    if TAU in options.env and not is_prepared():
        print(f"{TAU} is skipped: its data is not prepared; run {PREPARE}")
    elif TAU in options.env:
        report["tau_bench"] = {name: _time_tau_bench(name, options) for name in TABLES}
    if options.latency:
        loads = [harvest_load.measure_load(latency) for latency in options.latency]
        alone = harvest_load.search_us()
        report["harvest"] = {"loads": [asdict(load) for load in loads], "search_us": alone}
        print(
            f"Harvest: {harvest_load.TREES_AT_ONCE} trees at once, a model of "
            f"{harvest_load.SLOTS} slots; until the last tree has begun\n\n{_load_table(loads)}\n"
            "own: CPU time of search, rules of play, threads and records, as a share of the\n"
            f"time; in one thread, without waking others, {alone:.0f} us per call\n"
        )
    if options.out:
        write_json(options.out, _plain(report))


def _time_toolwoz(envs: Mapping[str, DialogueEnv], options: SpeedOptions) -> dict[str, Any]:
    """Print the tables of ToolWOZ, and return their figures by environment."""
    report: dict[str, Any] = {
        name: {
            "operations": time_all(operations(env), options.repetitions),
            "sizes": dict(zip(SIZES, sizes(env), strict=True)),
            "hostile": slowest_hostile(env),
        }
        for name, env in envs.items()
    }
    print(f"ToolWOZ: {options.world}, {options.split}\n")
    print(_operations_table(report))
    for name, env in envs.items():
        figures = report[name]
        figures["open"] = growth_with_episodes(env, options.open, options.repetitions)
        print(f"{name}: microseconds (median), by the number of open episodes\n")
        memory = {"kb": "KB per episode", "resident_mb": "resident MB"}
        print(_growth_table("open", GROWTH, memory, figures["open"]))
        figures["rows"] = growth_with_rows(env, options.rows, options.repetitions)
        print(f"{name}: microseconds (median), by the number of rows of the tables\n")
        print(_growth_table("rows x", GROWTH, {"seconds": "s to index"}, figures["rows"]))
    return report


def _time_tau_bench(name: str, options: SpeedOptions) -> dict[str, Any]:
    """Print the tables of a domain of τ-bench, and return their figures."""
    start = perf_counter_ns()
    domain = load_tau_bench(name)
    seconds = (perf_counter_ns() - start) / 1e9
    env = make_env(TAU, world=name, split=domain.splits[0])
    runs = [tau_speed.gold_run(env.dialogue, task, seed) for seed, task in enumerate(tasks_of(env))]
    timed = tau_speed.operations(env, runs)
    writes = [write for run in runs for write in run.writes]
    figures: dict[str, Any] = {
        "load_s": seconds,
        "operations": time_all(timed, options.repetitions),
        "kb_idle": _kilobytes(tau_speed.idle_forks, env, 1000) / 1000,
        "open": {},
    }
    growing = {name: timed[name] for name in tau_speed.GROWTH}
    held, kb = list[DialogueEnv](), 0.0
    for number in sorted({min(number, MAX_FORKS) for number in options.open}):
        kb += _kilobytes(tau_speed.hold_forks, env, writes, held, number)
        timings = time_all(growing, options.repetitions)
        figures["open"][number] = {**timings, "kb": kb / number}
    print(
        f"{TAU}: {name}, {env.split}; loaded in {seconds:.2f} s, once per process\n\n"
        f"{_tau_table(name, figures)}\n"
        f"{TAU}: {name}; microseconds (median), by the number of live forks that have written\n\n"
        f"{_growth_table('forks', tau_speed.GROWTH, {'kb': 'KB per fork'}, figures['open'])}"
    )
    return figures


# --- measuring -------------------------------------------------------------------------------


def calibration(repetitions: int) -> float:
    """Return the milliseconds that a fixed loop takes, to compare machines by."""

    def loop() -> None:
        total = 0
        for number in range(100_000):
            total += number

    return measure(loop, [()], min(repetitions, 50)).median / 1000


def measure(
    function: Callable[..., object], cases: Sequence[tuple[Any, ...]], repetitions: int
) -> Timing:
    """Time a function, warm, on one case after the other, less what the timing itself takes."""
    once = min(_sample(function, case, 1) for case in islice(cycle(cases), 5))
    inner = 1 + int(10_000 // max(once, 10))  # what is too short for the clock is done repeatedly
    overhead = np.median([_sample(_nothing, cases[0], inner) for _ in range(50)])
    samples = [_sample(function, case, inner) for case in islice(cycle(cases), repetitions)]
    low, median, high = np.percentile(samples, [5, 50, 95]) - overhead
    return Timing(*(max(0.0, float(t)) / 1000 for t in (median, low, high)))


def _sample(function: Callable[..., object], case: tuple[Any, ...], inner: int) -> float:
    """Return the nanoseconds that one call takes, on average over ``inner`` calls in a row."""
    start = perf_counter_ns()
    for _ in repeat(None, inner):
        function(*case)
    return (perf_counter_ns() - start) / inner


def _nothing(*arguments: object) -> None:
    pass


def time_all(operations: Operations, repetitions: int) -> dict[str, Timing]:
    """Time operations."""
    return {name: measure(*operation, repetitions) for name, operation in operations.items()}


# --- what is measured ------------------------------------------------------------------------


def tasks_of(env: DialogueEnv) -> list[Task]:
    """Return the tasks that are played here."""
    return [env.tasks[i] for i in range(min(TASKS, len(env.tasks)))]


def _opened(env: DialogueEnv) -> list[Episode]:
    return [env.dialogue.start(task, seed=seed) for seed, task in enumerate(tasks_of(env))]


def operations(env: DialogueEnv) -> Operations:
    """Return what is timed."""
    dialogue, domain = env.dialogue, env.dialogue.domain
    episodes = _opened(env)
    goals = [(e, goal) for e in episodes for goal in e.task.goals]
    searches = [(e, goal) for e, goal in goals if goal.name.startswith("search_")]
    bookings = [(e, goal) for e, goal in goals if goal.name.startswith("book_")]
    failing = [(e, ToolCall(g.name, {**g.arguments, "name": "nowhere"})) for e, g in searches]
    failing = [(e, call) for e, call in failing if call.name != "search_train"]
    everything = [(e, ToolCall("search_train", {})) for e in episodes]
    fork = env.fork()
    fork.restore(episodes[0])

    def open_state(task: Task, seed: int) -> Episode:
        return Episode(task, seed, messages=(), world=domain.start(task))

    def open_episode(task: Task, seed: int) -> Episode:
        return dialogue.start(task, seed=seed)

    def reset(seed: int) -> object:
        return fork.reset(seed=seed)

    def call(episode: Episode, call: ToolCall) -> object:
        return domain.call(episode.task, episode.world, call)

    def step(episode: Episode, action: str) -> object:
        fork.restore(episode)
        return fork.step(fresh(action))

    starts = [(episode.task, episode.seed) for episode in episodes]
    return {
        "open": (open_episode, starts),
        "open: before anyone speaks": (open_state, starts),
        "reset: draw a task and open": (reset, [(seed,) for seed in range(TASKS)]),
        "search: goal": (call, searches),
        "search: unconstrained": (call, everything),
        "search: in vain": (call, failing),
        "booking": (call, bookings),
        "snapshot": (fork.snapshot, [()]),
        "restore": (fork.restore, [(episode,) for episode in episodes]),
        "fork": (fork.fork, [()]),
        "step: search": (step, [(e, format_call(goal)) for e, goal in searches]),
        "step: reply": (step, [(e, "What else would you like?") for e in episodes]),
        "pickle": (pickle.dumps, [(episode,) for episode in episodes]),
        "unpickle": (pickle.loads, [(pickle.dumps(episode),) for episode in episodes]),
    }


GROWTH = (
    "open",
    "search: goal",
    "search: unconstrained",
    "search: in vain",
    "booking",
    "fork",
    "step: search",
    "step: reply",
)
"""The operations of the growth tables."""


def growth_with_episodes(
    env: DialogueEnv, numbers: Sequence[int], repetitions: int
) -> dict[int, dict[str, Any]]:
    """Time the operations while so many episodes are open.

    Returns:
        By the number of open episodes the timings, ``kb`` per open episode, and ``resident_mb``,
        the memory of the whole process.
    """
    timed = {name: operation for name, operation in operations(env).items() if name in GROWTH}
    tasks, held, kb = tasks_of(env), list[Episode](), 0.0
    growth = {}
    for number in numbers:
        kb += _kilobytes(_open, env.dialogue, tasks, held, number)
        growth[number] = {
            **time_all(timed, repetitions),
            "kb": kb / number,
            "resident_mb": _resident(),
        }
    return growth


def _resident() -> float:
    """Return the megabytes that the process has in memory; not a number where Linux is not."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except OSError:
        return math.nan
    return pages * resource.getpagesize() / 2**20


def _open(dialogue: Dialogue, tasks: Sequence[Task], held: list[Episode], number: int) -> None:
    for seed in range(len(held), number):
        held.append(dialogue.start(tasks[seed % len(tasks)], seed=seed))


def _kilobytes(function: Callable[..., object], *arguments: object) -> float:
    """Return how much memory a function leaves behind."""
    tracemalloc.start()
    try:
        kept = function(*arguments)
        kilobytes = tracemalloc.get_traced_memory()[0] / 1024
        del kept
        return kilobytes
    finally:
        tracemalloc.stop()


def sizes(env: DialogueEnv) -> tuple[float, float, float]:
    """Return kilobytes.

    Returns:
        Of an open episode without its task; of a task, 0 where the world has all of them in memory;
        and of an episode with its task, pickled at its opening.
    """
    tasks = tasks_of(env)
    opened = _kilobytes(_open, env.dialogue, tasks, list[Episode](), 1000) / 1000
    drawn = _kilobytes(tasks_of, env) / len(tasks)
    pickled = [len(pickle.dumps(episode)) / 1024 for episode in _opened(env)]
    return opened, drawn, float(np.median(pickled))


def growth_with_rows(
    env: DialogueEnv, factors: Sequence[int], repetitions: int
) -> dict[int, dict[str, Any]]:
    """Time the operations on tables of so many times the rows.

    Returns:
        By the factor the timings, and ``seconds`` to index the tables.
    """
    domain = env.dialogue.domain
    assert isinstance(domain, ToolWOZ)
    growth = {}
    for factor in factors:
        rows = {name: repeated(domain.tables[name].rows, name, factor) for name in DOMAINS}
        start = perf_counter_ns()
        tables = Tables(rows)
        seconds = (perf_counter_ns() - start) / 1e9
        tasks = {env.split: tasks_of(env)}
        larger = type(domain)(domain.name, tables, tasks, domain.fingerprint)  # type: ignore[arg-type]
        grown = make_toolwoz(version=domain.version, world=larger, split=env.split)
        timed = {name: op for name, op in operations(grown).items() if name in GROWTH}
        growth[factor] = {**time_all(timed, repetitions), "seconds": seconds}
    return growth


def repeated(rows: Iterable[Row], domain: str, factor: int) -> list[Row]:
    """Return rows ``factor`` times over, each time under keys that are new."""
    key = KEYS[domain]
    return [
        {**row, key: f"{row[key]} {copy}"} if copy else row
        for copy in range(factor)
        for row in rows
    ]


# --- the worst that an agent can do ------------------------------------------------------------


def _filled(text: str) -> str:
    return (text * MAX_CHARS)[: MAX_CHARS - 1]


def _search(value: str) -> str:
    return f'{{"name": "search_hotel", "arguments": {{"name": {value}}}}}'


_FILLS = (
    "x", "1", "12 ", "no ", "don't ", "booking ", "leav", "depart1", "arriv", "arriv1", "where ",
    "what ", "time ", "there ", "how many ", "£1", "yes, ", "a? ", "a. ", "1.1", "İ", "’", "\n",
    "\x00", "\ud800", ", ", "It is booked. ", "north ", "12:34 ", "is a ", "if not ", "5 stars ",
)  # fmt: skip

HOSTILE = {
    **{f"{fill!r} again and again": f".{_filled(fill)}" for fill in _FILLS},
    "open brackets": _filled("{"),
    "nested lists": _search("[" * 8000 + "]" * 8000),
    "nested objects": _search('{"a":' * 2500 + "1" + "}" * 2500),
    "a wide list": _search("[" + "0," * 8000 + "0]"),
    "many parameters": _search("0" + "".join(f', "k{i}": 1' for i in range(1200))),
    "one parameter again and again": _search("0" + ', "name": 0' * 1400),
    "a long value": _search(f'"{"x" * 16_000}"'),
    "a long number": _search("9" * 4300),
    "a long fraction": _search("0." + "9" * 16_000),
    "escapes": _search('"' + "\\ud800" * 2600 + '"'),
    "a long tool": f'{{"name": "{"x" * 16_000}", "arguments": {{}}}}',
}
"""Long actions, each as bad as it can be in its own way: for the parser, the tools, the customer's
patterns. By what they are made of."""


_numbers = count()


def fresh(action: str) -> str:
    """Return an action; words begin with a number that was never said.

    Customers remember what they make of the same words: what is said again costs next to nothing.
    """
    return action if action.startswith("{") else f"{next(_numbers)} {action}"[:MAX_CHARS]


def slowest_hostile(env: DialogueEnv) -> tuple[str, float]:
    """Return which hostile action costs most, and its milliseconds.

    Each is played from the opening of several tasks, and said once more before the episode is
    scored, all goals met. The faster of two runs counts, in which words are heard anew.
    """
    costs = []
    for episode in _opened(env)[:8]:
        solved = episode
        for goal in episode.task.goals:
            solved = env.dialogue.act(solved, parse_action(format_call(goal)))
        for name, action in HOSTILE.items():
            said = env.dialogue.act(solved, parse_action(action))
            stepped = min(_sample(_play, (env.fork(), episode, fresh(action)), 1) for _ in range(2))
            scored = min(_sample(env.dialogue.cut_off, (said,), 1) for _ in range(2))
            costs += [(name, stepped / 1e6), (f"{name}, scored", scored / 1e6)]
    return max(costs, key=lambda cost: cost[1])


def _play(env: DialogueEnv, episode: Episode, action: str) -> None:
    env.restore(episode)
    env.step(action)


# --- printing --------------------------------------------------------------------------------


def _operations_table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of operations, ours beside the reference's."""
    header = ["microseconds"]
    for name in figures:
        header += [name.removeprefix("ToolWOZ-"), "5-95 %"]
    rows = [[*header, "reference", "times faster"]]
    first = next(iter(figures.values()))
    for operation in first["operations"]:
        row = [operation]
        for env in figures.values():
            timing = env["operations"][operation]
            row += [_figure(timing.median), f"{_figure(timing.low)}-{_figure(timing.high)}"]
        slowest = max(env["operations"][operation].median for env in figures.values())
        rows.append([*row, *_compared(REFERENCE.get(operation), slowest)])
    for size, reference in SIZES.items():
        values = [env["sizes"][size] for env in figures.values()]
        cells = [cell for value in values for cell in (_figure(value), "")]
        rows.append([size, *cells, *_compared(reference, max(values))])
    slowest_steps = "".join(
        f"{name}: the worst hostile action takes {env['hostile'][1]:.1f} ms ({env['hostile'][0]})\n"
        for name, env in figures.items()
    )
    note = (
        "reference: recorded figures of the published implementation, on another\n"
        "machine; times faster: of the slower environment, by the medians\n"
    )
    return f"{_aligned(rows)}\n{note}{slowest_steps}"


def _compared(reference: tuple[float, float] | None, ours: float) -> list[str]:
    if reference is None:
        return ["", ""]
    both = [_figure(value) for value in dict.fromkeys(reference)]
    factors = [f"{value / ours:,.0f}" for value in dict.fromkeys(reference)]
    return ["-".join(both), "-".join(factors)]


def _tau_table(domain: str, figures: Mapping[str, Any]) -> str:
    """Return the table of operations of a domain of τ-bench, ours beside the reference's."""
    rows = [["microseconds", "median", "5-95 %", "wanted", "reference", "times faster"]]
    for operation, timing in figures["operations"].items():
        wanted = tau_speed.WANTED.get(operation)
        range_ = f"{_figure(timing.low)}-{_figure(timing.high)}"
        row = [operation, _figure(timing.median), range_, f"< {wanted:,}" if wanted else ""]
        rows.append([*row, *_compared(tau_speed.REFERENCE[domain].get(operation), timing.median)])
    rows.append(["KB of a fork", _figure(figures["kb_idle"])])
    rows.append(["KB of a fork that has written", _figure(max(figures["open"].items())[1]["kb"])])
    return _aligned([[*row, *[""] * (len(rows[0]) - len(row))] for row in rows])


def _growth_table(
    what: str,
    operations: Sequence[str],
    further: Mapping[str, str],
    growth: Mapping[int, Mapping[str, Any]],
) -> str:
    """Return a growth table: a column for each number of episodes, forks or rows.

    Args:
        what: What grows.
        operations: The operations that are timed.
        further: The titles of further figures, by name.
        growth: The figures, by number.
    """
    rows = [[f"{what}:", *operations, *further.values()]]
    for number, figures in growth.items():
        cells = [_figure(figures[name].median) for name in operations]
        rows.append([f"{number:,}", *cells, *(_figure(figures[name]) for name in further)])
    return _aligned([*zip(*rows, strict=True)])


def _load_table(loads: Sequence[harvest_load.Load]) -> str:
    """Return the table of harvests: a line for each latency of the model."""
    titles = ("seconds", "calls", "slots busy", "own", "customer", "own us per call")
    rows = [["model's latency", *titles]]
    for load in loads:
        shares = (f"{share:.1%}" for share in (load.busy, load.own, load.customer))
        figures = [_figure(load.seconds), f"{load.calls:,}", *shares, _figure(load.own_us)]
        rows.append([f"{load.latency:g} s", *figures])
    return _aligned(rows)


def _figure(value: float) -> str:
    """Write a figure with three digits that count."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, of which the first is the header, as text."""
    header, *others = map(tuple, rows)
    return fitted(Table(header, tuple(others)))


def _plain(value: Any) -> Any:
    """Return a report as JSON data."""
    if isinstance(value, Timing):
        return asdict(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value
