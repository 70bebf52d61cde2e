"""What differs between runs that should be equal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.backends.journal import COMPLETIONS, Recording
from benchmarks.comparison import Table
from benchmarks.episodes import TRAJECTORIES
from benchmarks.progress import fitted
from toolwoz_gym.records import dump, read_config, read_log
from toolwoz_gym.types import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class ReproducibilityOptions:
    """Compare runs of the same options, record by record and completion by completion."""

    runs: tuple[Path, ...]
    """Their folders, of harvests or evaluations: the others are compared with the first."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """How like another a run is."""

    records: int
    """Finished trees or episodes that both have."""
    unmatched: int
    """Those that only one of them has."""
    equal_records: int
    """Those that are the same to the byte, their ledgers apart."""
    equal_dialogues: int
    """Those that are so but for log-probabilities."""
    calls: int
    """Calls that both have made: same prompt, same seed."""
    equal_texts: int
    """Those that were answered with the same text."""
    equal_logprobs: int
    """Those with the same log-probability of it, to six decimals, or with none."""
    drift: float
    """The largest difference of these log-probabilities."""

    @property
    def is_equal(self) -> bool:
        """Whether there are records, and nothing differs."""
        return (
            0 < self.records == self.equal_records
            and self.calls == self.equal_texts == self.equal_logprobs
            and not self.unmatched
        )


def run(options: ReproducibilityOptions) -> None:
    """Compare, and print a table.

    Raises:
        UsageError: There are fewer than two runs, or one of the folders holds none; or, once the
            table is printed, a run differs.
    """
    first, *others = options.runs or (None,)
    if first is None or not others:
        raise UsageError("give the folders of two runs or more")
    header = (
        f"Like {first}",
        "Records equal to the byte",
        "But for log-probabilities",
        "Calls of both",
        "Texts equal",
        "Log-probabilities equal",
        "Largest difference of one",
    )
    rows, differing = [], []
    for other in others:
        found = compare_runs(first, other)
        figures = (
            f"{found.equal_records:,} of {found.records:,}",
            f"{found.equal_dialogues:,} of {found.records:,}",
            f"{found.calls:,}",
            f"{found.equal_texts:,}",
            f"{found.equal_logprobs:,}",
            f"{found.drift:.6f}",
        )
        rows.append((str(other), *figures))
        names = _other_options(first, other)
        if names:
            print(f"{other} has other options than {first}: {', '.join(names)}")
        if found.unmatched:
            print(f"{found.unmatched:,} records are in one of {first} and {other} only")
        if names or not found.is_equal:
            differing.append(str(other))
    print(fitted(Table(header, tuple(rows))))
    if differing:
        raise UsageError(f"not the same as {first}: {', '.join(differing)}")


def compare_runs(one: Path, other: Path) -> Likeness:
    """Compare two runs.

    Raises:
        UsageError: A folder holds no run.
    """
    if _kind(one) != _kind(other):
        raise UsageError(f"{one} has {_kind(one)} and {other} {_kind(other)}: compare like runs")
    records, others = _records(one), _records(other)
    both = records.keys() & others.keys()
    here, there = (Recording(run / COMPLETIONS) for run in (one, other))
    pairs = [(here.find(key), there.find(key)) for key in {*here.keys()} & {*there.keys()}]
    same = [(a, b) for a, b in pairs if a and b and a.text == b.text]
    drifts = [
        abs(a.logprob - b.logprob)
        for a, b in same
        if a.logprob is not None and b.logprob is not None
    ]
    return Likeness(
        records=len(both),
        unmatched=len(records.keys() ^ others.keys()),
        equal_records=sum(dump(records[key]) == dump(others[key]) for key in both),
        equal_dialogues=sum(_words(records[key]) == _words(others[key]) for key in both),
        calls=len(pairs),
        equal_texts=len(same),
        equal_logprobs=sum(a.logprob == b.logprob for a, b in same),
        drift=max(drifts, default=0.0),
    )


def _records(run: Path) -> dict[str, dict[str, Any]]:
    """Return a run's records by key, without their ledgers."""
    file = run / f"{_kind(run)}.jsonl"
    return {r["key"]: {k: v for k, v in r.items() if k != "ledger"} for r in read_log(file)}


def _kind(run: Path) -> str:
    """Return what a run has records of: ``trees`` or ``trajectories``."""
    for name in ("trees", TRAJECTORIES):
        if (run / f"{name}.jsonl").exists():
            return name
    raise UsageError(f"there is no run in {run}")


def _other_options(one: Path, other: Path) -> list[str]:
    """Return which options of two runs differ, but for what runs their models; their worlds too."""
    configs = (read_config(run) for run in (one, other))
    a, b = (config["options"] | {"data": config["world"]} for config in configs)
    names = {*a, *b} - {"backend", "user_backend"}
    return sorted(name for name in names if a.get(name) != b.get(name))


def _words(value: Any) -> Any:
    """Return a record without its log-probabilities."""
    if isinstance(value, dict):
        return {name: _words(part) for name, part in value.items() if name != "logprob"}
    return [_words(part) for part in value] if isinstance(value, list) else value
