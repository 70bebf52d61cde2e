"""Publishing rows: the card, the upload to a hub that listens here, the hosted services' format."""

from __future__ import annotations

import base64
import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from logs import write_log

from agents.tool_calling import system_prompt
from benchmarks.__main__ import main as measure
from josh_search.__main__ import main
from josh_search.publish import (
    ExportOptions,
    PublishOptions,
    dataset_files,
    export,
    openai_dpo,
    openai_sft,
    publish,
)
from josh_search.rows import write_rows
from josh_search.search import SearchOptions, search
from josh_search.tree import tree_to_json
from toolwoz_gym.cli import main_cli
from toolwoz_gym.dialogue import Dialogue
from toolwoz_gym.records import (
    ROW_FILES,
    file_digest,
    provenance,
    read_jsonl,
    read_sealed,
    write_jsonl,
    write_sealed,
)
from toolwoz_gym.seeding import Luck
from toolwoz_gym.toolwoz.builtin import CityOptions, load_builtin
from toolwoz_gym.types import Message, Task, UsageError
from toolwoz_gym.users.scripted import ScriptedUser

WORLD = load_builtin(CityOptions.parse("domains=1,constraints=1,failures=0"))
OPTIONS = {
    "env": "ToolWOZ-v0", "world": "builtin:domains=1", "agent": "tool_calling", "model": "bundled",
    "strategy": "josh", "beam": 4, "reward": "goal_calls", "seed": 7,
    "user": "scripted",
}  # fmt: skip


class Doubter:
    """The expert, but in doubt now and then."""

    def __init__(self, task: Task) -> None:
        from agents.scripted import ExpertAgent

        self.expert = ExpertAgent(task)

    def act(self, view: Any, *, seed: int) -> Message:
        if Luck(seed, "doubt").chance(0.3):
            return Message("assistant", "Hm.")
        return self.expert.act(view, seed=seed)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    run = tmp_path_factory.mktemp("runs") / "demo"
    run.mkdir()
    dialogue = Dialogue(WORLD, ScriptedUser(), max_steps=45)
    options = SearchOptions(strategy="josh", beam=4, max_steps=8)
    trees = []
    for number, task in enumerate(WORLD.tasks("train")[i] for i in range(20)):
        tree = search(dialogue, Doubter(task), task, seed=number, options=options)
        trees.append(tree_to_json(tree, 0))
    write_log(run / "trees.jsonl", trees)
    rows = write_rows(run, system_prompt(WORLD.policy, WORLD.tools))
    config = {"options": OPTIONS, "world": WORLD.fingerprint, "made_with": provenance()}
    write_sealed(run / "config.json", config)
    summary = {
        "finished": 20,
        "solved": sum(tree["solved"] for tree in trees),
        "goals_met": sum(len(tree["goals_met"]) for tree in trees),
        "goals_total": sum(len(tree["goals"]) for tree in trees),
        "usage": {"agent": {"prompt": 4000, "completion": 321}, "user": {"prompt": 0}},
        "rows": rows,
        ROW_FILES: {file.name: file_digest(file) for file in run.glob("*.jsonl")},
    }
    write_sealed(run / "summary.json", summary)
    return run


def changed(run: Path, folder: Path, name: str, **changes: Any) -> Path:
    """Return a copy of a run whose config or summary is another."""
    folder.mkdir()
    for file in run.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    write_sealed(folder / name, {**read_sealed(folder / name), **changes})
    return folder


def card(run: Path, licence: str | None = None) -> tuple[dict[str, Any], str]:
    """Return a card's front matter and its text."""
    text = dataset_files(run, licence)["README.md"]
    assert isinstance(text, str)
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


# --- the card -----------------------------------------------------------------------------------


def test_the_card_states_what_the_run_was(finished: Path) -> None:
    front, body = card(finished)
    summary = json.loads((finished / "summary.json").read_text("utf-8"))
    rows = summary["rows"]
    assert [config["config_name"] for config in front["configs"]] == ["kto", "sft", "dpo"]
    assert f"{summary['solved']} of 20 tasks were solved" in body
    assert "4,321 tokens of the agent and 0 of the customer" in body
    assert f"| kto | {rows['kto']['good']} good, {rows['kto']['bad']} bad |" in body
    assert rows["dropped"]
    for reason, count in rows["dropped"].items():
        assert f"| {count} | {reason} |" in body
    for option, value in OPTIONS.items():
        assert f"| {option} | `{value}` |" in body
    assert WORLD.fingerprint in body


