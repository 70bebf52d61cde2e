"""MultiWOZ 2.1 as a ToolWOZ world: read where it is published, converted once, loaded when played.

Prepared data is a folder of ``tables.json``, one ``tasks-<split>.jsonl`` per split, and
``meta.json``, which says where they came from and holds their digest.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from toolwoz_gym.data import (
    MAX_ARCHIVE,
    Source,
    data_folder,
    download,
    git_blob_id,
    open_archive,
    open_source,
    replacing,
)
from toolwoz_gym.toolwoz import VERSIONS, ToolWOZ
from toolwoz_gym.toolwoz.goals import EMPTY, derive_wishes
from toolwoz_gym.toolwoz.tables import Tables
from toolwoz_gym.toolwoz.task import ToolWOZTask, make_task, task_from_json, task_to_json
from toolwoz_gym.toolwoz.tools import DOMAINS, KEYS
from toolwoz_gym.types import UsageError

COMMIT = "fe0c8e65cfcd8462bd33c86e35f21addc84ca82b"
"""The commit of github.com/budzianowski/multiwoz that everything is pinned to."""

URL = f"https://raw.githubusercontent.com/budzianowski/multiwoz/{COMMIT}"

ARCHIVE = "data/MultiWOZ_2.1.zip"

BLOBS = {
    ARCHIVE: "c30d869f77e86fe2bf19245120e771f28cb32bfa",
    "db/attraction_db.json": "4f5fbc75aea1cb2d41c8da641b8f7baef49f08ad",
    "db/hotel_db.json": "438601caef140ed7b6b441365bf09055ae33e0ed",
    "db/restaurant_db.json": "58ed562b1f87aba62d9e40fa5c909e1ff470a6f2",
    "db/train_db.json": "050d9f184809d69d32d5f2f4996905609b176b55",
}
"""Git blob ids of the files that are used. (The databases of other domains are not.)"""

SPLITS = ("train", "val", "test", "test450")

PREPARE = "python -m toolwoz_gym data prepare multiwoz"

_OTHER_DOMAINS = ("taxi", "police", "hospital")

_MAX_DIALOGUES = 1 << 30
_MAX_OTHERS = 16 << 20


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a preparation made of its source."""

    tasks: Mapping[str, int]
    """Number of tasks in each split that has any."""
    left_out: Mapping[str, int]
    """Number of dialogues that are no task, by reason."""


def multiwoz_folder() -> Path:
    """Return the folder where prepared MultiWOZ lives, whether or not it is there."""
    return data_folder() / "multiwoz"


def prepare_multiwoz(folder: Path, source: Path | None = None) -> Prepared:
    """Convert MultiWOZ 2.1 to a folder of prepared data, in place of what was there.

    Args:
        folder: Where to put it.
        source: An archive with MultiWOZ's layout, a folder that holds its files, or a checkout of
            its repository; None downloads what is needed.

    Raises:
        UsageError: The source is missing, damaged, incomplete or not the pinned one, or the folder
            cannot be written. What was prepared before is then left as it was.
    """
    files = _unpacked(_download() if source is None else open_source(source))
    databases = {domain: _database(files, domain) for domain in DOMAINS}
    tables = {domain: _json(data, f"{domain}_db.json") for domain, data in databases.items()}
    dialogues = _only(files, "data.json", _MAX_DIALOGUES)
    left_out: Counter[str] = Counter()
    tasks = list(_tasks(_json(dialogues, "data.json"), _lists(files), Tables(tables), left_out))
    splits = {split: [task for task in tasks if task.split == split] for split in SPLITS[:3]}
    splits["test450"] = _first_450(splits["test"])
    prepared = Prepared({s: len(found) for s, found in splits.items() if found}, dict(left_out))
    if not prepared.tasks:
        raise UsageError(f"{files.name} has no dialogue that makes a task")
    with replacing(folder) as new:
        contents = {"tables.json": _dump(tables)}
        for split in prepared.tasks:
            lines = b"".join(_dump(task_to_json(task)) for task in splits[split])
            contents[f"tasks-{split}.jsonl"] = lines
        blobs = {f"{domain}_db.json": git_blob_id(data) for domain, data in databases.items()}
        meta = {
            "source": {"commit": COMMIT, "blobs": {"data.json": git_blob_id(dialogues), **blobs}},
            "tasks": prepared.tasks,
            "left_out": prepared.left_out,
            "fingerprint": _fingerprint(contents),
        }
        for name, data in {**contents, "meta.json": _dump(meta)}.items():
            (new / name).write_bytes(data)
    return prepared


def is_prepared() -> bool:
    """Return whether there is prepared MultiWOZ data for :func:`load_multiwoz`."""
    return (multiwoz_folder() / "meta.json").is_file()


def load_multiwoz(version: int = 0) -> ToolWOZ:
    """Return the prepared MultiWOZ world, scored as that version of ToolWOZ does.

    Raises:
        UsageError: It has not been prepared, or its files are damaged; the message says what to do.
    """
    return read_multiwoz(multiwoz_folder(), version)


