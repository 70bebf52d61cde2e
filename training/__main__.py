"""``python -m training kto|sft|warmstart``: train a LoRA adapter on rows of dialogue."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolwoz_gym.cli import main_cli
from training.kto import KTOOptions, train_kto
from training.output import RECORD
from training.sft import SFTOptions, train_sft
from training.warmstart import WarmstartOptions, warmstart


def _kto(options: KTOOptions) -> None:
    _report(train_kto, options, options.folder)


def _sft(options: SFTOptions) -> None:
    _report(train_sft, options, options.out)


def _warmstart(options: WarmstartOptions) -> None:
    _report(warmstart, options, options.out / "adapter")


def _report(train: Callable[[Any], dict[str, Any]], options: Any, out: Path) -> None:
    known = (out / RECORD).exists()
    record = train(options)
    if record["kind"] == "kto":
        rows = f"{record['good']} good and {record['bad']} bad rows"
    else:
        rows = f"{record['messages']} messages of {record['dialogues']} dialogues"
    done = "already done: " if known else ""
    print(f"{done}{rows}, {record['steps']} steps, {record['seconds']:.0f} s")
    for reason, count in record["dropped"].items():
        print(f"dropped {count}: {reason}")
    if record.get("advice"):
        print(f"advice: {record['advice']}")
    print(f"adapter, training.json and curve.png are in {out}")


if __name__ == "__main__":
    sys.exit(
        main_cli(
            "python -m training",
            "Train a LoRA adapter on rows of dialogue.",
            {
                "kto": (KTOOptions, _kto),
                "sft": (SFTOptions, _sft),
                "warmstart": (WarmstartOptions, _warmstart),
            },
        )
    )
