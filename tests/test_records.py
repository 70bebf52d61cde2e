"""Records survive a kill at any instant, many threads, and folders that are not theirs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from logs import write_log

from toolwoz_gym.records import (
    Log,
    RunFolder,
    dump,
    message_from_json,
    message_to_json,
    read_config,
    read_jsonl,
    read_log,
    read_sealed,
    write_json,
    write_jsonl,
    write_sealed,
    write_text,
)
from toolwoz_gym.types import Message, ToolCall, Usage, UsageError

texts = st.text(st.characters(codec=None), max_size=30)
usages = st.builds(Usage, st.integers(0, 10**6), st.integers(0, 10**6))
messages = st.builds(
    Message,
    role=st.sampled_from(["user", "assistant", "tool"]),
    content=texts,
    call=st.none() | st.builds(ToolCall, texts, st.dictionaries(texts, texts | st.integers())),
    name=st.none() | texts,
    error=st.none() | texts,
    raw=st.none() | texts,
    usage=st.none() | usages,
    cut_off=st.booleans(),
)


def keys(path: Path) -> list[Any]:
    return [record["key"] for record in read_jsonl(path)]


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


# --- messages --------------------------------------------------------------------------------


@given(messages)
def test_messages_are_read_as_they_were_written(message: Message) -> None:
    again = message_from_json(json.loads(dump(message_to_json(message))))
    assert again == message
    assert (again.usage, again.cut_off) == (message.usage, message.cut_off)


def test_what_is_empty_is_not_written() -> None:
    call = Message("assistant", call=ToolCall("search_hotel", {"area": "north"}))
    assert message_to_json(call) == {
        "role": "assistant",
        "call": {"name": "search_hotel", "arguments": {"area": "north"}},
    }
    assert message_to_json(Message("user")) == {"role": "user", "content": ""}
    cut = Message("assistant", "In which", cut_off=True)
    assert message_to_json(cut) == {"role": "assistant", "content": "In which", "cut_off": True}
    assert cut == Message("assistant", "In which"), "searches ask whether the same was said"


# --- the log ---------------------------------------------------------------------------------


def test_a_torn_last_line_is_cut_off_wherever_it_tore(log_file: Path) -> None:
    records = [{"key": 0, "text": "a\nb"}, {"key": 1}, {"key": 2, "text": "£" * 5}]
    whole = [(dump(record) + "\n").encode() for record in records]
    data = b"".join(whole)
    for length in range(len(data) + 1):
        log_file.write_bytes(data[:length])
        log = Log(log_file)
        kept = keys(log_file)
        assert kept == [i for i in range(3) if sum(map(len, whole[: i + 1])) <= length]
        log.append({"key": "new"})
        log.close()
        assert keys(log_file) == [*kept, "new"]


def test_a_torn_line_longer_than_a_block_is_cut_off(log_file: Path) -> None:
    log_file.write_bytes(b'{"key":1}\n{"key":"' + b"x" * 200_000)
    Log(log_file).close()
    assert log_file.read_bytes() == b'{"key":1}\n'


WRITER = """
import sys
from pathlib import Path
from toolwoz_gym.records import Log
log = Log(Path(sys.argv[1]))
for key in range(int(sys.argv[2]), 10**6):
    log.append({"key": key, "text": "x" * (key * 7919 % 20000)})
    print(key, flush=True)
