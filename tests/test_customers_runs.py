"""Customers that a model plays, in harvests and evaluations; and what becomes of their faults."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, chat_server, says
from test_tau_episodes import read_domain

from agents.backends.canned import CannedBackend
from agents.backends.spending import Budget
from agents.base import Backend, ChatMessage, Completion, Sampling
from agents.customers import ModelCustomer
from agents.options import AgentOptions, PlayOptions
from agents.scripted import ExpertAgent, RandomAgent
from agents.tool_calling import ToolCallingAgent
from benchmarks.__main__ import main as benchmark
from benchmarks.evaluate import EvaluateOptions
from josh_search.__main__ import main as search_main
from josh_search.harvest import Tally
from josh_search.rows import ASTRAY, FAULTED, make_rows
from josh_search.search import SearchOptions, search
from josh_search.tree import tree_to_json
from toolwoz_gym import Dialogue, make_env
from toolwoz_gym.records import read_jsonl
from toolwoz_gym.seeding import Luck
from toolwoz_gym.types import Message, Task, ToolSpec, Usage, UsageError, UserFault
from toolwoz_gym.users.scripted import ScriptedUser

ENV = make_env("ToolWOZ-v0", world="builtin:domains=1")
DOMAIN = ENV.dialogue.domain


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as server:
        server.default = says('{"name": "search_hotel"}')
        yield server


def reaching(server: ChatServer) -> list[str]:
    """Return the flags of a customer whose model the server runs."""
    return ["--user-backend", "openai", "--user-base-url", server.url, "--user-model", "m"]


def summary(run: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return data


# On the command lines.


def test_a_harvest_reports_its_customers_faults(
    server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["harvest", "--agent", "expert", "--user", "goal", "--tasks", "3", "--run"]
    args += [str(tmp_path), *reaching(server), "--user-temperature", "0.3"]
    assert search_main([*args, "--user-max-tokens", "7"]) == 0
    found = summary(tmp_path)
    assert (found["solved"], found["dialogues"]) == (0, 3)
    assert (found["user_fault"], found["user_fault_rate"]) == (3, 1.0)
    assert found["user_fault_kinds"] == {"called a tool": 3}
    assert found["usage"]["user"] == {"prompt": 30, "completion": 6}
    said = capsys.readouterr().out
    assert "user_fault: 100.0% of 3 dialogues ended by a fault of the customer's" in said
    assert "customer's, 3 called a tool\n" in said
    assert len(server.requests) == 3
    for request in server.requests:
        assert (request["model"], request["temperature"]) == ("m", 0.3)
        assert 7 in (request.get("max_tokens"), request.get("max_completion_tokens"))
    report = (tmp_path / "report.html").read_text()
    assert '"user_fault_rate":1.0' in report

    # Another address is the same customer, a longer breath is not.
    args[args.index(server.url)] = "http://localhost:1/v1"
    assert search_main([*args, "--user-max-tokens", "8"]) == 2
    assert "another configuration (user_max_tokens: 7, now 8)" in capsys.readouterr().err


def test_an_evaluation_reports_its_customers_faults(server: ChatServer, tmp_path: Path) -> None:
    server.script = [says("A hotel, please.") for _ in range(4)]
    args = ["evaluate", "--agent", "expert", "--also", "random", "--tasks", "4", "--run"]
    args += [str(tmp_path), "--user", "goal", *reaching(server), "--episodes-at-once", "1"]
    assert benchmark(args) == 0
    records = list(read_jsonl(tmp_path / "trajectories.jsonl"))
    assert [record["user_fault"] for record in records] == ["called a tool"] * 8
    assert not any(record["malformed"] for record in records)
    for result in summary(tmp_path)["results"]:
        assert result["outcomes"]["user_fault"] == 4
        assert result["user_fault"]["value"] == 1.0 and result["user_fault"]["low"] < 0.6
        assert result["user_faults"] == {"called a tool": 4}
    written = (tmp_path / "evaluation.md").read_text()
    assert "| User faults, % | 100.0 [51.0, 100.0] | 100.0 [51.0, 100.0] |" in written
    assert "customer goal (m, temperature 1)" in written


@pytest.mark.parametrize("command", ["harvest", "evaluate"])
def test_a_run_counts_customers_that_leave_too_soon(
    command: str, server: ChatServer, tmp_path: Path
) -> None:
    leaves = "Great. Can you book it for 5 people? Goodbye! END_CONVERSATION"
    server.script = [says("I need a place to stay."), says(leaves)]
    args = [command, "--agent", "expert", "--tasks", "1", "--user", "goal", "--run", str(tmp_path)]
    assert (benchmark if command == "evaluate" else search_main)([*args, *reaching(server)]) == 0
    found = summary(tmp_path)
    if command == "harvest":
        assert found["user_fault_kinds"] == {"left too soon": 1}
    else:
        assert found["results"][0]["user_faults"] == {"left too soon": 1}
    assert not server.script


def test_scripted_customers_have_no_faults_and_no_model(tmp_path: Path) -> None:
    args = ["--agent", "expert", "--tasks", "3", "--run"]
    assert search_main(["harvest", *args, str(tmp_path / "harvest")]) == 0
    found = summary(tmp_path / "harvest")
    assert (found["dialogues"], found["user_fault"], found["user_fault_rate"]) == (3, 0, 0.0)
    assert benchmark(["evaluate", *args, str(tmp_path / "evaluation")]) == 0
    (result,) = summary(tmp_path / "evaluation")["results"]
    assert (result["user_fault"]["value"], result["user_faults"]) == (0.0, {})
    for name in ("harvest", "evaluation"):
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert [option for option in config["options"] if option.startswith("user")] == ["user"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--user", "react"], "written for another environment: choose goal or guided for ToolWOZ"),
        (["--user", "guided"], "a guided customer needs world='multiwoz'"),
        (
            ["--user", "goal", "--user-backend", "openai", "--user-base-url", "nowhere"]
            + ["--user-model", "m"],
            "'nowhere' is no address of a server",
        ),
        (
            ["--user", "goal", "--user-backend", "openai"],
            "openai wants a model's name there: --user-model",
        ),
    ],
)
@pytest.mark.parametrize("command", ["harvest", "evaluate"])
def test_mistakes_are_one_line(
    command: str,
    flags: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = search_main if command == "harvest" else benchmark
    assert run([command, "--agent", "expert", "--run", str(tmp_path / "run"), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--user", "replay"], "nobody was recorded as the customer of task"),
        (["--user", "nobody"], "replay; or, played by a model, goal, guided, plain, react, verify"),
        (["--user-model", "bundled"], "--user goal for example"),
        (["--user-backend", "vllm"], "--user goal for example"),
        (["--user-base-url", "http://localhost:1/v1"], "add it"),
        (["--base-url", "http://localhost:1/v1"], "--base-url is for --backend openai: add it"),
        (["--max-usd", "3"], "limits are for models behind servers"),
        (["--max-total-tokens", "3", "--user", "goal"], "limits are for models behind servers"),
        (["--backend", "canned"], "--model names its folder, and there is none in bundled"),
        (["--temperature", "nan"], "temperature must be a number from 0 on"),
        (["--max-tokens", "0"], "max_tokens must be at least 1"),
        (["--concurrency", "0"], "concurrency must be at least 1"),
        (["--max-usd", "nan"], "max_usd must be more than 0"),
        (["--max-total-tokens", "-5"], "max_total_tokens must be more than 0"),
        (["--gpu-memory", "0"], "gpu_memory must be more than 0"),
    ],
)
@pytest.mark.parametrize("command", ["harvest", "evaluate"])
def test_values_that_make_no_sense_leave_nothing_behind(
    command: str,
    flags: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    test_mistakes_are_one_line(command, flags, message, tmp_path, capsys)
    assert not (tmp_path / "run").exists()


def test_toolwoz_customers_do_not_go_to_tau_bench(shared: Path) -> None:
    domain = read_domain(shared / "data" / "tau_bench", "airline")
    env = make_env("TauBench-v0", world=domain, split="test")
    PlayOptions(user="verify").check_user(env)
    with pytest.raises(UsageError, match="choose plain, react, verify or reflection for TauBench"):
        PlayOptions(user="goal").check_user(env)


def test_a_guided_customer_is_told_the_recorded_turns(
    server: ChatServer,
    tmp_path: Path,
    multiwoz_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TOOLWOZ_DATA", str(multiwoz_folder.parent))
    args = ["evaluate", "--agent", "expert", "--world", "multiwoz", "--split", "val", "--tasks"]
    args += ["1", "--run", str(tmp_path), "--user", "guided", *reaching(server)]
    assert benchmark(args) == 0
    (request,) = server.requests
    task: Any = make_env("ToolWOZ-v0", world="multiwoz", split="val").tasks[0]
    for number, words in enumerate(task.turns, 1):
        assert f"\n{number}. {' '.join(words.split())}\n" in request["messages"][0]["content"]


# One model in memory.


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Budget | None]]:
    """Every model that is opened, by its name, and what it may spend."""
    found: list[tuple[str, Budget | None]] = []

    @contextmanager
    def open_backend(options: AgentOptions, budget: Budget | None = None) -> Iterator[Backend]:
        found.append((options.model, budget))
        yield CannedBackend(["?"])

    monkeypatch.setattr(AgentOptions, "open_backend", open_backend)
    return found


def test_one_model_plays_both(opened: list[tuple[str, Budget | None]]) -> None:
    options = PlayOptions(user="goal", user_temperature=0.5, user_max_tokens=9)
    with options.open_players(ENV.dialogue) as (dialogue, make_agent):
        agent, customer = make_agent(ENV.tasks[0]), dialogue.user
        assert isinstance(agent, ToolCallingAgent) and isinstance(customer, ModelCustomer)
        assert agent.backend is customer.backend
        assert (customer.temperature, customer.max_tokens) == (0.5, 9)
        assert (agent.temperature, agent.max_tokens) == (1.0, 96)
    assert [name for name, _ in opened] == ["bundled"]


def test_two_models_share_a_budget(opened: list[tuple[str, Budget | None]]) -> None:
    options = PlayOptions(user="goal", user_model="bundled-base", max_total_tokens=5)
    with options.open_players(ENV.dialogue) as (dialogue, make_agent):
        assert isinstance(agent := make_agent(ENV.tasks[0]), ToolCallingAgent)
        assert isinstance(dialogue.user, ModelCustomer)
        assert agent.backend is not dialogue.user.backend
    (customers, first), (agents, second) = opened
    assert (customers, agents) == ("bundled-base", "bundled")
    assert first is second is not None and first.max_tokens == 5


def test_a_script_needs_the_customers_model_only(opened: list[tuple[str, Budget | None]]) -> None:
    with PlayOptions(agent="expert", user="goal").open_players(ENV.dialogue) as (_, make_agent):
        assert isinstance(make_agent(ENV.tasks[0]), ExpertAgent)
    assert [name for name, _ in opened] == ["bundled"]


def test_without_a_customers_model_nothing_is_opened(
    opened: list[tuple[str, Budget | None]],
) -> None:
    with PlayOptions(agent="random").open_players(ENV.dialogue) as (dialogue, _):
        assert dialogue is ENV.dialogue
    assert not opened


@pytest.mark.parametrize(("told", "met"), [(None, "bundled"), ("gpt-4o", "gpt-4o")])
def test_all_that_are_compared_meet_one_customer(told: str | None, met: str) -> None:
    players = EvaluateOptions(user="goal", user_model=told, also=("m", "expert")).players()
    assert [player.model for player in players.values()] == ["bundled", "m", "bundled"]
    assert {player.customer_model().model for player in players.values()} == {met}


# In a search.


class Fickle:
    """Plays the customer as the script does, but slips out of its role now and then."""

    def __init__(self, task: Task) -> None:
        self.task, self.spent, self.slips = task, Usage(), 0

    def complete(
        self, prompt: Sequence[ChatMessage], sampling: Sampling, tools: Sequence[ToolSpec] = ()
    ) -> Completion:
        usage = Usage(len(prompt), 3)
        self.spent += usage
        if len(prompt) > 2 and Luck(sampling.seed, "slip").chance(0.4):
            self.slips += 1
            return Completion("How can I help you?", usage, "stop")
        roles = {"assistant": "user", "user": "assistant"}
        said = [Message(roles[m["role"]], m["content"]) for m in prompt[2:]]  # type: ignore[arg-type]
        return Completion(ScriptedUser().reply(self.task, said, seed=0).content, usage, "stop")


@dataclass(frozen=True)
class Half:
    """The expert half of the time, else chance."""

    task: Task

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        agent = ExpertAgent(self.task) if seed % 2 else RandomAgent(DOMAIN.tools)
        return agent.act(view, seed=seed)


@pytest.mark.parametrize("strategy", ["josh", "go_explore", "chains"])
def test_what_the_customer_costs_is_counted_faults_included(strategy: Any) -> None:
    slips = 0
    for index in range(9):
        task = ENV.tasks[index]
        model = Fickle(task)
        dialogue = Dialogue(DOMAIN, ModelCustomer(model, "goal", DOMAIN.end_marker), 45)
        options = SearchOptions(strategy=strategy, patience=40)
        tree = search(dialogue, Half(task), task, seed=index, options=options)
        record = json.loads(json.dumps(tree_to_json(tree, trial=0)))
        spent = {"prompt": model.spent.prompt, "completion": model.spent.completion}
        assert record["usage"]["user"] == spent
        tally = Tally(1)
        tally.add(record)
        assert tally.user_faults == ({"spoke as the agent": model.slips} if model.slips else {})
        inner = {node["parent"] for node in record["nodes"]}
        assert tally.dialogues == len(record["nodes"]) - len(inner - {None})
        for node in tree.nodes:
            if node.episode.outcome == "user_fault":
                assert node.state == "over" and not node.children and node.episode.reward == 0.0
        slips += model.slips
    assert slips >= 3


def test_a_dialogue_that_the_customer_breaks_off_is_no_success() -> None:
    """Even if the agent has done all that it was asked for."""
    task = ENV.tasks[0]

    class Breaking:
        def reply(self, task: Task, messages: Sequence[Message], *, seed: int) -> Message:
            message = ScriptedUser().reply(task, messages, seed=seed)
            if DOMAIN.end_marker in message.content:
                raise UserFault("instead of goodbye")
            return message

    options = SearchOptions(strategy="josh", reward="terminal", max_steps=20)
    dialogue = Dialogue(DOMAIN, Breaking(), 45)
    tree = search(dialogue, ExpertAgent(task), task, seed=0, options=options)
    assert {node.episode.outcome for node in tree.nodes} == {None, "user_fault"}
    assert not tree.solved and not any(node.golden for node in tree.nodes)
    assert make_rows([tree_to_json(tree, trial=0)], "").counts()["kto"] == {"good": 0, "bad": 0}


def node(
    id: int, parent: int | None, said: str, outcome: str | None = None, golden: bool = False
) -> dict[str, Any]:
    role = "user" if parent is None else "assistant"
    messages = [{"role": role, "content": said}, {"role": "user", "content": "Go on."}]
    marks = {"golden": golden, "successful": golden, "outcome": outcome, "met": []}
    return {"id": id, "parent": parent, "messages": messages[: 2 - (parent is None)], **marks}


def test_no_row_punishes_the_agent_for_a_fault_of_its_customer() -> None:
    nodes = [
        node(0, None, "Hello."),
        node(1, 0, "good", golden=True),
        node(2, 0, "broken off", "user_fault"),
        node(3, 0, "broken off and failed"),
        node(4, 3, "x", "user_fault"),
        node(5, 3, "y", "failure"),
        node(6, 0, "broken off twice"),
        node(7, 6, "x", "user_fault"),
        node(8, 6, "y", "user_fault"),
        node(9, 0, "failed", "failure"),
        node(10, 0, "said in two nodes", "user_fault"),
        node(11, 0, "said in two nodes", "truncated"),
    ]
    record = {"key": "t/0", "task_id": "t", "solved": True, "nodes": nodes}
    rows = make_rows([record], "")
    labels = {row["completion"][0]["content"]: row["label"] for row in rows.kto}
    assert labels == {
        "good": True,
        "broken off and failed": False,
        "failed": False,
        "said in two nodes": False,
    }
    assert rows.dropped[FAULTED] == 2 and rows.dropped[ASTRAY] == 4
    assert len(rows.dpo) == 3


def test_a_replayed_customer_that_runs_dry_says_so() -> None:
    env = make_env("ToolWOZ-v0", world="builtin", user=["Hello."])
    env.reset(seed=0)
    env.step("And?")
    assert env.snapshot().messages[-1].error == "has nothing left to say"
