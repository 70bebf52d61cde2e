"""Evaluations: what is recorded, going on after an interrupt, and the comparison."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import pytest
from logs import write_log
from rich.console import Console

from agents.backends.canned import CannedBackend
from agents.base import AgentFactory, BackendError, ChatMessage, RunStopped, Sampling
from agents.options import AgentOptions
from agents.scripted import ExpertAgent, RandomAgent
from agents.tool_calling import ToolCallingAgent
from benchmarks.__main__ import main
from benchmarks.comparison import compare, tables
from benchmarks.episodes import Tally, play_all
from benchmarks.progress import Progress
from josh_search.__main__ import main as harvest
from toolwoz_gym import Dialogue, make_env
from toolwoz_gym.env import DialogueEnv
from toolwoz_gym.records import (
    RunFolder,
    message_from_json,
    read_config,
    read_log,
    usages_to_json,
)
from toolwoz_gym.types import Domain, Message, Task, Usage

ARGS = ["evaluate", "--agent", "random", "--also", "expert", "--tasks", "12"]


class Ignored:
    def update(self, tally: Tally, record: object) -> None:
        pass


@pytest.fixture(scope="module")
def env() -> DialogueEnv:
    return make_env("ToolWOZ-v0", world="builtin:domains=1", split="val")


Players = AbstractContextManager[tuple[Dialogue, AgentFactory]]


def expert(dialogue: Dialogue) -> Players:
    return nullcontext((dialogue, ExpertAgent))


def at_random(domain: Domain) -> AgentFactory:
    return lambda task: RandomAgent(domain.tools)


def canned(texts: Sequence[str]) -> AbstractContextManager[AgentFactory]:
    agent = ToolCallingAgent(CannedBackend(texts), "be kind")
    return nullcontext(lambda task: agent)


def lines(folder: Path) -> list[str]:
    return (folder / "trajectories.jsonl").read_text().splitlines()


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines(folder)]


def summary(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return data


def test_the_expert_beats_chance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ARGS, "--run", str(tmp_path)]) == 0
    chance, best = summary(tmp_path)["results"]
    assert (chance["model"], best["model"]) == ("random", "expert")
    assert best["outcomes"] == {"success": 12, "failure": 0, "truncated": 0, "user_fault": 0}
    assert (best["success"]["value"], best["success"]["high"]) == (1.0, 1.0)
    (found,) = summary(tmp_path)["differences"]
    assert (found["model"], found["baseline"]) == ("expert", "random")
    assert found["success"]["value"] > 0.9 and found["success"]["low"] > 0.5
    assert found["progress"]["low"] > 0.5
    assert found["by_task"]["p_value"] < 0.01

    shown, written = capsys.readouterr().out, (tmp_path / "evaluation.md").read_text()
    assert shown.count("builtin-val-") == 24  # a line per episode
    for text in (shown, written):
        assert "100.0 [75.8, 100.0]" in text  # Wilson: 12 of 12
    assert "| Success, % | 0.0 [0.0, 24.2] | 100.0 [75.8, 100.0] |" in written
    assert "`builtin:domains=1`" in written and "first 12 tasks of val, 1 trial each" in written


def test_a_reader_that_leaves_is_no_fault_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(*words: object, **_: object) -> None:
        if "tables and trajectories" in str(words):
            raise BrokenPipeError

    monkeypatch.setattr("builtins.print", leave)
    monkeypatch.setattr("os.dup2", lambda *_: 0)  # standard output is the tests' own
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "--run", str(tmp_path), "--agent", "expert", "--tasks", "1"])
    assert ended.value.code == 141


def test_runs_of_scripts_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        args = ["evaluate", "--agent", "expert", "--also", "erring", "--tasks", "4"]
        assert main([*args, "--run", str(tmp_path / name)]) == 0
    assert {record["model"] for record in records(tmp_path / "a")} == {"expert", "erring"}
    capsys.readouterr()
    assert main(["reproducibility", "--runs", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert re.search(r"8 of 8 +8 of 8 +0 +0 ", capsys.readouterr().out)


def test_models_play_the_same_tasks_with_the_same_seeds(tmp_path: Path) -> None:
    assert main([*ARGS, "--trials", "2", "--run", str(tmp_path)]) == 0
    seeds: dict[str, set[tuple[str, int, int, str]]] = {"random": set(), "expert": set()}
    for record in records(tmp_path):
        opening = record["messages"][0]["content"]
        seeds[record["model"]].add((record["task_id"], record["trial"], record["seed"], opening))
    assert seeds["random"] == seeds["expert"]
    assert len({seed for _, _, seed, _ in seeds["expert"]}) == 24
    assert len(summary(tmp_path)["results"][0]["pass_hat"]) == 2
    text = (tmp_path / "evaluation.md").read_text()
    assert "| pass^1, % |" in text and "| pass^2, % |" in text


def test_the_order_of_play_changes_nothing(tmp_path: Path) -> None:
    for name, at_once in (("one", "1"), ("many", "16")):
        folder = str(tmp_path / name)
        assert main([*ARGS, "--episodes-at-once", at_once, "--run", folder]) == 0
    assert sorted(lines(tmp_path / "one")) == sorted(lines(tmp_path / "many"))
    assert summary(tmp_path / "one") == summary(tmp_path / "many")


def test_a_cut_evaluation_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ARGS, "--run", str(tmp_path)]) == 0
    whole, before = sorted(lines(tmp_path)), summary(tmp_path)
    text = (tmp_path / "trajectories.jsonl").read_bytes()
    torn = sum(len(line) + 1 for line in lines(tmp_path)[:5]) + 40
    (tmp_path / "trajectories.jsonl").write_bytes(text[:torn])
    capsys.readouterr()
    assert main([*ARGS, "--run", str(tmp_path)]) == 0
    assert "going on: 5 of 24 episodes are done" in capsys.readouterr().out
    assert sorted(lines(tmp_path)) == whole
    assert summary(tmp_path) == before


def test_foreign_episodes_are_refused_and_repeats_count_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["evaluate", "--agent", "expert", "--tasks", "3", "--run", str(tmp_path)]
    assert main(args) == 0
    before, log = summary(tmp_path), tmp_path / "trajectories.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole + whole)
    assert main(args) == 0 and summary(tmp_path) == before
    known = list(read_log(log))
    task = known[0]["task_id"]
    for key in (f"expert/{task}/1", f"random/{task}/0", "expert/builtin-train-000001/0"):
        write_log(log, [*known, known[0] | {"key": key}])
        capsys.readouterr()
        assert main(args) == 2
        assert capsys.readouterr().err.startswith(f"error: {log}, line 4: '{key}' is no part of")
    log.write_bytes(whole.replace(b'"reward":1.0', b'"reward":0.0', 1))
    assert main(args) == 2 and "trajectories.jsonl, line " in capsys.readouterr().err
    assert summary(tmp_path) == before


def test_models_that_are_through_are_not_loaded_again(tmp_path: Path, env: DialogueEnv) -> None:
    loaded = []

    def loading(dialogue: Dialogue) -> Players:
        loaded.append(dialogue)
        return expert(dialogue)

    def go(tasks: int) -> None:
        play_all(
            env.dialogue,
            {"expert": loading},
            env.tasks[:tasks],
            RunFolder(tmp_path, {}),
            seed=0,
            trials=1,
            episodes_at_once=2,
            watcher=Ignored(),
        )

    for tasks, loads in ((2, 1), (2, 1), (3, 2)):
        go(tasks)
        assert (len(loaded), len(records(tmp_path))) == (loads, tasks)


def test_records_say_what_went_wrong_and_what_it_cost(tmp_path: Path, env: DialogueEnv) -> None:
    texts = ['{"tool": 1}', '{"name": "fly", "arguments": {}}', *["Hello there."] * 60]

    def opened(dialogue: Dialogue) -> Players:
        agent = ToolCallingAgent(CannedBackend(texts), "be kind")
        return nullcontext((dialogue, lambda task: agent))

    play_all(
        env.dialogue,
        {"canned": opened},
        env.tasks[:1],
        RunFolder(tmp_path, {}),
        seed=0,
        trials=1,
        episodes_at_once=1,
        watcher=Ignored(),
    )
    (record,) = records(tmp_path)
    assert (record["key"], record["reward"]) == ("canned/builtin-val-000000/0", 0.0)
    assert (record["malformed"], record["tool_errors"]) == ({"wrong keys": 1}, 1)
    assert (record["progress"], record["goals_met"], record["goals_total"]) == (0.0, [], 2)
    words = sum(len(text.split()) for text in texts[: record["steps"]])
    assert record["usage"]["agent"]["completion"] == words
    messages = [message_from_json(data) for data in record["messages"]]
    written = [m for m in messages if m.role == "assistant"]
    assert len(written) == record["steps"]
    assert record["usage"]["agent"]["prompt"] == sum(m.usage.prompt for m in written if m.usage)

    comparison = compare([record], ["canned"], trials=1)
    assert not comparison.differences
    (table,) = tables(comparison)
    cells = {name: cell for name, cell in table.rows}
    assert (cells["Messages: malformed"], cells["Messages: tool error"]) == ("1", "1")
    assert cells["Malformed: wrong keys"] == "1" and "Malformed: empty" not in cells
    assert cells["Agent: calls"] == str(len(written)) and "User: calls" not in cells
    assert int(cells["Agent: tokens written"].replace(",", "")) == words
    assert int(cells["Agent: tokens read"].replace(",", "")) > words
    assert cells["Agent: US dollars billed"] == "0.0000"


def test_only_tasks_of_which_every_episode_is_there_are_compared() -> None:
    def record(model: str, task: str, trial: int) -> dict[str, Any]:
        return {
            "model": model,
            "task_id": task,
            "trial": trial,
            "reward": 1.0,
            "outcome": "success",
            "progress": 1.0,
            "steps": 1,
            "malformed": {},
            "tool_errors": 0,
            "faults": {},
            "passes_idle": False,
            **usages_to_json({"agent": Usage(1, 1), "user": Usage()}),
        }

    played = [record(m, t, k) for m in ("a", "b") for t in ("t0", "t1") for k in (0, 1)]
    played.remove(record("b", "t1", 0))
    played.append(record("b", "t1", 1))  # a copy is no substitute
    found = compare(played, ["a", "b"], trials=2)
    assert [(result.tasks, result.trials) for result in found.results] == [(1, 2), (1, 2)]
    assert compare(played[4:], ["a", "b"], trials=2).results == ()


def test_the_comparison_pairs_tasks_and_trials_in_whatever_order_they_ended() -> None:
    rewards = {"base": ["00", "01", "10", "11"], "other": ["01", "11", "10", "10"]}
    played = [
        {
            "model": model,
            "task_id": f"t{task}",
            "trial": trial,
            "reward": float(reward),
            "outcome": "success" if reward == "1" else "failure",
            "progress": 0.5 + 0.5 * float(reward),
            "steps": 1,
            "malformed": {},
            "tool_errors": 0,
            "faults": {},
            "passes_idle": task == 1,
            **usages_to_json({"agent": Usage(1, 1), "user": Usage()}),
        }
        for model, tasks in rewards.items()
        for task, trials in enumerate(tasks)
        for trial, reward in enumerate(trials)
    ]
    as_they_ended = sorted(played, key=lambda record: (record["trial"], record["reward"]))
    comparison = compare(played, ["base", "other"], trials=2)
    assert comparison == compare(as_they_ended, ["base", "other"], trials=2)
    base, other = comparison.results
    assert (base.pass_hat, other.pass_hat) == ((0.5, 0.25), (0.625, 0.25))
    assert base.success_unidle and base.success_unidle.value == 0.5  # of tasks 0, 2 and 3
    (found,) = comparison.differences
    assert (found.success.value, found.progress.value) == (0.125, 0.0625)
    assert (found.by_task.better, found.by_task.worse) == (2, 1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks", "0"], "tasks must be at least 1"),
        (["--trials", "0"], "trials must be at least 1"),
        (["--tasks", "1001"], "has 1000 tasks only"),
        (["--split", "dev"], "dev"),
        (["--also", "random"], "named twice"),
        (["--adapter", "no/adapter"], "there is no adapter in no/adapter"),
        (["--also", "no/model.gguf"], "unknown model"),
        (["--user", "nobody"], "no customer 'nobody'"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["evaluate", "--agent", "random", "--run", str(run), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not run.exists()


def test_another_configuration_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ARGS, "--run", str(tmp_path)]) == 0
    before = lines(tmp_path)
    assert main([*ARGS, "--run", str(tmp_path), "--seed", "1"]) == 2
    assert "another configuration (seed: 0, now 1)" in capsys.readouterr().err
    assert lines(tmp_path) == before


@pytest.fixture
def adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like an adapter's; it plays as the expert does, its base at random."""

    @contextmanager
    def opened(
        options: AgentOptions, domain: Domain, journal: object = None
    ) -> Iterator[AgentFactory]:
        yield ExpertAgent if options.model != "bundled-base" else at_random(domain)

    monkeypatch.setattr(AgentOptions, "open", opened)
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "bundled"}')
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


