"""MultiWOZ 2.1 as a ToolWOZ world: read where it is published, converted once, loaded when played.

Prepared data is a folder of ``tables.json``, one ``tasks-<split>.jsonl`` per split, and
``meta.json``, which says where they came from and holds their digests. For people there are
``repairs.jsonl``, the tasks that ToolWOZ-v1 repairs or drops, and a ``README.md`` by which
``datasets.load_dataset`` reads the folder.
"""

from __future__ import annotations

import json
import re
from codecs import utf_8_decode
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
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
    reading,
    replacing,
    shown,
)
from toolwoz_gym.toolwoz import VERSIONS, ToolWOZ
from toolwoz_gym.toolwoz.goals import EMPTY, derive_wishes
from toolwoz_gym.toolwoz.repair import Repair, repair, retell
from toolwoz_gym.toolwoz.tables import Tables
from toolwoz_gym.toolwoz.task import ToolWOZTask, Wish, make_task, open_tasks, task_to_line
from toolwoz_gym.toolwoz.tools import DOMAINS, KEYS, PARAMETERS
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

FORMAT = 2
"""Of prepared data: grows when the same source is prepared otherwise."""

PREPARE = "python -m toolwoz_gym data prepare multiwoz"

_OTHER_DOMAINS = ("taxi", "police", "hospital")

# Bounds on what a source may hold, well above what MultiWOZ 2.1 does: bytes of data.json, of one
# dialogue in it, the number of dialogues, bytes of their tasks, and bytes of any other file.
_MAX_DIALOGUES = 768 << 20
_MAX_DIALOGUE = 1 << 19
_MAX_NUMBER = 100_000
_MAX_TASKS = 128 << 20
_MAX_OTHERS = 16 << 20

_USUAL_DIALOGUE = 1 << 17
"""Few dialogues have more bytes."""

_DECODER = json.JSONDecoder()
_MARK = re.compile(rb"[ \t\r\n]{,1000}([{}:,])[ \t\r\n]{,1000}")