"""


def test_a_killed_writer_loses_nothing_that_was_appended(log_file: Path) -> None:
    """Killed after some number of records, it is somewhere in the middle of a later one."""
    begun = 0
    for lines in (1, 7, 2, 23, 11):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(log_file), str(begun)], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        with writer, writer.stdout as said:
            for _ in range(lines):
                said.readline()
            writer.send_signal(signal.SIGKILL)
            rest = said.read().split()
        reported = max([begun + lines - 1, *map(int, rest)])
        Log(log_file).close()
        found = keys(log_file)
        assert found == list(range(len(found)))
        assert len(found) > reported  # the one it was killed at may be there too
        begun = len(found)


def test_threads_append_whole_records(log_file: Path) -> None:
    log = Log(log_file)

    def write(writer: int) -> None:
        for i in range(40):
            log.append({"key": [writer, i], "text": "x" * (i * 397 % 9000)})

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    found = keys(log_file)
    assert sorted(found) == [[n, i] for n in range(6) for i in range(40)]
    for n in range(6):  # each thread's in its order
        assert [i for m, i in found if m == n] == list(range(40))


def test_only_one_at_a_time_may_write(log_file: Path) -> None:
    log_file.write_bytes(b'{"key":1}\n{"to')  # torn, for all that a second one can tell
    holder = Log(log_file)
    holder.append({"key": 2})
    with pytest.raises(UsageError, match=r"^another run is writing [^\n]*$"):
        Log(log_file)
    holder.append({"key": 3})
    holder.close()
    log = Log(log_file)
    log.append({"key": 4})
    log.close()
    assert keys(log_file) == [1, 2, 3, 4]


def test_a_log_that_cannot_be_opened_is_a_usage_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "log.jsonl"):
        with pytest.raises(
            UsageError, match=r"^cannot write [^\n]*: [A-Z][^\n]*run again to go on$"
        ):
            Log(path)


def test_a_full_disk_is_a_usage_error() -> None:
    """A device that is always full, and that nothing can be cut off from."""
    with pytest.raises(UsageError, match=r"^cannot write /dev/full: [^\n]*$"):
        Log(Path("/dev/full")).append({"key": 1})


def test_what_json_does_not_know_is_not_written(log_file: Path) -> None:
    log = Log(log_file)
    with pytest.raises(ValueError, match="Out of range"):
        log.append({"key": float("nan")})
    log.append({"key": 1})
    log.close()
    assert keys(log_file) == [1]


def write(path: Path, *records: dict[str, Any]) -> bytes:
    write_log(path, records)
    return path.read_bytes()


def test_every_flipped_byte_is_noticed(log_file: Path, tmp_path: Path) -> None:
    records = [{"key": "a", "solved": False, "text": "\u00e9 3.25"}, {"key": "b", "n": [1, None]}]
    data = write(log_file, *records)
    sealed = tmp_path / "config.json"
    write_sealed(sealed, {"options": {"seed": 0, "text": "\u00e9"}, "made_with": [1.5]})
    plain = sealed.read_bytes()
    assert list(read_log(log_file)) == records
    assert read_sealed(sealed)["options"] == {"seed": 0, "text": "\u00e9"}
    for flip in (1, 32, 42, 128):
        for place in range(len(data)):
            log_file.write_bytes(flipped(data, place, flip))
            with pytest.raises(UsageError, match=r"^\S*log.jsonl, line [123]: damaged[^\n]*$"):
                list(read_log(log_file))
        for place in range(len(plain)):
            sealed.write_bytes(flipped(plain, place, flip))
            with pytest.raises(UsageError, match=r"^\S*config.json is damaged[^\n]*$"):
                read_sealed(sealed)


def flipped(data: bytes, place: int, flip: int) -> bytes:
    return data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :]


def test_a_record_that_is_there_twice_is_read_once(log_file: Path) -> None:
    data = write(log_file, {"key": "a", "n": 1}, {"key": "b", "n": 2})
    one, two = data.splitlines(keepends=True)
    log_file.write_bytes(one + two + one + two + two[:-4])
    assert [record["key"] for record in read_log(log_file, {"a", "b"})] == ["a", "b"]
    with pytest.raises(UsageError, match="line 2: 'b' is no part of this run"):
        list(read_log(log_file, {"a"}))
    write(log_file, {"key": "a", "n": 1}, {"key": "a", "n": 2})
    with pytest.raises(UsageError, match="line 2: another record of 'a': delete one"):
        list(read_log(log_file))
    write(log_file, {"key": 7})
    with pytest.raises(UsageError, match="line 1: 7 is no part of this run"):
        list(read_log(log_file))
    log_file.write_bytes(b"")
    assert list(read_log(log_file)) == []
    log_file.unlink()
    log_file.mkdir()
    with pytest.raises(UsageError, match=r"^cannot read \S*log.jsonl: Is a directory$"):
        list(read_log(log_file))


def test_runs_of_an_older_version_are_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", CONFIG)
    write_jsonl(tmp_path / "trees.jsonl", [{"key": "a"}])
    for read in (
        lambda: list(read_log(tmp_path / "trees.jsonl")),
        lambda: RunFolder(tmp_path, CONFIG),
        lambda: read_config(tmp_path),
    ):
        with pytest.raises(UsageError, match=r"^[^\n]*of an older version[^\n]*$"):
            read()


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced"])
def test_a_log_that_is_gone_takes_no_record(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    log = Log(folder / "log.jsonl")
    log.append({"key": "a"})
    folder.rename(tmp_path / "elsewhere")
    if how == "deleted":
        (tmp_path / "elsewhere" / "log.jsonl").unlink()
    if how == "replaced":
        folder.mkdir()
        (folder / "log.jsonl").touch()
    with pytest.raises(UsageError, match=r"^\S*log.jsonl was deleted or moved [^\n]*$"):
        log.append({"key": "b"})
    log.close()
    if how == "moved":
        assert keys(tmp_path / "elsewhere" / "log.jsonl") == ["a"]


DEEP = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    "line",
    [
        *(b"{", b"3", b"[]", b"null", b"", b'{"a": "\xff"}', b"{} {}", DEEP),
        *(b'{"a":NaN}', b'{"a":-Infinity}', b'{"a":' + b"1" * 5000 + b"}", b"\x00"),
    ],
    ids=lambda line: line[:12].decode("latin-1"),
)
def test_a_damaged_line_is_named(log_file: Path, line: bytes) -> None:
    log_file.write_bytes(b'{"key":1}\n' + line + b'\n{"key":2}\n')
    with pytest.raises(UsageError, match=r"^.*log.jsonl, line 2: not a JSON record$"):
        list(read_jsonl(log_file))


def test_missing_records_are_a_usage_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(UsageError, match="cannot read"):
            list(read_jsonl(path))


# --- whole files -----------------------------------------------------------------------------


def test_files_are_replaced_only_when_whole(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    assert write_jsonl(file, [{"key": 1}, {"key": 2}]) == 2
    assert file.read_bytes() == b'{"key":1}\n{"key":2}\n'

    def broken() -> Any:
        yield {"key": 3}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(file, broken())
    assert keys(file) == [1, 2]
    with pytest.raises(ValueError, match="Out of range"):
        write_json(file, {"key": float("inf")})
    write_text(tmp_path / "text", "£")
    assert (tmp_path / "text").read_bytes() == b"\xc2\xa3"
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "text"}


# --- the run folder --------------------------------------------------------------------------

CONFIG = {"options": {"seed": 1, "world": "builtin", "range": [1, 2]}, "world": "abc"}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_run_goes_on_with_its_own_configuration(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    RunFolder.check(path, CONFIG)
    assert not path.parent.exists()
    log = RunFolder(path, CONFIG).log("trees")
    log.append({"key": 1})
    log.close()
    before = contents(path)
    written = json.loads(before["config.json"])
    assert written.pop("made_with")["versions"]["gymnasium"] and written.pop("digest")
    assert written == CONFIG
    RunFolder(path, {**CONFIG, "options": {**CONFIG["options"], "range": (1, 2)}})  # type: ignore[dict-item]
    assert contents(path) == before


def test_a_run_killed_while_it_began_can_begin_again(tmp_path: Path) -> None:
    """The instants before config.json is whole leave an empty folder, or a part of the file."""
    path = tmp_path / "run"
    path.mkdir()
    RunFolder.check(path, CONFIG)
    code = (
        "import os, signal, sys, pathlib\n"
        "from toolwoz_gym.records import RunFolder\n"
        "pathlib.Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "RunFolder(pathlib.Path(sys.argv[1]), {}).log('trees')"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL and any(path.iterdir())
    RunFolder(path, CONFIG).log("trees").close()
    assert {file.name for file in path.iterdir()} == {"config.json", "trees.jsonl"}


OTHER_OPTION = {**CONFIG, "options": {"seed": 2, "world": "builtin", "range": [1, 2]}}


def record_one(path: Path, config: dict[str, Any]) -> None:
    log = RunFolder(path, config).log("trees")
    log.append({"key": 1})
    log.close()


def test_of_two_runs_that_begin_at_once_one_is_refused(tmp_path: Path) -> None:
    """And the folder holds the configuration of the other."""
    code = (
        "import pathlib, sys, time\n"
        "from toolwoz_gym.records import RunFolder\n"
        "from toolwoz_gym.types import UsageError\n"
        "folder = RunFolder(pathlib.Path(sys.argv[1]), {'options': {'seed': int(sys.argv[2])}})\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "try:\n"
        "    log = folder.log('trees')\n"
        "except UsageError:\n"
        "    sys.exit(2)\n"
        "log.append({'key': sys.argv[2]})\n"
    )
    for attempt in range(3):
        path = tmp_path / str(attempt)
        begun = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(path), str(seed)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for seed in (1, 2)
        ]
        for process in begun:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in begun:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in begun:
            process.communicate()
        assert sorted(process.returncode for process in begun) == [0, 2]
        (record,) = read_jsonl(path / "trees.jsonl")
        config = json.loads((path / "config.json").read_text())
        assert config["options"] == {"seed": int(record["key"])}


def test_a_run_that_came_to_nothing_makes_room_for_another(tmp_path: Path) -> None:
    """A model's name was wrong, say: nobody has to delete a folder to put it right."""
    path = tmp_path / "run"
    first = RunFolder(path, OTHER_OPTION).log("trees")
    before = contents(path)
    RunFolder.check(path, CONFIG)
    second = RunFolder(path, CONFIG)
    with pytest.raises(UsageError, match="another run is writing"):
        second.log("trees")
    assert contents(path) == before, "it may still come to something"
    first.close()
    second.log("trees").close()
    third = RunFolder(path, OTHER_OPTION)
    record_one(path, CONFIG)
    with pytest.raises(UsageError, match="another configuration"):
        third.log("trees")
    assert json.loads((path / "config.json").read_text())["options"] == CONFIG["options"]
    with pytest.raises(UsageError, match=r"another configuration \(seed: 1, now 2\)"):
        RunFolder(path, OTHER_OPTION)


