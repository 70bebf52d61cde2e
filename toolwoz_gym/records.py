"""Files of records: one JSON object a line, appended whole, safe against being killed.

A run is a folder. ``config.json`` says what was asked for; a ``.jsonl`` file grows by one line for
each finished unit of work, keyed by ``key``. Killed at any instant, the run goes on where it was: a
torn last line is cut off, finished keys are skipped, and another configuration is refused. A run
that has recorded nothing yet is no run: the folder may be used for another one.

Each line of a log, and each JSON file that is read again, ends with a digest of what is before it.
Damage is so found when it is read; forgery is not: for that a run is played again (``canned``).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import threading
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from toolwoz_gym.types import Message, Role, ToolCall, Usage, UsageError


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
        self.check(path, config)
        self.path = path
        self._config = config
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot write the run folder {path}: {error.strerror}") from None

    @staticmethod
    def check(path: Path, config: Mapping[str, Any]) -> None:
        """Find out whether a folder can hold a run, without writing anything.

        Raises:
            UsageError: It holds a run of another configuration, or something else.
        """
        changes = _changes_of(path, config)
        if changes and any(file.stat().st_size for file in path.glob("*.jsonl")):
            raise UsageError(
                f"{path} holds a run of another configuration ({', '.join(changes)}): "
                "choose another run folder, or delete this one"
            )

    def log(self, name: str) -> Log:
        """Open ``<name>.jsonl``, to read what is finished and to append.

        Raises:
            UsageError: It cannot be written, or another process has it open.
        """
        log = Log(self.path / f"{name}.jsonl")
        try:
            self.check(self.path, self._config)  # now that nobody else writes
            file = self.path / "config.json"
            # Another configuration is that of a run that came to nothing.
            if not file.exists() or _changes_of(self.path, self._config):
                write_sealed(file, {**self._config, "made_with": provenance()})
            for part in self.path.glob(".*.part"):  # of files that a kill left half written
                part.unlink(missing_ok=True)
        except OSError as error:
            log.close()
            raise UsageError(f"cannot write the run folder {self.path}: {error.strerror}") from None
        except UsageError:
            log.close()
            raise
        return log


def read_config(run: Path) -> dict[str, Any]:
    """Return what the ``config.json`` of a run says.

    Raises:
        UsageError: There is none, or it cannot be read.
    """
    if not (run / "config.json").exists():
        raise UsageError(f"there is no run in {run}")
    config = read_sealed(run / "config.json")
    if not isinstance(config.get("options"), dict):
        raise UsageError(f"the config.json in {run} is not that of a run")
    return config


class Log:
    """A ``.jsonl`` file that grows by whole records. Appending is safe from many threads."""

    def __init__(self, path: Path, *, sync: bool = True) -> None:
        """Open the file and cut off a last line that was torn by a kill.

        Args:
            path: The file; made when missing.
            sync: See each record to the disk. If not, a crash of the machine can lose the last;
                one of the process cannot.

        Raises:
            UsageError: It cannot be written, or another process has it open: two would do
                everything twice.
        """
        self.path = path
        self._sync = sync
        self._lock = threading.Lock()
        try:
            # Without a buffer: what a full disk has refused is not tried again behind our back.
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise _cannot_write(path, error) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a kill gives it up, too
            self._end = _whole_bytes(path)
            self._file.truncate(self._end)
        except BlockingIOError:
            self._file.close()
            raise UsageError(f"another run is writing {path}: wait until it has ended") from None
        except OSError as error:
            self._file.close()
            raise _cannot_write(path, error) from None

    def append(self, record: Mapping[str, Any]) -> int:
        """Write one record and, unless told otherwise, see it to the disk before returning.

        Returns:
            Where in the file it begins.

        Raises:
            UsageError: It cannot be written, or its folder is no longer there. The file is as it
                was before, as far as the disk lets it; the next to open it cuts off what is left
                of the record.
        """
        line = memoryview(_seal(dump(record)[:-1].encode("ascii"), _LINE))
        with self._lock:
            self._check_place()
            try:
                written = 0
                while written < len(line):  # a disk that fills up takes a part
                    written += self._file.write(line[written:])
                if self._sync:
                    os.fsync(self._file.fileno())
            except OSError as error:
                with suppress(OSError):
                    self._file.truncate(self._end)
                raise _cannot_write(self.path, error) from None
            self._end += len(line)
            return self._end - len(line)

    def _check_place(self) -> None:
        """Refuse to go on with a file that nobody would find.

        Raises:
            UsageError: The file, or a folder that it is in, was deleted or moved.
        """
        with suppress(OSError):
            if os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno())):
                return
        raise UsageError(f"{self.path} was deleted or moved during the run, which ends here")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _cannot_write(path: Path, error: OSError) -> UsageError:
    """Return the mistake that a file cannot be written."""
    why = error.strerror or error
    return UsageError(f"cannot write {path}: {why}; what is finished is kept: run again to go on")


def check_file(path: Path) -> None:
    """Find out whether a file can be written, before what is to be written is worked out.

    Raises:
        UsageError: It cannot.
    """
    was_there = path.exists()
    try:
        with open(path, "ab"):
            pass
        if not was_there:
            path.unlink()
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None


def dump(record: Any) -> str:
    """Write a value as one line of ASCII JSON, the same on every machine."""
    return json.dumps(record, ensure_ascii=True, separators=(",", ":"), allow_nan=False)


_LINE = (b',"digest":"', b'"}\n')
_FILE = (b',\n  "digest": "', b'"\n}\n')
"""How the JSON object of a line ends with its digest, and that of a file for people to read."""


def _seal(head: bytes, form: tuple[bytes, bytes]) -> bytes:
    """Return a JSON object, given without its closing brace, with its digest as the last entry."""
    mark, end = form
    return head + mark + hashlib.sha256(head).hexdigest()[:16].encode("ascii") + end


def _unseal(data: bytes, form: tuple[bytes, bytes]) -> dict[str, Any]:
    """Return what was sealed, without its digest.

    Raises:
        ValueError: It is not as it was written.
    """
    head, mark, _ = data.rpartition(form[0])
    if not mark or _seal(head, form) != data:
        raise ValueError("its digest does not fit")
    value = parse_json(head + b"}")
    assert isinstance(value, dict), "only objects have a last entry"
    return value


def parse_json(text: str | bytes) -> Any:
    """Read JSON, strictly.

    Raises:
        ValueError: It is none, or holds NaN or Infinity, or is nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def read_lines(path: Path, start: int = 0) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
    """Read what a :class:`Log` has written, line by line.

    A last line that was torn by a kill is no record, and is left out.

    Args:
        path: The file.
        start: Where in the file a line begins, to read from there.

    Yields:
        Where in the file the line begins, the line, and its record without the digest.

    Raises:
        UsageError: The file cannot be read, or a line is not as it was written.
    """
    try:
        with open(path, "rb") as file:
            place = file.seek(start)
            for number, line in enumerate(file, 1):
                ended = line.endswith(b"\n")
                try:  # with another byte in the place of its end, the last line would look torn
                    record = _unseal(line if ended else line[:-1] + b"\n", _LINE)
                except ValueError:
                    record = None
                if ended != (record is not None):
                    where = f"byte {place}" if start else f"line {number}"
                    raise UsageError(
                        f"{path}, {where}: damaged, or of an older version without digests: "
                        "delete the line to go on without it"
                    )
                if record is not None:
                    yield place, line, record
                place += len(line)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None