_ABOUT = """# ToolWOZ: tasks from MultiWOZ 2.1

Made by `python -m toolwoz_gym data prepare multiwoz`, which makes the folder anew. Read it with
`datasets.load_dataset` and the name of this folder. MultiWOZ is by Budzianowski et al. (2018) and
Eric et al. (2019), under the MIT licence: github.com/budzianowski/multiwoz.

A line is a task: the customer's `instruction` in English, the `turns` that a person said as this
customer, and the `wishes` behind them as ToolWOZ-v0 plays them. `repaired` has the wishes that
ToolWOZ-v1 plays instead: null where they are the same, empty where it drops the task.
`repaired_instruction` is the instruction then, null where it is the same. `reasons` says why.
"""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a preparation made of its source."""

    tasks: Mapping[str, int]
    """Number of tasks in each split that has any."""
    kept: Mapping[str, int]
    """Number of them that ToolWOZ-v1 plays."""
    left_out: Mapping[str, int]
    """Number of dialogues that are no task, by reason."""
    repaired: Mapping[str, int]
    """Number of tasks that ToolWOZ-v1 repairs, by reason; a task can have several."""
    dropped: Mapping[str, int]
    """Number of tasks that ToolWOZ-v1 drops, by reason; a task can have several."""


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
    lists, dialogues = _lists(files), _only(files, "data.json", _MAX_DIALOGUES)
    left_out: Counter[str] = Counter()
    splits = _by_split(_entries(dialogues, lists, Tables(tables), left_out))
    mended = [e for split in SPLITS[:3] for e in splits.get(split, ()) if e.action]
    if not splits:
        raise UsageError(f"{files.name} has no dialogue that makes a task")
    contents = {"tables.json": _dump(tables)}
    for split, found in splits.items():
        contents[_tasks_name(split)] = b"".join(entry.line() for entry in found)
    prepared = Prepared(
        tasks={split: len(found) for split, found in splits.items()},
        kept={split: sum(e.action != "dropped" for e in found) for split, found in splits.items()},
        left_out=dict(sorted(left_out.items())),
        repaired=_reasons(mended, "repaired"),
        dropped=_reasons(mended, "dropped"),
    )
    blobs = {f"{domain}_db.json": git_blob_id(data) for domain, data in databases.items()}
    meta = {
        "format": FORMAT,
        "source": {"commit": COMMIT, "blobs": {"data.json": git_blob_id(dialogues), **blobs}},
        **{field.name: getattr(prepared, field.name) for field in fields(prepared)},
        "files": {name: sha256(data).hexdigest() for name, data in contents.items()},
    }
    contents["repairs.jsonl"] = b"".join(_dump(entry.record()) for entry in mended)
    contents["README.md"] = _card(splits)
    contents["meta.json"] = _dump(meta)
    with replacing(folder) as new:
        for name, data in contents.items():
            (new / name).write_bytes(data)
    return prepared


def is_prepared() -> bool:
    """Return whether there is prepared MultiWOZ data for :func:`load_multiwoz`.

    Raises:
        UsageError: Nobody can tell: the folder may not be read.
    """
    with reading("MultiWOZ", folder := multiwoz_folder(), PREPARE):
        return (folder / "meta.json").is_file()


def load_multiwoz(version: int = 0) -> ToolWOZ:
    """Return the prepared MultiWOZ world, scored as that version of ToolWOZ does.

    Raises:
        UsageError: It has not been prepared, or its files are damaged; the message says what to do.
    """
    return read_multiwoz(multiwoz_folder(), version)


def read_multiwoz(folder: Path, version: int = 0) -> ToolWOZ:
    """Return the world that :func:`prepare_multiwoz` put into a folder.

    Environments of one process share what was read last; all processes share the files of tasks,
    also when the folder is prepared anew meanwhile: they go on with the one they have read.

    Raises:
        UsageError: The folder holds no prepared data, or its files are damaged.
    """
    with reading("MultiWOZ", folder, PREPARE):
        meta = json.loads((folder / "meta.json").read_bytes())
        if meta["format"] != FORMAT:
            raise ValueError("another version has prepared it")
        return _read(folder.absolute(), tuple(meta["files"].items()), version)


@lru_cache(maxsize=2)
def _read(folder: Path, files: tuple[tuple[str, str], ...], version: int) -> ToolWOZ:
    digests = dict(files)
    tables = _tables(folder / "tables.json", digests["tables.json"])
    tasks = {
        split: open_tasks(folder / name, digests[name], version)
        for split in SPLITS
        if (name := _tasks_name(split)) in digests
    }
    return VERSIONS[version](
        "multiwoz",
        tables,
        {split: found for split, found in tasks.items() if found},
        f"{sha256(_dump(sorted(files))).hexdigest()}-v{version}",
    )


@lru_cache(maxsize=2)
def _tables(path: Path, digest: str) -> Tables:
    content = path.read_bytes()
    if sha256(content).hexdigest() != digest:
        raise ValueError(f"{path} is not the file that was written")
    return Tables(json.loads(content))


def _tasks_name(split: str) -> str:
    return f"tasks-{split}.jsonl"


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
    content = source.read(paths[0], limit)
    if any(source.read(path, limit) != content for path in paths[1:]):
        raise UsageError(
            f"{source.name} has different files {pattern} ({', '.join(map(shown, paths[:3]))}): "
            "name the folder or archive of MultiWOZ 2.1 itself"
        )
    return content


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
    where = f"{shown(paths[0])} in {source.name}"
    raise UsageError(f"{where} is not the pinned one: git blob {blobs[0]}, not {wanted}")


def _lists(source: Source) -> dict[str, str]:
    """Return the split of each dialogue that a list names."""
    splits = {}
    for split in ("val", "test"):
        lines = _only(source, f"{split}ListFile*", _MAX_OTHERS).decode("utf-8", "replace")
        splits.update({_id(line): split for line in lines.split()})
    return splits


def _id(name: str) -> str:
    return name if name.endswith(".json") else f"{name}.json"


@dataclass(frozen=True, slots=True)
class _Entry:
    """A task and what ToolWOZ-v1 makes of it."""

    task: ToolWOZTask
    repair: Repair
    instruction: str
    """The instruction that v1 plays."""

    @property
    def action(self) -> str | None:
        """What v1 does to the task, if anything."""
        if self.repair.wishes is None:
            return "dropped"
        return None if self.repair.wishes == self.task.wishes else "repaired"

    @property
    def repaired(self) -> tuple[Wish, ...] | None:
        """The wishes that v1 plays: None where they are the task's own, () where it is dropped."""
        return (self.repair.wishes or ()) if self.action else None

    def line(self) -> bytes:
        """Return what the file of tasks says of the task."""
        return task_to_line(self.task, self.repaired, self.instruction, self.repair.reasons)

    def record(self) -> dict[str, Any]:
        """Return what the list of repairs says of the task."""
        return {
            "id": self.task.id,
            "split": self.task.split,
            "action": self.action,
            "reasons": self.repair.reasons,
        }


def _reasons(entries: Sequence[_Entry], action: str) -> dict[str, int]:
    reasons = (reason for e in entries if e.action == action for reason in e.repair.reasons)
    return dict(Counter(reasons).most_common())


def _entries(
    data: bytes, splits: Mapping[str, str], tables: Tables, left_out: Counter[str]
) -> Iterator[_Entry]:
    """Yield the task of each dialogue, and count the dialogues that make none."""
    seen: set[str] = set()
    size = 0
    for name, dialogue in _members(data):
        id = _id(name)
        if id in seen:
            raise UsageError(f"data.json is not MultiWOZ's: it has {shown(id)} twice")
        seen.add(id)
        try:
            entry = _entry(id, splits.get(id, "train"), dialogue, tables)
        except (AttributeError, KeyError, TypeError, IndexError, RecursionError):
            raise UsageError(
                f"data.json is not in MultiWOZ's shape: see dialogue {shown(name)}"
            ) from None
        if isinstance(entry, str):
            left_out[entry] += 1
        else:
            size += len(entry.line())
            yield entry
        if len(seen) > _MAX_NUMBER or size > _MAX_TASKS:
            raise UsageError("data.json is not MultiWOZ's: it has too much in it")


