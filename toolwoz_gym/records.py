"""Files of records: one JSON object a line, appended whole, safe against being killed.

A run is a folder. ``config.json`` says what was asked for; a ``.jsonl`` file grows by one line for
each finished unit of work, keyed by ``key``. Killed at any instant, the run goes on where it was: a
torn last line is cut off, finished keys are skipped, and another configuration is refused.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from toolwoz_gym.types import Message, ToolCall, Usage, UsageError


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        """Open the folder of a run, new or begun.

        Args:
            path: The folder; made when missing.
            config: Everything that decides what the run's records say. JSON data.

        Raises:
            UsageError: The folder cannot be written, or holds a run of another configuration.
        """
        self.path = path
        config = json.loads(json.dumps(config))
        file = path / "config.json"
        try:
            path.mkdir(parents=True, exist_ok=True)
            if file.exists():
                _refuse_other(path, json.loads(file.read_text("utf-8")), config)
            else:
                write_json(file, config)
        except (OSError, json.JSONDecodeError) as error:
            raise UsageError(f"cannot use the run folder {path}: {error}") from None

    def log(self, name: str) -> Log:
        """Open ``<name>.jsonl``, to read what is finished and to append."""
        return Log(self.path / f"{name}.jsonl")


class Log:
    """A ``.jsonl`` file that grows by whole records. Appending is safe from many threads."""

    def __init__(self, path: Path) -> None:
        """Open the file and cut off a last line that was torn by a kill."""
        self.path = path
        self._lock = threading.Lock()
        self._file = open(path, "ab")  # noqa: SIM115 - closed by close()
        keep = _whole_bytes(path)
        if keep < path.stat().st_size:
            self._file.truncate(keep)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record and see it to the disk before returning."""
        line = (dump(record) + "\n").encode("ascii")
        with self._lock:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def dump(record: Any) -> str:
    """Write a value as one line of ASCII JSON, the same on every machine."""
    return json.dumps(record, ensure_ascii=True, separators=(",", ":"), allow_nan=False)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Read the records of a file, one at a time.

    Raises:
        UsageError: The file is missing, or one of its lines is no JSON object.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    record = json.loads(line)
                except ValueError:
                    raise UsageError(f"{path}, line {number}: not a JSON record") from None
                yield record
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Write a file of records at once, replacing an older one only when whole.

    Returns:
        How many records there were.
    """
    count = 0
    with _replacing(path) as part, open(part, "w", encoding="ascii", newline="\n") as file:
        for record in records:
            file.write(dump(record) + "\n")
            count += 1
    return count


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file for people to read, replacing an older one only when whole."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, replacing an older one only when whole."""
    with _replacing(path) as part:
        part.write_text(text, "utf-8")


def message_to_json(message: Message) -> dict[str, Any]:
    """Return a message as JSON data, without what is empty."""
    data: dict[str, Any] = {"role": message.role}
    if message.content or message.call is None:
        data["content"] = message.content
    if message.call is not None:
        data["call"] = {"name": message.call.name, "arguments": dict(message.call.arguments)}
    for name in ("name", "error", "raw"):
        if (value := getattr(message, name)) is not None:
            data[name] = value
    if message.usage is not None:
        data["usage"] = usage_to_json(message.usage)
    return data


def message_from_json(data: Mapping[str, Any]) -> Message:
    """Return the message that :func:`message_to_json` wrote."""
    values = {"content": "", **data}
    if "call" in data:
        values["call"] = ToolCall(**data["call"])
    if "usage" in data:
        values["usage"] = Usage(**data["usage"])
    return Message(**values)


def usage_to_json(usage: Usage) -> dict[str, int]:
    """Return a usage as JSON data."""
    return {"prompt": usage.prompt, "completion": usage.completion}


class _replacing:
    """A context that gives a sibling path to write, then puts it in the place of ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.{os.getpid()}.part")

    def __enter__(self) -> Path:
        return self._part

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._part.replace(self._path)
        else:
            self._part.unlink(missing_ok=True)


def _whole_bytes(path: Path) -> int:
    """Return the length of a file up to and with its last line end, reading from the back."""
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            cut = file.read(end - start).rfind(b"\n")
            if cut >= 0:
                return start + cut + 1
            end = start
    return 0


def _refuse_other(path: Path, old: Any, new: Any) -> None:
    if old == new:
        return
    keys = sorted({*old, *new}) if isinstance(old, dict) else []
    changed = ", ".join(f"{k}: {old.get(k)} -> {new.get(k)}" for k in keys if old.get(k) != new.get(k))
    raise UsageError(
        f"{path} holds a run of another configuration ({changed or 'unreadable'}): "
        "choose another run folder, or delete this one"
    )