@pytest.mark.parametrize(
    ("options", "licence", "text"),
    [
        ({}, "mit", "generated city, under the MIT licence. The messages were written by SmolLM2"),
        ({}, "mit", "those of the customers by toolwoz-gym's customer (scripted), under the MIT"),
        (
            {"user": "goal", "user_model": None},
            "mit",
            "those of the customers by SmolLM2-135M-Instruct (bundled), a",
        ),
        ({"user": "goal", "user_model": "big"}, "unknown", "by the model big, whose licence"),
        ({"agent": "expert"}, "mit", "scripted agent (expert), under the MIT licence"),
        ({"model": "/home/me/big"}, "unknown", "the model big, whose licence or terms of use"),
        ({"world": "multiwoz"}, "mit", "come from MultiWOZ 2.1, under the MIT licence"),
        ({"env": "TauBench-v0", "world": "retail"}, "mit", "τ-bench's retail desk, under the MIT"),
    ],
)
def test_the_licence_follows_from_world_and_model(
    finished: Path, tmp_path: Path, options: dict[str, str], licence: str, text: str
) -> None:
    run = changed(finished, tmp_path / "run", "config.json", options={**OPTIONS, **options})
    front, body = card(run)
    assert front["license"] == licence
    assert text in body
    assert "/home" not in body
    front, body = card(run, "cc-by-4.0")
    assert front["license"] == "cc-by-4.0" and "`cc-by-4.0`." in body


@pytest.mark.parametrize(
    ("strategy", "named"),
    [
        ("josh", "JOSH ([arXiv 2409.04617]"),
        ("go_explore", "from the best place it knows (`go_explore`, after Ecoffet"),
        ("chains", "A series of independent tries (`chains`)"),
    ],
)
def test_the_card_names_what_has_played(
    finished: Path, tmp_path: Path, strategy: str, named: str
) -> None:
    options = {**OPTIONS, "strategy": strategy}
    front, body = card(changed(finished, tmp_path / "run", "config.json", options=options))
    assert f"{named}" in body and ("JOSH" in body) == (strategy == "josh")
    assert front["tags"][:3] == ["dialogue", "tool-use", strategy]


