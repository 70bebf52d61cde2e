"""A harvest that is broken off anywhere goes on to exactly what an undisturbed one gives."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from logs import write_log

from agents.base import Agent, AgentFactory
from agents.scripted import ExpertAgent, RandomAgent
from agents.tool_calling import system_prompt
from josh_search.__main__ import main
from josh_search.engine import LocalEngine
from josh_search.harvest import Tally, finish, harvest
from josh_search.search import SearchOptions
from toolwoz_gym.dialogue import Dialogue
from toolwoz_gym.records import RunFolder, read_jsonl, read_log, read_sealed, write_sealed
from toolwoz_gym.toolwoz.builtin import CityOptions, load_builtin
from toolwoz_gym.types import Message, Task, UsageError
from toolwoz_gym.users.scripted import ScriptedUser

ROOT = Path(__file__).resolve().parents[1]
WORLD = load_builtin(CityOptions.parse("domains=1,constraints=1-2,failures=0"))
DIALOGUE = Dialogue(WORLD, ScriptedUser(), max_steps=45)
TASKS = WORLD.tasks("train")[:12]
SYSTEM = system_prompt(WORLD.policy, WORLD.tools)


class Silent:
    """Watches without a word, and remembers."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.records: list[str] = []
        self.steps = 0

    def update(self, tally: Tally, record: Mapping[str, Any] | None) -> None:
        if self.first is None:
            self.first = tally.finished
        if record is None:
            self.steps += 1
        else:
            self.records.append(record["key"])

    def wait(self, tally: Tally, seconds: float) -> None:
        raise AssertionError("no tree was lost")


def every_third(task: Task) -> Agent:
    """Let the expert play a third of the tasks, and chance the others."""
    return ExpertAgent(task) if TASKS.index(task) % 3 == 0 else RandomAgent(WORLD.tools)


class Shy:
    """The expert, if luck has it; else it only greets."""

    def __init__(self, task: Task) -> None:
        self.expert = ExpertAgent(task)

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        return self.expert.act(view, seed=seed) if seed % 3 else Message("assistant", "Hello.")


def run(
    path: Path,
    make_agent: AgentFactory = every_third,
    *,
    at_once: int = 2,
    tasks: Sequence[Task] = TASKS,
    watcher: Any = None,
) -> Tally:
    engine = LocalEngine(
        DIALOGUE,
        make_agent,
        seed=9,
        options=SearchOptions(strategy="josh", beam=4, max_steps=8),
        trees_at_once=at_once,
    )
    return harvest(engine, tasks, RunFolder(path, {"seed": 9}), watcher=watcher or Silent())


def lines(path: Path) -> list[bytes]:
    return (path / "trees.jsonl").read_bytes().splitlines(keepends=True)


