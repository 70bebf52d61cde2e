"""What an evaluation found: figures for each model, and how the others differ from the first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, get_args

import numpy as np

from benchmarks.metrics import (
    Estimate,
    Floats,
    SignTest,
    difference,
    mean,
    pass_hat,
    sign_test,
    success_rate,
)
from toolwoz_gym.records import usages_from_json
from toolwoz_gym.types import Mistake, Usage
from toolwoz_gym.users.faults import KINDS

OUTCOMES = ("success", "failure", "truncated", "user_fault")

Record = Mapping[str, Any]
"""One episode: a line of ``trajectories.jsonl``."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one model achieved."""

    model: str
    tasks: int
    trials: int
    """Episodes per task."""
    success: Estimate
    """Rate of episodes that earned the reward."""
    success_unidle: Estimate | None
    """The same without the tasks that an agent solves by doing nothing; None where none is left, or
    there are no such tasks."""
    progress: Estimate
    """Mean fraction of a task's goals that were met."""
    pass_hat: tuple[float, ...]
    """pass^1, pass^2, ... up to the number of trials."""
    outcomes: Mapping[str, int]
    """Episodes by outcome."""
    user_fault: Estimate
    """Rate of episodes that a fault of the customer's ended: they say nothing about the model."""
    user_faults: Mapping[str, int]
    """These episodes by the kind of fault."""
    steps: int
    """Messages that the model wrote."""
    malformed: Mapping[str, int]
    """Those of them that were no action, by kind of mistake."""
    tool_errors: int
    """Those of them that called a tool wrongly."""
    faults: Mapping[str, int]
    """What the customers did wrong, by kind: see :mod:`toolwoz_gym.users.faults`."""
    usage: Mapping[str, Usage]
    """What the language models behind its episodes took, by role."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How a model did on the episodes of another: same tasks, same seeds."""

    model: str
    baseline: str
    success: Estimate
    """Success rate, the model's less the baseline's."""
    by_task: SignTest
    """In how many tasks the model succeeded more often than the baseline, and less often."""
    progress: Estimate
    """Mean progress, the model's less the baseline's."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The figures of an evaluation."""

    results: tuple[Result, ...]
    """Each model, on the tasks of which every episode is there; none without such a task."""
    differences: tuple[Difference, ...]
    """Each further model against the first."""


def compare(records: Iterable[Record], models: Sequence[str], *, trials: int) -> Comparison:
    """Work out the figures of an evaluation.

    Tasks of which an episode is missing, whichever model's, are left out.

    Args:
        records: The episodes, in any order.
        models: The models by label; the first is the baseline of the others.
        trials: Episodes per model and task.
    """
    played = {
        (record["model"], record["task_id"], record["trial"]): {
            name: value for name, value in record.items() if name != "messages"
        }
        for record in records
    }
    each = list(product(models, range(trials)))
    whole = [
        task
        for task in sorted({task for _, task, _ in played})
        if all((model, task, trial) in played for model, trial in each)
    ]
    if not whole:
        return Comparison((), ())
    episodes = {
        model: [played[model, task, trial] for task in whole for trial in range(trials)]
        for model in models
    }
    results = tuple(_result(model, episodes[model]) for model in models)
    first, *others = models
    return Comparison(
        results, tuple(_difference(m, episodes[m], first, episodes[first]) for m in others)
    )


def _result(model: str, episodes: Sequence[Record]) -> Result:
    success, progress = _array(episodes, "reward"), _array(episodes, "progress")
    tasks, trials = success.shape
    outcomes = Counter(record["outcome"] for record in episodes)
    ended = np.array([r["outcome"] == "user_fault" for r in episodes], np.float64)
    return Result(
        model,
        tasks,
        trials,
        success=success_rate(success),
        success_unidle=_without_idle(episodes, success),
        progress=mean(progress),
        pass_hat=tuple(pass_hat(success, k) for k in range(1, trials + 1)),
        outcomes={outcome: outcomes[outcome] for outcome in OUTCOMES},
        user_fault=success_rate(ended.reshape(success.shape)),
        user_faults=dict(
            Counter(r["user_fault"] for r in episodes if r["outcome"] == "user_fault")
        ),
        steps=sum(record["steps"] for record in episodes),
        malformed=dict(sum((Counter(r["malformed"]) for r in episodes), Counter()).most_common()),
        tool_errors=sum(record["tool_errors"] for record in episodes),
        faults={kind: sum(record["faults"].get(kind, 0) for record in episodes) for kind in KINDS},
        usage={
            role: sum((usages_from_json(record)[role] for record in episodes), Usage())
            for role in ("agent", "user")
        },
    )


def _without_idle(episodes: Sequence[Record], success: Floats) -> Estimate | None:
    kept = _array(episodes, "passes_idle")[:, 0] == 0.0
    return success_rate(success[kept]) if 0 < kept.sum() < len(kept) else None