def read_multiwoz(folder: Path, version: int = 0) -> ToolWOZ:
    """Return the world that :func:`prepare_multiwoz` put into a folder.

    Environments of one process share what was read last.

    Raises:
        UsageError: The folder holds no prepared data, or its files are damaged.
    """
    try:
        meta = json.loads((folder / "meta.json").read_bytes())
        return _read(folder, meta["fingerprint"], tuple(meta["tasks"]), version)
    except FileNotFoundError:
        raise UsageError(f"MultiWOZ is not prepared in {folder}: run {PREPARE}") from None
    except OSError as error:
        raise UsageError(f"cannot read {folder}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"the data in {folder} is damaged: run {PREPARE}") from None


@lru_cache(maxsize=2)
def _read(folder: Path, fingerprint: str, splits: tuple[str, ...], version: int) -> ToolWOZ:
    names = ["tables.json", *(f"tasks-{split}.jsonl" for split in splits)]
    contents = {name: (folder / name).read_bytes() for name in names}
    if _fingerprint(contents) != fingerprint:
        raise ValueError("the files are not those that were written")
    tables = Tables(json.loads(contents["tables.json"]))
    tasks = {
        split: tuple(
            task_from_json(json.loads(line))
            for line in contents[f"tasks-{split}.jsonl"].splitlines()
        )
        for split in splits
    }
    return VERSIONS[version]("multiwoz", tables, tasks, fingerprint)


def booked_items(log: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Return what a dialogue booked, by domain: the last item in its final state.

    An item that lacks its entity's key is given what the final belief state has for it, if that
    says anything.
    """
    state: Mapping[str, Any] = next(
        (turn["metadata"] for turn in reversed(log) if turn.get("metadata")), {}
    )
    items = {}
    for domain in DOMAINS:
        booked = state.get(domain, {}).get("book", {}).get("booked")
        if booked:
            key = KEYS[domain]
            belief = state[domain].get("semi", {}).get(key, "")
            item = ({} if belief in EMPTY else {key: belief}) | booked[-1]
            items[domain] = {name: str(value) for name, value in item.items()}
    return items


def _download() -> Source:
    """Return the pinned files, laid out as in a checkout."""
    return Source(
        URL, {path: partial(_whole, download(f"{URL}/{path}", id)) for path, id in BLOBS.items()}
    )


def _whole(data: bytes, limit: int) -> bytes:
    return data


def _unpacked(source: Source) -> Source:
    """Return the source, together with the archive inside it when it is a checkout."""
    archives = source.named("MultiWOZ_2.1*.zip")
    if source.named("data.json") or not archives:
        return source
    return open_archive(archives[0], source.read(archives[0], MAX_ARCHIVE)).within(source)


def _only(source: Source, pattern: str, limit: int) -> bytes:
    """Return the content of a file that may lie anywhere; copies of it may lie elsewhere."""
    paths = source.named(pattern)
    if not paths:
        raise UsageError(f"{source.name} has no {pattern}: it is not MultiWOZ 2.1")
    contents = {source.read(path, limit) for path in paths}
    if len(contents) > 1:
        raise UsageError(
            f"{source.name} has different files {pattern} ({', '.join(paths[:3])}): "
            "name the folder or archive of MultiWOZ 2.1 itself"
        )
    return contents.pop()


def _database(source: Source, domain: str) -> bytes:
    """Return a database, chosen by content: a checkout's archive has some too, which may differ."""
    name, wanted = f"{domain}_db.json", BLOBS[f"db/{domain}_db.json"]
    paths = source.named(name)
    if not paths:
        raise UsageError(f"{source.name} has no {name}: it is not MultiWOZ 2.1")
    blobs = []
    for path in paths:
        data = source.read(path, _MAX_OTHERS)
        blobs.append(git_blob_id(data))
        if blobs[-1] == wanted:
            return data
    raise UsageError(
        f"{paths[0]} in {source.name} is not the pinned one: git blob {blobs[0]}, not {wanted}"
    )


def _lists(source: Source) -> dict[str, str]:
    """Return the split of each dialogue that a list names."""
    splits = {}
    for split in ("val", "test"):
        lines = _only(source, f"{split}ListFile*", _MAX_OTHERS).decode("utf-8", "replace")
        splits.update({_id(line): split for line in lines.split()})
    return splits


def _id(name: str) -> str:
    return name if name.endswith(".json") else f"{name}.json"


def _tasks(
    dialogues: Any, splits: Mapping[str, str], tables: Tables, left_out: Counter[str]
) -> Iterator[ToolWOZTask]:
    """Yield the task of each dialogue, sorted by id, and count those that make none."""
    if not isinstance(dialogues, dict):
        raise UsageError("data.json is not in MultiWOZ's shape: it must be an object")
    for name, dialogue in sorted(dialogues.items(), key=lambda item: _id(item[0])):
        id = _id(name)
        try:
            goal = dialogue["goal"]
            if any(goal.get(domain) for domain in _OTHER_DOMAINS):
                left_out["wants a taxi, the police or a hospital"] += 1
                continue
            wishes = derive_wishes(goal, booked_items(dialogue["log"]), tables)
            task = make_task(id, splits.get(id, "train"), _instruction(goal["message"]), wishes)
        except (AttributeError, KeyError, TypeError, IndexError):
            raise UsageError(f"data.json is not in MultiWOZ's shape: see dialogue {name}") from None
        if not task.goals:
            left_out["has no goal call"] += 1
        else:
            yield task


def _instruction(message: str | Sequence[str]) -> str:
    lines = [message] if isinstance(message, str) else message
    return "\n".join(re.sub(r"</?span[^>]*>", "", line).strip() for line in lines)


def _first_450(tasks: Sequence[ToolWOZTask]) -> list[ToolWOZTask]:
    """Return the tasks that the paper reports on; none when the source is only a part."""
    return [replace(task, split="test450") for task in tasks[:450]] if len(tasks) >= 450 else []


def _json(data: bytes, name: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not JSON: {error}") from None


def _dump(value: Any) -> bytes:
    return (json.dumps(value, separators=(",", ":")) + "\n").encode("ascii")


def _fingerprint(contents: Mapping[str, bytes]) -> str:
    digest = sha256()
    for name, data in sorted(contents.items()):
        digest.update(b"%s %d\0" % (name.encode(), len(data)) + data)
    return digest.hexdigest()