def _entry(id: str, split: str, dialogue: Mapping[str, Any], tables: Tables) -> _Entry | str:
    """Return the task of a dialogue, or why it makes none."""
    goal, log = dialogue["goal"], dialogue["log"]
    if any(goal.get(domain) for domain in _OTHER_DOMAINS):
        return "wants a taxi, the police or a hospital"
    wishes = derive_wishes(goal, booked_items(log), tables)
    if not all(isinstance(name, str) for wish in wishes for name in wish.requests):
        raise TypeError("what the customer is to find out must be text")
    turns = tuple(turn["text"].strip() for turn in log[::2])  # the customer has the first word
    message = goal["message"] if isinstance(goal["message"], str) else "\n".join(goal["message"])
    task = make_task(id, split, _instruction(message), wishes, turns)
    if not task.goals:
        return "has no goal call"
    mended = repair(wishes, log, tables)
    retold = retell(message, wishes, mended.wishes or (), tables)
    return _Entry(task, mended, _instruction(retold))


def _members(data: bytes) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of a JSON object, with no more than one of them decoded.

    Decoded, JSON can take thirty times its size.
    """
    mark, position = _mark(data, 0, b"{")
    if data.startswith(b"}", position):
        mark, position = _mark(data, position, b"}")
    while mark != b"}":
        name, position = _value(data, position)
        _, position = _mark(data, position, b":")
        value, position = _value(data, position)
        yield str(name), value
        mark, position = _mark(data, position, b",}")
    if position < len(data):
        raise _not_json(position, "it goes on after its end")


def _mark(data: bytes, position: int, wanted: bytes) -> tuple[bytes, int]:
    """Return which of the marks that may stand here does, and where what follows it begins."""
    match = _MARK.match(data, position)
    if match is None or match[1] not in wanted:
        raise _not_json(position, f"there must be {' or '.join(wanted.decode())}")
    return match[1], match.end()


def _value(data: bytes, position: int) -> tuple[Any, int]:
    """Return the value that begins at a position, and where it ends."""
    why = ""
    for size in (_USUAL_DIALOGUE, _MAX_DIALOGUE):
        try:
            text, _ = utf_8_decode(data[position : position + size], "strict", False)
            value, end = _DECODER.raw_decode(text)
            return value, position + len(text[:end].encode())
        except json.JSONDecodeError as error:
            why = error.msg  # its position counts from ours
        except (ValueError, RecursionError) as error:
            why = str(error)
    raise _not_json(position, f"{why}, or a dialogue of more than {_MAX_DIALOGUE:,} bytes")


def _not_json(position: int, why: str) -> UsageError:
    return UsageError(f"data.json is not JSON at byte {position:,}: {why}")


def _instruction(message: str) -> str:
    return "\n".join(re.sub(r"</?span[^>]*>", "", line).strip() for line in message.split("\n"))


def _by_split(found: Iterable[_Entry]) -> dict[str, list[_Entry]]:
    """Return the tasks of each split that has any, sorted by id."""
    entries = sorted(found, key=lambda entry: entry.task.id)
    splits = {split: [e for e in entries if e.task.split == split] for split in SPLITS[:3]}
    if len(splits["test"]) >= 450:  # else it is only a part, and not what the paper reports on
        first = splits["test"][:450]
        splits["test450"] = [replace(e, task=replace(e.task, split="test450")) for e in first]
    return {split: part for split, part in splits.items() if part}


def _card(splits: Mapping[str, Sequence[_Entry]]) -> bytes:
    """Return a data set card: where the splits are, and a schema that all lines fit."""
    found = {
        name: None
        for entries in splits.values()
        for entry in entries
        for wish in (*entry.task.wishes, *(entry.repaired or ()))
        for name in wish.booked or ()
    }
    search, book = (
        [name for tool, names in PARAMETERS.items() if tool.startswith(kind) for name in names]
        for kind in ("search", "book")
    )
    booked = [*KEYS.values(), "reference", *found]
    wish = [
        _text("domain"),
        *(_texts(name, search) for name in ("search", "failing_search")),
        *(_texts(name, book) for name in ("book", "failing_book")),
        _texts("booked", booked),
        {"name": "requests", "list": "string"},
    ]
    features = [
        *map(_text, ("id", "split", "instruction", "repaired_instruction")),
        {"name": "turns", "list": "string"},
        {"name": "wishes", "list": wish},
        {"name": "reasons", "list": "string"},
        {"name": "repaired", "list": wish},
    ]
    files = [{"split": split, "path": _tasks_name(split)} for split in splits]
    head = {
        "configs": [{"config_name": "default", "data_files": files}],
        "dataset_info": {"features": features},
    }
    # JSON is YAML too.
    return f"---\n{json.dumps(head, indent=1)}\n---\n{_ABOUT}".encode()


def _text(name: str) -> dict[str, Any]:
    return {"name": name, "dtype": "string"}


def _texts(name: str, names: Iterable[str]) -> dict[str, Any]:
    return {"name": name, "struct": [_text(part) for part in dict.fromkeys(names)]}


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
