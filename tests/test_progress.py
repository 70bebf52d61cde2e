"""What is shown of long work where output is no terminal."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console
from rich.text import Text

from toolwoz_gym import progress
from toolwoz_gym.progress import LiveLine, phase, watched


def stdout(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Return where standard output goes now, with a line due every hundredth of a second."""
    monkeypatch.setattr(progress, "EVERY", 0.01)
    file = io.StringIO()
    monkeypatch.setattr("sys.stdout", file)
    return file


def wait_for(pattern: str, file: io.StringIO) -> None:
    began = time.monotonic()
    while not re.search(pattern, file.getvalue(), re.MULTILINE):
        assert time.monotonic() < began + 10, file.getvalue()
        time.sleep(0.001)


def test_a_live_line_is_printed_now_and_then_although_nothing_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = stdout(monkeypatch)
    with LiveLine("trees") as live:
        live.show(0, 3, [Text("0 solved")], None)
        wait_for(r"^0/3 trees  0 solved  0:00 so far\n0/3 trees  0 solved", file)
        live.show(1, 3, [Text("1 solved")], None)
        wait_for(r"^1/3 trees  1 solved  0:0\d left$", file)
    said = file.getvalue()
    time.sleep(0.05)
    assert file.getvalue() == said


def test_lines_that_are_printed_anyway_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    file = stdout(monkeypatch)
    ticks: list[float] = []
    clock = time.monotonic

    def tick() -> float:
        ticks.append(clock())
        return 0.0  # no time passes

    monkeypatch.setattr(progress.time, "monotonic", tick)
    with LiveLine("trees") as live:
        live.show(1, 2, [], Text("solved"))
        while len(ticks) < 9:
            time.sleep(0.001)
    assert file.getvalue() == "going on: 1 of 2 trees are done\nsolved\n"


def test_in_a_terminal_the_live_line_says_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    file = stdout(monkeypatch)
    console = Console(file=file, force_terminal=True, width=80)
    with LiveLine("trees", console) as live:
        live.show(0, 3, [], None)
        time.sleep(0.05)
    assert "so far\n0/3" not in file.getvalue()


def test_a_phase_says_what_begins_and_that_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    file = stdout(monkeypatch)
    with pytest.raises(ValueError), phase("loading a model"):
        assert file.getvalue() == "loading a model ...\n"
        wait_for(r"^loading a model \.\.\. 0:00$", file)
        raise ValueError
    said = file.getvalue()
    time.sleep(0.05)
    assert file.getvalue() == said


def test_a_loop_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    file = stdout(monkeypatch)
    seen = []
    for number in watched(iter([1, 2]), 2, "cases"):
        seen.append(number)
        wait_for(rf"^{number - 1}/2 cases", file)
    assert seen == [1, 2]