def read_log(path: Path, known: Container[str] | None = None) -> Iterator[dict[str, Any]]:
    """Read the records that a :class:`Log` has written, each key once.

    Args:
        path: The file.
        known: The keys that there can be; None: any.

    Raises:
        UsageError: The file cannot be read; a line is not as it was written; a record's key is not
            known, or is that of another record that says something else.
    """
    seen: dict[int, int] = {}  # of each key and of each record 64 bits: there can be millions
    for number, (_, line, record) in enumerate(read_lines(path), 1):
        key, digest = record.get("key"), int(line[-19:-3], 16)
        if not isinstance(key, str) or (known is not None and key not in known):
            raise UsageError(
                f"{path}, line {number}: {key!r:.80} is no part of this run: delete the line to go "
                "on without it"
            )
        if (short := hash(key)) not in seen:
            seen[short] = digest
            yield record
        elif seen[short] != digest:
            raise UsageError(f"{path}, line {number}: another record of {key!r:.80}: delete one")


def check_replay(recording: Path, replay: Path) -> None:
    """Refuse a replay whose records are not those of the recording, ledgers included.

    Args:
        recording: A log of the run that was played again.
        replay: The log of the replay. It may lack records.

    Raises:
        UsageError: A record is not there, or is another one.
    """
    found, expected = _digests(replay), _digests(recording)
    differing = [key for key in found if found[key] != expected.get(key)]
    if differing:
        key = differing[0]
        one, two = _record(recording, key), _record(replay, key)
        names = [name for name in {**one, **two} if dump(one.get(name)) != dump(two.get(name))]
        how = f"in {', '.join(names)}" if one else "is not in it"
        raise UsageError(
            f"{recording} is not what its options and completions give: {len(differing)} of "
            f"{len(found)} records differ, that of {key} {how}"
        )