def lines_of(path: Path, *tasks: Task) -> list[bytes]:
    keys = {f"{task.id}/0" for task in tasks}
    return [line for line in lines(path) if json.loads(line)["key"] in keys]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed harvest, one tree at a time."""
    path = tmp_path_factory.mktemp("harvest") / "whole"
    run(path, at_once=1)
    return path


def test_a_harvest_has_a_record_of_every_task(whole: Path) -> None:
    records = list(read_jsonl(whole / "trees.jsonl"))
    assert sorted(record["key"] for record in records) == [f"{task.id}/0" for task in TASKS]
    assert sum(record["solved"] for record in records) >= 4
    assert len({record["seed"] for record in records}) == len(TASKS)


@pytest.mark.parametrize("at_once", [2, 12])
def test_threads_make_no_difference(whole: Path, tmp_path: Path, at_once: int) -> None:
    run(tmp_path / "run", at_once=at_once)
    assert sorted(lines(tmp_path / "run")) == sorted(lines(whole))


def test_a_tree_does_not_depend_on_the_others(whole: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", tasks=[TASKS[7]])
    assert lines(tmp_path / "run") == lines_of(whole, TASKS[7])


def test_a_harvest_goes_on_wherever_it_was_torn(whole: Path, tmp_path: Path) -> None:
    expected = lines(whole)
    data = b"".join(expected)
    ends = [sum(map(len, expected[:n])) for n in range(len(expected) + 1)]
    cuts = {0, 1, *ends, *(end - 1 for end in ends[1:]), *(end + 1 for end in ends[:-1])}
    for cut in sorted({*cuts, *range(500, len(data), len(data) // 7)}):
        path = tmp_path / str(cut)
        RunFolder(path, {"seed": 9}).log("trees").close()
        (path / "trees.jsonl").write_bytes(data[:cut])
        watcher = Silent()
        tally = run(path, watcher=watcher)
        kept = sum(end <= cut for end in ends[1:])
        assert watcher.first == kept and len(watcher.records) == len(TASKS) - kept
        assert lines(path)[:kept] == expected[:kept]
        assert sorted(lines(path)) == sorted(expected)
        assert tally.to_json() == count(whole)


def count(path: Path) -> dict[str, Any]:
    """Return what a harvest's figures should be, from its records."""
    records = list(read_jsonl(path / "trees.jsonl"))
    met = sum(len(record["goals_met"]) for record in records)
    total = sum(len(record["goals"]) for record in records)
    leaves = sum(
        len({*range(len(r["nodes"]))} - {n["parent"] for n in r["nodes"]}) for r in records
    )
    return {
        "tasks": len(records),
        "finished": len(records),
        "infra_error": 0,
        "infra_reasons": {},
        "solved": sum(record["solved"] for record in records),
        "goals_met": met,
        "goals_total": total,
        "progress": met / total,
        "leaves": sum(len(record["nodes"]) - 1 for record in records),
        "malformed": {},
        "dialogues": leaves,
        "user_fault": 0,
        "user_fault_rate": 0.0,
        "user_fault_kinds": {},
        **{
            part: {
                role: {
                    kind: sum(record[part][role][kind] for record in records)
                    for kind in records[0][part][role]
                }
                for role in ("agent", "user")
            }
            for part in ("usage", "ledger")
        },
    }


def test_a_finished_harvest_plays_nothing_again(whole: Path, tmp_path: Path) -> None:
    def nobody(task: Task) -> Agent:
        raise AssertionError("nothing is left to play")

    run(tmp_path / "run")
    before = lines(tmp_path / "run")
    assert run(tmp_path / "run", nobody).finished == len(TASKS)
    assert lines(tmp_path / "run") == before


def test_the_files_that_follow_from_the_trees(tmp_path: Path) -> None:
    tally = run(tmp_path / "run", Shy)
    expected = count(tmp_path / "run")
    summary = finish(tmp_path / "run", tally, SYSTEM, seconds=1.5)
    assert read_sealed(tmp_path / "run" / "summary.json") == summary
    assert summary["run"] == "run" and summary["seconds"] == 1.5
    assert {k: summary[k] for k in expected} == expected
    for name, found in (("sft", summary["rows"]["sft"]), ("dpo", summary["rows"]["dpo"])):
        assert len(list(read_jsonl(tmp_path / "run" / f"{name}.jsonl"))) == found
    labels = [row["label"] for row in read_jsonl(tmp_path / "run" / "kto.jsonl")]
    kto = {"good": sum(labels), "bad": len(labels) - sum(labels)}
    assert kto == summary["rows"]["kto"] and all(kto.values())
    written = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    finish(tmp_path / "run", tally, SYSTEM, seconds=1.5)
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == written


# --- broken off ------------------------------------------------------------------------------


class Breaking(Silent):
    """Interrupts, as the keyboard would, after some records or some steps."""

    def __init__(self, records: int, steps: int) -> None:
        super().__init__()
        self.most = records, steps

    def update(self, tally: Tally, record: Mapping[str, Any] | None) -> None:
        super().update(tally, record)
        if len(self.records) >= self.most[0] or self.steps >= self.most[1]:
            raise KeyboardInterrupt


