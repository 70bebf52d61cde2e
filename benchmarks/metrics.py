"""Statistics of an evaluation: how sure one can be of what was measured.

Everything takes the results of episodes as an array of shape ``(tasks, trials)``. Trials of one
task are not independent of each other, so the task is the unit of chance throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

CONFIDENCE = 0.95
"""Level of every interval."""

_BLOCKS, _BLOCK = 10, 1000
"""Bootstrap resamples, drawn a block at a time to spare memory."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measured value and its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class SignTest:
    """In how many tasks one model did better than another, and whether that can be chance."""

    better: int
    worse: int
    p_value: float
    """Two-sided, exact."""


def success_rate(success: Floats) -> Estimate:
    """Return the rate of success with its Wilson interval (Wilson 1927, JASA 22:209).

    With several trials, the number of episodes in the formula is divided by the design effect (Kish
    1965, Survey Sampling, section 5.4), so that repeating a task is no new evidence unless its
    trials differ (Dean and Pagano 2015, J. Surv. Stat. Methodol. 3:484).

    Args:
        success: 1.0 where an episode succeeded, else 0.0; shape ``(tasks, trials)``.
    """
    return wilson(float(success.mean()), success.size / _design_effect(success))


def wilson(rate: float, n: float) -> Estimate:
    """Return a rate observed in ``n`` independent tries with its Wilson score interval."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return Estimate(rate, max(0.0, min(centre - half, rate)), min(1.0, max(centre + half, rate)))


def _design_effect(success: Floats) -> float:
    """Return by how much the trials' dependence swells the variance: between 1 and ``trials``."""
    tasks, trials = success.shape
    rate = float(success.mean())
    independent = rate * (1 - rate) / success.size
    if tasks == 1 or independent == 0.0:
        return float(trials)  # nothing shows that trials can differ
    clustered = float(success.mean(axis=1).var(ddof=1)) / tasks
    return float(np.clip(clustered / independent, 1.0, trials))


def mean(values: Floats) -> Estimate:
    """Return a mean of values between 0 and 1, and its interval.

    It is the normal interval over tasks, after two tasks of value 0 and two of value 1 were added
    (Agresti and Coull 1998, Am. Stat. 52:119, who add them to a share's successes and failures). So
    it has a width where all tasks agree, or where there is but one.

    Args:
        values: Shape ``(tasks, trials)``.
    """
    return _adjusted(values, (0.0, 0.0, 1.0, 1.0))


def difference(values: Floats, others: Floats) -> Estimate:
    """Return the mean of ``values - others``, paired by task and trial, and its interval.

    It is the normal interval over tasks, after a task of difference 1 and one of -1 were added
    (Bonett and Price 2012, J. Educ. Behav. Stat. 37:479, who do so for one trial and successes).

    Args:
        values: Between 0 and 1; shape ``(tasks, trials)``.
        others: The same tasks and trials, played by another model.
    """
    return _adjusted(values - others, (-1.0, 1.0))


def _adjusted(values: Floats, added: tuple[float, ...]) -> Estimate:
    """Return the mean over tasks, and the normal interval after some tasks were added."""
    tasks = values.mean(axis=1)
    more = np.concatenate([tasks, added])
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * float(more.std()) / math.sqrt(len(more))
    value, centre = float(tasks.mean()), float(more.mean())
    low, high = max(min(added), centre - half), min(max(added), centre + half)
    return Estimate(value, min(low, value), max(high, value))


def ratio(values: Floats, costs: Floats, *, seed: int) -> Estimate:
    """Return ``values.sum() / costs.sum()`` with its percentile interval from a bootstrap.

    Whole tasks are drawn with replacement, each with all of its trials (Efron and Tibshirani 1993,
    An Introduction to the Bootstrap, chapter 13; Field and Welsh 2007, JRSS B 69:369). Where the
    resamples do not differ, as those of a single task, nothing is known: from 0 to infinity.

    Args:
        values: Shape ``(tasks, trials)``.
        costs: The same shape; each task's are positive.
        seed: Equal seeds and arrays, equal intervals.
    """
    return _resampled(lambda v, c: v / c, values, costs, seed=seed)


def relative_ratio(
    values: Floats, costs: Floats, other_values: Floats, other_costs: Floats, *, seed: int
) -> Estimate:
    """Return how many times ``other_values.sum() / other_costs.sum()`` a ratio is, paired by task.

    The interval is that of :func:`ratio`; what is compared with itself is certain. Resamples in
    which the others have no value at all are infinite.

    Args:
        values: Shape ``(tasks, trials)``, and so the costs.
        costs: What the values cost.
        other_values: The same tasks and trials, by other means.
        other_costs: What they cost.
        seed: Equal seeds and arrays, equal intervals.
    """
    if np.array_equal(values, other_values) and np.array_equal(costs, other_costs) and values.any():
        return Estimate(1.0, 1.0, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _resampled(
            lambda v, c, w, d: (v / c) / (w / d),
            *(values, costs, other_values, other_costs),
            seed=seed,
        )


def _resampled(figure: Callable[..., Floats], *arrays: Floats, seed: int) -> Estimate:
    """Return a figure of the arrays' sums over tasks, and its interval from a bootstrap."""
    sums, random = [array.sum(axis=1) for array in arrays], np.random.default_rng(seed)
    n = len(sums[0])
    drawn = []
    for _ in range(_BLOCKS):
        picks = random.integers(n, size=(_BLOCK, n))
        drawn.append(figure(*(total[picks].sum(axis=1) for total in sums)))
    tail = (1 - CONFIDENCE) / 2
    whole = float(figure(*(total.sum() for total in sums)))
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail], method="lower")
    if not low < high:
        low, high = 0.0, math.inf
    return Estimate(whole, float(low), float(high))


def sign_test(success: Floats, others: Floats) -> SignTest:
    """Compare two models task by task; tasks in which they succeed equally often do not count.

    With one trial per task this is the exact McNemar test (McNemar 1947, Psychometrika 12:153; its
    exact form is the sign test on the discordant pairs, Conover 1999, Practical Nonparametric
    Statistics, section 3.5).

    Args:
        success: 1.0 where an episode succeeded, else 0.0; shape ``(tasks, trials)``.
        others: The same tasks and trials, played by another model.
    """
    balance = (success - others).sum(axis=1)
    better, worse = int((balance > 0).sum()), int((balance < 0).sum())
    n = better + worse
    tail = sum(math.comb(n, i) for i in range(min(better, worse) + 1))
    return SignTest(better, worse, min(1.0, 2 * tail / 2**n))


def pass_hat(success: Floats, k: int) -> float:
    """Return pass^k: the chance that ``k`` trials of a task all succeed, averaged over tasks.

    Of a task's ``n`` trials, of which ``c`` succeeded, ``C(c, k) / C(n, k)`` is the unbiased
    estimate (Yao et al. 2024, tau-bench, arXiv:2406.12045, section 3).

    Args:
        success: 1.0 where an episode succeeded, else 0.0; shape ``(tasks, trials)``.
        k: At most ``trials``.
    """
    all_ways = math.comb(success.shape[1], k)
    return sum(math.comb(int(c), k) / all_ways for c in success.sum(axis=1)) / len(success)