def _digests(log: Path) -> dict[str, bytes]:
    return {r["key"]: hashlib.sha256(dump(r).encode()).digest() for r in read_log(log)}


def _record(log: Path, key: str) -> dict[str, Any]:
    return next((record for record in read_log(log) if record["key"] == key), {})


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Read the objects of a file of plain JSON lines, one at a time.

    Raises:
        UsageError: The file is missing, or one of its lines is no JSON object.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    record = parse_json(line)
                except ValueError:
                    record = None
                if not isinstance(record, dict):
                    raise UsageError(f"{path}, line {number}: not a JSON record")
                yield record
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Write a file of records at once, replacing an older one only when whole.

    Returns:
        How many records there were.

    Raises:
        UsageError: It cannot be written; so do the other functions that write a file.
    """
    count = 0
    with replacing(path) as part, open(part, "w", encoding="ascii", newline="\n") as file:
        for record in records:
            file.write(dump(record) + "\n")
            count += 1
    return count


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file for people to read, replacing an older one only when whole."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file as :func:`write_json` does, with a digest at its end."""
    head = json.dumps(value, indent=2, allow_nan=False).removesuffix("\n}")
    write_text(path, _seal(head.encode("ascii"), _FILE).decode("ascii"))


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what :func:`write_sealed` wrote, without the digest.

    Raises:
        UsageError: It is missing, or not as it was written.
    """
    try:
        return _unseal(path.read_bytes(), _FILE)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        cure = "choose another run folder"
        if path.name == "summary.json":
            cure = f"python -m josh_search rows {path.parent} makes it anew"
        why = f"{path} is damaged, or of an older version without digests: {cure}"
        raise UsageError(why) from None


ROW_FILES = "row_files"
"""The entry of a harvest's summary with the digests of the files that it has made of its trees."""


