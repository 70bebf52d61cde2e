"""What every training does around TRL's trainer: settings, silence, records."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PrinterCallback

from agents.adapters import WEIGHTS
from toolwoz_gym.progress import LiveLine
from toolwoz_gym.records import provenance
from toolwoz_gym.types import UsageError
from training.curve import Curve, NotFinite, write_curve
from training.options import TrainOptions
from training.output import RECORD, Stopped
from training.policy import Policy, compute_dtype, save_adapter

_RECORDS = 1 << 20
"""Bytes for what is written beside the weights."""


def arguments(options: TrainOptions, stage: Path) -> dict[str, Any]:
    """Return the settings that transformers and TRL call by the same names in every trainer.

    Raises:
        UsageError: The machine offers more than one GPU to this process.
    """
    if torch.cuda.device_count() > 1:
        raise UsageError("training runs on one GPU: choose it with CUDA_VISIBLE_DEVICES=0")
    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(stage),
        "use_cpu": not cuda,
        "bf16": compute_dtype(options) == torch.bfloat16,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": options.warmup_ratio,
        "num_train_epochs": options.epochs,
        "max_steps": options.max_steps or -1,
        "per_device_train_batch_size": options.device_batch,
        "gradient_accumulation_steps": options.batch // options.device_batch,
        "gradient_checkpointing": options.gradient_checkpointing,
        "seed": options.seed,
        "max_length": None,  # rows that are too long were dropped and counted before
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would put older losses in the place of these
        "disable_tqdm": True,  # Curve shows the progress
        "save_strategy": "no",
        "report_to": "none",
        "dataloader_pin_memory": cuda,
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what the libraries show about matters that the training itself reports better."""
    import datasets
    from transformers.utils import logging as transformers_logging

    logger = logging.getLogger("trl.trainer.kto_trainer")  # its advice on weights: see Balance
    level = logger.level
    bars = (
        not datasets.are_progress_bars_disabled(),
        transformers_logging.is_progress_bar_enabled(),
    )
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars[0]:
            datasets.enable_progress_bars()
        if bars[1]:
            transformers_logging.enable_progress_bar()


@contextmanager
def learned_positions_only() -> Iterator[None]:
    """Let TRL compute output probabilities only where a token is learned, on the CPU too.

    TRL does so where Triton runs and computes all positions elsewhere, for the sake of devices that
    compile anew for every shape. On a CPU that is nearly half of a training's time. The numbers are
    the same.
    """
    import trl.trainer.utils

    original = trl.trainer.utils._use_triton  # there it decides about positions, not about kernels
    trl.trainer.utils._use_triton = lambda device: True
    try:
        yield
    finally:
        trl.trainer.utils._use_triton = original


def _reserve(stage: Path, model: Any, dtype: str) -> None:
    """Take the room on the disk that the adapter will need, before hours are spent on it."""
    weights = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    size = weights * getattr(torch, dtype).itemsize + _RECORDS
    try:
        with open(stage / WEIGHTS[0], "wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise UsageError(
            f"cannot write the adapter to {stage.parent}, {size / 1e6:,.1f} MB: {error.strerror}"
        ) from None


def _run(trainer: Any) -> tuple[Curve, float]:
    """Train to the end, or until a figure is no number, with a live line.

    Returns:
        The course of the training, and its seconds.
    """
    trainer.remove_callback(PrinterCallback)
    start = time.monotonic()
    with LiveLine("steps") as live, learned_positions_only():
        curve = Curve(live)
        trainer.add_callback(curve)
        try:
            trainer.train()
        except NotFinite as error:
            args = trainer.args
            advice = ["--dtype float32"] if args.bf16 else []
            if curve.rows:
                advice.insert(0, f"a --learning-rate below {args.learning_rate:g}")
            elif not advice:
                advice = ["another --model: it computed this before it was trained"]
            curve.stopped = f"{error} is not finite: try {', or '.join(advice)}"
            if not curve.rows:
                raise UsageError(curve.stopped) from None
    return curve, time.monotonic() - start


def train(
    stage: Path,
    *,
    trainer: Any,
    policy: Policy,
    options: TrainOptions,
    record: dict[str, Any],
    dropped: Counter[str],
) -> dict[str, Any]:
    """Train, and write the adapter, the record and the curve.

    Returns:
        The record, as ``training.json`` holds it.

    Raises:
        Stopped: All is written, but the training had to end before its last step.
        UsageError: The model itself computes no numbers, or there is no room for the adapter. If
            what was trained cannot be written there, it is somewhere else, where that is possible.
    """
    _reserve(stage, trainer.model, options.save_dtype)
    curve, seconds = _run(trainer)
    record = {
        **record,
        **({"stopped": curve.stopped} if curve.stopped else {}),
        "dropped": dict(dropped),
        "metrics": {"first": curve.rows[0], "last": curve.rows[-1]},
        "steps": trainer.state.global_step,
        "seconds": round(seconds, 1),
        "device": trainer.args.device.type,
        "dtype": "bfloat16" if trainer.args.bf16 else "float32",
        "made_with": provenance(),
    }

    def write(folder: Path) -> None:
        save_adapter(trainer.model, policy, options.save_dtype, folder)
        write_curve(curve.rows, folder, f"{record['kind'].upper()} of {options.model}")
        written = json.dumps(record, indent=2, allow_nan=False)
        (folder / RECORD).write_text(f"{written}\n", "utf-8")

    try:
        write(stage)
    except (OSError, SafetensorError) as error:
        said = f"cannot write the adapter to {stage.parent}: {getattr(error, 'strerror', error)}"
        try:
            spare = Path(tempfile.mkdtemp(prefix="adapter-"))
            write(spare)
        except (OSError, SafetensorError):
            raise UsageError(said) from None
        raise UsageError(f"{said}; it is in {spare}") from None
    if curve.stopped:
        raise Stopped(curve.stopped)
    return record
