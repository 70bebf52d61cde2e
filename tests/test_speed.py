"""The speed command: what it measures is there, and is what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.speed import HOSTILE, operations, repeated
from toolwoz_gym import load_world, make_env
from toolwoz_gym.actions import MAX_CHARS
from toolwoz_gym.toolwoz.tables import Tables
from toolwoz_gym.toolwoz.tools import DOMAINS, KEYS

SMALL = ["--repetitions", "3", "--open", "1", "20", "--rows", "1", "2"]


def test_the_command_prints_what_it_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--repetitions", "0"], "at least one repetition"),
        (["--open", "10", "0"], "are at least 1"),
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
