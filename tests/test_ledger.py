"""What models took is counted, nothing is asked for twice, and runs play again without a model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from chat_server import ChatServer, Handler, chat_server, completion, fails, says
from hypothesis import given
from hypothesis import strategies as st
from logs import write_log
from test_backend_openai import DEAR, QUICK

from agents.backends.canned import CannedBackend, ReplayBackend
from agents.backends.journal import (
    COMPLETIONS,
    Journal,
    Notes,
    Recorded,
    Recording,
    call_key,
    to_record,
)
from agents.backends.openai import OpenAIBackend
from agents.backends.spending import Budget, BudgetSpent
from agents.base import BackendError, ChatMessage, Completion, Sampling
from benchmarks.__main__ import main as benchmark
from benchmarks.reproducibility import compare_runs
from josh_search.__main__ import main as search
from toolwoz_gym.records import dump, read_lines, read_log, usages_from_json, usages_to_json
from toolwoz_gym.types import ToolSpec, Usage, UsageError

ROOT = Path(__file__).resolve().parents[1]

PROMPT: list[ChatMessage] = [{"role": "user", "content": "Hello \ud83d!"}]

OUTPUTS = (
    '{"name": "search_hotel", "arguments": {"area": "north"}}',
    '{"name": "search_restaurant", "arguments": {}}',
    '{"name": "fly", "arguments": {}}',
    "Where would you like to stay?",
    "Goodbye!",
)


class Moody:
    """Answers every request in another way, whatever its seed, and says what that took."""

    def __init__(self, **said: Any) -> None:
        self.answers = 0
        self.said = said

    def __call__(self, handler: Handler) -> None:
        with handler.state.lock:
            number, self.answers = self.answers, self.answers + 1
        message = {
            "role": "assistant",
            "content": f"{OUTPUTS[number % len(OUTPUTS)]}{' ' * number}",
        }
        usage = {
            "prompt_tokens": 100 + number,
            "completion_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": number},
        }
        body = completion(choices=[{"message": message}], **{"usage": usage, **self.said})
        handler.send(json.dumps(body).encode())


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as server:
        server.default = Moody()
        yield server


def harvest(run: Path, server: ChatServer, *more: str) -> int:
    reach = ["--backend", "openai", "--model", "m", "--base-url", server.url, "--tasks", "3"]
    return search(["harvest", "--run", str(run), *reach, "--patience", "12", *more])


def replay(run: Path, recorded: Path, *more: str) -> int:
    options = ["--backend", "canned", "--model", str(recorded)]
    return search(["harvest", "--run", str(run), *options, *more])


def trees(run: Path) -> list[dict[str, Any]]:
    return sorted(read_log(run / "trees.jsonl"), key=lambda record: str(record["key"]))


def lines(path: Path) -> list[bytes]:
    return sorted(path.read_bytes().splitlines())


# The figures.

usages = st.builds(
    Usage,
    st.none() | st.integers(0, 999),
    st.none() | st.integers(0, 999),
    st.none() | st.integers(0, 999),
    *[st.integers(0, 9)] * 2,
    st.integers(0, 99).map(float),
    st.none() | st.integers(0, 99).map(float),
)


@given(st.lists(usages, max_size=4))
def test_a_sum_knows_what_all_its_parts_know(parts: list[Usage]) -> None:
    total = sum(parts, Usage())
    for name in ("prompt", "completion", "cached", "calls", "retries", "seconds", "usd"):
        values = [getattr(part, name) for part in parts]
        assert getattr(total, name) == (None if None in values else sum(values))
    assert total.tokens == (
        None if None in (total.prompt, total.completion) else total.prompt + total.completion
    )


@given(usages, usages)
def test_usages_survive_a_record(agent: Usage, user: Usage) -> None:
    again = usages_from_json(json.loads(json.dumps(usages_to_json({"agent": agent, "user": user}))))
    assert [repr(usage) for usage in again.values()] == [repr(agent), repr(user)]


def test_a_usage_in_words() -> None:
    local = Usage(1200, 30, 1000, calls=2, seconds=9.25)
    assert str(local) == (
        "1,200 tokens read (1,000 from a cache), 30 written, 2 calls, "
        "9.2 s in calls, nothing billed"
    )
    hosted = Usage(None, None, None, calls=1, retries=3, usd=None)
    assert str(hosted) == (
        "unknown tokens read (unknown from a cache), unknown written, 1 calls, 3 retries, "
        "0.0 s in calls, price unknown"
    )
    assert str(Usage(1, 1, calls=1, usd=0.5)).endswith(", 0.5000 US dollars")


def test_records_and_summaries_have_a_ledger(
    server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert harvest(tmp_path, server) == 0
    calls = len(server.requests)
    ledgers = [tree["ledger"]["agent"] for tree in trees(tmp_path)]
    assert sum(ledger["calls"] for ledger in ledgers) == calls > 10
    assert all(ledger["seconds"] > 0 and ledger["usd"] is None for ledger in ledgers)
    for summary in (
        json.loads((tmp_path / "summary.json").read_text()),
        {
            part: {"agent": {k: sum(t[part]["agent"][k] for t in trees(tmp_path)) for k in names}}
            for part, names in (
                ("usage", ("prompt", "completion")),
                ("ledger", ("calls", "cached")),
            )
        },
    ):
        assert summary["usage"]["agent"] == {
            "prompt": 100 * calls + calls * (calls - 1) // 2,
            "completion": 7 * calls,
        }
        assert summary["ledger"]["agent"]["cached"] == calls * (calls - 1) // 2
    printed = capsys.readouterr().out
    assert f"\nagent: {100 * calls + calls * (calls - 1) // 2:,} tokens read (" in printed
    assert f"{calls} calls" in printed and "price unknown" in printed and "user: " not in printed


def test_what_a_server_does_not_say_stays_unknown(
    server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.default = Moody(usage=None)
    assert harvest(tmp_path / "run", server) == 0
    assert trees(tmp_path / "run")[0]["usage"]["agent"] == {"prompt": None, "completion": None}
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["usage"]["agent"] == {"prompt": None, "completion": None}
    assert summary["ledger"]["agent"]["usd"] is None
    assert "agent: unknown tokens read" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").stat().st_size > 0
    assert harvest(tmp_path / "limited", server, "--tree-tokens", "10") == 1
    assert "does not say how many tokens" in capsys.readouterr().err
    model = ["--backend", "openai", "--model", "m", "--base-url", server.url, "--tasks", "2"]
    assert benchmark(["evaluate", *model, "--run", str(tmp_path / "evaluation")]) == 0
    table = (tmp_path / "evaluation" / "evaluation.md").read_text()
    assert "| Agent: tokens written | unknown |" in table


# Spending, from one session to the next.


def test_a_limit_holds_for_all_sessions_and_nothing_is_asked_twice(
    server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed = tmp_path / "undisturbed"
    for limit in ("900", "900", "2000"):
        before = len(server.requests)
        assert harvest(tmp_path / "run", server, "--max-total-tokens", limit) == 1
        assert "the token limit is reached" in capsys.readouterr().err
        assert (len(server.requests) == before) == (limit == "900" and before > 0)
        spent = Recording.of(tmp_path / "run").spent
        assert int(limit) <= spent.tokens < int(limit) + 16 * 200
        assert spent.calls == len(server.requests)
    assert harvest(tmp_path / "run", server) == 0
    asked = [json.dumps([body["messages"], body["seed"]]) for body in server.requests]
    assert len(set(asked)) == len(asked)
    # The trees that were broken off go on with what they had been told.
    assert replay(undisturbed, tmp_path / "run") == 0
    assert lines(undisturbed / "trees.jsonl") == lines(tmp_path / "run" / "trees.jsonl")


def test_a_run_that_is_stopped_has_the_figures_of_what_is_finished(
    server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def limit(log: Path) -> str:
        """What the first unit takes."""
        server.default = Moody()
        return str(sum(usages_from_json(next(read_log(log))).values(), Usage()).tokens)

    assert harvest(tmp_path / "whole", server, "--trees", "1") == 0
    most = limit(tmp_path / "whole" / "trees.jsonl")
    run = tmp_path / "run"
    assert harvest(run, server, "--trees", "1", "--max-total-tokens", most) == 1
    assert "2 of 3 trees have no record: the token limit is reached" in capsys.readouterr().err
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["tasks"], summary["finished"]) == (3, 1)
    assert (run / "kto.jsonl").exists() and (run / "report.html").exists()

    server.default = Moody()
    reach = ["--backend", "openai", "--model", "m", "--base-url", server.url, "--tasks", "3"]
    one_by_one = ["evaluate", *reach, "--episodes-at-once", "1", "--run"]
    assert benchmark([*one_by_one, str(tmp_path / "all")]) == 0
    most = limit(tmp_path / "all" / "trajectories.jsonl")
    run = tmp_path / "first"
    assert benchmark([*one_by_one, str(run), "--max-total-tokens", most]) == 1
    assert "2 of 3 episodes have no record" in capsys.readouterr().err
    (result,) = json.loads((run / "summary.json").read_text())["results"]
    assert result["tasks"] == len(lines(run / "trajectories.jsonl")) == 1


class Held:
    """Answers when it may."""

    def __init__(self) -> None:
        self.may = Event()

    def __call__(self, handler: Handler) -> None:
        self.may.wait(30)
        with suppress(ConnectionError):  # whoever asked may have gone
            says("Hello there.", finish_reason="stop")(handler)


COMMANDS = {"harvest": ["josh_search", "harvest"], "evaluate": ["benchmarks", "evaluate"]}


@contextmanager
def begun(server: ChatServer, command: list[str], run: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a command in a process of its own, until four calls are in flight."""
    reach = ["--backend", "openai", "--model", "m", "--base-url", server.url, "--tasks", "4"]
    with subprocess.Popen(
        [sys.executable, "-m", *command, *reach, "--run", str(run)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while len(server.requests) < 4 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert process.stderr.readline() == "stopping; Ctrl-C again ends at once\n"
        yield process


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_an_interrupt_loses_no_call_in_flight(
    server: ChatServer, tmp_path: Path, command: list[str]
) -> None:
    server.default = held = Held()
    with begun(server, command, tmp_path / "run") as process:
        held.may.set()
        said = process.communicate()[1]
    assert process.returncode == 130 and said.startswith("interrupted; what is finished is kept")
    assert Recording.of(tmp_path / "run").spent.calls == len(server.requests) >= 4


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_second_interrupt_gives_them_up(
    server: ChatServer, tmp_path: Path, command: list[str]
) -> None:
    server.default = held = Held()
    with begun(server, command, tmp_path / "run") as process:
        process.send_signal(signal.SIGINT)
        assert process.communicate()[1].startswith("interrupted twice; what is finished is kept")
        assert process.returncode == 130 and not held.may.is_set()
    held.may.set()


def test_dollars_of_earlier_sessions_count(server: ChatServer, tmp_path: Path) -> None:
    def session(limit: float) -> int:
        """Return how many calls were answered before the limit."""
        answered = 0
        with Journal(tmp_path) as journal:
            budget = Budget(max_usd=limit, spent=journal.spent)
            with OpenAIBackend.connect("m", server.url, price=DEAR, budget=budget) as backend:
                recorded = Recorded(backend, journal, "m", billed=True)
                with pytest.raises(BudgetSpent):
                    for seed in range(100):
                        recorded.complete(PROMPT, Sampling(seed=seed))
                        answered += 1
        return answered

    # 100 tokens and more at a dollar a million, 7 at ten: 0.00017 dollars a call.
    assert [session(0.0005), session(0.0005), session(0.001)] == [3, 3, 6]
    assert len(server.requests) == 6


def test_retries_are_counted(server: ChatServer) -> None:
    server.script = [fails(503), fails(500)]
    with OpenAIBackend.connect("m", server.url, patience=QUICK) as backend:
        assert backend.complete(PROMPT, Sampling()).usage.retries == 2
        assert backend.complete(PROMPT, Sampling()).usage.retries == 0


# The journal.


def test_calls_differ_by_all_that_is_asked_for() -> None:
    tool = ToolSpec("fly", "", {})
    keys = [
        call_key("m", PROMPT, Sampling()),
        call_key("n", PROMPT, Sampling()),
        call_key("m", [*PROMPT, *PROMPT], Sampling()),
        call_key("m", [{"role": "user", "content": "Hello!"}], Sampling()),
        call_key("m", [{"role": "system", "content": "Hello \ud83d!"}], Sampling()),
        call_key("m", PROMPT, Sampling(seed=1)),
        call_key("m", PROMPT, Sampling(temperature=0.5)),
        call_key("m", PROMPT, Sampling(max_tokens=1)),
        call_key("m", PROMPT, Sampling(grammar="root ::= [a]")),
        call_key("m", PROMPT, Sampling(), [tool]),
        call_key("m", PROMPT, Sampling(), [ToolSpec("fly", "High.", {})]),
    ]
    assert len(set(keys)) == len(keys)
    assert call_key("m", list(PROMPT), Sampling()) == keys[0]


def test_a_journal_goes_on_after_a_kill(tmp_path: Path) -> None:
    answers = {seed: f"answer {seed} \ud83d" for seed in range(5)}
    with Journal(tmp_path) as journal:
        backend = Recorded(
            CannedBackend(lambda _, how: answers[how.seed]), journal, "m", billed=True
        )
        first = [backend.complete(PROMPT, Sampling(seed=seed)) for seed in answers]
    file = tmp_path / COMPLETIONS
    file.write_bytes(file.read_bytes()[:-3])
    assert len(Recording.of(tmp_path).keys()) == 4  # a run that is written at the moment
    with Journal(tmp_path) as journal:
        assert journal.spent == sum((answer.usage for answer in first[:4]), Usage())
        backend = Recorded(CannedBackend(["another"]), journal, "m", billed=True)
        again = [backend.complete(PROMPT, Sampling(seed=seed)) for seed in answers]
    assert again[:4] == first[:4] and again[4].text == "another"
    replayed = ReplayBackend(Recording.of(tmp_path), "m")
    assert [replayed.complete(PROMPT, Sampling(seed=seed)) for seed in answers] == again


def test_the_last_answer_to_a_call_counts_and_all_are_paid_for(tmp_path: Path) -> None:
    """A tree that a worker of a cluster has begun is begun anew by another one."""
    one, two = (Completion(text, Usage(5, 1, calls=1), "stop", -0.5) for text in ("one", "two"))
    with Journal(tmp_path) as journal:
        for answer in (one, two):
            journal.keep(to_record("m", 1, answer, billed=True))
        assert journal.find(1) == two and journal.spent.tokens == 12
    assert Recording.of(tmp_path).find(1) == two and Recording.of(tmp_path).spent.calls == 2


@pytest.mark.parametrize("fails", [False, True])
def test_equal_calls_at_once_are_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """They share the answer, and the error too."""
    asked: list[int] = []
    waiting, all_there = Event(), Event()

    class Asking(dict[int, object]):
        """Tells when all seven calls have come."""

        calls = 0

        def setdefault(self, key: int, default: object = None) -> object:
            self.calls += 1
            if self.calls == 7:
                all_there.set()
            return super().setdefault(key, default)

    def script(prompt: Sequence[ChatMessage], sampling: Sampling) -> str:
        asked.append(sampling.seed)
        if sampling.seed == 0:
            waiting.wait(10)
            if fails:
                raise BackendError("no answer")
        return f"answer {len(asked)}"

    with Journal(tmp_path) as journal, ThreadPoolExecutor(8) as pool:
        backend = Recorded(CannedBackend(script), journal, "m", billed=False)
        monkeypatch.setattr(backend, "_asked", Asking())
        same = [pool.submit(backend.complete, PROMPT, Sampling()) for _ in range(6)]
        other = pool.submit(backend.complete, PROMPT, Sampling(seed=1))
        assert other.result(10), "it waits for none of them"
        assert all_there.wait(10)
        waiting.set()
        wait(same)
        if fails:
            assert all(isinstance(call.exception(), BackendError) for call in same)
        else:
            assert len({call.result() for call in same}) == 1
        assert asked.count(0) == 1
        fails = False
        assert backend.complete(PROMPT, Sampling()).text
    assert len(Recording.of(tmp_path).keys()) == 2


def test_a_bug_in_a_shared_call_is_told_by_all(tmp_path: Path) -> None:
    def script(prompt: Sequence[ChatMessage], sampling: Sampling) -> str:
        both.wait(10)
        time.sleep(0.1)
        raise KeyError("a bug")

    both = Event()
    with Journal(tmp_path) as journal, ThreadPoolExecutor(2) as pool:
        backend = Recorded(CannedBackend(script), journal, "m", billed=False)
        calls = [pool.submit(backend.complete, PROMPT, Sampling()) for _ in range(2)]
        both.set()
        assert all(isinstance(call.exception(), KeyError) for call in calls)


def test_a_worker_hands_its_notes_over_once() -> None:
    notes = Notes(Usage(3, 4))
    backend = Recorded(CannedBackend(["one", "two"]), notes, "m", billed=True)
    first = backend.complete(PROMPT, Sampling())
    assert backend.complete(PROMPT, Sampling()) == first
    assert [record["text"] for record in notes.fetch()] == ["one"] and notes.fetch() == []
    assert backend.complete(PROMPT, Sampling()) == first, "it is known still"
    backend.complete(PROMPT, Sampling(seed=1))
    assert [record["text"] for record in notes.fetch()] == ["two"]
    assert notes.spent == Usage(3, 4)


def test_what_nobody_bills_does_not_count_against_a_limit(tmp_path: Path) -> None:
    """A model in process beside a hosted customer: the limit is the customer's."""
    with Journal(tmp_path) as journal:
        local = Recorded(CannedBackend(["Hello there!"]), journal, "local", billed=False)
        assert local.complete(PROMPT, Sampling()).usage.tokens
        assert journal.spent.tokens == 0
    assert Recording.of(tmp_path).spent.tokens == 0 and len(Recording.of(tmp_path).keys()) == 1


def test_a_damaged_recording_is_a_usage_error(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        for key in (1, 2):
            answer = Completion("Hello!", Usage(5, 1, calls=1), "stop", -0.5)
            journal.keep(to_record("m", key, answer, billed=True))
    one, two = (tmp_path / COMPLETIONS).read_bytes().splitlines(keepends=True)
    (tmp_path / COMPLETIONS).write_bytes(one + two + one)
    assert Recording.of(tmp_path).spent.calls == 2, "a line that is there twice is one call"
    (tmp_path / COMPLETIONS).write_bytes(one + two.replace(b"Hello", b"Hallo"))
    with pytest.raises(UsageError, match=r"completions.jsonl, line 2: damaged"):
        Recording.of(tmp_path)
    write_log(tmp_path / COMPLETIONS, [{"key": "a tree"}])
    with pytest.raises(UsageError, match="holds other records"):
        Recording.of(tmp_path)


# Playing a run again.


@pytest.mark.parametrize(
    "how",
    [
        ["--temperature", "0.5"],
        ["--strategy", "chains", "--seed", "3", "--max-tokens", "20"],
        ["--strategy", "josh", "--beam", "4", "--max-steps", "4", "--trees", "2"],
        ["--user", "goal", "--user-model", "n", "--agent", "act"],
    ],
)
def test_a_harvest_is_replayed_to_the_byte(
    server: ChatServer, tmp_path: Path, how: list[str]
) -> None:
    recorded, again, third = tmp_path / "recorded", tmp_path / "again", tmp_path / "third"
    assert harvest(recorded, server, *how) == 0
    asked = len(server.requests)
    assert replay(again, recorded, "--trees", "1") == 0
    assert replay(third, again, "--trees", "7") == 0
    assert len(server.requests) == asked
    for name in ("trees.jsonl", "kto.jsonl", COMPLETIONS):
        assert lines(again / name) == lines(third / name), name
    for name in ("trees.jsonl", "kto.jsonl"):
        assert lines(recorded / name) == lines(again / name), name
    # Nobody bills a replay.
    made = [record | {"billed": False} for _, _, record in read_lines(recorded / COMPLETIONS)]
    found = [record for _, _, record in read_lines(again / COMPLETIONS)]
    assert sorted(map(dump, made)) == sorted(map(dump, found))
    config = json.loads((again / "config.json").read_text())
    assert config["replays"] == str(recorded) and config["options"]["model"] == "m"


def test_what_was_finished_of_a_run_is_replayed(
    server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trees and episodes were lost, and the last record was torn by a kill."""
    recorded, again = tmp_path / "recorded", tmp_path / "again"
    assert harvest(recorded, server) == 0
    whole = lines(recorded / "trees.jsonl")
    (recorded / "trees.jsonl").write_bytes(whole[0] + b"\n" + whole[2] + b"\n" + whole[1][:40])
    assert replay(again, recorded) == 0
    assert lines(again / "trees.jsonl") == [whole[0], whole[2]]
    (recorded / "trees.jsonl").write_bytes(b"")
    assert replay(tmp_path / "none", recorded) == 2
    assert "has no trees yet" in capsys.readouterr().err
    (recorded / "trees.jsonl").write_bytes(b"{}\n")
    assert replay(tmp_path / "none", recorded) == 2
    assert "trees.jsonl, line 1: damaged" in capsys.readouterr().err

    played, twice = tmp_path / "played", tmp_path / "twice"
    reach = ["--backend", "openai", "--model", "m", "--base-url", server.url, "--tasks", "4"]
    assert benchmark(["evaluate", *reach, "--run", str(played)]) == 0
    episodes = lines(played / "trajectories.jsonl")
    known = lines(played / COMPLETIONS)
    (played / COMPLETIONS).write_bytes(b"\n".join(known[:-1]) + b"\n")
    canned = ["evaluate", "--backend", "canned", "--model", str(played), "--run", str(twice)]
    assert benchmark(canned) == 2
    assert "1 of 4 episodes have no record" in capsys.readouterr().err
    replayed = lines(twice / "trajectories.jsonl")
    assert len(replayed) == 3 and set(replayed) < set(episodes)


def test_an_evaluation_of_several_models_is_replayed(server: ChatServer, tmp_path: Path) -> None:
    recorded, again = tmp_path / "recorded", tmp_path / "again"
    model = ["--backend", "openai", "--model", "m", "--also", "n", "random"]
    options = [*model, "--base-url", server.url, "--tasks", "3", "--trials", "2"]
    assert benchmark(["evaluate", *options, "--run", str(recorded)]) == 0
    asked = len(server.requests)
    canned = ["--backend", "canned", "--model", str(recorded)]
    assert benchmark(["evaluate", *canned, "--run", str(again)]) == 0
    assert len(server.requests) == asked
    assert lines(recorded / "trajectories.jsonl") == lines(again / "trajectories.jsonl")
    found = [json.loads((run / "summary.json").read_text()) for run in (recorded, again)]
    assert found[0]["results"] == found[1]["results"]
    assert {result["model"] for result in found[1]["results"]} == {"m", "n", "random"}


def test_what_was_not_recorded_cannot_be_replayed(
    server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded, run = tmp_path / "recorded", tmp_path / "run"
    assert harvest(recorded, server) == 0
    capsys.readouterr()
    assert replay(run, recorded, "--seed", "5") == 2
    assert capsys.readouterr().err.endswith("was recorded with seed 0, not 5: leave it out\n")
    assert replay(run, recorded, "--engine", "ray") == 2
    capsys.readouterr()
    assert replay(run, tmp_path / "nothing") == 2
    assert "--model names its folder, and there is none in" in capsys.readouterr().err
    assert replay(recorded, recorded) == 2
    assert "holds the recording: choose another --run" in capsys.readouterr().err
    assert replay(run, recorded, "--tasks", "5") == 2
    assert f"{recorded} has 3 tasks only" in capsys.readouterr().err
    assert benchmark(["evaluate", "--backend", "canned", "--model", str(recorded)]) == 2
    assert "is no evaluation" in capsys.readouterr().err
    assert not run.exists()
    file = recorded / COMPLETIONS
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))
    assert replay(run, recorded) == 2
    said = capsys.readouterr().err
    assert "1 of 3 trees have no record" in said and "has no answer of m to a call" in said
    (recorded / COMPLETIONS).unlink()
    assert replay(run, recorded) == 2
    assert f"there is no {COMPLETIONS}" in capsys.readouterr().err
    with pytest.raises(BackendError, match="no answer"):
        ReplayBackend(Recording(recorded / COMPLETIONS), "m").complete(PROMPT, Sampling())


def test_a_forged_record_is_found_by_a_replay(
    server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = tmp_path / "recorded"
    assert harvest(recorded, server) == 0
    known = trees(recorded)
    solved, goals = not known[1]["solved"], [0] if not known[1]["goals_met"] else []
    nodes = [*known[2]["nodes"][:-1], known[2]["nodes"][-1] | {"messages": []}]
    forgeries = {
        "solved": [known[0], known[1] | {"solved": solved}, known[2]],
        "goals_met": [known[0], known[1] | {"goals_met": goals}, known[2]],
        "nodes": [known[0], known[1], known[2] | {"nodes": nodes}],
        "ledger": [known[0] | {"ledger": known[1]["ledger"]}, *known[1:]],
    }
    for number, (name, forged) in enumerate(forgeries.items()):
        write_log(recorded / "trees.jsonl", forged)
        capsys.readouterr()
        assert replay(tmp_path / str(number), recorded) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "1 of 3 records differ, that of builtin-train" in said
        assert said.endswith(f" in {name}\n")
    write_log(recorded / "trees.jsonl", known)
    assert replay(tmp_path / "true", recorded) == 0

    played = tmp_path / "played"
    reach = ["--backend", "openai", "--model", "m", "--base-url", server.url, "--tasks", "2"]
    assert benchmark(["evaluate", *reach, "--run", str(played)]) == 0
    one, two = read_log(played / "trajectories.jsonl")
    write_log(played / "trajectories.jsonl", [one, two | {"reward": 1.0, "outcome": "success"}])
    canned = ["evaluate", "--backend", "canned", "--model", str(played), "--run"]
    assert benchmark([*canned, str(tmp_path / "twice")]) == 2
    assert "1 of 2 records differ" in capsys.readouterr().err
    write_log(played / "trajectories.jsonl", [one])
    assert benchmark([*canned, str(tmp_path / "thrice")]) == 2, (
        "one has nothing to be compared with"
    )


def test_a_replay_ignores_no_option(
    server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even one that says what holds unless told, where the recording says something else."""
    recorded, run = tmp_path / "recorded", tmp_path / "run"
    assert harvest(recorded, server, "--seed", "3", "--temperature", "0.5", "--constrain") == 0
    file = tmp_path / "options.yaml"
    file.write_text("seed: 0\n")
    for words, said in (
        (["--seed", "0"], "was recorded with seed 3, not 0: leave it out"),
        (["--seed=0"], "was recorded with seed 3, not 0: leave it out"),
        (["--config", str(file)], "was recorded with seed 3, not 0: leave it out"),
        (["--temperature", "1"], "was recorded with temperature 0.5, not 1.0: leave it out"),
        (["--no-constrain"], "was recorded with constrain True, not False: leave it out"),
        (["--user_temperature", "1"], "user_temperature has no say in a replay: leave it out"),
        (["--device", "auto"], "device has no say in a replay: leave it out"),
        (["--tasks", "24"], "has 3 tasks only"),
    ):
        capsys.readouterr()
        assert replay(run, recorded, *words) == 2
        assert capsys.readouterr().err.endswith(f"{said}\n")
    assert not run.exists()
    assert replay(run, recorded, "--seed", "3", "--trees", "1", "--engine", "local") == 0


def test_runs_are_compared(
    server: ChatServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    recorded, again, other = (tmp_path / name for name in ("recorded", "again", "other"))
    assert harvest(recorded, server) == replay(again, recorded) == harvest(other, server) == 0
    same, different = compare_runs(recorded, again), compare_runs(recorded, other)
    assert (same.records, same.equal_records, same.calls) == (3, 3, same.equal_texts)
    assert (different.records, different.equal_records) == (3, 0)
    assert different.calls >= 3 and different.equal_texts == 0, "each tree has its first call"
    capsys.readouterr()
    assert benchmark(["reproducibility", "--runs", str(recorded), str(again)]) == 0
    assert benchmark(["reproducibility", "--runs", str(recorded), str(again), str(other)]) == 2
    said = capsys.readouterr()
    assert said.err == f"error: not the same as {recorded}: {other}\n"
    table = [" ".join(line.split()) for line in said.out.splitlines()]
    assert any(line.startswith(f"{again} 3 of 3 3 of 3 ") for line in table)
    assert any(line.startswith(f"{other} 0 of 3 0 of 3 ") for line in table)
    known = trees(again)
    write_log(other / "trees.jsonl", [])
    assert benchmark(["reproducibility", "--runs", str(other), str(other)]) == 2
    write_log(again / "trees.jsonl", known[:2])
    assert benchmark(["reproducibility", "--runs", str(recorded), str(again)]) == 2
    assert "1 records are in one of" in capsys.readouterr().out
    write_log(again / "trees.jsonl", [*known[:2], known[2] | {"solved": not known[2]["solved"]}])
    assert benchmark(["reproducibility", "--runs", str(recorded), str(again)]) == 2
    assert " 2 of 3 2 of 3 " in " ".join(capsys.readouterr().out.split())
    assert benchmark(["reproducibility", "--runs", str(recorded)]) == 2
    assert benchmark(["reproducibility", "--runs", str(recorded), str(tmp_path)]) == 2
    played = tmp_path / "played"
    reach = ["--backend", "openai", "--model", "m", "--base-url", server.url, "--tasks", "1"]
    assert benchmark(["evaluate", *reach, "--run", str(played)]) == 0
    assert benchmark(["reproducibility", "--runs", str(recorded), str(played)]) == 2
    assert "compare like runs" in capsys.readouterr().err
    assert harvest(tmp_path / "cold", server, "--temperature", "0.5") == 0
    capsys.readouterr()
    assert benchmark(["reproducibility", "--runs", str(recorded), str(tmp_path / "cold")]) == 2
    said = f"{tmp_path / 'cold'} has other options than {recorded}: temperature\n"
    assert capsys.readouterr().out.startswith(said)