def test_damaged_rows_are_not_handed_on(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = changed(finished, tmp_path / "run", "summary.json")
    for kind in ("sft", "dpo"):
        data = (run / f"{kind}.jsonl").read_bytes()
        (run / f"{kind}.jsonl").write_bytes(data.replace(b"restaurant", b"Restaurant", 1))
        commands = (["export", "--kind", kind, "--out", tmp_path / "x"], ["publish", "--out", run])
        for words in commands:
            assert command(*words, "--run", run) == 2
            said = capsys.readouterr().err
            assert said.count("\n") == 1 and ".jsonl is not as its harvest wrote it" in said
    summary = run / "summary.json"
    summary.write_text(summary.read_text().replace('"solved": ', '"solved": 1'))
    assert command("publish", "--out", tmp_path / "new", "--run", run) == 2
    assert "summary.json is damaged" in capsys.readouterr().err


def test_the_card_gives_away_no_address(finished: Path, tmp_path: Path) -> None:
    options = {**OPTIONS, "base_url": "http://gpu7.intranet:8000/v1"}
    _, body = card(changed(finished, tmp_path / "run", "config.json", options=options))
    assert "intranet" not in body


def test_only_files_with_rows_are_published(finished: Path, tmp_path: Path) -> None:
    rows = {"kto": {"good": 3, "bad": 0}, "sft": 3, "dpo": 0, "dropped": {}}
    run = changed(finished, tmp_path / "run", "summary.json", rows=rows)
    assert set(dataset_files(run, None)) == {"kto.jsonl", "sft.jsonl", "README.md"}
    front, body = card(run)
    assert [config["config_name"] for config in front["configs"]] == ["kto", "sft"]
    assert "| dpo |" not in body and "## What was left out\n\nNothing." in body
    rows = {"kto": {"good": 0, "bad": 0}, "sft": 0, "dpo": 0, "dropped": {}}
    with pytest.raises(UsageError, match="no rows to publish"):
        dataset_files(changed(finished, tmp_path / "none", "summary.json", rows=rows), None)


# --- the folder and the upload -----------------------------------------------------------------


def command(*words: object) -> int:
    commands = {"publish": (PublishOptions, publish), "export": (ExportOptions, export)}
    return main_cli("josh", "Test.", commands, [str(word) for word in words])


def load(folder: Path, cache: Path) -> dict[str, list[dict[str, Any]]]:
    """Load every configuration that a dataset's card names."""
    import datasets

    front = yaml.safe_load((folder / "README.md").read_text("utf-8").split("---\n")[1])
    names = [config["config_name"] for config in front["configs"]]
    datasets.disable_progress_bars()
    return {
        name: datasets.load_dataset(str(folder), name, split="train", cache_dir=cache).to_list()
        for name in names
    }


def test_the_folder_is_a_dataset(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert command("publish", "--run", finished, "--out", out) == 0
    assert "README.md" in capsys.readouterr().out
    loaded = load(out, tmp_path / "cache")
    for kind in ("kto", "sft", "dpo"):
        assert loaded[kind] == list(read_jsonl(finished / f"{kind}.jsonl")) != []


class Hub(ThreadingHTTPServer):
    """A hub of one repository: what huggingface_hub asks of the real one in an upload."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.asked: list[str] = []
        self.created: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.body()
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        if self.headers["Authorization"] != "Bearer secret":
            return self.answer(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            self.server.created = json.loads(body)
            return self.answer(200, {"url": f"{self.server.url}/datasets/me/rows"})
        if path == "/api/validate-yaml":
            yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
            return self.answer(200, {"errors": [], "warnings": []})
        if path == "/api/datasets/me/rows/preupload/main":
            modes = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": modes})
        if path == "/api/datasets/me/rows/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.files[line["value"]["path"]] = content
            url = f"{self.server.url}/datasets/me/rows/commit/abc"
            return self.answer(200, {"commitUrl": url, "commitOid": "abc", "success": True})
        return self.answer(404, {"error": "not here"})

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def answer(self, status: int, value: Mapping[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with Hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_upload_is_the_folder(
    hub: Hub, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["publish", "--run", finished, "--to", "me/rows", "--private", "--out", out]
    assert command(*words) == 0
    assert hub.url in capsys.readouterr().out
    named = {"name": "rows", "organization": "me", "type": "dataset"}
    assert hub.created == {**named, "visibility": "private"}
    assert hub.files == {file.name: file.read_bytes() for file in out.iterdir()}
    assert "/api/datasets/me/rows/commit/main" in hub.asked


def test_what_the_hub_refuses_is_said_in_a_line(
    hub: Hub,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def said(*words: object) -> str:
        assert command("publish", "--run", finished, *words) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        return error

    assert "--to user/name uploads" in said()
    assert "cannot publish me/rows/x" in said("--to", "me/rows/x")
    monkeypatch.setenv("HF_TOKEN", "stolen")
    assert "401 Unauthorized" in said("--to", "me/rows")
    monkeypatch.delenv("HF_TOKEN")
    hub.asked.clear()
    assert "no Hugging Face token" in said("--to", "me/rows")
    assert hub.asked == [] and hub.files == {}


def test_a_hub_that_is_not_there(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert command("publish", "--run", finished, "--to", "me/rows") == 2
    assert "cannot publish me/rows" in capsys.readouterr().err


def test_folders_that_cannot_be_used(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        publish(PublishOptions(run=finished, out=tmp_path))
    assert (tmp_path / "README.md").read_text() == "mine"
    with pytest.raises(UsageError, match="finished run"):
        publish(PublishOptions(run=tmp_path, out=tmp_path / "out"))
    with pytest.raises(UsageError, match="cannot write"):
        publish(PublishOptions(run=finished, out=tmp_path / "README.md"))


# --- the hosted services' format ----------------------------------------------------------------


def check_chat(messages: list[dict[str, Any]]) -> None:
    """Check what OpenAI's documentation asks of an example's messages."""
    assert messages[0]["role"] == "system"
    for message in messages:
        assert {"role", "content"} <= set(message) <= {"role", "content", "weight"}
        assert message["role"] in ("system", "user", "assistant")
        assert isinstance(message["content"], str) and message["content"].strip()
        assert "weight" not in message or message["role"] == "assistant"
        assert message.get("weight", 0) in (0, 1)


def test_dialogues_are_exported_whole(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sft.jsonl"
    assert command("export", "--run", finished, "--out", out) == 0
    examples, rows = list(read_jsonl(out)), list(read_jsonl(finished / "sft.jsonl"))
    assert f"{len(examples)} examples" in capsys.readouterr().out
    summary = json.loads((finished / "summary.json").read_text("utf-8"))
    assert len(examples) == summary["solved"] >= 10
    taught = []
    for example in examples:
        assert set(example) == {"messages"}
        messages = example["messages"]
        check_chat(messages)
        assert messages[-1]["role"] == "assistant"
        taught += [messages[:i] for i, m in enumerate(messages, 1) if m["role"] == "assistant"]
    # What is learned is what sft.jsonl teaches, a message at a time.
    assert Counter(map(json.dumps, taught)) == Counter(
        json.dumps(row["prompt"] + row["completion"]) for row in rows
    )


def chat(*contents: str) -> list[dict[str, str]]:
    roles = ["system", *("user", "assistant") * len(contents)]
    return [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]


def row(tree: str, *contents: str) -> dict[str, Any]:
    *prompt, completion = chat(*contents)
    return {"prompt": prompt, "completion": [completion], "tree": tree}


def test_what_two_dialogues_share_is_learned_once() -> None:
    rows = [
        row("t", "s", "hi", "a"),
        row("t", "s", "hi", "a", "b?", "b"),
        row("t", "s", "hi", "a", "b?", "b", "c?", "c"),
        row("t", "s", "hi", "a", "b?", "b", "d?", "d"),
        row("t", "s", "hi", "e"),
        row("u", "s", "hi", "a"),
    ]
    weights = [
        [(m["content"], m.get("weight")) for m in example["messages"] if m["role"] == "assistant"]
        for example in openai_sft(rows)
    ]
    assert weights == [
        [("a", None), ("b", None), ("c", None)],
        [("a", 0), ("b", 0), ("d", None)],
        [("e", None)],
        [("a", None)],
    ]


def test_pairs_are_exported(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "dpo.jsonl"
    assert command("export", "--run", finished, "--kind", "dpo", "--out", out) == 0
    examples, rows = list(read_jsonl(out)), list(read_jsonl(finished / "dpo.jsonl"))
    assert len(examples) == len(rows) > 0
    for example, source in zip(examples, rows, strict=True):
        assert set(example) == {"input", "preferred_output", "non_preferred_output"}
        assert example["input"] == {"messages": source["prompt"]}
        check_chat(example["input"]["messages"])
        assert example["input"]["messages"][-1]["role"] == "user"
        for name, column in (("preferred_output", "chosen"), ("non_preferred_output", "rejected")):
            assert example[name] == source[column]
            (message,) = example[name]
            assert message["role"] == "assistant" and message["content"].strip()


def test_empty_messages_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt, (good, bad) = (
        chat("s", "hi"),
        [[{"role": "assistant", "content": c}] for c in ("a", "")],
    )
    pair = {"prompt": prompt, "chosen": good, "rejected": bad}
    write_jsonl(tmp_path / "dpo.jsonl", [pair, {**pair, "rejected": good}])
    assert len(list(openai_dpo([pair]))) == 1
    export(ExportOptions(run=tmp_path, kind="dpo", out=tmp_path / "out"))
    assert len(list(read_jsonl(tmp_path / "out"))) == 1
    said = capsys.readouterr().out
    assert "dropped: 1 examples with an empty message" in said and "at least 10" in said


def test_files_that_cannot_be_exported(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        export(ExportOptions(run=tmp_path))
    with pytest.raises(UsageError, match="cannot write"):
        export(ExportOptions(run=finished, out=tmp_path / "no" / "where"))


def test_an_evaluation_has_no_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert measure(["evaluate", "--run", str(run), "--agent", "expert", "--tasks", "1"]) == 0
    for command, file in (("publish", "kto"), ("export", "sft")):
        assert main([command, "--run", str(run), "--out", str(tmp_path / command)]) == 2
        error = capsys.readouterr().err
        assert f"{run / file}.jsonl" in error and "damaged" not in error
