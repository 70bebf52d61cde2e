"""A harvest on a Ray cluster gives what one machine gives, whatever dies on the way.

The cluster is a real one: a head and two machines, each of them processes of this computer.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from chat_server import chat_server, says

from agents.backends.journal import COMPLETIONS, Journal, Notes, Recording
from agents.base import AgentFactory, BackendError
from agents.options import AgentOptions
from agents.scripted import RandomAgent
from josh_search.__main__ import main
from josh_search.distributed import Plan, open_ray
from josh_search.engine import Engine, Grown, Job, LocalEngine
from josh_search.harvest import Tally, harvest
from josh_search.search import SearchOptions
from toolwoz_gym import Dialogue, make_env
from toolwoz_gym.records import RunFolder, read_jsonl, read_log
from toolwoz_gym.types import Message, Task, Usage, UsageError

if importlib.util.find_spec("ray") is None:
    if os.environ.get("TOOLWOZ_REQUIRE_RAY"):
        pytest.fail("TOOLWOZ_REQUIRE_RAY is set, but Ray is not installed")
    pytest.skip("Ray is not installed: pip install -e '.[ray]'", allow_module_level=True)

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[1]

ENV = partial(make_env, "ToolWOZ-v0", world="builtin:domains=1", split="train")
WORLD = ENV().dialogue.domain
TASKS = ENV().tasks[:10]
OPTIONS = SearchOptions(strategy="josh", beam=4, max_steps=6)


@dataclass(frozen=True)
class Trouble:
    """An agent that guesses. A worker that opens it leaves a file of its process's number."""

    folder: Path
    mute: str = ""
    """The task whose model does not answer."""
    fatal: str = ""
    """The task that its worker does not survive; "all" means that none survives the opening."""
    gate: Path | None = None
    """While there is no such file, a tree gets no further than its first turn."""

    @contextmanager
    def open(self, dialogue: Dialogue, notes: Notes) -> Iterator[tuple[Dialogue, AgentFactory]]:
        (self.folder / str(os.getpid())).touch()
        if self.fatal == "all":
            os._exit(1)
        guessing = RandomAgent(dialogue.domain.tools)
        yield dialogue, lambda task: TroubledAgent(self, task.id, guessing)


@dataclass(frozen=True)
class TroubledAgent:
    trouble: Trouble
    task_id: str
    guessing: RandomAgent

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        if self.task_id == self.trouble.mute:
            raise BackendError("no answer")
        if self.task_id == self.trouble.fatal:
            os._exit(1)
        while self.trouble.gate is not None and not self.trouble.gate.exists():
            time.sleep(0.02)
        return self.guessing.act(view, seed=seed)


class Machines:
    """A cluster of a head, which has no work to do, and machines with room for one worker each."""

    def __init__(self, folder: str) -> None:
        from ray._private.utils import get_ray_address_file
        from ray.cluster_utils import Cluster

        # Whatever folder a cluster is given, Ray notes its address here, and needs the folder.
        Path(get_ray_address_file(None)).parent.mkdir(parents=True, exist_ok=True)
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "temp_dir": folder,
                "_system_config": {  # a death is noticed within two seconds
                    "health_check_initial_delay_ms": 0,
                    "health_check_period_ms": 500,
                    "health_check_failure_threshold": 3,
                },
            },
        )
        self.address: str = self._cluster.address
        self._nodes = [self._cluster.add_node(num_cpus=1) for _ in range(2)]

    def kill_one(self) -> None:
        self._cluster.remove_node(self._nodes.pop(), allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder,  # sockets: short names
    ):
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        import ray.cloudpickle

        # The workers cannot import this file: its functions go to them whole.
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        cluster = Machines(folder)
        try:
            yield cluster
        finally:
            cluster.close()


def plan(trouble: Trouble, **changes: Any) -> Plan:
    whole = Plan(
        make_env=ENV,
        open_players=trouble.open,
        spent=Usage(),
        world=WORLD.fingerprint,
        seed=9,
        options=OPTIONS,
        trees_at_once=2,
    )
    return replace(whole, **changes)


@contextmanager
def opened(plan: Plan, address: str, **options: Any) -> Iterator[Engine]:
    with (
        tempfile.TemporaryDirectory() as run,
        Journal(Path(run)) as journal,
        open_ray(plan, address, journal=journal, check_budget=lambda: None, **options) as engine,
    ):
        yield engine


def grow(engine: Engine, tasks: Sequence[Task] = TASKS) -> dict[str, Grown]:
    """Return what becomes of each task, by its id."""
    jobs = [(task.id, task) for task in tasks]
    grown = list(engine.grow(iter(jobs), lambda key, live: None))
    assert sorted(g.key for g in grown) == sorted(key for key, _ in jobs)
    return {g.key: g for g in grown}


