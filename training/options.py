"""What every training can be told: read by tyro from the command line, or from a YAML file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolwoz_gym.cli import check_choices, check_counts
from toolwoz_gym.types import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainOptions:
    """Options that KTO and supervised fine-tuning share."""

    model: str = "bundled"
    """The policy to train: "bundled", "bundled-base", a folder of a model or of an adapter, or a
    name on the Hugging Face hub. An adapter is trained further; a model without one gets one."""
    lora_r: int = 64
    """Rank of a new adapter. It goes on all linear layers but the output."""
    lora_alpha: int = 64
    """Scale of a new adapter: what it adds is multiplied by lora_alpha / lora_r."""
    lora_dropout: float = 0.05
    """Dropout inside a new adapter. KTO switches it off, so that policy and reference compare."""
    learning_rate: float
    """Peak learning rate. It warms up from 0 and falls along a cosine."""
    warmup_ratio: float = 0.1
    """Fraction of the steps to warm up in."""
    epochs: float = 1.0
    """Times to go through the rows."""
    max_steps: int | None = None
    """Stop after so many optimiser steps, whatever epochs says."""
    batch: int = 8
    """Rows per optimiser step."""
    device_batch: int = 2
    """Rows per forward pass: a divisor of batch. More is faster while memory lasts."""
    max_length: int = 5256
    """Rows of more tokens, prompt and completion together, are dropped and counted."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the forward pass; the adapter's weights are float32 in training. "auto" takes
    bfloat16 where the processor computes in it: most CUDA devices, CPUs with AVX512-BF16 or AMX."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """How the adapter is stored. bfloat16 halves it, but rounds away updates smaller than about
    0.2 % of a weight: keep float32 when the learning rate is small or training will go on."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: a fifth slower, far less memory."""
    seed: int = 0
    """Decides the order of the rows and the start of a new adapter."""

    def __post_init__(self) -> None:
        check_choices(self)

    def check(self) -> None:
        """Check what the types do not say.

        Raises:
            UsageError: A value is out of its range.
        """
        counts = ("lora_r", "lora_alpha", "batch", "device_batch", "max_length", "max_steps")
        check_counts(self, *counts)
        if self.learning_rate <= 0 or self.epochs <= 0:
            raise UsageError("learning_rate and epochs must be above 0")
        if not 0 <= self.warmup_ratio < 1 or not 0 <= self.lora_dropout < 1:
            raise UsageError("warmup_ratio and lora_dropout must be in [0, 1)")
        if self.batch % self.device_batch:
            raise UsageError(
                f"batch ({self.batch}) must be a multiple of device_batch ({self.device_batch})"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the options as JSON data, without ``out``: it does not change what is trained."""
        values = dataclasses.asdict(self)
        values.pop("out", None)
        return {k: v.as_posix() if isinstance(v, Path) else v for k, v in values.items()}
