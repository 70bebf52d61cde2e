"""What a harvest survives: kills, a full disk, a folder it cannot write, a model that is down."""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.base import Agent, AgentFactory, BackendError
from agents.options import expert
from agents.scripted import RandomAgent
from agents.tool_calling import system_prompt
from josh_search.__main__ import main
from josh_search.engine import Job, LocalEngine
from josh_search.harvest import MOST_LOST, Tally, finish, harvest
from josh_search.search import SearchOptions
from toolwoz_gym.dialogue import Dialogue
from toolwoz_gym.records import (
    ROW_FILES,
    Log,
    RunFolder,
    dump,
    read_jsonl,
    read_sealed,
    write_jsonl,
)
from toolwoz_gym.toolwoz.builtin import CityOptions, load_builtin
from toolwoz_gym.types import Message, Task, UsageError
from toolwoz_gym.users.scripted import ScriptedUser

ROOT = Path(__file__).resolve().parents[1]
WORLD = load_builtin(CityOptions.parse("domains=1,constraints=1-2,failures=0"))
DIALOGUE = Dialogue(WORLD, ScriptedUser(), max_steps=45)
TASKS = WORLD.tasks("train")[:40]
SYSTEM = system_prompt(WORLD.policy, WORLD.tools)
COMMAND = [
    "harvest",
    "--strategy",
    "josh",
    "--agent",
    "random",
    "--env",
    "ToolWOZ-v0",
    "--world",
    "builtin:domains=1",
    "--beam",
    "2",
    "--max-steps",
    "4",
]


class Watcher:
    """Remembers how often the harvest waited, and calls a function when it does."""

    def __init__(self, when_waiting: Callable[[Tally], object] = lambda tally: None) -> None:
        self.waits: list[float] = []
        self.when_waiting = when_waiting

    def update(self, tally: Tally, record: Mapping[str, Any] | None) -> None:
        pass

    def wait(self, tally: Tally, seconds: float) -> None:
        self.waits.append(seconds)
        self.when_waiting(tally)


def chance(task: Task) -> Agent:
    return RandomAgent(WORLD.tools)


def local(
    make_agent: AgentFactory = chance, *, at_once: int = 4, calls: int = 256, steps: int = 4
) -> LocalEngine:
    return LocalEngine(
        DIALOGUE,
        make_agent,
        seed=9,
        options=SearchOptions(strategy="josh", beam=4, max_steps=steps),
        trees_at_once=at_once,
        calls_at_once=calls,
    )


def run(
    path: Path,
    make_agent: AgentFactory = chance,
    *,
    at_once: int = 4,
    watcher: Watcher | None = None,
    patience: Sequence[float] = (0.0, 0.0),
) -> Tally:
    return harvest(
        local(make_agent, at_once=at_once),
        TASKS,
        RunFolder(path, {}),
        watcher=watcher or Watcher(),
        patience=patience,
    )


def lines(path: Path) -> list[bytes]:
    return sorted((path / "trees.jsonl").read_bytes().splitlines(keepends=True))