@pytest.fixture(scope="module")
def alone() -> dict[str, Grown]:
    """What one machine grows."""
    with AgentOptions(agent="random").open(WORLD) as make_agent:
        return grow(LocalEngine(ENV().dialogue, make_agent, 9, OPTIONS, trees_at_once=2))


def test_many_machines_grow_what_one_grows(
    machines: Machines, alone: dict[str, Grown], tmp_path: Path
) -> None:
    with opened(plan(Trouble(tmp_path)), machines.address) as engine:
        assert grow(engine) == alone
        assert grow(engine, TASKS[:3]) == {t.id: alone[t.id] for t in TASKS[:3]}  # once more
        assert grow(engine, []) == {}


def test_a_lost_tree_is_told_and_a_fatal_one_given_up(
    machines: Machines, alone: dict[str, Grown], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trouble = Trouble(tmp_path, mute=TASKS[1].id, fatal=TASKS[4].id)
    with opened(plan(trouble, trees_at_once=1), machines.address) as engine:
        found = grow(engine)
    lost = {TASKS[1].id: "no answer", TASKS[4].id: "3 workers died with it"}
    assert found == {**alone, **{key: Grown(key, None, why) for key, why in lost.items()}}
    assert len(caplog.messages) == 3
    assert all(said.startswith("a worker has died with 1 trees: ") for said in caplog.messages)


def test_workers_that_cannot_live_end_the_harvest(machines: Machines, tmp_path: Path) -> None:
    with (
        pytest.raises(BackendError, match="the workers die: "),
        opened(plan(Trouble(tmp_path, fatal="all")), machines.address, workers=1),
    ):
        raise AssertionError("there is no engine")
    assert len(list(tmp_path.iterdir())) == 3


def test_workers_have_their_customers_model(machines: Machines, tmp_path: Path) -> None:
    with chat_server() as server:
        server.default = says("A cheap hotel in the north, please.")
        args = ["harvest", "--strategy", "josh", "--agent", "random", "--tasks", "6"]
        args += ["--user", "goal", "--user-backend", "openai", "--user-base-url", server.url]
        args += ["--user-model", "m"]
        assert main([*args, "--run", str(tmp_path / "alone")]) == 0
        alone, server.requests[:] = len(server.requests), []
        args += ["--engine", "ray", "--ray-address", machines.address]
        assert main([*args, "--run", str(tmp_path / "ray")]) == 0
        assert len(server.requests) == alone > 6
    found = [
        {r["key"]: (r["nodes"], r["usage"]) for r in read_jsonl(tmp_path / name / "trees.jsonl")}
        for name in ("alone", "ray")
    ]
    assert len(found[0]) == 6 and found[0] == found[1]
    # All that the workers' models have written is there, and makes the same trees without them.
    answers = [
        {r["key"]: r["text"] for r in read_jsonl(tmp_path / name / COMPLETIONS)}
        for name in ("alone", "ray")
    ]
    assert len(answers[0]) == alone and answers[0] == answers[1]
    again = ["harvest", "--backend", "canned", "--model", str(tmp_path / "ray")]
    assert main([*again, "--run", str(tmp_path / "again")]) == 0
    assert sorted((tmp_path / "again" / "trees.jsonl").read_bytes().splitlines()) == sorted(
        (tmp_path / "ray" / "trees.jsonl").read_bytes().splitlines()
    )


def test_a_limit_holds_for_all_workers_and_sessions_together(
    machines: Machines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with chat_server() as server:
        server.default = says("A cheap hotel in the north, please.")
        args = ["harvest", "--strategy", "chains", "--agent", "random", "--tasks", "12"]
        args += ["--user", "goal", "--user-backend", "openai", "--user-base-url", server.url]
        args += ["--user-model", "m"]
        args += ["--engine", "ray", "--ray-address", machines.address, "--trees", "1"]
        args += ["--run", str(run)]
        assert main([*args, "--max-total-tokens", "60"]) == 1
        assert "the token limit is reached" in capsys.readouterr().err
        spent = Recording.of(run).spent
        asked = len(server.requests)
        assert spent.calls == asked and spent.tokens is not None and spent.tokens >= 60
        assert len(list(read_jsonl(run / "trees.jsonl"))) < 12
        assert main([*args, "--max-total-tokens", "60"]) == 1
        assert len(server.requests) == asked
        assert main(args) == 0
    assert len(list(read_jsonl(run / "trees.jsonl"))) == 12


class Interrupting:
    """Watches a harvest, and presses Ctrl-C when some trees are finished."""

    def __init__(self, after: int) -> None:
        self.after = after

    def update(self, tally: Tally, record: Mapping[str, Any] | None) -> None:
        if record is not None and tally.finished == self.after:
            os.kill(os.getpid(), signal.SIGINT)

    def wait(self, tally: Tally, seconds: float) -> None:
        raise AssertionError("nothing was lost")


def test_an_interrupted_harvest_goes_on(
    machines: Machines, alone: dict[str, Grown], tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run", {})
    trees = tmp_path / "run" / "trees.jsonl"
    with opened(plan(Trouble(tmp_path)), machines.address) as engine:
        assert harvest(engine, TASKS, folder, watcher=Interrupting(3)).interrupted
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    kept = trees.read_bytes()
    finished = kept.count(b"\n")
    assert 3 <= finished < len(TASKS)  # what has come in by then is kept, too
    with opened(plan(Trouble(tmp_path)), machines.address) as engine:
        tally = harvest(engine, TASKS, folder, watcher=Interrupting(0))
    assert (tally.before, tally.finished) == (finished, len(TASKS))
    assert trees.read_bytes().startswith(kept)
    records = list(read_log(trees))
    assert len(records) == len(TASKS)
    assert {r["task_id"]: r for r in records} == {k: grown.record for k, grown in alone.items()}


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({"world": "0" * 12}, {}, "on the machine .*: its world is .*, the driver's 000000000000"),
        ({"make_env": partial(make_env, "ToolWOZ-v0", world="mars")}, {}, "no world 'mars'"),
        ({}, {"gpus": 1}, "no machine of the Ray cluster has .*: CPUs 1, GPUs 1"),
        ({}, {"workers": 0}, "workers and their CPUs must be at least 1"),
    ],
)
def test_mistakes_are_one_line(
    machines: Machines,
    tmp_path: Path,
    changes: dict[str, Any],
    options: dict[str, Any],
    said: str,
) -> None:
    with (
        pytest.raises(UsageError, match=said) as error,
        opened(plan(Trouble(tmp_path), **changes), machines.address, **options),
    ):
        raise AssertionError("there is no engine")
    assert "\n" not in str(error.value)


def test_an_unreachable_cluster_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", nobody)
        for address in (nobody, "auto", "mars"):
            with (
                pytest.raises(UsageError, match="cannot reach the Ray cluster") as error,
                opened(plan(Trouble(tmp_path)), address),
            ):
                raise AssertionError("there is no engine")
            assert "\n" not in str(error.value)


class Opener(logging.Handler):
    """Opens a gate when a worker's death is told."""

    def __init__(self, gate: Path) -> None:
        super().__init__()
        self.gate = gate

    def emit(self, record: logging.LogRecord) -> None:
        assert record.getMessage().startswith("a worker has died with 2 trees: ")
        self.gate.touch()


def test_a_dead_machines_trees_are_grown_elsewhere(
    machines: Machines, alone: dict[str, Grown], tmp_path: Path
) -> None:
    """The gate is shut until the driver knows of the death: both machines have two trees each."""
    gate, workers = tmp_path / "gate", tmp_path / "workers"
    workers.mkdir()
    log, opener = logging.getLogger("josh_search.distributed"), Opener(gate)
    log.addHandler(opener)

    def jobs() -> Iterator[Job]:
        for number, task in enumerate(TASKS, 1):
            if number == 4:  # three are handed out, and this is the fourth
                machines.kill_one()
            yield task.id, task

    try:
        with opened(plan(Trouble(workers, gate=gate)), machines.address) as engine:
            found = list(engine.grow(jobs(), lambda key, live: None))
    finally:
        log.removeHandler(opener)
    assert gate.exists() and len(list(workers.iterdir())) == 2
    assert len(found) == len(TASKS)
    assert {grown.key: grown for grown in found} == alone


def test_the_command_goes_on_after_an_interrupt(machines: Machines, tmp_path: Path) -> None:
    """On the machine that is left; and SIGTERM, of which Ray has its own idea, is one too."""
    alone, broken = tmp_path / "alone", tmp_path / "broken"
    options = ["harvest", "--env", "ToolWOZ-v0", "--strategy", "josh", "--agent", "random"]
    options += ["--beam", "4", "--tasks", "60"]
    assert main([*options, "--run", str(alone)]) == 0
    options += ["--engine", "ray", "--ray-address", machines.address, "--run", str(broken)]
    with subprocess.Popen(
        [sys.executable, "-m", "josh_search", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        for _ in range(3):
            process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert "\ninterrupted; what is finished is kept" in process.stderr.read()
    assert process.returncode == 130
    assert 3 <= len(list(read_jsonl(broken / "trees.jsonl"))) < 60
    assert main(options) == 0
    records = [list(read_jsonl(run / "trees.jsonl")) for run in (alone, broken)]
    assert len(records[0]) == len(records[1]) == 60
    assert {r["key"]: r for r in records[0]} == {r["key"]: r for r in records[1]}


def test_the_command_says_in_one_line_that_there_is_no_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--engine", "ray", "--ray-address", "127.0.0.1:1", "--run", str(tmp_path / "run")]
    assert main(["harvest", "--agent", "random", *options]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("error: cannot reach the Ray cluster '127.0.0.1:1'")
    assert list(tmp_path.iterdir()) == []