def other_option(path: Path) -> None:
    record_one(path, OTHER_OPTION)


def other_world(path: Path) -> None:
    record_one(path, {**CONFIG, "world": "x" * 64})


def only_answers(path: Path) -> None:
    RunFolder(path, OTHER_OPTION).log("trees").close()
    (path / "completions.jsonl").write_text("{}\n")


def foreign(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("precious")


def damaged(path: Path) -> None:
    path.mkdir()
    (path / "config.json").write_text('{"options": {')


def binary(path: Path) -> None:
    path.mkdir()
    (path / "config.json").write_bytes(b"\xff\xfe")


def not_an_object(path: Path) -> None:
    path.mkdir()
    (path / "config.json").write_text("[1]")


def config_is_a_folder(path: Path) -> None:
    (path / "config.json").mkdir(parents=True)


def a_file(path: Path) -> None:
    path.write_text("precious")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (other_option, r"another configuration \(seed: 2, now 1\)"),
        (only_answers, r"another configuration \(seed: 2, now 1\)"),
        (other_world, r"another configuration \(world: xxxxxxxxxxxx\.\.\., now abc\)"),
        (foreign, "something else"),
        (damaged, "damaged"),
        (binary, "damaged"),
        (not_an_object, "damaged"),
        (config_is_a_folder, "cannot read"),
        (a_file, "something else"),
    ],
)
@pytest.mark.parametrize("opening", [RunFolder.check, RunFolder])
def test_folders_that_cannot_be_used(
    tmp_path: Path,
    spoil: Callable[[Path], None],
    said: str,
    opening: Callable[[Path, dict[str, Any]], object],
) -> None:
    path = tmp_path / "run"
    spoil(path)
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=said) as caught:
        opening(path, CONFIG)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert contents(tmp_path) == before


def test_folders_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "run", tmp_path / ("x" * 300)):
        with pytest.raises(UsageError, match=r"^cannot (read|write) the run folder [^\n]*$"):
            RunFolder(path, CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
