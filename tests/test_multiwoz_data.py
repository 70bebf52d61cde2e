"""MultiWOZ is prepared from whatever layout it comes in, and from nothing that is not MultiWOZ."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import stat
import subprocess
import sys
import weakref
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import toolwoz_gym
from toolwoz_gym import data, make_env
from toolwoz_gym.__main__ import main
from toolwoz_gym.data import data_folder, download, git_blob_id, open_archive, replacing
from toolwoz_gym.toolwoz import ToolWOZ
from toolwoz_gym.toolwoz import multiwoz as module
from toolwoz_gym.toolwoz.multiwoz import (
    Prepared,
    booked_items,
    is_prepared,
    load_multiwoz,
    prepare_multiwoz,
    read_multiwoz,
)
from toolwoz_gym.toolwoz.tables import plain
from toolwoz_gym.toolwoz.task import TaskFile, ToolWOZTask, task_from_json
from toolwoz_gym.types import ToolCall, UsageError

ROWS: dict[str, list[dict[str, Any]]] = {
    "hotel": [{"name": "the gull", "area": "north", "stars": "4"}],
    "attraction": [{"name": "old pier", "type": "pier", "area": "south"}],
    "train": [{"trainID": "TR1", "leaveAt": "09:00", "day": "monday"}],
    "restaurant": [{"name": "salt", "food": "thai"}, {"name": "pepper", "food": "thai"}],
}


def dialogue(goal: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> dict[str, Any]:
    message = ["You want <span class='emphasis'>thai</span> food", " and a <span>walk</span>"]
    log = [{"text": "hi", "metadata": {}}, {"text": "bye", "metadata": metadata or {}}]
    return {"goal": {"taxi": {}, "message": message, **goal}, "log": log}


def eats(item: Mapping[str, str], semi: Mapping[str, str] | None = None) -> dict[str, Any]:
    book = {"time": "19:00", "day": "monday", "people": "2"}
    goal = {"restaurant": {"info": {"food": "thai"}, "book": book}}
    state = {"book": {"booked": [{"name": "salt", "reference": "OLD"}, item]}, "semi": semi or {}}
    return dialogue(goal, {"restaurant": state})


WALK = dialogue({"attraction": {"info": {"area": "south"}, "reqt": ["type"]}})
RIDE = dialogue({"taxi": {"info": {"leaveAt": "9:00"}}, "hotel": {"info": {"area": "north"}}})

DIALOGUES = {
    "C.json": eats({"name": "pepper", "reference": "R1"}),
    "A.json": WALK,
    "B": WALK,  # a key may lack the ending
    "T1.json": WALK,
    "TAXI.json": RIDE,
    "NONE.json": dialogue({"hotel": {"info": {}}}),
}


def dump(value: Any) -> bytes:
    return json.dumps(value).encode()


@pytest.fixture
def databases(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Databases of a few rows, pinned like the real ones."""
    files = {f"{domain}_db.json": dump(rows) for domain, rows in ROWS.items()}
    pinned = {f"db/{name}": git_blob_id(content) for name, content in files.items()}
    monkeypatch.setattr(module, "BLOBS", pinned)
    return files


@pytest.fixture
def files(databases: dict[str, bytes]) -> dict[str, bytes]:
    """A small MultiWOZ: its files by name."""
    return {
        "data.json": dump(DIALOGUES),
        "valListFile.txt": b"A.json\r\nB.json\r\n",
        "testListFile.txt": b"T1.json\n",
        **databases,
    }


