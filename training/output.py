"""The folder that a training leaves behind: whole, or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from toolwoz_gym.types import UsageError

RECORD = "training.json"

_LOCK = ".lock"


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


class Stopped(Exception):
    """A training had to end before its last step; what it had learned is written."""


@contextmanager
def locked(folder: Path, shown: Path | None = None) -> Iterator[None]:
    """Keep a folder for ourselves; it is made when missing.

    Args:
        folder: The folder.
        shown: What messages call it, if they call it otherwise.

    Raises:
        UsageError: It cannot be written, or another training is writing it.
    """
    shown, lock = shown or folder, folder / _LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(lock, "ab")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UsageError(f"cannot write {shown}: {error.strerror}") from None

    def is_ours() -> bool:
        return lock.exists() and os.path.samestat(lock.stat(), os.fstat(file.fileno()))

    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a kill gives it up, too
        except BlockingIOError:
            raise UsageError(f"another training is writing {shown}: wait for its end") from None
        except OSError as error:
            raise UsageError(f"cannot lock {shown}: {error.strerror}") from None
        if not is_ours():
            raise UsageError(f"another training has just written {shown}: try again")
        try:
            yield
        finally:
            if is_ours():
                lock.unlink()


@contextmanager
def staged(out: Path, asked: Mapping[str, Any]) -> Iterator[Path]:
    """Give a folder to write to, and put it in the place of ``out`` when all went well.

    A training that was :class:`Stopped` is put beside it, in ``<out>.stopped``, and ``out`` stays
    free for the next attempt.

    Args:
        out: Where the folder goes.
        asked: What decides the training (see :func:`finished`).

    Raises:
        UsageError: The folder cannot be made, another training is writing it, or this one was
            stopped.
    """
    out = out.resolve() if out.is_symlink() else out
    stage, aside = out.with_name(f".{out.name}.part"), out.with_name(f"{out.name}.stopped")
    with locked(stage, out):
        try:
            if finished(out, asked) is not None:
                raise UsageError(f"another training has just written {out}: try again")
            try:
                _clear(stage)  # of what a kill has left
                if out.exists():  # and is empty
                    out.rmdir()
            except OSError as error:
                raise UsageError(f"cannot write {out}: {error.strerror}") from None
            goal, stopped = out, None
            try:
                yield stage
            except Stopped as error:
                goal, stopped = aside, error
                shutil.rmtree(aside, ignore_errors=True)
            try:
                stage.rename(goal)
            except OSError as error:  # somebody has put something there meanwhile
                goal = Path(mkdtemp(prefix=f"{out.name}.", dir=out.parent))
                stage.rename(goal)
                stopped = stopped or Stopped(f"cannot write {out}: {error.strerror}")
            (goal / _LOCK).unlink()
            if stopped is not None:
                raise UsageError(f"{stopped}; what it had learned is in {goal}")
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()
