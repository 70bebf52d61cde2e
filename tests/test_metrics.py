"""Statistics: published values, cases worked by hand, and properties."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.metrics import (
    Estimate,
    Floats,
    SignTest,
    difference,
    mean,
    pass_hat,
    sign_test,
    success_rate,
    wilson,
)


def array(*tasks: Sequence[float]) -> Floats:
    return np.array(tasks, np.float64)


def interval(estimate: Estimate) -> list[float]:
    return [estimate.low, estimate.high]


shapes = st.tuples(st.integers(1, 6), st.integers(1, 4))


@st.composite
def outcomes(draw: st.DrawFn, count: int = 1) -> tuple[Floats, ...]:
    """Successes of ``count`` models on the same tasks and trials."""
    tasks, trials = draw(shapes)
    rows = st.lists(st.sampled_from([0.0, 1.0]), min_size=trials, max_size=trials)
    return tuple(array(*draw(st.lists(rows, min_size=tasks, max_size=tasks))) for _ in range(count))


@pytest.mark.parametrize(  # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3
    ("successes", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(
    successes: int, n: int, low: float, high: float
) -> None:
    assert interval(wilson(successes / n, n)) == pytest.approx([low, high], abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_stays_in_the_unit_interval_around_the_rate(tries: tuple[int, int]) -> None:
    successes, n = tries
    estimate = wilson(successes / n, n)
    assert 0 <= estimate.low <= estimate.value == successes / n <= estimate.high <= 1
    assert estimate.high - estimate.low > 0
    mirrored = wilson(1 - successes / n, n)
    assert mirrored.low == pytest.approx(1 - estimate.high)


@given(outcomes())
def test_repeating_the_same_trials_is_no_new_evidence(played: tuple[Floats]) -> None:
    once = played[0][:, :1]
    again = np.repeat(once, 3, axis=1)
    assert success_rate(once) == wilson(float(once.mean()), len(once))
    assert interval(success_rate(again)) == pytest.approx(interval(success_rate(once)))


def test_trials_that_differ_as_independent_ones_would_are_evidence() -> None:
    # Four tasks, two trials, rates 0, 1/2, 1/2, 1: their variance is that of independent trials,
    # (1/4 + 1/4) / 3 / 4 = 1/24 against 1/4 / 8 = 1/32, so 8 episodes count as 8 * 24/32 = 6.
    success = array([0, 0], [0, 1], [1, 0], [1, 1])
    assert success_rate(success) == wilson(0.5, 6)


@pytest.mark.parametrize("solved", [0.0, 1.0])
@pytest.mark.parametrize("tasks", [1, 2, 40])
@pytest.mark.parametrize("trials", [1, 3])
def test_tasks_that_agree_do_not_make_it_certain(solved: float, tasks: int, trials: int) -> None:
    values = np.full((tasks, trials), solved)
    # Agresti and Coull's interval, by hand: 2 of n + 4, or all but 2 of them.
    centre = (2 + tasks * solved) / (tasks + 4)
    half = 1.96 * (centre * (1 - centre) / (tasks + 4)) ** 0.5
    estimate = mean(values)
    assert estimate.value == solved
    assert interval(estimate) == pytest.approx(
        [max(0, centre - half), min(1, centre + half)], abs=1e-4
    )
    assert success_rate(values).high - success_rate(values).low > 0.05


def test_means_of_tasks_are_what_counts() -> None:
    assert mean(array([0.25, 0.75])) == mean(array([0.5])) == mean(array([0.5] * 3))
    assert interval(mean(array([0, 0], [1, 1]))) == pytest.approx([0.1, 0.9], abs=1e-4)


def test_the_interval_of_a_difference_is_bonett_and_prices() -> None:
    # Of 40 tasks, 7 are better and 2 are worse: (8 - 3) / 42 with the variance
    # ((8 + 3) / 42 - (5 / 42)^2) / 42.
    one = array(*[[1]] * 17, *[[0]] * 23)
    other = array(*[[1]] * 10, *[[0]] * 28, *[[1]] * 2)
    estimate = difference(one, other)
    assert estimate.value == pytest.approx(5 / 40)
    half = 1.96 * ((11 / 42 - (5 / 42) ** 2) / 42) ** 0.5
    assert interval(estimate) == pytest.approx([5 / 42 - half, 5 / 42 + half], abs=1e-4)


@pytest.mark.parametrize("tasks", [1, 2, 5, 20])
@pytest.mark.parametrize("better", [0.0, 0.05, 0.2, 0.4])
@pytest.mark.parametrize("worse", [0.0, 0.05, 0.2, 0.4])
def test_intervals_of_few_tasks_hold_the_truth_about_as_often_as_they_say(
    tasks: int, better: float, worse: float
) -> None:
    """Add up the chances of all results whose interval holds the true difference."""
    held = 0.0
    for wins in range(tasks + 1):
        for losses in range(tasks + 1 - wins):
            ways = math.comb(tasks, wins) * math.comb(tasks - wins, losses)
            even = tasks - wins - losses
            chance = ways * better**wins * worse**losses * (1 - better - worse) ** even
            one = np.repeat([1.0, 0.0, 0.0], [wins, losses, even])[:, None]
            other = np.repeat([0.0, 1.0, 0.0], [wins, losses, even])[:, None]
            estimate = difference(one, other)
            held += chance * (estimate.low - 1e-9 <= better - worse <= estimate.high + 1e-9)
    assert held > 0.92


def test_intervals_agree_with_the_normal_ones_of_a_large_sample() -> None:
    values = np.random.default_rng(5).random((400, 1))
    half = 1.96 * values.std() / 20
    estimate = mean(values)
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.002)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.002)


@given(outcomes(2))
def test_a_difference_is_antisymmetric(played: tuple[Floats, Floats]) -> None:
    one, other = played
    there, back = difference(one, other), difference(other, one)
    assert there.low <= there.value <= there.high
    assert back.value == -there.value
    assert interval(back) == pytest.approx([-there.high, -there.low])
    test, mirrored = sign_test(one, other), sign_test(other, one)
    assert mirrored == SignTest(test.worse, test.better, test.p_value)


@given(outcomes())
def test_identical_results_differ_by_nothing_as_far_as_one_can_tell(played: tuple[Floats]) -> None:
    estimate = difference(played[0], played[0])
    assert estimate.value == 0
    assert estimate.high == pytest.approx(-estimate.low)
    assert 0.2 < estimate.high <= 1
    assert sign_test(played[0], played[0]) == SignTest(0, 0, 1.0)


def test_pairing_makes_the_interval_narrow() -> None:
    # The one model is better by 1/4 in each task, however much the tasks differ.
    tasks = np.linspace(0, 0.75, 400).reshape(400, 1)
    paired = difference(tasks + 0.25, tasks)
    assert interval(paired) == pytest.approx([0.25, 0.25], abs=0.012)
    shuffled = np.random.default_rng(0).permutation(tasks)
    alone = difference(tasks + 0.25, shuffled)
    assert alone.high - alone.low > 3 * (paired.high - paired.low)


@pytest.mark.parametrize(
    ("better", "worse", "p_value"),
    [(6, 0, 2 / 64), (5, 1, 14 / 64), (8, 2, 112 / 1024), (1, 1, 1.0)],
)
def test_the_sign_test_is_the_exact_mcnemar_test(better: int, worse: int, p_value: float) -> None:
    tied = [[1], [0]]
    success = array(*[[1]] * better, *[[0]] * worse, *tied)
    others = array(*[[0]] * better, *[[1]] * worse, *tied)
    assert sign_test(success, others) == SignTest(better, worse, p_value)


def test_the_sign_test_counts_a_task_once() -> None:
    success, others = array([1, 1, 1], [1, 0, 1], [0, 0, 1]), array([0, 0, 0], [1, 1, 0], [0, 1, 1])
    assert sign_test(success, others) == SignTest(1, 1, 1.0)


def test_pass_hat_by_hand() -> None:
    # c = 4, 2, 0 of n = 4: pass^2 = (6/6 + 1/6 + 0) / 3, pass^3 = (1 + 0 + 0) / 3.
    success = array([1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0])
    assert [pass_hat(success, k) for k in (1, 2, 3, 4)] == pytest.approx(
        [1 / 2, 7 / 18, 1 / 3, 1 / 3]
    )


@given(outcomes())
def test_pass_hat_falls_from_the_success_rate(played: tuple[Floats]) -> None:
    chances = [pass_hat(played[0], k) for k in range(1, played[0].shape[1] + 1)]
    assert chances[0] == pytest.approx(played[0].mean())
    assert chances[-1] == played[0].all(axis=1).mean()
    assert chances == sorted(chances, reverse=True)