def test_an_adapter_is_compared_with_its_base(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    args = ["evaluate", "--model", "bundled-base", "--adapter", str(adapter), "--run", str(run)]
    assert main([*args, "--tasks", "6"]) == 0
    (found,) = summary(run)["differences"]
    assert (found["baseline"], found["model"]) == ("bundled-base", adapter.as_posix())
    assert found["by_task"] == {"better": 6, "worse": 0, "p_value": 2 / 64}

    (adapter / "adapter_model.safetensors").write_bytes(b"trained further")
    assert main([*args, "--tasks", "6"]) == 2
    assert "another configuration" in capsys.readouterr().err

    (adapter / "training.json").write_text('{"options": {"model": "bundled-base"}}')
    args = ["evaluate", "--adapter", str(adapter), "--run", str(tmp_path / "second")]
    assert main([*args, "--tasks", "1"]) == 0
    config = read_config(tmp_path / "second")
    assert config["options"]["model"] == "bundled-base", "unless told, what it was trained from"
    assert config["shown"]["bundled-base"]["system"].startswith("You ")
    (adapter / "training.json").write_text("{")
    assert main([*args, "--tasks", "1"]) == 2
    assert "does not say what was trained" in capsys.readouterr().err


def test_a_harvest_does_not_go_on_with_another_adapter(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["harvest", "--model", str(adapter), "--run", str(tmp_path / "run"), "--tasks"]
    assert harvest([*args, "1"]) == 0
    (adapter / "adapter_model.safetensors").write_bytes(b"trained further")
    assert harvest([*args, "2"]) == 2
    assert "another configuration (agent_adapter: " in capsys.readouterr().err


def test_an_episode_that_a_model_does_not_answer_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    env = make_env("ToolWOZ-v0", world="builtin:domains=1", split="val")
    refused = {env.tasks[3].id, env.tasks[7].id}

    class Picky:
        def __init__(self, task: Task) -> None:
            self.task = task

        def act(self, view: Sequence[Message], *, seed: int) -> Message:
            if self.task.id in refused:
                raise BackendError("the prompt was flagged")
            return ExpertAgent(self.task).act(view, seed=seed)

    @contextmanager
    def opened(
        options: AgentOptions, domain: Domain, notebook: object = None
    ) -> Iterator[AgentFactory]:
        yield ExpertAgent if options.model == "bundled-base" else Picky

    monkeypatch.setattr(AgentOptions, "open", opened)
    args = ["evaluate", "--model", "bundled-base", "--also", "bundled", "--tasks", "10"]
    args += ["--run", str(tmp_path)]
    assert main(args) == 1
    assert capsys.readouterr().err == (
        "error: 2 of 20 episodes have no record, and their tasks no part in the figures: the "
        "prompt was flagged; what is finished is kept: run again to go on\n"
    )
    found = summary(tmp_path)
    assert (found["infra_error"], found["infra_reasons"]) == (2, {"the prompt was flagged": 2})
    assert [(r["tasks"], r["success"]["value"]) for r in found["results"]] == [(8, 1.0)] * 2
    written = (tmp_path / "evaluation.md").read_text()
    assert "first 10 tasks of val without 2 of which an episode is missing, 1 trial" in written
    refused.clear()
    assert main(args) == 0
    found = summary(tmp_path)
    assert found["infra_error"] == 0 and [r["tasks"] for r in found["results"]] == [10, 10]
    assert "without" not in (tmp_path / "evaluation.md").read_text()


def test_what_is_finished_is_kept_when_the_run_is_stopped(tmp_path: Path, env: DialogueEnv) -> None:
    """Episodes that end together are dealt with together, the stop last of all."""
    tasks = [env.tasks[i] for i in range(8)]
    begun, recorded = Barrier(len(tasks)), Event()

    class Stopped:
        def __init__(self, task: Task) -> None:
            self.task = task

        def act(self, view: Sequence[Message], *, seed: int) -> Message:
            if len(view) == 1:
                begun.wait(10)
            if self.task == tasks[0]:
                recorded.wait(10)
                time.sleep(0.2)  # by now the others have ended
                raise RunStopped("the key is revoked")
            return Message("assistant", "Goodbye.")

    class Slow:
        def update(self, tally: Tally, record: object) -> None:
            if record is not None and not recorded.is_set():
                recorded.set()
                time.sleep(0.5)

    tally = play_all(
        env.dialogue,
        {"m": lambda dialogue: nullcontext((dialogue, Stopped))},
        tasks,
        RunFolder(tmp_path, {}),
        seed=0,
        trials=1,
        episodes_at_once=len(tasks),
        watcher=Slow(),
    )
    assert str(tally.stopped) == "the key is revoked"
    assert len(records(tmp_path)) == len(tasks) - 1


def test_a_model_that_fails_for_good_is_not_asked_for_every_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(AgentOptions, "open", lambda options, domain, notebook=None: canned([]))
    args = ["evaluate", "--model", "bundled-base", "--tasks", "60", "--run", str(tmp_path)]
    assert main(args) == 1
    assert capsys.readouterr().err.startswith("error: all canned texts are written; what is")
    assert not (tmp_path / "summary.json").exists()
    monkeypatch.setattr(AgentOptions, "open", lambda options, domain, notebook=None: canned([]))
    few = ["evaluate", "--model", "bundled-base", "--tasks", "6", "--run", str(tmp_path)]
    assert main(few) == 1
    assert "6 of 6 episodes have no record" in capsys.readouterr().err
    assert summary(tmp_path)["results"] == []


def test_a_model_that_fails_later_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["Hello there."] * 30
    monkeypatch.setattr(AgentOptions, "open", lambda options, domain, journal=None: canned(texts))
    args = ["evaluate", "--model", "bundled-base", "--tasks", "12", "--run", str(tmp_path)]
    args += ["--episodes-at-once", "1"]
    assert main(args) == 1
    kept = records(tmp_path)
    assert 0 < len(kept) < 12
    assert sum(record["steps"] for record in kept) <= 30
    assert f"{12 - len(kept)} of 12 episodes have no record" in capsys.readouterr().err
    assert summary(tmp_path)["results"][0]["tasks"] == len(kept)

    texts += ["Hello there."] * 600
    assert main(args) == 0
    assert records(tmp_path)[: len(kept)] == kept
    assert len(records(tmp_path)) == 12


def test_an_interrupt_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []

    def script(prompt: Sequence[ChatMessage], sampling: Sampling) -> str:
        said.append(sampling.seed)
        if len(said) > 30:
            raise KeyboardInterrupt
        return "Hello there."

    agent = ToolCallingAgent(CannedBackend(script), "be kind")
    monkeypatch.setattr(
        AgentOptions, "open", lambda options, domain, journal=None: nullcontext(lambda task: agent)
    )
    args = ["evaluate", "--model", "bundled-base", "--run", str(tmp_path), "--tasks", "12"]
    assert main([*args, "--episodes-at-once", "1"]) == 130
    assert capsys.readouterr().err.startswith("interrupted; what is finished is kept")
    assert 0 < len(records(tmp_path)) < 12
    assert summary(tmp_path)["results"][0]["tasks"] == len(records(tmp_path))


def test_the_live_line_counts_each_model() -> None:
    screen = io.StringIO()
    tally = Tally(4)
    record = {
        "model": "expert",
        "task_id": "t",
        "trial": 0,
        "outcome": "success",
        "goals_met": [0],
        "goals_total": 1,
        "steps": 3,
        **usages_to_json({"agent": Usage(2000, 500)}),
    }
    with Progress(
        Console(file=screen, force_terminal=True, highlight=False, width=120)
    ) as progress:
        tally.add({**record, "model": "random", "outcome": "failure"})
        progress.update(tally, None)
        tally.add(record)
        progress.update(tally, record)
    shown = screen.getvalue()
    assert "going on: 1 of 4 episodes are done" in shown
    assert "expert  t/0  goals 1/1, 3 steps" in shown
    assert "random: 0/1 solved" in shown and "expert: 1/1 solved" in shown
    assert "2/4 episodes" in shown and "5k tokens" in shown
