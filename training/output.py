"""The folder that a training leaves behind: whole, or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from toolwoz_gym.types import UsageError

RECORD = "training.json"


def finished(out: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """Look for a training that was already done.

    Args:
        out: The folder it would be in.
        asked: What decides the training, as its record holds it: options and digest of the rows.

    Returns:
        The record of the same training; None when the folder is still free.

    Raises:
        UsageError: The folder holds something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        record = json.loads((out / RECORD).read_text("utf-8"))
    except (OSError, ValueError):
        raise UsageError(f"{out} holds something else: choose another --out") from None
    changed = [key for key in asked if record.get(key) != asked[key]]
    if isinstance(record.get("options"), dict) and "options" in changed:
        old, new = record["options"], asked["options"]
        changed = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    if changed:
        raise UsageError(
            f"{out} holds a training with other {', '.join(changed)}: "
            "choose another --out, or delete that folder"
        )
    return dict(record)


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Give a folder to write to, and put it in the place of ``out`` when all went well.

    Raises:
        UsageError: The folder cannot be made.
    """
    stage = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        stage.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"cannot write to {out.parent}: {error.strerror}") from None
    try:
        yield stage
        if out.exists():
            out.rmdir()  # finished() saw that it is empty
        stage.rename(out)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
