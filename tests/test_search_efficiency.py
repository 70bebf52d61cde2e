"""The comparison of searches: one budget for all, an honest table, and it goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.metrics import Estimate, ratio, relative_ratio
from benchmarks.search_efficiency import BASELINE, CONTENDERS
from toolwoz_gym.records import read_jsonl

BUDGET = 300
LONGEST = 100
"""No output of the erring script has more tokens."""


def options(run: Path, *more: str) -> list[str]:
    command = ["search_efficiency", "--agent", "erring", "--world", "builtin:domains=1"]
    return [*command, "--tasks", "5", "--budget", str(BUDGET), "--run", str(run), *more]


def test_every_strategy_plays_every_task_on_one_budget(tmp_path: Path) -> None:
    assert main(options(tmp_path / "run", "--seeds", "2")) == 0
    shown = (tmp_path / "run" / "search_efficiency.md").read_text()
    records = list(read_jsonl(tmp_path / "run" / "searches.jsonl"))
    assert [r["key"] for r in records] == [f"{n}/{seed}" for seed in (0, 1) for n in CONTENDERS]
    for record in records:
        leaves = CONTENDERS[record["strategy"]].beam if "josh" in record["strategy"] else 1
        assert len({task["task_id"] for task in record["tasks"]}) == 5
        for task in record["tasks"]:
            # A step that has begun is finished: a turn of at most three outputs at every leaf.
            assert 0 < task["tokens"] <= BUDGET + 3 * leaves * LONGEST
            assert task["solved"] or task["tokens"] >= BUDGET
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for name in CONTENDERS:
        figures, own = summary["figures"][name], [r for r in records if r["strategy"] == name]
        tasks = [task for record in own for task in record["tasks"]]
        solved, tokens = sum(t["solved"] for t in tasks), sum(t["tokens"] for t in tasks)
        assert figures["tokens"] == tokens
        assert figures["solved"]["value"] == solved / 10
        assert figures["solved_per_million"]["value"] == pytest.approx(1e6 * solved / tokens)
        rows = figures["good"] + figures["bad"]
        assert figures["rows_per_million"]["value"] == pytest.approx(1e6 * rows / tokens)
        assert f"| {name} | {100 * solved / 10:.1f} [" in shown
    assert summary["figures"][BASELINE]["times_baseline"]["value"] == pytest.approx(1)
    assert (tmp_path / "run" / "search_efficiency.png").stat().st_size > 10_000


def test_it_goes_on_where_it_was_and_plays_alike(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    few = ("--only", "chains", BASELINE)
    assert main(options(whole, "--seeds", "2", *few)) == 0
    assert main(options(parts, "--seeds", "1", "--only", "chains")) == 0
    first = (parts / "searches.jsonl").read_bytes()
    assert main(options(parts, "--seeds", "2", "--trees", "1", *few)) == 0
    assert (parts / "searches.jsonl").read_bytes().startswith(first)

    def played(run: Path) -> dict[str, object]:
        return {r["key"]: r["tasks"] for r in read_jsonl(run / "searches.jsonl")}

    assert played(whole) == played(parts) and len(played(whole)) == 4


def test_it_can_begin_later_in_the_split(tmp_path: Path) -> None:
    assert main(options(tmp_path / "a", "--only", "chains", "--seeds", "1")) == 0
    assert main(options(tmp_path / "b", "--only", "chains", "--seeds", "1", "--skip", "3")) == 0
    (a,), (b,) = (read_jsonl(tmp_path / name / "searches.jsonl") for name in "ab")
    assert a["tasks"][3:] == b["tasks"][:2]


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (("--only", "beam"), "there is no 'beam'; choose among: chains; josh, beam 2"),
        (("--budget", "0"), "budget must be at least 1"),
        (("--skip", "9999999"), "the split 'train' without the first 9999999 has 0 tasks only"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], line: str
) -> None:
    assert main(options(tmp_path / "run", *more)) == 2
    assert f"error: {line}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_script_that_writes_no_tokens_has_no_budget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options(tmp_path / "run", "--agent", "expert")) == 2
    assert "error: nobody counts the tokens" in capsys.readouterr().err
    assert main(options(tmp_path / "run", "--only", "chains", "--seeds", "1")) == 0


def test_ratios_by_hand() -> None:
    solved, costs = np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([[10.0, 30.0], [10.0, 10.0]])
    estimate = ratio(solved, costs, seed=0)
    # Resampling the two tasks gives 1/40, 3/60 and 2/20, and no other ratio.
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((3 / 60, 1 / 40, 2 / 20))
    other = np.array([[0.0, 0.0], [1.0, 1.0]])
    times = relative_ratio(solved, costs, other, costs, seed=0)
    assert times.value == pytest.approx(3 / 2) and times.low == pytest.approx(1)
    assert times.high == float("inf")


def test_tasks_that_agree_say_nothing_of_others() -> None:
    solved, none, costs = np.ones((2, 1)), np.zeros((2, 1)), np.full((2, 1), 10.0)
    for values, value in ((solved, 0.1), (none, 0.0)):
        estimate = ratio(values, costs, seed=0)
        assert (estimate.value, estimate.low, estimate.high) == (value, 0.0, float("inf"))
    assert relative_ratio(solved, costs, solved, 2 * costs, seed=0).high == float("inf")
    assert relative_ratio(solved, costs, solved, costs, seed=0) == Estimate(1.0, 1.0, 1.0)