def zipped(files: Mapping[str, bytes], prefix: str = "MultiWOZ_2.1/") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(prefix + name, content)
    return buffer.getvalue()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_all(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        write(folder / name, content)
    return folder


def ids(world: ToolWOZ) -> dict[str, list[str]]:
    return {split: [task.id for task in world.tasks(split)] for split in world.splits}


EXPECTED = {"train": ["C.json"], "val": ["A.json", "B.json"], "test": ["T1.json"]}


# --- layouts ---------------------------------------------------------------------------------


def test_real_archive(multiwoz: ToolWOZ) -> None:
    assert multiwoz.splits == ("val",)
    assert len(multiwoz.tasks("val")) == 793
    first = multiwoz.tasks("val")[0]
    assert first.id == "MUL0013.json"
    assert first.instruction.startswith("You are planning your trip in Cambridge\nYou are looking")
    assert not any("<" in task.instruction for task in multiwoz.tasks("val"))
    with pytest.raises(UsageError, match=r"no split 'train'; it has val$"):
        multiwoz.tasks("train")


def test_archive(files: dict[str, bytes], tmp_path: Path) -> None:
    archive = write(tmp_path / "woz.zip", zipped(files))
    prepared = prepare_multiwoz(tmp_path / "out", archive)
    splits = {"train": 1, "val": 2, "test": 1}
    left_out = {"wants a taxi, the police or a hospital": 1, "has no goal call": 1}
    assert prepared == Prepared(splits, splits, left_out, repaired={}, dropped={})
    world = read_multiwoz(tmp_path / "out")
    assert ids(world) == EXPECTED
    task = world.tasks("train")[0]
    assert task.instruction == "You want thai food\nand a walk"
    assert task.turns == ("hi",)
    assert task.goals == (
        ToolCall("search_restaurant", {"food": "thai", "pricerange": "", "name": "", "area": ""}),
        ToolCall(
            "book_restaurant", {"time": "19:00", "day": "monday", "people": "2", "name": "pepper"}
        ),
    )
    assert world.tables["restaurant"].rows == tuple(ROWS["restaurant"])


def test_lists_without_endings_and_folders_in_any_depth(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    files["valListFile.json"] = files.pop("valListFile.txt").replace(b".json", b"")
    files["testListFile"] = files.pop("testListFile.txt")
    files["._data.json"] = b"\x00\x05"  # what a Mac adds
    write_all(tmp_path / "deep" / "er", files)
    prepare_multiwoz(tmp_path / "out", tmp_path)
    assert ids(read_multiwoz(tmp_path / "out")) == EXPECTED


def test_checkout(files: dict[str, bytes], databases: dict[str, bytes], tmp_path: Path) -> None:
    """The repository has the databases in a folder; those in its archive may be older."""
    stale = {name: b"[]" for name in databases}
    write_all(tmp_path / "repo" / "db", databases)
    write(tmp_path / "repo" / "data" / "MultiWOZ_2.1.zip", zipped({**files, **stale}))
    write(tmp_path / "repo" / "data" / "MultiWOZ_2.0.zip", b"not looked at")
    prepare_multiwoz(tmp_path / "out", tmp_path / "repo")
    assert ids(read_multiwoz(tmp_path / "out")) == EXPECTED


def test_zipped_checkout(
    files: dict[str, bytes], databases: dict[str, bytes], tmp_path: Path
) -> None:
    """What "Download ZIP" gives: an archive with the archive in it."""
    inside = {f"db/{name}": content for name, content in databases.items()}
    inside["data/MultiWOZ_2.1.zip"] = zipped(files)
    inside["data/MultiWOZ_2.2/train/dialogues_001.json"] = b"[]"
    archive = write(tmp_path / "master.zip", zipped(inside, prefix="multiwoz-master/"))
    prepare_multiwoz(tmp_path / "out", archive)
    assert ids(read_multiwoz(tmp_path / "out")) == EXPECTED


@pytest.mark.parametrize("indent", [None, 0, 4])
def test_data_json_in_any_formatting(
    indent: int | None, files: dict[str, bytes], tmp_path: Path
) -> None:
    text = json.dumps(DIALOGUES, indent=indent, ensure_ascii=False)
    files["data.json"] = f"\r\n {text}\n\t".replace("thai", "th\N{LATIN SMALL LETTER I}").encode()
    files["data.json"] = files["data.json"].replace(b"walk", "w\u00e4lk \U0001f6b6".encode())
    prepare_multiwoz(tmp_path / "out", write_all(tmp_path / "in", files))
    world = read_multiwoz(tmp_path / "out")
    assert ids(world) == EXPECTED
    assert world.tasks("train")[0].instruction.endswith("and a w\u00e4lk \U0001f6b6")


def test_copies_are_one_file_but_versions_are_not(files: dict[str, bytes], tmp_path: Path) -> None:
    write_all(tmp_path / "in" / "one", files)
    write_all(tmp_path / "in" / "two", files)
    prepare_multiwoz(tmp_path / "out", tmp_path / "in")
    assert ids(read_multiwoz(tmp_path / "out")) == EXPECTED
    write(tmp_path / "in" / "two" / "data.json", dump({"A.json": WALK}))
    with pytest.raises(UsageError, match=r"different files data\.json \(one/data\.json, two/"):
        prepare_multiwoz(tmp_path / "out", tmp_path / "in")


def test_download(
    files: dict[str, bytes],
    databases: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    archive = zipped(files)
    write(tmp_path / "site" / "data" / "MultiWOZ_2.1.zip", archive)
    write_all(tmp_path / "site" / "db", databases)
    monkeypatch.setattr(module, "URL", (tmp_path / "site").as_uri())
    monkeypatch.setitem(module.BLOBS, module.ARCHIVE, git_blob_id(archive))
    prepare_multiwoz(tmp_path / "out")
    assert ids(read_multiwoz(tmp_path / "out")) == EXPECTED
    assert "MultiWOZ_2.1.zip: 0.0 MB\n" in capsys.readouterr().err
    monkeypatch.setitem(module.BLOBS, module.ARCHIVE, "0" * 40)
    with pytest.raises(UsageError, match=f"not the pinned file: git blob {git_blob_id(archive)}"):
        prepare_multiwoz(tmp_path / "out")


def test_offline(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot download .*missing: .*--from"):
        download((tmp_path / "missing").as_uri(), "0" * 40)


def test_pins() -> None:
    """The example of git's own documentation, and the ids that the data is known by."""
    assert git_blob_id(b"what is up, doc?") == "bd9dbf5aae1a3862dd1526723246b20206e5fc37"
    assert all(re.fullmatch("[0-9a-f]{40}", blob) for blob in module.BLOBS.values())
    assert set(module.BLOBS) == {
        "data/MultiWOZ_2.1.zip",
        *(f"db/{domain}_db.json" for domain in ROWS),
    }


# --- splits and bookings ---------------------------------------------------------------------


def test_test450_is_the_first_450_in_order(files: dict[str, bytes], tmp_path: Path) -> None:
    numbers = [f"T{n:04}.json" for n in range(460)]
    files["data.json"] = dump({id: WALK for id in reversed(numbers)})
    files["testListFile.txt"] = "\n".join(numbers).encode()
    archive = write(tmp_path / "woz.zip", zipped(files))
    assert prepare_multiwoz(tmp_path / "out", archive).tasks == {"test": 460, "test450": 450}
    world = read_multiwoz(tmp_path / "out")
    assert [task.id for task in world.tasks("test450")] == numbers[:450]
    assert {task.split for task in world.tasks("test450")} == {"test450"}
    assert {task.split for task in world.tasks("test")} == {"test"}


def test_booked_items() -> None:
    def booked(item: Mapping[str, str], semi: Mapping[str, str]) -> dict[str, dict[str, str]]:
        return booked_items(eats(item, semi)["log"])

    salt = {"name": "salt"}
    assert booked({"name": "pepper", "reference": "R"}, salt) == {
        "restaurant": {"name": "pepper", "reference": "R"}
    }
    assert booked({"reference": "R"}, salt) == {"restaurant": {"name": "salt", "reference": "R"}}
    assert booked({"reference": "R"}, {"name": "not mentioned"}) == {
        "restaurant": {"reference": "R"}
    }
    assert booked_items(WALK["log"]) == {}
    # The last state counts. The customer may have the last word: it is then the turn before.
    earlier, later = (eats({"name": name, "reference": "R"})["log"] for name in ("salt", "pepper"))
    log = [*earlier, *later, {"text": "bye", "metadata": {}}]
    assert booked_items(log) == {"restaurant": {"name": "pepper", "reference": "R"}}


def test_a_booking_without_a_name_is_the_first_row_found(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    files["data.json"] = dump({"C.json": eats({"reference": "R"})})
    prepare_multiwoz(tmp_path / "out", write(tmp_path / "woz.zip", zipped(files)))
    (wish,) = read_multiwoz(tmp_path / "out").tasks("train")[0].wishes
    assert wish.booked == {"name": "salt", "reference": "R"}


# --- what ToolWOZ-v1 has ---------------------------------------------------------------------

LOST = eats({"name": "nowhere", "reference": "R2"})
"""What was booked is not in the database: v1 drops the task."""

LONGER = eats({"name": "pepper grill", "reference": "R3"})
"""What was booked is in the database under another name: v1 repairs the task."""


@pytest.fixture
def mended(files: dict[str, bytes]) -> dict[str, bytes]:
    """A MultiWOZ of which v1 drops a task in each split, and repairs one."""
    names = {"A": WALK, "B": LOST, "C": LONGER}
    splits = {"train": "L", "val": "V", "test": "T"}
    dialogues = {f"{s}{n}.json": d for s in splits.values() for n, d in names.items()}
    files["data.json"] = dump(dialogues)
    files["valListFile.txt"], files["testListFile.txt"] = (
        "\n".join(f"{splits[split]}{name}.json" for name in names).encode()
        for split in ("val", "test")
    )
    return files


def test_v1_has_the_repaired_tasks_and_not_the_dropped(
    mended: dict[str, bytes], tmp_path: Path
) -> None:
    prepared = prepare_multiwoz(tmp_path / "out", write(tmp_path / "woz.zip", zipped(mended)))
    assert (prepared.tasks, prepared.kept) == (
        {"train": 3, "val": 3, "test": 3},
        {"train": 2, "val": 2, "test": 2},
    )
    assert sum(prepared.repaired.values()) == sum(prepared.dropped.values()) == 3
    v0, v1 = (read_multiwoz(tmp_path / "out", version) for version in (0, 1))
    assert ids(v0)["val"] == ["VA.json", "VB.json", "VC.json"]
    assert ids(v1) == {
        "train": ["LA.json", "LC.json"],
        "val": ["VA.json", "VC.json"],
        "test": ["TA.json", "TC.json"],
    }
    assert v0.tasks("val")[0] == v1.tasks("val")[0]
    booked = [world.tasks("val")[-1].goals[-1].arguments["name"] for world in (v0, v1)]
    assert booked == ["pepper grill", "pepper"]
    assert [by_id(world, "val", "VB.json") is None for world in (v0, v1)] == [False, True]
    assert v0.fingerprint != v1.fingerprint
    assert v0.tables is v1.tables


def by_id(world: ToolWOZ, split: str, id: str) -> ToolWOZTask | None:
    tasks = world.tasks(split)
    assert isinstance(tasks, TaskFile)
    return tasks.by_id(id)


def test_the_instruction_of_v1_has_the_names_of_the_database(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    """The name in an instruction finds what it is about, in v1; v0 keeps what was published."""
    book = {"time": "19:00", "day": "monday", "people": "2"}
    goal = {"restaurant": {"info": {"name": "pepper grill"}, "book": book}}
    state = {"restaurant": {"book": {"booked": [{"name": "pepper grill", "reference": "R"}]}}}
    named = dialogue(goal, state)
    named["goal"]["message"] = ["Its name is called <span class='emphasis'>pepper grill</span>"]
    files["data.json"] = dump({"A.json": named, "B.json": WALK})
    prepare_multiwoz(tmp_path / "out", write(tmp_path / "woz.zip", zipped(files)))
    v0, v1 = (read_multiwoz(tmp_path / "out", version).tasks("val") for version in (0, 1))
    assert v0[0].instruction == "Its name is called pepper grill"
    assert v1[0].instruction == "Its name is called pepper"
    assert v1[0].goals[0].arguments["name"] == "pepper"
    assert v1[1].instruction == v0[1].instruction == "You want thai food\nand a walk"


def test_every_name_in_a_real_instruction_is_the_databases(multiwoz_v1: ToolWOZ) -> None:
    """A customer that goes by its instruction asks for what its goal has."""
    for task in multiwoz_v1.tasks("val"):
        said = plain(task.instruction)
        for wish in task.wishes:
            name = (wish.search or {}).get("name")
            if name:
                assert plain(name) in said, task.id
                assert multiwoz_v1.tables[wish.domain].plainly("name", name), task.id


def test_repairs_are_listed(mended: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepared = prepare_multiwoz(out, write(tmp_path / "woz.zip", zipped(mended)))
    repairs = [json.loads(line) for line in (out / "repairs.jsonl").read_text().splitlines()]
    assert {(r["id"], r["split"], r["action"]) for r in repairs} == {
        (f"{name}{id}.json", split, action)
        for split, name in (("train", "L"), ("val", "V"), ("test", "T"))
        for id, action in (("B", "dropped"), ("C", "repaired"))
    }
    for action, counted in (("repaired", prepared.repaired), ("dropped", prepared.dropped)):
        reasons = Counter(why for r in repairs if r["action"] == action for why in r["reasons"])
        assert reasons and dict(reasons) == counted
    meta = json.loads((out / "meta.json").read_text())
    assert all(meta[field.name] == getattr(prepared, field.name) for field in fields(prepared))


def test_a_split_of_which_nothing_is_left_is_no_split(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    files["data.json"] = dump({"A.json": LOST, "T1.json": WALK})
    prepared = prepare_multiwoz(tmp_path / "out", write(tmp_path / "woz.zip", zipped(files)))
    assert (prepared.tasks, prepared.kept) == ({"val": 1, "test": 1}, {"val": 0, "test": 1})
    assert ids(read_multiwoz(tmp_path / "out", 0)) == {"val": ["A.json"], "test": ["T1.json"]}
    assert ids(read_multiwoz(tmp_path / "out", 1)) == {"test": ["T1.json"]}


def test_test450_of_v1_lacks_what_is_dropped_of_v0s(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    numbers = [f"T{n:04}.json" for n in range(460)]
    files["data.json"] = dump({id: LOST if id == "T0007.json" else WALK for id in numbers})
    files["testListFile.txt"] = "\n".join(numbers).encode()
    prepared = prepare_multiwoz(tmp_path / "out", write(tmp_path / "woz.zip", zipped(files)))
    assert prepared.kept == {"test": 459, "test450": 449}
    listed = [task.id for task in read_multiwoz(tmp_path / "out", 1).tasks("test450")]
    assert listed == [id for id in numbers[:450] if id != "T0007.json"]


def test_real_repairs(multiwoz: ToolWOZ, multiwoz_v1: ToolWOZ, multiwoz_folder: Path) -> None:
    lines = (multiwoz_folder / "repairs.jsonl").read_text().splitlines()
    repairs = {record["id"]: record for record in map(json.loads, lines)}
    v0 = {task.id: task for task in multiwoz.tasks("val")}
    v1 = {task.id: task for task in multiwoz_v1.tasks("val")}
    assert set(v0) - set(v1) == {id for id, r in repairs.items() if r["action"] == "dropped"}
    changed = {id for id, task in v1.items() if task != v0[id]}
    assert changed == {id for id, r in repairs.items() if r["action"] == "repaired"}
    assert all(record["reasons"] for record in repairs.values())
    assert all(task.turns for task in v0.values())


# --- the files of tasks ----------------------------------------------------------------------


def test_a_file_of_tasks_is_a_sequence(multiwoz_folder: Path) -> None:
    lines = (multiwoz_folder / "tasks-val.jsonl").read_text("ascii").splitlines()
    for version in (0, 1):
        expected = [
            task_from_json(data, version)
            for data in map(json.loads, lines)
            if version == 0 or data["repaired"] != []
        ]
        tasks = read_multiwoz(multiwoz_folder, version).tasks("val")
        assert isinstance(tasks, TaskFile)
        assert list(tasks) == expected and len(tasks) == len(expected)
        assert tasks[-3:] == expected[-3:] and tasks[::100] == expected[::100]
        assert (tasks[0], tasks[-1]) == (expected[0], expected[-1])
        for bad in (len(tasks), -len(tasks) - 1):
            with pytest.raises(IndexError):
                tasks[bad]
        assert all(tasks.by_id(task.id) == task for task in expected)
        for id in ("", "A", "MUL0013", "MUL0013.jso", "MUL0013.json ", "ZZZ", "\ud800", '"'):
            assert tasks.by_id(id) is None


def test_ids_are_found_whatever_they_look_like(files: dict[str, bytes], tmp_path: Path) -> None:
    names = ['a"b.json', "\\.json", "\u00e9.json", "\U0001f6b6.json", "~.json", " .json"]
    files["data.json"] = dump(dict.fromkeys(names, WALK))
    prepare_multiwoz(tmp_path / "out", write_all(tmp_path / "in", files))
    tasks = read_multiwoz(tmp_path / "out").tasks("train")
    assert isinstance(tasks, TaskFile)
    assert [task.id for task in tasks] == sorted(names)
    assert [task.id for name in names if (task := tasks.by_id(name))] == names


def test_tasks_in_use_are_shared_and_others_are_let_go(multiwoz: ToolWOZ) -> None:
    tasks = multiwoz.tasks("val")
    assert isinstance(tasks, TaskFile)
    first = tasks[0]
    assert first is tasks[-len(tasks)] is tasks[:2][0] is next(iter(tasks)) is tasks.by_id(first.id)
    gone = weakref.ref(tasks[500])
    assert gone() is None


def test_the_files_are_mapped_and_shared(multiwoz: ToolWOZ, multiwoz_folder: Path) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("the system does not list a process's mappings")
    file = str(multiwoz_folder / "tasks-val.jsonl")
    modes = {line.split()[1] for line in maps.read_text().splitlines() if line.endswith(file)}
    assert modes == {"r--s"}  # read-only, and the pages are those of every other process


OTHER_PROCESS = """
import pickle, sys
from toolwoz_gym.types import UsageError
try:
    env, tasks = pickle.load(sys.stdin.buffer)
except UsageError as error:
    sys.exit(str(error))
print(env.snapshot().task.id, env.tasks is tasks, len(tasks), tasks[-1].id)
"""


def unpickled_elsewhere(pickled: bytes) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", OTHER_PROCESS]
    return subprocess.run(command, input=pickled, capture_output=True, check=False)


def test_tasks_travel_to_other_processes_by_the_name_of_their_file(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = write(tmp_path / "woz.zip", zipped(files))
    prepare_multiwoz(tmp_path / "out", archive)
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        world = read_multiwoz(Path("out"))  # a relative path means another folder elsewhere
    tasks = world.tasks("val")
    assert pickle.loads(pickle.dumps(tasks)) is tasks
    assert len(pickle.dumps(tasks)) < 500
    env = make_env("ToolWOZ-v0", world=world, split="val")
    env.reset(options={"task_id": "B.json"})
    pickled = pickle.dumps((env, tasks))
    assert unpickled_elsewhere(pickled).stdout == b"B.json True 2 B.json\n"
    prepare_multiwoz(tmp_path / "out", archive)  # the same data, in new files
    assert unpickled_elsewhere(pickled).stdout == b"B.json True 2 B.json\n"
    files["data.json"] = dump({"A.json": eats({"name": "salt", "reference": "R"})})
    prepare_multiwoz(tmp_path / "out", write_all(tmp_path / "in", files))
    assert re.fullmatch(
        rb"the tasks in .*tasks-\w+\.jsonl are no longer those .*: make it anew\n",
        unpickled_elsewhere(pickled).stderr,
    )


def test_preparing_anew_leaves_a_running_environment_its_data(
    mended: dict[str, bytes], files: dict[str, bytes], tmp_path: Path
) -> None:
    prepare_multiwoz(tmp_path / "out", write(tmp_path / "woz.zip", zipped(mended)))
    old = {version: read_multiwoz(tmp_path / "out", version) for version in (0, 1)}
    env = make_env("ToolWOZ-v1", world=old[1], split="val")
    before = {version: ids(world) for version, world in old.items()}
    files["data.json"] = dump({"VA.json": WALK})
    prepare_multiwoz(tmp_path / "out", write(tmp_path / "woz.zip", zipped(files)))
    assert ids(read_multiwoz(tmp_path / "out")) == {"val": ["VA.json"]}
    for file in (tmp_path / "out").iterdir():
        file.unlink()
    assert {version: ids(world) for version, world in old.items()} == before
    env.reset(options={"task_id": "VC.json"})
    assert env.snapshot().task.id == "VC.json"


# --- the data set ----------------------------------------------------------------------------


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The library, offline, with nothing in its cache."""
    import datasets as library

    monkeypatch.setattr(library.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    library.disable_progress_bars()
    assert isinstance(library, ModuleType)
    return library


def check_data_set(datasets: ModuleType, folder: Path, tmp_path: Path) -> None:
    """Every task of both versions comes out of the library as it went in, in both ways to read."""
    cache = str(tmp_path / "cache")
    whole = datasets.load_dataset(str(folder), cache_dir=cache)
    assert list(whole) == list(read_multiwoz(folder).splits)
    assert len({str(split.features) for split in whole.values()}) == 1
    for version in (0, 1):
        world = read_multiwoz(folder, version)
        for split in world.splits:
            file = str(folder / f"tasks-{split}.jsonl")
            single = datasets.load_dataset("json", data_files=file, split="train", cache_dir=cache)
            for rows in (whole[split], single):
                kept = [row for row in rows if version == 0 or row["repaired"] != []]
                assert [task_from_json(row, version) for row in kept] == list(world.tasks(split))


def test_datasets_reads_the_real_tasks(
    datasets: ModuleType, multiwoz_folder: Path, tmp_path: Path
) -> None:
    check_data_set(datasets, multiwoz_folder, tmp_path)


def test_datasets_reads_splits_that_lack_parameters(
    datasets: ModuleType, mended: dict[str, bytes], tmp_path: Path
) -> None:
    """No two splits here have the same keys, and what was booked has one that nobody foresaw."""
    dialogues = json.loads(mended["data.json"])
    ride = {"train": {"info": {"day": "monday"}, "fail_info": {"day": "sunday"}, "reqt": ["price"]}}
    dialogues["LD.json"] = dialogue(ride)
    dialogues["TC.json"] = eats({"name": "pepper", "reference": "R", "table": "4"})
    del dialogues["VB.json"], dialogues["VC.json"]
    mended["data.json"] = dump(dialogues)
    prepare_multiwoz(tmp_path / "out", write(tmp_path / "woz.zip", zipped(mended)))
    check_data_set(datasets, tmp_path / "out", tmp_path)


# --- what is refused -------------------------------------------------------------------------


def bomb(files: dict[str, bytes]) -> bytes:
    return zipped({**files, "train_db.json": b" " * (17 << 20)})


def encrypted(files: dict[str, bytes]) -> bytes:
    """Set the flag that says so, in the local and in the central header of the first file."""
    content = bytearray(zipped(files, prefix=""))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def damaged(files: dict[str, bytes]) -> bytes:
    content = bytearray(zipped(files))
    content[content.index(b"data.json") + 40] ^= 0xFF
    return bytes(content)


def lying(files: dict[str, bytes]) -> bytes:
    """Say in both headers of the first file that it has ten bytes when unpacked."""
    content = bytearray(zipped(files, prefix=""))
    for start in (22, content.index(b"PK\x01\x02") + 24):
        content[start : start + 4] = (10).to_bytes(4, "little")
    return bytes(content)


def linked(files: dict[str, bytes]) -> bytes:
    """Make data.json a symbolic link out of the archive, as zip on Unix stores one."""
    buffer = io.BytesIO(zipped({k: v for k, v in files.items() if k != "data.json"}))
    with zipfile.ZipFile(buffer, "a") as archive:
        link = zipfile.ZipInfo("data.json")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "../../../../etc/passwd")
    return buffer.getvalue()


BAD_ARCHIVES: dict[str, tuple[Callable[[dict[str, bytes]], bytes], str]] = {
    "not a zip": (lambda files: b"hello", "is no zip archive"),
    "empty": (lambda files: b"", "is no zip archive"),
    "truncated": (lambda files: zipped(files)[:-200], "is no zip archive"),
    "damaged": (damaged, r"cannot read MultiWOZ_2\.1/data\.json"),
    "encrypted": (encrypted, "cannot read data.json in .*: .*encrypted"),
    "bomb": (bomb, r"train_db\.json in .* is too large: more than 16,777,216 bytes"),
    "nothing in it": (lambda files: zipped({}), "has no hotel_db.json"),
    "no dialogues": (
        lambda files: zipped({k: v for k, v in files.items() if k != "data.json"}),
        r"has no data\.json",
    ),
    "no validation list": (
        lambda files: zipped({k: v for k, v in files.items() if k[:3] != "val"}),
        r"has no valListFile\*",
    ),
    "other database": (
        lambda files: zipped({**files, "hotel_db.json": b"[]"}),
        r"hotel_db\.json in .* is not the pinned one: git blob 0637a088a01e8d",
    ),
    "no JSON": (lambda files: zipped({**files, "data.json": b"{"}), "data.json is not JSON"),
    "not text": (lambda files: zipped({**files, "data.json": b"\xff{}"}), "data.json is not JSON"),
    "nested": (
        lambda files: zipped({**files, "data.json": b'{"A":' + b"[" * 600_000}),
        r"data\.json is not JSON at byte 5: maximum recursion",
    ),
    "nested objects": (
        lambda files: zipped({**files, "data.json": b'{"A":' * 100_000}),
        "data.json is not JSON at byte 5: maximum recursion",
    ),
    "a list": (lambda files: zipped({**files, "data.json": b"[]"}), "byte 0: there must be {$"),
    "no value": (lambda files: zipped({**files, "data.json": b'{"A"}'}), "byte 4: there must be :"),
    "no end": (
        lambda files: zipped({**files, "data.json": dump(DIALOGUES)[:-1]}),
        "there must be , or }",
    ),
    "no name": (lambda files: zipped({**files, "data.json": b"{1:{}}"}), "see dialogue 1$"),
    "two objects": (
        lambda files: zipped({**files, "data.json": b"{} {}"}),
        "byte 3: it goes on after its end",
    ),
    "a dialogue without end": (
        lambda files: zipped({**files, "data.json": b'{"A": "' + b" " * 600_000 + b'"}'}),
        "a dialogue of more than 524,288 bytes",
    ),
    "a dialogue twice": (
        lambda files: zipped({**files, "data.json": dump({"A": WALK, "A.json": WALK})}),
        r"it has A\.json twice",
    ),
    "what nobody can ask for": (
        lambda files: zipped(
            {**files, "data.json": dump({"A": dialogue({"hotel": {"reqt": [["phone"]]}})})}
        ),
        "see dialogue A$",
    ),
    "a name with codes": (
        lambda files: zipped({**files, "data.json": dump({"\x1b[2J\n" * 99: []})}),
        r"see dialogue '\\x1b\[2J\\n.*\.\.\.$",
    ),
    "a member's name with codes": (
        lambda files: zipped({**files, "\x1b[2J\n/data.json": b""}),
        r"different files data\.json \('MultiWOZ_2\.1/\\x1b\[2J\\n/data\.json', Mul",
    ),
    "many members": (
        lambda files: zipped({f"{n}": b"" for n in range(10_001)}),
        "too many files: more than 10,000",
    ),
    "many copies": (
        lambda files: zipped({**files, **{f"{n}/data.json": b"{}" for n in range(8)}}),
        r"too many files data\.json: 9$",
    ),
    "many databases": (
        lambda files: zipped({**files, **{f"{n}/hotel_db.json": b"" for n in range(8)}}),
        r"too many files hotel_db\.json: 9$",
    ),
    "bomb in the archive inside": (
        lambda files: zipped({"data/MultiWOZ_2.1.zip": bomb(files)}),
        r"MultiWOZ_2\.1\.zip/MultiWOZ_2\.1/train_db\.json in .* is too large",
    ),
    "an archive inside that is none": (
        lambda files: zipped({"data/MultiWOZ_2.1.zip": b"PK"}),
        r"MultiWOZ_2\.1/data/MultiWOZ_2\.1\.zip is no zip archive",
    ),
    "archives all the way down": (
        lambda files: zipped({"MultiWOZ_2.1.zip": zipped({"MultiWOZ_2.1.zip": zipped(files)})}),
        "has no hotel_db.json",
    ),
    "a size that lies": (lying, r"cannot read data\.json in .*: "),
    "a link": (linked, "data.json is not JSON"),
    "no tasks": (lambda files: zipped({**files, "data.json": b"{}"}), "no dialogue that makes"),
    "other shape": (
        lambda files: zipped({**files, "data.json": b'{"X1": {"goal": [], "log": []}}'}),
        "see dialogue X1$",
    ),
}


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_bad_archive(case: str, files: dict[str, bytes], tmp_path: Path) -> None:
    """Each is refused in one line, and what was prepared before stays as it is."""
    out = tmp_path / "data" / "multiwoz"
    prepare_multiwoz(out, write(tmp_path / "good.zip", zipped(files)))
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    make, message = BAD_ARCHIVES[case]
    archive = write(tmp_path / "bad.zip", make(files))
    with pytest.raises(UsageError, match=message) as raised:
        prepare_multiwoz(out, archive)
    assert str(raised.value).isprintable() and len(str(raised.value)) < 500
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert ids(read_multiwoz(out)) == EXPECTED
    assert [file.name for file in out.parent.iterdir()] == ["multiwoz"]


def test_paths_in_an_archive_lead_nowhere(files: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    archive = write(folder / "woz.zip", zipped(files, prefix="../../../"))
    prepare_multiwoz(folder / "out", archive)
    assert ids(read_multiwoz(folder / "out")) == EXPECTED
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.json")) == [
        "a/b/out/meta.json",
        "a/b/out/tables.json",
    ]


def test_an_archive_is_read_up_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]
) -> None:
    monkeypatch.setattr(data, "MAX_ARCHIVE", 100)
    with pytest.raises(UsageError, match="too large: more than 100 bytes"):
        prepare_multiwoz(tmp_path / "out", write(tmp_path / "woz.zip", zipped(files)))
    with pytest.raises(UsageError, match="too large: more than 100 bytes"):
        download(write(tmp_path / "big", b"x" * 101).as_uri(), "0" * 40)


@pytest.mark.parametrize(("limit", "value"), [("_MAX_NUMBER", 5), ("_MAX_TASKS", 600)])
def test_dialogues_are_read_up_to_a_limit(
    limit: str,
    value: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, bytes],
) -> None:
    monkeypatch.setattr(module, limit, value)
    with pytest.raises(UsageError, match="it has too much in it"):
        prepare_multiwoz(tmp_path / "out", write(tmp_path / "woz.zip", zipped(files)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.text(), JSON.filter(lambda v: isinstance(v, (str, list, dict)))))
@settings(suppress_health_check=[HealthCheck.filter_too_much])
def test_an_object_is_read_one_member_at_a_time(value: dict[str, Any]) -> None:
    """In windows of 9 and of 4096 bytes, so that texts and their characters are cut anywhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_USUAL_DIALOGUE", 9)
        patch.setattr(module, "_MAX_DIALOGUE", 1 << 12)
        for indent in (None, 2):
            text = json.dumps(value, ensure_ascii=False, indent=indent)
            data = text.encode("utf-8", "surrogatepass")
            assume(len(data) < 1 << 12)
            assert repr(list(module._members(data))) == repr(list(json.loads(text).items()))


PARTS = [
    *("goal", "log", "message", "taxi", "restaurant", "info", "book", "reqt", "fail_info"),
    *("fail_book", "text", "metadata", "booked", "semi", "name", "food", "time"),
]


def put(value: Any, part: str, other: Any) -> Any:
    """Return a value with another one in each place of that name."""
    if isinstance(value, list):
        return [put(item, part, other) for item in value]
    if isinstance(value, dict):
        return {k: other if k == part else put(v, part, other) for k, v in value.items()}
    return value


@given(st.sampled_from(PARTS), JSON)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_stands_in_a_dialogue_is_refused_or_played(
    files: dict[str, bytes], tmp_path: Path, part: str, other: Any
) -> None:
    full = {"info": {"food": "thai"}, "fail_info": {"food": "nordic"}, "reqt": ["phone"]}
    full |= {"book": {"time": "19:00"}, "fail_book": {"time": "18:00"}}
    state = {"book": {"booked": [{"name": "salt"}], "time": ""}, "semi": {"name": "salt"}}
    whole = dialogue({"restaurant": full}, {"restaurant": state})
    files["data.json"] = dump({"X1.json": put(whole, part, other)})
    out = tmp_path / "out"
    try:
        prepare_multiwoz(out, write_all(tmp_path / "in", files))
    except UsageError as error:
        assert re.search("see dialogue X1.json$|no dialogue that makes a task$", str(error))
        return
    for version in (0, 1):
        world = read_multiwoz(out, version)
        for task in (task for split in world.splits for task in world.tasks(split)):
            for goal in task.goals:
                world.call(task, world.start(task), goal)


def test_damage_anywhere_is_refused_or_harmless(files: dict[str, bytes]) -> None:
    """Every byte of an archive is set to something else: a reader gets the content or one line."""
    content = zipped(files)
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 + position % 255
        try:
            source = open_archive("woz.zip", bytes(damaged))
            for name in files:
                for path in source.named(name):
                    assert source.read(path, 10_000) == files[name]
        except UsageError as error:
            assert str(error).isprintable()


def test_unusual_compression_is_refused(files: dict[str, bytes]) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("data.json", files["data.json"])
    with pytest.raises(UsageError, match="compressed in an unusual way"):
        open_archive("woz.zip", buffer.getvalue()).read("data.json", 1000)


# --- the folder ------------------------------------------------------------------------------


def test_preparing_again_replaces_what_was_there(files: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "multiwoz"
    prepare_multiwoz(out, write(tmp_path / "woz.zip", zipped(files)))
    old = read_multiwoz(out)
    files["data.json"] = dump({"A.json": WALK})
    prepare_multiwoz(out, write(tmp_path / "woz.zip", zipped(files)))
    new = read_multiwoz(out)
    assert ids(new) == {"val": ["A.json"]}
    assert sorted(file.name for file in out.iterdir()) == [
        "README.md",
        "meta.json",
        "repairs.jsonl",
        "tables.json",
        "tasks-val.jsonl",
    ]
    assert new.fingerprint != old.fingerprint


def test_equal_data_has_equal_fingerprints(files: dict[str, bytes], tmp_path: Path) -> None:
    prepare_multiwoz(tmp_path / "one", write(tmp_path / "woz.zip", zipped(files)))
    prepare_multiwoz(tmp_path / "two", write_all(tmp_path / "folder", files))
    one, two = read_multiwoz(tmp_path / "one"), read_multiwoz(tmp_path / "two")
    assert one.fingerprint == two.fingerprint
    assert read_multiwoz(tmp_path / "two") is two


def test_a_failure_leaves_the_folder_alone(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write(folder / "file", b"old")
    with pytest.raises(KeyboardInterrupt), replacing(folder) as new:
        write(new / "file", b"half")
        raise KeyboardInterrupt
    assert (folder / "file").read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_swap_that_fails_is_undone(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write(folder / "file", b"old")
    with pytest.raises(UsageError, match="cannot write"), replacing(folder) as new:
        new.rmdir()
    assert (folder / "file").read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_swap_that_is_interrupted_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    write(folder / "file", b"old")
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), replacing(folder):
        pass
    assert (folder / "file").read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_cannot_be_written(files: dict[str, bytes], tmp_path: Path) -> None:
    archive = write(tmp_path / "woz.zip", zipped(files))
    with pytest.raises(UsageError, match=r"cannot write .*woz\.zip/multiwoz: "):
        prepare_multiwoz(archive / "multiwoz", archive)


@pytest.mark.parametrize("name", ["tables.json", "tasks-val.jsonl", "meta.json"])
def test_damaged_data_is_not_played(name: str, files: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "multiwoz"
    prepare_multiwoz(out, write(tmp_path / "woz.zip", zipped(files)))
    content = (out / name).read_bytes()
    (out / name).write_bytes(content[: len(content) // 2])
    damaged = r"is damaged, or another version's: run python -m toolwoz_gym data prepare"
    with pytest.raises(UsageError, match=damaged):
        read_multiwoz(out)
    (out / name).write_bytes(content.replace(b"a", b"b"))
    with pytest.raises(UsageError, match=damaged):
        read_multiwoz(out)
    (out / name).unlink()
    with pytest.raises(UsageError, match=r"not prepared in .*: run python -m toolwoz_gym data"):
        read_multiwoz(out)


def test_data_that_another_version_prepared_is_not_played(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "multiwoz"
    prepare_multiwoz(out, write(tmp_path / "woz.zip", zipped(files)))
    meta = json.loads((out / "meta.json").read_text())
    for other in ({**meta, "format": 1}, {k: v for k, v in meta.items() if k != "format"}):
        (out / "meta.json").write_bytes(dump(other))
        with pytest.raises(UsageError, match=r"or another version's: run python -m toolwoz_gym"):
            read_multiwoz(out)


def test_a_place_for_data_that_is_no_folder(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = write(tmp_path / "woz.zip", zipped(files))
    monkeypatch.setenv("TOOLWOZ_DATA", str(archive))
    with pytest.raises(UsageError, match=r"TOOLWOZ_DATA names .*woz\.zip, which is no folder"):
        make_env("ToolWOZ-v0")
    monkeypatch.setenv("TOOLWOZ_DATA", "~nobody-here/data")
    with pytest.raises(UsageError, match=r"^name a folder for data in TOOLWOZ_DATA: "):
        make_env("ToolWOZ-v0")


def test_auto_takes_the_world_that_has_the_split(
    files: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("TOOLWOZ_DATA", str(tmp_path / "data"))
    out = tmp_path / "data" / "multiwoz"
    files["data.json"] = dump({"A.json": WALK})
    prepare_multiwoz(out, write(tmp_path / "woz.zip", zipped(files)))
    toolwoz_gym._announce.cache_clear()
    for version in (0, 1):
        for split, world in (("val", "multiwoz"), ("train", "builtin"), ("test", "builtin")):
            env = make_env(f"ToolWOZ-v{version}", split=split)
            assert (env.dialogue.domain.name, env.reset(seed=0)[1]["split"]) == (world, split)
    lacks = "'builtin' here: MultiWOZ as prepared has no split"
    assert [record.getMessage() for record in caplog.records] == [
        f"world='auto' stands for 'multiwoz' here: it is prepared in {out}",
        f"world='auto' stands for {lacks} 'train', only val",
        f"world='auto' stands for {lacks} 'test', only val",
    ]
    neither = (
        r"has no split 'test450', only val; the world 'builtin' has no split 'test450', only t"
    )
    with pytest.raises(UsageError, match=neither):
        make_env("ToolWOZ-v0", split="test450")
    with pytest.raises(UsageError, match="the world 'multiwoz' has no split 'train'; it has val"):
        make_env("ToolWOZ-v0", world="multiwoz")
    (out / "meta.json").write_bytes(b"{}")  # what is damaged is no reason to play another world
    with pytest.raises(UsageError, match="is damaged, or another version's"):
        make_env("ToolWOZ-v0")


def test_where_data_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TOOLWOZ_DATA", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert data_folder() == tmp_path / ".cache" / "toolwoz_gym"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_folder() == tmp_path / "cache" / "toolwoz_gym"
    monkeypatch.setenv("TOOLWOZ_DATA", "~/data")
    assert data_folder() == tmp_path / "data"
    assert not is_prepared()
    with pytest.raises(UsageError, match="is not prepared"):
        load_multiwoz()


# --- the command line ------------------------------------------------------------------------


def test_command_line(
    files: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TOOLWOZ_DATA", str(tmp_path / "data"))
    archive = write(tmp_path / "woz.zip", zipped(files))
    assert main(["data", "prepare", "multiwoz", "--from", str(archive)]) == 0
    out, err = capsys.readouterr()
    assert out == (
        "preparing multiwoz ...\n"
        f"prepared multiwoz in {tmp_path / 'data' / 'multiwoz'}\n"
        "  train: 1 tasks, of which ToolWOZ-v1 has 1\n"
        "  val: 2 tasks, of which ToolWOZ-v1 has 2\n"
        "  test: 1 tasks, of which ToolWOZ-v1 has 1\n"
        "  left out: 1 dialogues (has no goal call)\n"
        "  left out: 1 dialogues (wants a taxi, the police or a hospital)\n"
    )
    assert err == ""
    assert is_prepared()
    assert ids(load_multiwoz()) == EXPECTED


def test_command_line_mistake(tmp_path: Path) -> None:
    """One line, exit code 2, in a process of its own."""
    env = {**os.environ, "TOOLWOZ_DATA": str(tmp_path / "data")}
    command = [sys.executable, "-m", "toolwoz_gym", "data", "prepare", "multiwoz", "--from"]
    done = subprocess.run(
        [*command, str(tmp_path / "nowhere")], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == "preparing multiwoz ...\n"
    assert done.stderr == f"error: cannot read {tmp_path / 'nowhere'}: No such file or directory\n"
    assert not (tmp_path / "data").exists()
