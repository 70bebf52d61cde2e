"""The speed command: what it measures is there, and is what it says."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.harvest_load import ModelStub, measure_load, search_us
from benchmarks.speed import HOSTILE, operations, repeated
from benchmarks.tau_speed import gold_run, grow_tree, hold_forks
from benchmarks.tau_speed import operations as tau_operations
from toolwoz_gym import DialogueEnv, load_world, make_env
from toolwoz_gym.actions import MAX_CHARS
from toolwoz_gym.tau_bench.data import load_tau_bench, prepare_tau_bench
from toolwoz_gym.toolwoz.tables import Tables
from toolwoz_gym.toolwoz.tools import DOMAINS, KEYS


@pytest.fixture
def tau_bench(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder in which τ-bench is prepared."""
    prepare_tau_bench(tmp_path / "tau_bench", shared / "data" / "tau_bench")
    monkeypatch.setenv("TOOLWOZ_DATA", str(tmp_path))
    return tmp_path


SMALL = ["--repetitions", "3", "--open", "1", "20", "--rows", "1", "2", "--latency"]


def test_the_command_prints_what_it_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOLWOZ_DATA", str(tmp_path))
    out = tmp_path / "speed.json"
    assert main(["speed", *SMALL, "--world", "builtin:tasks=100", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    report = json.loads(out.read_text("utf-8"))
    assert report["calibration_ms"] > 0
    assert set(report["env"]) == {"ToolWOZ-v0", "ToolWOZ-v1"}
    for figures in report["env"].values():
        for operation, timing in figures["operations"].items():
            assert f"\n{operation} " in shown
            assert 0 <= timing["low"] <= timing["median"] <= timing["high"]
        assert 0 < figures["sizes"]["KB of an open episode"] < 10
        assert set(figures["open"]) == {"1", "20"} and set(figures["rows"]) == {"1", "2"}
        name, milliseconds = figures["hostile"]
        assert milliseconds > 0 and name in shown
    assert "4,300" in shown and "1,700" in shown  # the reference's, beside ours
    assert report["tau_bench"] == {}
    (line,) = [line for line in shown.splitlines() if "TauBench" in line]
    assert "not prepared; run python -m toolwoz_gym data prepare tau_bench" in line


def test_the_command_times_both_domains_of_tau_bench(
    tau_bench: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    out = tau_bench / "speed.json"
    assert main(["speed", *SMALL, "--env", "TauBench-v0", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    report = json.loads(out.read_text("utf-8"))
    assert report["env"] == {} and set(report["tau_bench"]) == {"retail", "airline"}
    for name, figures in report["tau_bench"].items():
        assert f"TauBench-v0: {name}" in shown
        for operation, timing in figures["operations"].items():
            assert f"\n{operation} " in shown
            assert 0 <= timing["low"] <= timing["median"] <= timing["high"]
        assert set(figures["open"]) == {"1", "20"}
        for forks in figures["open"].values():
            assert figures["kb_idle"] < forks["kb"] < 50  # what they changed, and no more
    assert "425,000" in shown and "30,000" in shown  # the reference's, beside ours


@pytest.mark.parametrize("name", ["retail", "airline"])
def test_what_is_timed_of_tau_bench_is_what_it_says(tau_bench: Path, name: str) -> None:
    env = make_env("TauBench-v0", world=name, split=load_tau_bench(name).splits[0])
    dialogue, domain = env.dialogue, env.dialogue.domain
    runs = [gold_run(dialogue, task, 0) for task in env.tasks[:10]]
    assert all(domain.score(run.end) == 1.0 for run in runs)
    writes = [write for run in runs for write in run.writes]
    assert writes
    before = [(run.end.world, domain.digest(run.end.world)) for run in runs]
    for function, cases in tau_operations(env, runs).values():
        assert cases
        for case in cases[:3]:
            function(*case)
    for episode, call in writes:
        world, _ = domain.call(episode.task, episode.world, call)
        assert domain.digest(world) != domain.digest(episode.world)
    held = list[DialogueEnv]()
    hold_forks(env, writes, held, 7)
    assert len(held) == 7 and all(fork.snapshot().world.changes for fork in held)
    assert [(run.end.world, domain.digest(run.end.world)) for run in runs] == before


def test_the_tree_that_is_timed_is_fifteen_steps_deep_and_eight_leaves_wide(
    tau_bench: Path,
) -> None:
    env = make_env("TauBench-v0", world="airline")
    tree = grow_tree(env.dialogue, env.tasks[0], 0)
    widths = Counter(node.step for node in tree.nodes if node.parent is not None)
    assert [widths[step] for step in range(15)] == [2, 4, *[8] * 13]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--repetitions", "0"], "at least one repetition"),
        (["--open", "10", "0"], "are at least 1"),
        (["--latency", "0"], "more than 0 seconds"),
        (["--rows", "0"], "are at least 1"),
        (["--env", "ToolWOZ-v9"], "no environment 'ToolWOZ-v9'"),
        (["--world", "mars"], "no world 'mars'"),
    ],
)
def test_mistakes_are_one_line(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["speed", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_every_operation_can_be_done_on_every_case() -> None:
    for name in ("ToolWOZ-v0", "ToolWOZ-v1"):
        env = make_env(name, world="builtin:tasks=100", split="val")
        env.reset(seed=0)
        before = env.snapshot()
        for function, cases in operations(env).values():
            assert cases
            for case in cases[:20]:
                function(*case)
        assert env.snapshot() is before


def test_repeated_rows_have_keys_of_their_own_and_all_else_alike() -> None:
    tables = load_world("builtin").tables
    larger = Tables({d: repeated(tables[d].rows, d, 3) for d in DOMAINS})
    for domain in DOMAINS:
        before, after, key = tables[domain].rows, larger[domain].rows, KEYS[domain]
        assert len(after) == 3 * len(before) == len({row[key] for row in after})
        assert after[: len(before)] == before
        for row, copy in zip(before, after[-len(before) :], strict=True):
            assert {**copy, key: row[key]} == row


def test_hostile_actions_are_as_long_as_actions_may_be() -> None:
    assert all(MAX_CHARS / 4 < len(action) <= MAX_CHARS for action in HOSTILE.values())


# --- the harvest -----------------------------------------------------------------------------


def test_a_model_stub_is_busy_with_what_it_has_begun() -> None:
    """Two slots, three calls: two at once, and one after them."""
    model = ModelStub(2, 0.02)
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            pool.submit(model.call)
    first, _, third = sorted(model.begun)
    assert third >= first + 0.02
    assert model.busy(first, third + 0.02) <= 0.75 + 1e-6
    model.begun = [1.0, 1.0, 1.02]
    assert model.busy(1.0, 1.04) == pytest.approx(0.75)
    assert model.busy(1.01, 1.03) == pytest.approx(0.75)
    assert model.busy(1.02, 1.04) == pytest.approx(0.5)


def test_the_load_of_a_harvest_is_measured_until_its_tail() -> None:
    load = measure_load(0.001, trees=280)
    assert load.latency == 0.001 and load.seconds > 0 and load.calls > 280
    assert 0 < load.busy <= 1 and 0 < load.own < 10 and 0 < load.customer < 10
    assert load.own_us == pytest.approx(load.own * load.seconds / load.calls * 1e6)
    assert 0 < search_us(trees=3) < 100_000
