"""Logs of runs that tests make up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from toolwoz_gym.records import Log


def write_log(path: Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Write a log anew, and return how many records it has."""
    path.unlink(missing_ok=True)
    with closing(Log(path, sync=False)) as log:
        return sum(log.append(record) >= 0 for record in records)
