"""Statistics: published values, cases worked by hand, and properties."""

from __future__ import annotations

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


def test_the_bootstrap_draws_whole_tasks() -> None:
    # Of two tasks with means 0 and 1, a resample has the mean 0, 1/2 or 1, with chances 1/4, 1/2,
    # 1/4: both ends lie outside the central 95 %. Six single episodes would make that 1/64.
    assert mean(array([0, 0, 0], [1, 1, 1]), seed=0) == Estimate(0.5, 0.0, 1.0)
    assert mean(array([0.25, 0.75]), seed=0) == Estimate(0.5, 0.5, 0.5)


def test_the_bootstrap_agrees_with_the_normal_interval_of_a_large_sample() -> None:
    values = np.random.default_rng(5).random((400, 1))
    half = 1.96 * values.std() / 20
    estimate = mean(values, seed=1)
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.003)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.003)
    assert estimate == mean(values, seed=1) != mean(values, seed=2)


@given(outcomes(2))
def test_a_difference_is_antisymmetric(played: tuple[Floats, Floats]) -> None:
    one, other = played
    there, back = difference(one, other, seed=3), difference(other, one, seed=3)
    assert there.low <= there.value <= there.high
    assert back.value == -there.value
    assert interval(back) == pytest.approx([-there.high, -there.low])
    test, mirrored = sign_test(one, other), sign_test(other, one)
    assert mirrored == SignTest(test.worse, test.better, test.p_value)


@given(outcomes())
def test_identical_results_differ_by_nothing(played: tuple[Floats]) -> None:
    assert difference(played[0], played[0], seed=0) == Estimate(0, 0, 0)
    assert sign_test(played[0], played[0]) == SignTest(0, 0, 1.0)


def test_pairing_makes_the_interval_narrow() -> None:
    # Each task is easier for the one model by exactly 1/4, however much the tasks differ.
    tasks = np.linspace(0, 0.75, 12).reshape(12, 1)
    assert interval(difference(tasks + 0.25, tasks, seed=0)) == pytest.approx([0.25, 0.25])


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
