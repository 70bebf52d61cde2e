"""Playing in the terminal: the real command, fed as a person or a pipe would feed it."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.scripted import ExpertAgent, RandomAgent
from toolwoz_gym import make_env
from toolwoz_gym.__main__ import main
from toolwoz_gym.play import read_action, write_call
from toolwoz_gym.rollout import play
from toolwoz_gym.seeding import Luck
from toolwoz_gym.toolwoz import ToolWOZ
from toolwoz_gym.toolwoz.builtin import CityOptions, load_builtin
from toolwoz_gym.toolwoz.tools import TOOLS
from toolwoz_gym.types import Episode, Message, Task, ToolCall

ROOT = Path(__file__).resolve().parents[1]
WORLD = "builtin:domains=1"
VERSIONS = pytest.mark.parametrize("version", [0, 1])


def command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "toolwoz_gym", "play", "--world", WORLD, "--seed", "1", *flags]


def piped(typed: bytes, *flags: str, **variables: str) -> str:
    """Return what the command prints that reads ``typed`` from a pipe."""
    env = {**os.environ, "COLUMNS": "100", "PYTHONIOENCODING": "utf-8", **variables}
    run = subprocess.run(command(*flags), cwd=ROOT, env=env, input=typed, capture_output=True)
    assert run.returncode == 0 and not run.stderr, run.stderr.decode()
    return run.stdout.decode(env["PYTHONIOENCODING"])


class Desk:
    """The command in a terminal of its own, and the person before it."""

    def __init__(self, columns: int, *flags: str, **variables: str) -> None:
        self.shown = ""
        self.terminal, there = pty.openpty()
        fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")}
        env |= {"TERM": "xterm", "PYTHONIOENCODING": "utf-8", **variables}
        self.run = subprocess.Popen(
            command(*flags), cwd=ROOT, env=env, stdin=there, stdout=there, stderr=there
        )
        os.close(there)

    def until_asked(self) -> None:
        start = len(self.shown)
        while not self.shown[start:].endswith("> "):
            self.shown += os.read(self.terminal, 1 << 16).decode().replace("\r\n", "\n")

    def type(self, keys: str) -> None:
        self.until_asked()
        os.write(self.terminal, keys.encode())

    def until_end(self) -> str:
        while True:
            try:
                part = os.read(self.terminal, 1 << 16)
            except OSError:  # what Linux says when the last who had it open has gone
                break
            self.shown += part.decode().replace("\r\n", "\n")
        os.close(self.terminal)
        assert self.run.wait() == 0, self.shown
        return self.shown


def game(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lines: Sequence[str],
    *flags: str,
) -> str:
    """Play in this process, and return what is printed from the first message on."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["play", "--world", WORLD, "--seed", "1", *flags]) == 0
    return re.sub(r"\A.*?\n(?=  0  )", "", capsys.readouterr().out, flags=re.DOTALL)


def experts_lines(version: int, number: int, world: str = WORLD) -> list[str]:
    """Return what the expert does in a task, as a person would type it."""
    env = make_env(f"ToolWOZ-v{version}", world=world, split="val")
    task = env.tasks[number]
    episode = play(env.dialogue, ExpertAgent(task), task, seed=1)
    assert episode.reward == 1.0
    return [
        m.content if m.call is None else write_call(m.call, TOOLS)
        for m in episode.messages
        if m.role == "assistant"
    ]


def marks(shown: str) -> list[str]:
    return re.findall(r"^  ([✓✗]) ", shown, flags=re.MULTILINE)


# --- at the desk -----------------------------------------------------------------------------


def test_a_person_who_makes_the_experts_calls_wins() -> None:
    lines = experts_lines(1, 3)
    assert any(re.match(r"search_\w+ \w+=", line) for line in lines)
    shown = piped("\n".join(lines).encode(), "--task", "3", "--env", "ToolWOZ-v1")
    assert "You are the agent." in shown and "search_train       leaveAt (" in shown
    assert "The customer has said goodbye." in shown
    assert set(marks(shown)) == {"✓"}
    assert "reward 1.0, outcome success, progress 1.00" in shown


