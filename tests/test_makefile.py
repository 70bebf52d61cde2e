"""What make hands on to the commands, and that it ignores nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def make(*words: str, **variables: str) -> tuple[int, str]:
    """Return the exit code of make, and the last command that it would run, or what it says."""
    environment = {"PATH": os.environ["PATH"], **variables}
    done = subprocess.run(
        ["make", "-n", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stderr or done.stdout.replace("\\\n", " ")
    return done.returncode, " ".join(said.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["harvest"], "josh_search harvest --run runs/demo"),
        (
            ["harvest", "RUN=a", "TASKS=3", "SEED=0", "BACKEND=vllm", "FLAGS=--exact"],
            "josh_search harvest --run runs/a --tasks 3 --backend vllm --seed 0 --exact",
        ),
        (["train", "MODEL=x", "SEED=3"], "training kto --run runs/demo --model x --seed 3"),
        (
            ["evaluate", "EVAL_TASKS=8", "EVAL_SPLIT=test", "BACKEND=vllm", "MODEL=x"],
            "benchmarks evaluate --run runs/demo/evaluation --adapter runs/demo/adapter "
            "--split test --tasks 8 --model x --backend vllm",
        ),
        (
            ["harvest", "evaluate", "TASKS=8"],
            "benchmarks evaluate --run runs/demo/evaluation --adapter runs/demo/adapter",
        ),
    ],
)
def test_what_is_set_becomes_a_flag(words: list[str], command: str) -> None:
    assert make(*words) == (0, f".venv/bin/python -m {command}")


@pytest.mark.parametrize(
    ("target", "variable", "hint"),
    [
        ("evaluate", "TASKS", "EVAL_TASKS and EVAL_SPLIT are its own"),
        ("evaluate", "SPLIT", "EVAL_TASKS and EVAL_SPLIT are its own"),
        ("evaluate", "STRATEGY", "leave it out"),
        ("train", "BACKEND", "leave it out"),
        ("harvest", "EVAL_TASKS", "leave it out"),
        ("warmstart", "SEED", "leave it out"),
    ],
)
def test_what_a_target_would_ignore_is_refused(target: str, variable: str, hint: str) -> None:
    for code, said in (make(target, f"{variable}=8"), make(target, **{variable: "8"})):
        assert code == 2
        assert f"make {target} would ignore {variable}: {hint}. Stop." in said


def test_other_targets_take_no_notice_of_the_environment() -> None:
    assert make("check", "SEED=1")[0] == 2
    assert make("check", SEED="1", ENV="production") == (0, ".venv/bin/mypy")