def keys(path: Path) -> list[str]:
    return [record["key"] for record in read_jsonl(path / "trees.jsonl")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed harvest."""
    path = tmp_path_factory.mktemp("faults") / "whole"
    run(path)
    return path


# --- kills -----------------------------------------------------------------------------------

KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import rich.live, rich.progress_bar, rich.table  # imported once, not by each of the killed
from josh_search.__main__ import main

path, *options = sys.argv[1:]
trees, luck = Path(path) / "trees.jsonl", random.Random(1)
ended = os.WEXITED | os.WNOHANG | os.WNOWAIT

def size():
    return trees.stat().st_size if trees.exists() else 0

for kill in range(50):
    pid = os.fork()
    if not pid:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(main([*options, "--run", path]))
    if kill % 5:  # after some progress, and wherever it is then
        target = size() + luck.randrange(25_000)
        while size() < target and not os.waitid(os.P_PID, pid, ended):
            time.sleep(0.001)
        time.sleep(luck.random() * 0.01)
    else:  # perhaps while it begins
        time.sleep(luck.random() * 0.3)
    os.kill(pid, signal.SIGKILL)
    print(os.waitpid(pid, 0)[1])
"""


def test_fifty_kills_make_no_difference(tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "1" / "run", tmp_path / "2" / "run"
    options = [*COMMAND, "--tasks", "400", "--trees", "3"]
    assert main([*options, "--run", str(undisturbed)]) == 0
    statuses = subprocess.run(
        [sys.executable, "-c", KILLER, str(killed), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert statuses == ["9"] * 50  # none came to its end before
    assert 0 < len(keys(killed)) < 400
    assert main([*options, "--run", str(killed)]) == 0
    assert lines(killed) == lines(undisturbed) and len(lines(killed)) == 400
    figures = [read_sealed(path / "summary.json") for path in (killed, undisturbed)]
    files = figures[0].pop(ROW_FILES)  # rows are in the order in which their trees were finished
    assert figures[0] | {ROW_FILES: files} == {**figures[1], "seconds": None, ROW_FILES: files}
    assert {p.name for p in killed.iterdir()} == {p.name for p in undisturbed.iterdir()}
    for kind in ("kto", "sft", "dpo"):
        rows, others = (list(read_jsonl(p / f"{kind}.jsonl")) for p in (killed, undisturbed))
        assert rows and sorted(rows, key=dump) == sorted(others, key=dump)


# --- a disk that takes no more ---------------------------------------------------------------


class Disk:
    """A file system of its own, in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mount(self, options: str) -> bool:
        path = str(self.path)
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", path]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def change(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.path)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of 64 KiB."""
    disk = Disk(tmp_path / "disk")
    disk.path.mkdir()
    if not disk.mount("size=64k"):
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk.path)], check=True)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the kernel refuse to make a file larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_record_that_is_refused_leaves_nothing_behind(tmp_path: Path) -> None:
    log = Log(tmp_path / "trees.jsonl")
    log.append({"key": 1})
    before = log.path.read_bytes()
    with largest_file(500):
        for _ in range(2):
            with pytest.raises(UsageError, match=r"^cannot write .*File too large; [^\n]*$"):
                log.append({"key": 2, "text": "x" * 1000})  # the first 500 bytes are written
            assert log.path.read_bytes() == before
        log.append({"key": 3})  # smaller, and finds room
    log.append({"key": 2, "text": "x" * 1000})
    log.close()
    assert keys(tmp_path) == [1, 3, 2]


def test_a_harvest_goes_on_when_there_is_room_again(whole: Path, tmp_path: Path) -> None:
    path, sizes = tmp_path / "run", []
    total = sum(map(len, lines(whole)))
    for share in (0.2, 0.5, 0.8):
        with largest_file(int(share * total)), pytest.raises(UsageError, match="cannot write"):
            run(path)
        assert set(lines(path)) < set(lines(whole))
        sizes.append(len(lines(path)))
    assert 0 < sizes[0] < sizes[1] < sizes[2]
    run(path)
    assert lines(path) == lines(whole)


def test_the_command_on_a_full_disk(
    whole: Path, disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    """First the trees find no room, then what follows from them."""
    path = disk.path / "run"
    options = [*COMMAND, "--tasks", "40", "--run", str(path)]
    assert main([*options, "--run", str(disk.path.parent / "run")]) == 0
    expected = lines(disk.path.parent / "run")
    capsys.readouterr()
    for size in (64, sum(map(len, expected)) // 1024 + 20):
        disk.change(f"size={size}k")
        assert main(options) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: cannot write ") and said.count("\n") == 1
        assert "No space left on device; what is finished is kept: run again" in said
        assert set(lines(path)) <= set(expected)
        assert not (path / "report.html").exists() and not list(path.glob(".*.part"))
    assert lines(path) == expected
    disk.change("size=16m")
    assert main(options) == 0
    assert lines(path) == expected and (path / "report.html").exists()


def test_the_command_on_a_disk_that_is_read_only(
    disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    disk.change("size=16m")
    begun, new = disk.path / "begun", disk.path / "new"
    assert main([*COMMAND, "--tasks", "3", "--run", str(begun)]) == 0
    before = lines(begun)
    disk.change("ro")
    capsys.readouterr()
    for path in (begun, new):
        assert main([*COMMAND, "--tasks", "5", "--run", str(path)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: cannot write ") and said.count("\n") == 1
        assert "Read-only file system" in said
    assert lines(begun) == before and not new.exists()
    disk.change("rw")
    assert main([*COMMAND, "--tasks", "5", "--run", str(begun)]) == 0
    assert set(before) < set(lines(begun)) and len(lines(begun)) == 5


def test_a_file_is_replaced_only_by_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"key": 1}])
    with largest_file(500), pytest.raises(UsageError, match="File too large"):
        write_jsonl(path, [{"key": number} for number in range(10_000)])
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]
    assert path.read_bytes() == b'{"key":1}\n'


# --- a model that does not answer ------------------------------------------------------------


class Model:
    """What stands behind all agents of a run. While it is down, it answers nobody."""

    def __init__(self) -> None:
        self.calls = 0
        self.down: Callable[[int], bool] = lambda call: False
        """Whether it is down at a call, by its number."""
        self.lock = threading.Lock()

    def agent(self, task: Task) -> Agent:
        return ModelAgent(self, chance(task))


class ModelAgent:
    def __init__(self, model: Model, agent: Agent) -> None:
        self.model, self.agent = model, agent

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        with self.model.lock:
            self.model.calls += 1
            call = self.model.calls
        if self.model.down(call):
            raise BackendError("connection\nrefused")
        return self.agent.act(view, seed=seed)


class Down:
    """An agent whose model never answers."""

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        raise BackendError("connection refused")


@pytest.mark.parametrize("at_once", [1, 30])
def test_a_model_that_is_down_for_a_while_costs_nothing(
    whole: Path, tmp_path: Path, at_once: int
) -> None:
    """It is up again once the harvest has waited twice."""
    model = Model()
    model.down = lambda call: call > 400

    def repair(tally: Tally) -> None:
        if len(watcher.waits) == 2:
            model.down = lambda call: False

    watcher = Watcher(repair)
    tally = run(tmp_path / "run", model.agent, at_once=at_once, watcher=watcher)
    assert lines(tmp_path / "run") == lines(whole)
    assert tally.finished == len(TASKS) and tally.lost == {} and len(watcher.waits) == 2


def test_calls_that_fail_now_and_then_cost_nothing(whole: Path, tmp_path: Path) -> None:
    model = Model()
    model.down = lambda call: call % 97 == 0
    watcher = Watcher()
    run(tmp_path / "run", model.agent, watcher=watcher)
    assert lines(tmp_path / "run") == lines(whole) and watcher.waits


@pytest.mark.parametrize("at_once", [1, 8])
def test_a_model_that_is_down_for_good_is_given_up(
    whole: Path, tmp_path: Path, at_once: int
) -> None:
    model = Model()
    model.down = lambda call: call > 300
    watcher = Watcher()
    path = tmp_path / "run"
    tally = run(path, model.agent, at_once=at_once, watcher=watcher, patience=(0.0, 0.01, 0.02))
    assert 0 < tally.finished < len(TASKS) and tally.finished == len(lines(path))
    assert set(lines(path)) < set(lines(whole))
    assert watcher.waits[-3:] == [0.0, 0.01, 0.02]
    lost = tally.to_json()["infra_error"]
    assert 0 < lost <= len(TASKS) - tally.finished
    assert tally.reasons() == {"connection refused": lost}
    assert not set(tally.lost) & set(keys(path))
    assert run(path).finished == len(TASKS)
    assert lines(path) == lines(whole)


def test_a_model_that_is_down_is_not_asked_for_every_task(tmp_path: Path) -> None:
    """Of ten thousand tasks, a few are tried: more of them each round."""
    many = [replace(TASKS[0], id=f"task-{n}") for n in range(10_000)]
    tried: list[str] = []

    def make_agent(task: Task) -> Agent:
        tried.append(task.id)
        return Down()

    folder = RunFolder(tmp_path / "run", {})
    tally = harvest(
        local(make_agent, at_once=4), many, folder, watcher=Watcher(), patience=(0.0, 0.0)
    )
    assert 3 * MOST_LOST <= len(tried) == len(set(tried)) <= 3 * (MOST_LOST + 4)
    assert tally.tasks == 10_000 and tally.finished == 0 and len(tally.lost) == len(tried)


def test_a_tree_that_always_fails_keeps_nobody_from_anything(whole: Path, tmp_path: Path) -> None:
    path, bad = tmp_path / "run", (TASKS[0], TASKS[7])
    tried: list[str] = []

    def make_agent(task: Task) -> Agent:
        tried.append(task.id)
        return Down() if task in bad else chance(task)

    tally = run(path, make_agent)
    names = [f"{task.id}/0" for task in bad]
    assert lines(path) == [line for line in lines(whole) if json.loads(line)["key"] not in names]
    assert tally.lost == dict.fromkeys(names, "connection refused")
    assert all(tried.count(task.id) == 4 for task in bad)  # with the others, and three times after
    assert len(tried) == len(TASKS) + 3 * len(bad)
    summary = finish(path, tally, SYSTEM)
    assert summary["infra_error"] == 2 and summary["finished"] == len(TASKS) - 2
    assert summary["infra_reasons"] == {"connection refused": 2}
    assert finish(path, run(path), SYSTEM)["infra_error"] == 0
    assert lines(path) == lines(whole)


def test_the_command_counts_lost_trees_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails_at_times(task: Task) -> Agent:
        return Down() if task.id.endswith(("3", "7")) else expert(task)

    path = tmp_path / "run"
    options = ["harvest", "--agent", "expert", "--world", "builtin:domains=1", "--tasks", "10"]
    options += ["--strategy", "chains", "--run", str(path)]
    with monkeypatch.context() as patch:
        patch.setattr("agents.options.expert", fails_at_times)
        patch.setattr("time.sleep", lambda seconds: None)
        assert main(options) == 1
    said = capsys.readouterr()
    assert "\ninfra_error: 2 trees were lost: connection refused\n" in said.out
    assert "2 trees were lost (connection refused): trying again in 60 s" in said.out
    assert said.err == (
        "error: 2 of 10 trees have no record: the model did not answer (connection refused); "
        "what is finished is kept: run again to go on\n"
    )
    summary = json.loads((path / "summary.json").read_text())
    assert (summary["finished"], summary["infra_error"]) == (8, 2)
    assert summary["infra_reasons"] == {"connection refused": 2}
    assert main(options) == 0
    assert "infra_error" not in capsys.readouterr().out
    summary = json.loads((path / "summary.json").read_text())
    assert (summary["finished"], summary["infra_error"], len(keys(path))) == (10, 0, 10)


def test_a_bug_is_no_lost_tree(tmp_path: Path) -> None:
    """What was finished before it is kept."""

    class Buggy:
        def act(self, view: Sequence[Message], *, seed: int) -> Message:
            raise ZeroDivisionError

    path = tmp_path / "run"
    with pytest.raises(ZeroDivisionError):
        run(path, lambda task: Buggy() if task is TASKS[20] else chance(task), at_once=2)
    assert 10 < len(lines(path)) < len(TASKS)


# --- the number of tasks ---------------------------------------------------------------------


def test_the_number_of_tasks_can_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fresh, grown = tmp_path / "fresh", tmp_path / "grown"
    assert main([*COMMAND, "--tasks", "9", "--run", str(fresh)]) == 0
    for number in (2, 9, 4):
        capsys.readouterr()
        assert main([*COMMAND, "--tasks", str(number), "--run", str(grown)]) == 0
    assert lines(grown) == lines(fresh)
    assert "going on: 9 of 9 trees are done" in capsys.readouterr().out
    for name in ("tasks", "finished", "leaves", "usage", "goals_total", "rows"):
        figures = [json.loads((path / "summary.json").read_text())[name] for path in (fresh, grown)]
        assert figures[0] == figures[1]


# --- many trees ------------------------------------------------------------------------------


def test_tasks_are_taken_when_there_is_room(whole: Path) -> None:
    taken, finished = 0, []

    def jobs() -> Iterator[Job]:
        nonlocal taken
        for task in TASKS:
            taken += 1
            assert taken - len(finished) <= 3
            yield f"{task.id}/0", task

    for grown in local(at_once=3).grow(jobs(), lambda key, live: None):
        finished.append(grown.key)
    assert sorted(finished) == sorted(keys(whole)) and taken == len(TASKS)


class Patient:
    """A customer whom nothing drives away, and an agent that has nothing to say."""

    def reply(self, task: Task, messages: Sequence[Message], *, seed: int) -> Message:
        return Message("user", f"For the {len(messages)}th time?")

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        return Message("assistant", "Hello.")


@pytest.mark.parametrize("beam", [1, 4])
def test_trees_that_nobody_waits_for_end_after_their_step(beam: int) -> None:
    """All four wait in a step, and are told to stop meanwhile."""
    steps, halt, go_on = [], threading.Event(), threading.Event()

    def on_step(key: str, live: int) -> None:
        steps.append(key)
        if halt.is_set():
            assert go_on.wait(30)

    engine = replace(
        local(lambda task: Patient()),
        dialogue=Dialogue(WORLD, Patient(), max_steps=1000),
        options=SearchOptions(strategy="josh", beam=beam, max_steps=100),
    )
    outcomes = engine.grow([("key", TASKS[0])] * 20, on_step)
    next(outcomes)
    halt.set()
    before = len(steps)
    threading.Timer(0.5, go_on.set).start()
    outcomes.close()
    assert len(steps) <= before + 4


@pytest.mark.parametrize("calls", [1, 7])
def test_trees_share_a_few_calls_without_a_deadlock(
    whole: Path, tmp_path: Path, calls: int
) -> None:
    engine = local(at_once=40, calls=calls)
    harvest(engine, TASKS, RunFolder(tmp_path / "run", {}), watcher=Watcher())
    assert lines(tmp_path / "run") == lines(whole)


def test_memory_does_not_grow_with_the_trees(tmp_path: Path) -> None:
    many = [replace(task, id=f"{task.id}-{n:04}") for n in range(70) for task in TASKS[:10]]
    held: dict[int, int] = {}

    class Scales(Watcher):
        def update(self, tally: Tally, record: Mapping[str, Any] | None) -> None:
            if record is not None and tally.finished in (100, 700):
                gc.collect()
                held[tally.finished] = tracemalloc.get_traced_memory()[0]

    folder = RunFolder(tmp_path / "run", {})
    tracemalloc.start()
    try:
        harvest(local(at_once=2, steps=1), many, folder, watcher=Scales())
    finally:
        tracemalloc.stop()
    size = (tmp_path / "run" / "trees.jsonl").stat().st_size
    assert held[700] - held[100] < size / 50
