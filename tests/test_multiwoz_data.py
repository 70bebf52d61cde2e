"""MultiWOZ is prepared from whatever layout it comes in, and from nothing that is not MultiWOZ."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from toolwoz_gym import data
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
    goal = {"restaurant": {"info": {"food": "thai"}, "book": {"time": "19:00"}}}
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
    assert prepared == Prepared(
        {"train": 1, "val": 2, "test": 1},
        {"wants a taxi, the police or a hospital": 1, "has no goal call": 1},
    )
    world = read_multiwoz(tmp_path / "out")
    assert ids(world) == EXPECTED
    task = world.tasks("train")[0]
    assert task.instruction == "You want thai food\nand a walk"
    assert task.goals == (
        ToolCall("search_restaurant", {"food": "thai", "pricerange": "", "name": "", "area": ""}),
        ToolCall("book_restaurant", {"time": "19:00", "day": "", "people": "", "name": "pepper"}),
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
        lambda files: zipped({**files, "data.json": b"[" * 100_000}),
        "data.json is not JSON",
    ),
    "a list": (lambda files: zipped({**files, "data.json": b"[]"}), "it must be an object"),
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
    assert "\n" not in str(raised.value)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
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
        "meta.json",
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
    with pytest.raises(UsageError, match=r"is damaged: run python -m toolwoz_gym data prepare"):
        read_multiwoz(out)
    (out / name).unlink()
    with pytest.raises(UsageError, match=r"not prepared in .*: run python -m toolwoz_gym data"):
        read_multiwoz(out)


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
        f"prepared MultiWOZ in {tmp_path / 'data' / 'multiwoz'}\n"
        "  train: 1 tasks\n  val: 2 tasks\n  test: 1 tasks\n"
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
    assert done.stdout == ""
    assert done.stderr == f"error: cannot read {tmp_path / 'nowhere'}: No such file or directory\n"
    assert not (tmp_path / "data").exists()