@pytest.mark.parametrize("most", [(1, 999), (5, 999), (999, 1), (999, 12)])
def test_an_interrupt_keeps_what_is_finished(
    whole: Path, tmp_path: Path, most: tuple[int, int]
) -> None:
    path, watcher = tmp_path / "run", Breaking(*most)
    assert run(path, watcher=watcher).interrupted
    kept = lines(path)
    assert len(kept) == len(watcher.records) < len(TASKS) and set(kept) <= set(lines(whole))
    run(path)
    assert sorted(lines(path)) == sorted(lines(whole))


# --- the command -----------------------------------------------------------------------------

COMMAND = [
    "harvest",
    "--strategy",
    "josh",
    "--agent",
    "random",
    "--world",
    "builtin:domains=1",
    "--beam",
    "4",
    "--trees",
    "2",
]


def records(path: Path) -> dict[str, Any]:
    return {record["key"]: record for record in read_jsonl(path / "trees.jsonl")}


def test_the_command_goes_on_after_an_interrupt_and_after_a_kill(tmp_path: Path) -> None:
    undisturbed, broken = tmp_path / "undisturbed", tmp_path / "broken"
    options = [*COMMAND, "--tasks", "150"]
    assert main([*options, "--run", str(undisturbed)]) == 0
    command = [sys.executable, "-m", "josh_search", *options, "--run", str(broken)]
    for kill, seen in ((signal.SIGINT, 3), (signal.SIGTERM, 9), (signal.SIGKILL, 20)):
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None and process.stderr is not None
            for _ in range(seen):
                process.stdout.readline()
            process.send_signal(kill)
            said = process.stderr.read()
        if kill == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL
            assert main(["rows", str(broken)]) == 0
        else:
            assert process.returncode == 130
            assert said.endswith("\ninterrupted; what is finished is kept: run again to go on\n")
        summary = read_sealed(broken / "summary.json")
        assert seen <= summary["finished"] == len(lines(broken)) < 150
        assert {k: summary[k] for k in ("solved", "goals_met")} == {
            k: count(broken)[k] for k in ("solved", "goals_met")
        }
        assert all((broken / name).exists() for name in ("kto.jsonl", "report.html"))
    assert main([*options, "--run", str(broken), "--trees", "1"]) == 0
    assert records(broken) == records(undisturbed)
    assert len(lines(broken)) == len(lines(undisturbed)) == 150
    assert count(broken) == count(undisturbed)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a harvest that was made by the command."""
    folder = tmp_path_factory.mktemp("small") / "run"
    options = ["--agent", "expert", "--strategy", "josh", "--tasks", "3"]
    assert main(["harvest", *options, "--run", str(folder)]) == 0
    return folder


DERIVED = ("kto.jsonl", "sft.jsonl", "dpo.jsonl", "summary.json", "report.html")


def test_rows_can_be_made_at_any_time(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(small, run)
    assert read_sealed(run / "config.json")["shown"] == {"system": SYSTEM, "tools": []}
    for name in DERIVED[:3]:
        (run / name).unlink()
    assert main(["rows", str(run)]) == 0 and "3 of 3 tasks solved" in capsys.readouterr().out
    for name in DERIVED:  # what trees do not say is as the summary had it
        assert (run / name).read_bytes() == (small / name).read_bytes(), name
    (run / "summary.json").write_text("{}")
    whole = lines(run)
    (run / "trees.jsonl").write_bytes(b"".join([whole[0], *whole, whole[1][:50]]))  # and torn
    assert main(["rows", "--run", str(run)]) == 0
    summary = read_sealed(run / "summary.json")
    assert (summary["finished"], summary["tasks"], summary["seconds"]) == (3, 3, None)
    assert (run / "kto.jsonl").read_bytes() == (small / "kto.jsonl").read_bytes()
    for spoil, said in ((b"", "has no trees yet"), (b"{}\n", "line 1: damaged")):
        (run / "trees.jsonl").write_bytes(spoil)
        assert main(["rows", str(run)]) == 2 and said in capsys.readouterr().err
    (run / "trees.jsonl").unlink()
    assert main(["rows", str(run)]) == 2 and "is no harvest" in capsys.readouterr().err
    assert main(["rows", str(tmp_path)]) == 2 and "there is no run" in capsys.readouterr().err


def test_foreign_trees_are_refused_and_repeats_count_once(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(small, run)
    options = ["harvest", "--agent", "expert", "--strategy", "josh", "--run"]
    assert main([*options, str(other), "--tasks", "1", "--split", "val"]) == 0
    (foreign,) = lines(other)
    (second,) = [r for r in read_log(small / "trees.jsonl") if r["key"].endswith("2/0")]
    write_log(other / "trees.jsonl", [second | {"key": f"{second['task_id']}/1", "trial": 1}])
    (trial,) = lines(other)
    for line in (foreign, trial):
        (run / "trees.jsonl").write_bytes(b"".join([*lines(small), line]))
        for command in ([*options, str(run), "--tasks", "3"], ["rows", str(run)]):
            capsys.readouterr()
            assert main(command) == 2
            said = capsys.readouterr().err
            assert said.count("\n") == 1 and "line 4: 'builtin-" in said and "no part of" in said
        assert (run / "kto.jsonl").read_bytes() == (small / "kto.jsonl").read_bytes()
    (run / "trees.jsonl").write_bytes(b"".join([*lines(small), lines(small)[0]]))
    assert main([*options, str(run), "--tasks", "3"]) == 0
    assert read_sealed(run / "summary.json")["finished"] == 3
    assert (run / "kto.jsonl").read_bytes() == (small / "kto.jsonl").read_bytes()
    before = read_sealed(run / "config.json")
    changed = before | {"shown": {"system": "Be rude.", "tools": []}}
    write_sealed(run / "config.json", changed)
    assert main([*options, str(run), "--tasks", "3"]) == 2, "its rows would have two prompts"
    assert "another configuration (system: Be rude." in capsys.readouterr().err


def test_a_folder_that_is_gone_ends_the_harvest(tmp_path: Path) -> None:
    path, watcher = tmp_path / "run", Silent()

    class Moving(Silent):
        def update(self, tally: Tally, record: Mapping[str, Any] | None) -> None:
            super().update(tally, record)
            if len(self.records) == 2 and path.exists():
                path.rename(tmp_path / "elsewhere")

    watcher = Moving()
    with pytest.raises(UsageError, match=r"^[^\n]*trees.jsonl was deleted or moved [^\n]*$"):
        run(path, watcher=watcher, at_once=1)
    assert len(lines(tmp_path / "elsewhere")) == len(watcher.records) == 2 and not path.exists()


@pytest.mark.parametrize(
    "change",
    [
        ["--seed", "1"],
        ["--beam", "2"],
        ["--agent", "expert"],
        ["--reward", "terminal"],
        ["--world", "builtin:domains=1,seed=1"],
        ["--split", "val"],
        ["--user", "scripted:noise=1"],
    ],
)
def test_another_configuration_is_refused(
    tmp_path: Path, change: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*COMMAND, "--tasks", "2", "--run", str(tmp_path / "run")]
    assert main(options) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    capsys.readouterr()
    assert main([*options, *change]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("error: ") and "another configuration" in said.err
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def foreign(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("precious")


def a_file(path: Path) -> None:
    path.write_text("precious")


@pytest.mark.parametrize(
    ("spoil", "options", "said"),
    [
        (foreign, [], "something else"),
        (a_file, [], "something else"),
        (None, ["--tasks", "0"], "tasks must be at least 1"),
        (None, ["--trees", "0"], "trees must be at least 1"),
        (None, ["--beam", "-1"], "beam must be at least 1"),
        (None, ["--world", "mars"], "no world 'mars'"),
        (None, ["--split", "dev"], "no split 'dev'"),
        (None, ["--env", "CartPole-v1"], "no environment 'CartPole-v1'"),
        (None, ["--world", "builtin:tasks=10", "--tasks", "11"], "10 tasks only"),
    ],
)
def test_mistakes_cost_one_line_and_nothing_is_written(
    tmp_path: Path,
    spoil: Callable[[Path], None] | None,
    options: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if spoil:
        spoil(tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    assert main([*COMMAND, "--run", str(tmp_path / "run"), *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("error: ") and said in captured.err
    assert sorted(tmp_path.rglob("*")) == before
