"""What the documentation shows is what happens."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = [page.name for page in sorted(DOCS.glob("*.md")) if ">>> " in page.read_text("utf-8")]


def test_there_are_pages_with_examples() -> None:
    assert "toolwoz.md" in PAGES


@pytest.mark.parametrize("page", PAGES)
def test_examples(page: str) -> None:
    failed, tried = doctest.testfile(str(DOCS / page), module_relative=False, encoding="utf-8")
    assert tried > 0
    assert failed == 0


PLAYED = re.findall(
    r"```\n\$ python (-m [^\n]*)\n\.\.\.\n(.*?)```", (DOCS / "play.md").read_text("utf-8"), re.S
)
"""The words after ``python``, and what the terminal shows from the first message on."""


def test_both_sides_are_played() -> None:
    assert ["--as customer" in command for command, _ in PLAYED] == [False, True]


@pytest.mark.parametrize(("command", "shown"), PLAYED)
def test_transcripts(command: str, shown: str) -> None:
    typed = re.findall(r"^ *\d+  you     > (.*\n)", shown, re.M)
    done = subprocess.run(
        [sys.executable, *command.split()],
        input="".join(typed),
        capture_output=True,
        env={**os.environ, "COLUMNS": "80"},
        text=True,
        check=True,
    )
    assert shown in done.stdout