def _difference(
    model: str, episodes: Sequence[Record], baseline: str, others: Sequence[Record]
) -> Difference:
    success, other_success = _array(episodes, "reward"), _array(others, "reward")
    return Difference(
        model,
        baseline,
        success=difference(success, other_success),
        by_task=sign_test(success, other_success),
        progress=difference(_array(episodes, "progress"), _array(others, "progress")),
    )


def _array(episodes: Sequence[Record], name: str) -> Floats:
    """Return a value of sorted episodes as an array of shape ``(tasks, trials)``."""
    tasks = len({record["task_id"] for record in episodes})
    return np.array([record[name] for record in episodes], np.float64).reshape(tasks, -1)


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text: for the terminal, and for a paper."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """Return the table in Markdown, its first column to the left and numbers to the right."""
        rule = ("---", *("---:" for _ in self.header[1:]))
        lines = (self.header, rule, *self.rows)
        return "\n".join(f"| {' | '.join(c.replace('|', '&#124;') for c in x)} |" for x in lines)


def tables(comparison: Comparison) -> list[Table]:
    """Write the figures as tables, a column for each model: results, and differences if any."""
    results, differences = comparison.results, comparison.differences
    trials, baseline = results[0].trials, results[0].model
    rows = {
        "Success, %": [percent(r.success) for r in results],
        "Progress, %": [percent(r.progress) for r in results],
        "User faults, %": [percent(r.user_fault) for r in results],
    }
    if any(r.success_unidle for r in results):
        rows["Success without idle tasks, %"] = [
            percent(r.success_unidle) if r.success_unidle else "-" for r in results
        ]
    for k in range(1, trials + 1) if trials > 1 else ():
        rows[f"pass^{k}, %"] = [f"{100 * r.pass_hat[k - 1]:.1f}" for r in results]
    for outcome in OUTCOMES:
        rows[f"Episodes: {outcome}"] = [f"{r.outcomes[outcome]:,}" for r in results]
    for kind in sorted({kind for r in results for kind in r.user_faults}):
        rows[f"User fault: {kind}"] = [f"{r.user_faults.get(kind, 0):,}" for r in results]
    rows["Messages"] = [f"{r.steps:,}" for r in results]
    rows["Messages: malformed"] = [f"{sum(r.malformed.values()):,}" for r in results]
    for kind in get_args(Mistake):
        if any(kind in r.malformed for r in results):
            rows[f"Malformed: {kind}"] = [f"{r.malformed.get(kind, 0):,}" for r in results]
    rows["Messages: tool error"] = [f"{r.tool_errors:,}" for r in results]
    rows["Faults of the customers"] = [f"{sum(r.faults.values()):,}" for r in results]
    for role in results[0].usage:
        usages = [result.usage[role] for result in results]
        if any(usage.tokens != 0 for usage in usages):
            rows |= _ledger(role.capitalize(), usages)
    shown = [_table_of("", [r.model for r in results], rows)]
    if differences:
        rows = {
            "Success, points": [percent(d.success, "+") for d in differences],
            "Progress, points": [percent(d.progress, "+") for d in differences],
            "Tasks better : worse": [
                f"{d.by_task.better} : {d.by_task.worse}" for d in differences
            ],
            "Sign test, p": [f"{d.by_task.p_value:.2g}" for d in differences],
        }
        shown.append(_table_of(f"Less {baseline}", [d.model for d in differences], rows))
    return shown


def _ledger(role: str, usages: Sequence[Usage]) -> dict[str, list[str]]:
    """Return what a role took, as lines of a table."""
    return {
        f"{role}: calls": [f"{usage.calls:,}" for usage in usages],
        f"{role}: retries": [f"{usage.retries:,}" for usage in usages],
        f"{role}: tokens read": [_figure(usage.prompt) for usage in usages],
        f"{role}: of these from a cache": [_figure(usage.cached) for usage in usages],
        f"{role}: tokens written": [_figure(usage.completion) for usage in usages],
        f"{role}: seconds in calls": [_figure(usage.seconds, ",.1f") for usage in usages],
        f"{role}: US dollars billed": [_figure(usage.usd, ",.4f") for usage in usages],
    }


def _figure(value: float | None, form: str = ",") -> str:
    return "unknown" if value is None else format(value, form)


def _table_of(title: str, models: list[str], rows: Mapping[str, list[str]]) -> Table:
    return Table((title, *models), tuple((name, *cells) for name, cells in rows.items()))


def percent(estimate: Estimate, sign: str = "-") -> str:
    """Write an estimate in per cent, with its interval."""
    value, low, high = (100 * x for x in (estimate.value, estimate.low, estimate.high))
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"
