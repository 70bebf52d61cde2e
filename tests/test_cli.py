"""What all command lines have in common: width, missing packages, pipes that close, names."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.__main__ import main as measure
from josh_search.__main__ import main as search
from toolwoz_gym.records import read_jsonl

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["--world", "builtin:tasks=40", "--split", "val"]

COMMANDS = {
    "josh_search": ("", "harvest", "publish", "export"),
    "training": ("", "kto", "sft", "warmstart"),
    "benchmarks": (
        *("", "evaluate", "controls", "speed", "generation", "noise", "reproducibility"),
        "search_efficiency",
    ),
    "toolwoz_gym": ("", "play", "data", "data prepare"),
}


def python(
    *words: str, path: Sequence[Path] = (ROOT,), folder: Path | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), **more}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=env, cwd=folder, check=False
    )


def widest(text: str) -> int:
    return max(map(len, text.splitlines()))


@pytest.mark.parametrize("package", COMMANDS)
def test_help_fits_the_terminal(
    package: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = f"{package}.__main__"
    if package == "training":  # it has no function to call
        assert widest(python("-m", package, "kto", "--help", COLUMNS="80").stdout) <= 80
        return
    main = importlib.import_module(program).main
    for width in (40, 80, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        for command in COMMANDS[package]:
            with pytest.raises(SystemExit) as ended:
                main([*command.split(), "--help"])
            assert ended.value.code == 0
            shown = capsys.readouterr().out
            if package != "toolwoz_gym" or width > 40:  # argparse leaves one column more there
                assert widest(shown) <= width, command
            assert "show this help message" in " ".join(shown.replace("│", "").split())


def test_tables_fit_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ["--agent", "erring", *SMALL, "--tasks", "2"]
    runs = [str(tmp_path / name) for name in ("one", "a much longer name of a run")]
    evaluate = ["evaluate", *few, "--also", "random", "expert", "--run"]
    compare = ["search_efficiency", *few, "--seeds", "1", "--budget", "20", "--run"]
    prove = ["controls", *SMALL[:2], "--tasks", "1"]
    commands = [*([*evaluate, run] for run in runs), ["reproducibility", "--runs", *runs], prove]
    commands.append([*compare, str(tmp_path / "search")])
    for width in (40, 80):
        monkeypatch.setenv("COLUMNS", str(width))
        for command in commands:
            assert measure(command) == 0
            lines = capsys.readouterr().out.splitlines()
            rules = [i for i, line in enumerate(lines) if line.startswith("───")]
            assert rules
            for rule in rules:
                table = lines[rule - 1 : lines.index("", rule)]
                assert max(map(len, table)) <= width, command


def test_all_tasks_of_a_split_can_be_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, evaluation = tmp_path / "run", tmp_path / "evaluation"
    harvest = ["harvest", "--agent", "expert", *SMALL, "--run", str(run)]
    assert search([*harvest, "--tasks", "all"]) == 0
    count = len(list(read_jsonl(run / "trees.jsonl")))
    assert count > 1
    assert f"{count} of {count} tasks solved" in capsys.readouterr().out
    evaluate = ["evaluate", "--agent", "expert", *SMALL, "--run", str(evaluation)]
    assert measure([*evaluate, "--tasks", "all"]) == 0
    assert measure([*evaluate, "--tasks", str(count)]) == 0, "the same run"
    assert len(list(read_jsonl(evaluation / "trajectories.jsonl"))) == count
    capsys.readouterr()
    for command in (evaluate, ["noise", *SMALL]):
        assert measure([*command, "--tasks", str(count + 1)]) == 2
        assert f"the split 'val' has {count} tasks only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "out"), [(["noise", *SMALL], "--plot"), (["speed"], "--out")], ids=["plot", "figures"]
)
def test_files_that_cannot_be_written_are_found_out_before_the_work(
    words: list[str],
    out: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("benchmarks.noise.measure", lambda options: pytest.fail("it measured"))
    monkeypatch.setattr("benchmarks.speed.make_env", lambda *_, **__: pytest.fail("it measured"))
    for path in (tmp_path, tmp_path / "no" / "folder"):
        assert measure([*words, out, str(path)]) == 2
        assert capsys.readouterr().err.startswith(f"error: cannot write {path}: ")
    assert list(tmp_path.iterdir()) == []


HIDE = """
import sys, runpy
hidden, module, *words = sys.argv[1:]
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden.split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
sys.argv = [module, *words]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
TRAIN = "torch,transformers,tokenizers,safetensors,huggingface_hub,peft,trl,datasets,accelerate"


@pytest.mark.parametrize(
    ("hidden", "command", "missing"),
    [
        ("tyro,yaml,rich,matplotlib", "josh_search", "tyro is not installed: [cli]"),
        ("tyro,yaml,rich,matplotlib", "training", "tyro is not installed: [cli]"),
        (f"tyro,yaml,rich,matplotlib,{TRAIN}", "benchmarks", "tyro is not installed: [cli]"),
        (TRAIN, "benchmarks evaluate", "transformers is not installed: [train]"),
        ("rich", "josh_search harvest --agent expert", "rich is not installed: [cli]"),
        ("matplotlib", "benchmarks noise --plot x.png", "matplotlib is not installed: [cli]"),
        ("tenacity", "josh_search harvest --backend openai --model m", "tenacity is not "),
        ("ray", "josh_search harvest --engine ray --agent expert", "Ray is not installed: [ray]"),
    ],
)
def test_missing_packages_are_named_in_one_line(
    hidden: str, command: str, missing: str, tmp_path: Path
) -> None:
    done = python("-c", HIDE, hidden, *command.split(), folder=tmp_path, OPENAI_API_KEY="none")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert missing.replace("[", "pip install 'toolwoz-gym[") in done.stderr


@pytest.mark.parametrize("command", ["-m josh_search --help", "-m toolwoz_gym play --help"])
def test_a_pipe_that_closes_ends_a_program_quietly(command: str) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, *command.split()],
        stdout=write,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        check=False,
    )
    os.close(write)
    assert done.returncode in (0, 141)  # argparse takes no notice
    assert done.stderr == b""


@pytest.mark.parametrize("way", ["in front", "overwritten"])
def test_a_package_of_the_same_name_is_told_apart(way: str, tmp_path: Path) -> None:
    path: list[Path] = [tmp_path, ROOT]
    if way == "overwritten":
        for package in COMMANDS:
            (tmp_path / package).symlink_to(ROOT / package)
        path = [tmp_path]
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").write_text("raise RuntimeError('of another package')\n")
    (tmp_path / "work").mkdir()
    for module in ("josh_search", "training", "benchmarks"):
        done = python("-m", module, "--help", path=path, folder=tmp_path / "work")
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "the package 'agents' in" in done.stderr
    done = python("-c", "import toolwoz_gym", path=path, folder=tmp_path / "work")
    assert (done.returncode, done.stderr) == (0, "")
    play = ("-m", "toolwoz_gym", "play", "--as", "customer", "--world", "builtin")
    done = python(*play, path=path, folder=tmp_path / "work")
    assert done.returncode == 2
    assert done.stderr.startswith("error: the package 'agents' in") and done.stderr.count("\n") == 1
