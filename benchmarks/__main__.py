"""``python -m benchmarks``: measure agents and the suite itself."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from agents.base import BackendError
from benchmarks.controls import ControlOptions
from benchmarks.controls import run as prove
from benchmarks.evaluate import EvaluateOptions
from benchmarks.evaluate import run as evaluate
from benchmarks.generation import GenerationOptions
from benchmarks.generation import run as generation
from benchmarks.noise import NoiseOptions
from benchmarks.noise import run as noise
from benchmarks.reproducibility import ReproducibilityOptions
from benchmarks.reproducibility import run as reproducibility
from benchmarks.search_efficiency import EfficiencyOptions
from benchmarks.search_efficiency import run as search_efficiency
from benchmarks.speed import SpeedOptions
from benchmarks.speed import run as speed
from toolwoz_gym.cli import main_cli


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return main_cli(
        "python -m benchmarks",
        "Measure agents and the suite itself.",
        {
            "evaluate": (EvaluateOptions, evaluate),
            "controls": (ControlOptions, prove),
            "speed": (SpeedOptions, speed),
            "generation": (GenerationOptions, generation),
            "noise": (NoiseOptions, noise),
            "reproducibility": (ReproducibilityOptions, reproducibility),
            "search_efficiency": (EfficiencyOptions, search_efficiency),
        },
        args,
        resumable=(BackendError,),
    )


if __name__ == "__main__":
    sys.exit(main())
