"""``python -m benchmarks``: measure agents and the suite itself."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from agents.base import BackendError
from benchmarks.controls import ControlOptions
from benchmarks.controls import run as prove
from benchmarks.evaluate import EvaluateOptions
from benchmarks.evaluate import run as evaluate
from toolwoz_gym.cli import main_cli


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return main_cli(
        "python -m benchmarks",
        "Measure agents and the suite itself.",
        {
            "evaluate": (EvaluateOptions, evaluate),
            "controls": (ControlOptions, prove),
        },
        args,
        resumable=(BackendError,),
    )


if __name__ == "__main__":
    sys.exit(main())