@VERSIONS
def test_met_goals_name_the_message_that_met_them(
    version: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_env(f"ToolWOZ-v{version}", world=WORLD, split="val")
    for number in range(6):
        lines = experts_lines(version, number)
        flags = ("--task", world.tasks[number].id, "--env", f"ToolWOZ-v{version}")
        shown = game(monkeypatch, capsys, lines, *flags)
        assert set(marks(shown)) == {"✓"} and "reward 1.0" in shown
        met = re.findall(r"✓ (\w+)\([^✓✗]*?met by message (\d+)", shown)
        assert [tool for tool, _ in met] == [goal.name for goal in world.tasks[number].goals]
        for tool, message in met:
            assert re.search(rf"^ *{message}  you     > {tool}\b", shown, flags=re.MULTILINE)


@VERSIONS
def test_a_missed_goal_says_what_the_closest_call_lacked(
    version: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task = make_env(f"ToolWOZ-v{version}", world="builtin", split="val").tasks[3]
    assert task.instruction.startswith("You want a restaurant: food seafood, area west, pricerange")
    flags = ("--env", f"ToolWOZ-v{version}", "--world", "builtin", "--task", "3")
    lines = [
        "search_hotel stars=4",
        "search_restaurant name=nowhere",
        "search_restaurant food=Thai area=west name=the wok",
    ]
    shown = game(monkeypatch, capsys, lines, *flags)
    search = (
        "closest: message 5, without pricerange=cheap; food is Thai, not seafood; with name=the"
    )
    assert search in shown
    assert "book_restaurant was never called" in shown
    assert marks(shown) == ["✗", "✗", "✓"][: 2 + version]  # v1: and nothing else is booked
    assert "The dialogue was broken off." in shown
    assert "reward 0.0, outcome truncated, progress 0.00 (0 of 2 goals)" in shown

    shown = game(monkeypatch, capsys, ["search_restaurant fodd=seafood"], *flags)
    assert "closest: message 1. Error: search_restaurant has no parameter 'fodd'" in shown


def test_numbers_are_no_texts_in_v0_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = '{"name": "book_restaurant", "arguments": {"time": "TIME", "day": "tuesday", '
    call += '"people": 7, "name": "juniper grill"}}'
    right, wrong = call.replace("TIME", "17:15"), call.replace("TIME", "18:15")
    flags = ("--world", "builtin", "--task", "3", "--env")
    shown = game(monkeypatch, capsys, [right], *flags, "ToolWOZ-v0")
    assert "closest: message 1, people is a number, not a text\n" in shown
    shown = game(monkeypatch, capsys, [right], *flags, "ToolWOZ-v1")
    assert "people=7, name=juniper grill)\n    met by message 1\n" in shown
    shown = game(monkeypatch, capsys, [wrong], *flags, "ToolWOZ-v1")
    assert "closest: message 1, time is 18:15, not 17:15\n" in shown


def test_undo_takes_back_the_last_message_and_what_it_did(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = experts_lines(1, 3)
    detour = ["/undo", lines[0], "/undo", "book_train people=9", "I cannot help you.", "/undo"]
    shown = game(monkeypatch, capsys, [*detour, "/undo", *lines], "--task", "3")
    assert "You have not said anything yet." in shown
    assert shown.count("Back to before message 1.") == 2
    assert set(marks(shown)) == {"✓"} and "reward 1.0" in shown


def test_commands_and_slips_are_not_heard(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["/help", "/goal", "/tools", "", "   ", "/bye", "search_hotel in the west", "/quit"]
    shown = game(monkeypatch, capsys, lines, "--task", "3")
    assert "Peeking is cheating." in shown
    task = make_env("ToolWOZ-v1", world=WORLD, split="val").tasks[3]
    assert task.instruction.splitlines()[0] in shown
    assert "There is no command /bye here:" in shown
    assert "Not sent. A call looks like this: search_hotel name=... area=..." in shown
    assert shown.count("\n  1  you     > ") == len(lines)


def test_the_step_limit_and_the_end_of_input_end_it() -> None:
    shown = piped(b"hello")
    assert "The dialogue was broken off." in shown
    shown = piped(b"search_hotel\n" * 60)
    assert "The dialogue was cut off after 45 messages of the agent's." in shown
    assert "outcome truncated" in shown


# --- the customer ----------------------------------------------------------------------------


def test_a_customer_is_served_by_the_expert(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--as", "customer", "--world", "builtin", "--task", "3")
    lines = [
        "/goal",
        "Something to eat in the west, cheap seafood please",
        "No, in the north",
        "/undo",
        "Yes, book it for 7 people on tuesday at 17:15",
        "/tools",
        "/bye",
    ]
    shown = game(monkeypatch, capsys, lines, *flags)
    assert shown.count("You want a restaurant: food seafood") == 1  # the first is cut away
    call = "search_restaurant food=seafood pricerange=cheap area=west"
    assert f"  1  agent     {call}\n  2  tool      " in shown
    assert "Back to before message 4." in shown and "There is no command /tools here:" in shown
    assert "The customer has said goodbye." in shown
    assert set(marks(shown)) == {"✓"} and "reward 1.0, outcome success" in shown

    shown = game(monkeypatch, capsys, ["That was it END_CONVERSATION"], *flags)
    assert "The customer has said goodbye." in shown and "outcome failure" in shown
    shown = game(monkeypatch, capsys, [], *flags)
    assert "The dialogue was broken off." in shown and "outcome truncated" in shown


def test_customers_of_the_expert_are_told_its_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    main(["play", "--as", "customer", "--world", "builtin", "--task", "0", "--seed", "1"])
    assert "in this order: hotel, attraction, restaurant." in capsys.readouterr().out


def test_models_need_their_packages() -> None:
    code = "import sys; sys.modules['torch'] = None\nfrom toolwoz_gym.__main__ import main\n"
    code += "sys.exit(main(['play', '--world', 'builtin', '--as', 'customer', '--agent', 'x']))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    needs = "error: a model needs the package torch: install toolwoz-gym[train], or play with"
    assert run.stderr == f"{needs} --agent expert\n"


# --- terminals -------------------------------------------------------------------------------


def test_a_narrow_terminal() -> None:
    desk = Desk(60, "--task", "3")
    desk.type("search_hotel\n")
    desk.type("\x1b[A\n")  # the arrow brings the last line back
    desk.type("\x04")
    shown = desk.until_end()
    assert "\x1b[2m  2  tool      " in shown and "\x1b[1mreward 0.0" in shown
    assert "closest: message" in shown or "was never called" in shown
    assert shown.count("> search_hotel\n") == 2
    lines = re.sub(r"\x1b\[\d*m", "", shown).split("\n")
    assert 50 < max(map(len, lines)) <= 60


def test_an_interrupt_ends_it_politely_and_no_color_is_heeded() -> None:
    desk = Desk(200, NO_COLOR="1")
    desk.type("What would you like?\n")
    desk.until_asked()
    desk.run.send_signal(signal.SIGINT)
    with suppress(OSError):  # it may have gone already
        # Python notices a signal that comes just before it waits for a key when it has the line.
        os.write(desk.terminal, b"\n")
    shown = desk.until_end()
    assert "The dialogue was broken off." in shown and "reward 0.0" in shown
    assert "\x1b[1m" not in shown and "Traceback" not in shown
    assert 80 < max(map(len, shown.split("\n"))) <= 100  # wider is hard to read


def test_an_encoding_without_the_marks() -> None:
    shown = piped("Grüße\n".encode(), PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert re.findall(r"^  ([+-]) \w+", shown, flags=re.MULTILINE)


def test_hostile_lines() -> None:
    lines = (
        b"\xff\xfe\x00\x1b[2J\x07",
        b"search_hotel area=\x1b]0;owned\x07 name=\xed\xa0\x80",
        b'{"name": "search_hotel", "arguments": {"name": "\\ud800", "area": NaN}}',
        b'{"name": "search_hotel", "arguments": {"name": "\\ud800", "area": ["\\u001b[2J"]}}',
        b'{"name": "search_hotel", "arguments": {"name": "\\ud800"}}',
        b"[" * 9_000,
        b"{" * 9_000,
        b"search_hotel name=" + b"x" * 200_000,
        b"search_hotel " + b"area=north " * 1_000,
        b'search_hotel name="' + b' name="' * 1_000,
        b"/" + b"x" * 300,
        "/\u2028 \u00a0 =".encode(),
        b"=== a=b",
        b"/undo",
    )
    shown = piped(b"\n".join(lines))
    assert "reward 0.0" in shown and "\\x1b[2J" in shown
    assert not set(shown) & set("\x1b\x07\x00")
    shown = piped(b"\n".join(lines), "--as", "customer")
    assert "reward 0.0" in shown and not set(shown) & set("\x1b\x07\x00")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--world", "nowhere"], "no world 'nowhere'"),
        (["--split", "dev"], "has no split 'dev'"),
        (["--task", "mine"], "no task 'mine'"),
        (["--task", "1000000"], "the split has 1000"),
        (["--task", "9" * 30], "no task '999"),
        (["--seed", "-1"], "--seed is '-1'"),
        (["--env", "Chess-v0"], "no environment 'Chess-v0'"),
        (["--user", "nobody"], "no customer 'nobody'"),
    ],
)
def test_bad_options_are_one_line(
    flags: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["play", "--world", "builtin", *flags]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error: ") and says in shown.err
    assert shown.err.count("\n") == 1


def test_words_that_do_not_parse_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["play", "--as", "boss"])
    assert re.fullmatch(r"error: argument --as: .*; see .* --help\n", capsys.readouterr().err)


# --- shorthand -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ("search_hotel area=north stars=4", {"area": "north", "stars": "4"}),
        ('search_hotel area="city centre"', {"area": "city centre"}),
        ("search_hotel   name=the old  lodge   area = x", {"name": "the old  lodge   area = x"}),
        ("search_hotel name=d'or's area=", {"name": "d'or's", "area": ""}),
        (r'search_hotel name="a \"b\" x=y" area=c', {"name": 'a "b" x=y', "area": "c"}),
        ('search_hotel name="half', {"name": '"half'}),
        ("search_hotel name=a=b", {"name": "a=b"}),
        ("search_hotel", {}),
        ('{"name": "search_hotel", "arguments": {"stars": 4}}', {"stars": 4}),
    ],
)
def test_how_calls_are_typed(line: str, arguments: dict[str, Any]) -> None:
    assert read_action(line, TOOLS) == Message(
        "assistant", call=ToolCall("search_hotel", arguments)
    )


def test_what_else_is_typed() -> None:
    for words in ("Hello", "Is area=north fine?", "no_tool a=b", "search_hotel, please", "= a=b"):
        assert read_action(words, TOOLS) == Message("assistant", words)
    assert read_action("{", TOOLS).error is not None
    assert read_action("search_hotel name=" + "x" * 20_000, TOOLS).error is not None


ARGUMENTS = st.dictionaries(
    st.sampled_from(["area", "name", "x y", ""]) | st.text(),
    st.text() | st.sampled_from(['"', " a", "b=c d=e", "it's", "\\"]) | st.integers() | st.none(),
)


@given(st.sampled_from(["search_hotel", "book_attraction", "no_tool", "a b"]), ARGUMENTS)
def test_every_call_can_be_typed(name: str, arguments: dict[str, Any]) -> None:
    call = ToolCall(name, arguments)
    assert read_action(write_call(call, TOOLS).strip(), TOOLS).call == call


@given(st.lists(st.sampled_from(['"', " ", "=", "a", "\\", "search_hotel", "{", "é", "\n"])))
def test_every_line_is_an_action(parts: list[str]) -> None:
    assert read_action("".join(parts).strip(), TOOLS).role == "assistant"


# --- explanations ----------------------------------------------------------------------------


class Wavering:
    """The expert, with something random now and then, the errors of which it does not see."""

    def __init__(self, task: Task) -> None:
        self.expert, self.random = ExpertAgent(task), RandomAgent(TOOLS)

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        if Luck(seed, "waver").chance(0.15):
            return self.random.act(view, seed=seed)
        wrong = {n for n, m in enumerate(view) if m.content.startswith("Error: ")}
        seen = [m for n, m in enumerate(view) if not {n, n + 1} & wrong]
        return self.expert.act(seen, seed=seed)


@pytest.fixture(scope="module", params=[0, 1])
def city(request: pytest.FixtureRequest) -> ToolWOZ:
    return load_builtin(CityOptions(), request.param)


def check_explanation(domain: ToolWOZ, episode: Episode) -> None:
    verdicts = domain.explain(episode)
    goals = domain.goals(episode.task)
    assert [verdict.demand for verdict in verdicts[: len(goals)]] == list(map(str, goals))
    met = {index for index, verdict in enumerate(verdicts[: len(goals)]) if verdict.met}
    assert domain.goals_met(episode) == (set() if domain.is_spoiled(episode) else met)
    assert all(v.met for v in verdicts) == (domain.score(episode) == 1.0)
    for verdict in verdicts:
        assert verdict.demand and verdict.why
        assert verdict.message is None or verdict.message < len(episode.messages)


def test_explanations_agree_with_scores(city: ToolWOZ) -> None:
    scores = []
    for number, task in enumerate(city.tasks("val")[:60]):
        env = make_env(f"ToolWOZ-v{city.version}", world=city, split="val", max_steps=25)
        agents = (RandomAgent(TOOLS), ExpertAgent(task), Wavering(task))
        for agent in agents:
            episode = play(env.dialogue, agent, task, seed=number)
            check_explanation(city, episode)
            scores.append(episode.reward)
            first = episode.messages[:1]
            check_explanation(city, Episode(task, number, first, city.start(task)))
    assert 60 <= sum(scores) < 170


def test_explanations_agree_with_scores_on_multiwoz(
    multiwoz: ToolWOZ, multiwoz_v1: ToolWOZ
) -> None:
    for domain in (multiwoz, multiwoz_v1):
        env = make_env(f"ToolWOZ-v{domain.version}", world=domain, split="val")
        scores = []
        for number, task in enumerate(domain.tasks("val")[:150]):
            episode = play(env.dialogue, Wavering(task), task, seed=number)
            check_explanation(domain, episode)
            scores.append(episode.reward)
        assert 20 < sum(scores) < 150
