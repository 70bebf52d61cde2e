"""``python -m training kto|sft``: train a LoRA adapter on rows of dialogue."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from toolwoz_gym.cli import main_cli
from training.kto import KTOOptions, train_kto
from training.output import RECORD
from training.sft import SFTOptions, train_sft


def _kto(options: KTOOptions) -> None:
    known = (options.folder / RECORD).exists()
    _report(options.folder, train_kto(options), known)


def _sft(options: SFTOptions) -> None:
    known = (options.out / RECORD).exists()
    _report(options.out, train_sft(options), known)


def _report(out: Path, record: dict[str, Any], known: bool) -> None:
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
            {"kto": (KTOOptions, _kto), "sft": (SFTOptions, _sft)},
        )
    )