def check_rows(file: Path) -> None:
    """Refuse rows that are not those that their harvest has written. Rows without one are taken.

    Raises:
        UsageError: They are not, or cannot be read.
    """
    summary, digest = file.with_name("summary.json"), file_digest(file)
    if summary.exists() and read_sealed(summary).get(ROW_FILES, {}).get(file.name) != digest:
        raise UsageError(
            f"{file} is not as its harvest wrote it: python -m josh_search rows {file.parent} "
            "makes it anew; rows of your own belong into another folder"
        )


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Raises:
        UsageError: The file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file, replacing an older one only when whole."""
    with replacing(path) as part:
        part.write_text(text, "utf-8")


def message_to_json(message: Message) -> dict[str, Any]:
    """Return a message as JSON data, without what is empty."""
    data: dict[str, Any] = {"role": message.role}
    if message.content or message.call is None:
        data["content"] = message.content
    if message.call is not None:
        data["call"] = {"name": message.call.name, "arguments": dict(message.call.arguments)}
    for name in ("name", "error", "mistake", "raw", "logprob"):
        if (value := getattr(message, name)) is not None:
            data[name] = value
    if message.usage is not None:
        data["usage"] = usage_to_json(message.usage)
    if message.cut_off:
        data["cut_off"] = True
    return data


def message_from_json(data: Mapping[str, Any]) -> Message:
    """Return the message that :func:`message_to_json` wrote."""
    values = {"content": "", **data}
    if "call" in data:
        values["call"] = ToolCall(**data["call"])
    if "usage" in data:
        values["usage"] = Usage(**data["usage"])
    return Message(**values)


def usage_of(messages: Iterable[Message], role: Role) -> Usage:
    """Return what the messages of a role cost together."""
    return sum((m.usage for m in messages if m.role == role and m.usage), Usage())


def usage_to_json(usage: Usage) -> dict[str, int | None]:
    """Return what a usage says of tokens, as JSON data: the same in equal runs."""
    return {"prompt": usage.prompt, "completion": usage.completion}


def ledger_to_json(usage: Usage) -> dict[str, int | float | None]:
    """Return all else of a usage, as JSON data: it differs from one run to the next."""
    return {
        "cached": usage.cached,
        "calls": usage.calls,
        "retries": usage.retries,
        "seconds": round(usage.seconds, 3),
        "usd": None if usage.usd is None else round(usage.usd, 9),
    }


def usages_to_json(usages: Mapping[str, Usage]) -> dict[str, Any]:
    """Return the usages of roles as two entries of a record, ``usage`` and ``ledger``."""
    return {
        "usage": {role: usage_to_json(usage) for role, usage in usages.items()},
        "ledger": {role: ledger_to_json(usage) for role, usage in usages.items()},
    }


def usages_from_json(record: Mapping[str, Any]) -> dict[str, Usage]:
    """Return the usages that :func:`usages_to_json` put into a record, by role."""
    return {role: Usage(**u, **record["ledger"][role]) for role, u in record["usage"].items()}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a sibling path to write, and put it in the place of ``path`` when all went well.

    Raises:
        UsageError: It cannot be written. An older file is as it was.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


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


def _changes_of(path: Path, config: Mapping[str, Any]) -> list[str]:
    """Return how a configuration differs from that of the run in a folder, if there is one.

    Raises:
        UsageError: The folder holds something else.
    """
    file = path / "config.json"
    try:
        if not file.exists():
            if path.exists() and not (path.is_dir() and all(map(_is_left_over, path.iterdir()))):
                raise UsageError(f"{path} holds something else: choose another run folder")
            return []
    except OSError as error:
        raise UsageError(f"cannot read the run folder {path}: {error.strerror}") from None
    return _changes(read_sealed(file), json.loads(json.dumps(config)))


def _is_left_over(file: Path) -> bool:
    """Return whether a file is what a run leaves that is killed before its config.json is whole."""
    return file.suffix == ".part" or (file.suffix == ".jsonl" and file.stat().st_size == 0)


def _changes(old: Any, new: Any, name: str = "") -> list[str]:
    """Return what differs between two configurations; what ``old`` has in addition is no matter."""
    if isinstance(new, dict) and isinstance(old, dict):
        return [c for key in new for c in _changes(old.get(key), new[key], name=key)]
    return [] if old == new else [f"{name}: {_short(old)}, now {_short(new)}"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def provenance() -> dict[str, Any]:
    """Return with what a run is made: versions of the packages that matter, and the git commit."""
    versions = {"python": platform.python_version()}
    for name in ("toolwoz-gym", "gymnasium", "torch", "transformers", "peft", "trl"):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    here = Path(__file__).resolve().parents[1]
    commit = None
    if (here / ".git").exists() and (git := shutil.which("git")):
        asked = subprocess.run(
            [git, "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
        commit = asked.stdout.strip() or None
    return {"versions": versions, "commit": commit}
