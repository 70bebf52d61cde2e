"""Supervised fine-tuning: the policy learns to write the assistant's messages of good dialogues."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolwoz_gym.progress import phase
from toolwoz_gym.records import file_digest
from toolwoz_gym.types import UsageError
from training.dataset import read_rows, shuffle
from training.options import TrainOptions
from training.output import finished, staged


@dataclass(frozen=True, kw_only=True, slots=True)
class SFTOptions(TrainOptions):
    """Train a LoRA adapter by supervised fine-tuning, with loss on assistant messages only."""

    rows: Path
    """File of rows to learn from: the sft.jsonl of a harvest, or whole dialogues."""
    out: Path
    """Folder for the adapter and the records of its training."""
    learning_rate: float = 2e-4
    """Peak learning rate. It warms up from 0 and falls along a cosine."""


def train_sft(options: SFTOptions) -> dict[str, Any]:
    """Fine-tune an adapter and write it with its records to ``options.out``.

    Returns:
        What ``training.json`` holds. The same training is not done twice: its record is returned.

    Raises:
        UsageError: An option or a row is wrong, there is nothing to learn from, the model's chat
            template does not fit, or the folder holds something else.
    """
    options.check()
    asked = {"kind": "sft", "options": options.to_json(), "rows_sha256": file_digest(options.rows)}
    if (done := finished(options.out, asked)) is not None:
        return done
    rows = shuffle(read_rows(options.rows, "sft"), options.seed)

    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from training.encode import encode_all
    from training.policy import load_policy
    from training.trainer import arguments, quiet, train

    with staged(options.out, asked) as stage, quiet():
        with phase(f"loading {options.model} and {len(rows):,} rows"):
            policy = load_policy(options)
            kept, dropped = encode_all(policy.tokenizer, rows, options.max_length)
        if not kept:
            raise UsageError(f"{options.rows}: no rows are left to learn from ({dict(dropped)})")
        trainer = SFTTrainer(
            model=policy.model,
            args=SFTConfig(**arguments(options, stage)),
            train_dataset=Dataset.from_list(
                [{"input_ids": encoded.ids, "labels": encoded.labels} for encoded in kept]
            ),
            processing_class=policy.tokenizer,
            peft_config=policy.new_adapter,
        )
        return train(
            stage,
            trainer=trainer,
            policy=policy,
            options=options,
            record={
                **asked,
                "dialogues": len(kept),
                "messages": sum(len(encoded.spans) for encoded in kept),
            },
            dropped=dropped,
        )
