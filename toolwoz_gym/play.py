"""A person plays the agent or the customer in the terminal."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from toolwoz_gym.actions import MAX_CHARS, format_call, parse_action
from toolwoz_gym.dialogue import Dialogue
from toolwoz_gym.rollout import Policy
from toolwoz_gym.seeding import derive
from toolwoz_gym.types import (
    AgentFailure,
    Episode,
    Message,
    Task,
    ToolCall,
    ToolSpec,
)

_AGENT_COMMANDS = {
    "/tools": "list the tools again",
    "/goal": "peek at what the customer was told to want, which is cheating",
    "/undo": "go back to before your last message",
    "/quit": "leave, and see the score so far",
}
_CUSTOMER_COMMANDS = {
    "/goal": "show again what you want",
    "/undo": "go back to before your last message",
    "/bye": "say goodbye, which ends the dialogue",
    "/quit": "leave without a goodbye, and see the score so far",
}


def play(
    terminal: Terminal, dialogue: Dialogue, task: Task, *, seed: int, agent: Policy | None = None
) -> Episode:
    """Let a person play one dialogue, and explain its score at the end.

    Args:
        terminal: Where the person is.
        dialogue: The domain, the customer and the step limit.
        task: What the customer wants.
        seed: The episode's seed.
        agent: Who is at the desk while the person is the customer. None: the person is at the desk,
            and the customer is the dialogue's.

    Returns:
        The dialogue as it ended; one that the person left is cut off there.
    """
    tools = dialogue.domain.tools
    if agent is None:
        _brief_agent(terminal, dialogue)
    else:
        _brief_customer(terminal, task)
    episode = Episode(task, seed, messages=(), world=dialogue.domain.start(task))
    earlier: list[Episode] = []  # the dialogue before each of the person's messages, for /undo
    try:
        while episode.outcome is None:
            number = len(episode.messages)
            customers_turn = number == 0 or episode.awaits_user
            if customers_turn == (agent is None):
                episode = _others_turn(terminal, dialogue, agent, episode)
                _show_messages(terminal, episode, number, tools)
                continue
            line = terminal.ask(_margin(number, "you", ">"))
            if line == "/quit":
                break
            if line == "/undo" and earlier:
                episode = earlier.pop()
                terminal.write(f"Back to before message {len(episode.messages)}.")
                _show_messages(terminal, episode, max(len(episode.messages) - 1, 0), tools)
            elif line == "/undo":
                terminal.write("You have not said anything yet.")
            elif line == "/goal":
                _show_goal(terminal, task, cheating=agent is None)
            elif line == "/tools" and agent is None:
                _show_tools(terminal, tools)
            elif line.startswith("/") and not (line == "/bye" and agent is not None):
                _show_help(terminal, line, _AGENT_COMMANDS if agent is None else _CUSTOMER_COMMANDS)
            elif agent is None and (tool := _slip(line, tools)):
                terminal.write(f"Not sent. A call looks like this: {_usage(tool)}")
            elif line:
                earlier.append(episode)
                episode = _persons_turn(dialogue, agent, episode, line)
                _show_messages(terminal, episode, number + 1, tools)
    except (EOFError, KeyboardInterrupt):
        terminal.write()  # the cursor stands behind the prompt
    if episode.outcome is None:
        episode = dialogue.cut_off(episode)
    _show_score(terminal, dialogue, episode)
    return episode


def _others_turn(
    terminal: Terminal, dialogue: Dialogue, agent: Policy | None, episode: Episode
) -> Episode:
    if agent is None:
        return dialogue.listen(episode)
    try:
        luck = derive(episode.seed, "agent", episode.steps)
        message = agent.act(episode.messages, seed=luck)
    except AgentFailure as failure:
        terminal.write(f"The agent cannot go on: {failure}.")
        return dialogue.cut_off(episode)
    return dialogue.act(episode, message)


def _persons_turn(dialogue: Dialogue, agent: Policy | None, episode: Episode, line: str) -> Episode:
    if agent is None:
        return dialogue.act(episode, read_action(line, dialogue.domain.tools))
    said = f"Goodbye! {dialogue.domain.end_marker}" if line == "/bye" else line
    return replace(dialogue, user=_Says(said)).listen(episode)


@dataclass(frozen=True, slots=True)
class _Says:
    """A customer that says one line: the one that the person has just typed."""

    line: str

    def reply(self, task: Task, messages: Sequence[Message], *, seed: int) -> Message:
        """Return the line."""
        return Message("user", self.line)


# --- what the agent types --------------------------------------------------------------------

_CALL = re.compile(r"(\w+)(?:\s+(?=\w+=)(.*))?", re.DOTALL)
_ARGUMENT = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|.*?)(?=\s\w+=|\Z)', re.DOTALL)
_PLAIN = re.compile(r'[^\s"]+')


def read_action(line: str, tools: Sequence[ToolSpec]) -> Message:
    """Read what a person at the desk types.

    ``search_hotel area=north name=the lodge`` is short for that call in JSON: a tool's name, then
    the arguments, all of them texts. A value ends where the next argument begins; it may be quoted
    as in JSON. Any other line is an action as models write it.
    """
    call = _read_call(line, tools)
    return parse_action(line) if call is None else Message("assistant", call=call)


def _read_call(line: str, tools: Sequence[ToolSpec]) -> ToolCall | None:
    match = _CALL.fullmatch(line) if len(line) <= MAX_CHARS else None
    if match is None or match[1] not in {tool.name for tool in tools}:
        return None
    arguments = _ARGUMENT.findall(match[2] or "")
    return ToolCall(match[1], {name: _unquoted(value.strip()) for name, value in arguments})


def _unquoted(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] == '"':
        with suppress(ValueError):  # no JSON: then the quotes belong to the value
            return str(json.loads(value, strict=False))
    return value


def _slip(line: str, tools: Sequence[ToolSpec]) -> ToolSpec | None:
    """Return the tool with whose name a line begins that is no call: no customer should hear it."""
    called = [tool for tool in tools if line.split(maxsplit=1)[:1] == [tool.name]]
    return called[0] if called and _read_call(line, tools) is None else None


def write_call(call: ToolCall, tools: Sequence[ToolSpec]) -> str:
    """Write a tool call as a person would type it: in short where that says it all, else as JSON.

    The inverse of :func:`read_action`.
    """
    arguments = call.arguments.items()
    words = [f"{n}={v if _PLAIN.fullmatch(str(v)) else _json(v)}" for n, v in arguments]
    line = " ".join((call.name, *words))
    return line if _read_call(line, tools) == call else format_call(call)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# --- what is shown ---------------------------------------------------------------------------


def _brief_agent(terminal: Terminal, dialogue: Dialogue) -> None:
    terminal.write("You are the agent.", _BOLD)
    terminal.write(dialogue.domain.policy)
    terminal.write("\nThe tools, and what they take:", _BOLD)
    _show_tools(terminal, dialogue.domain.tools)
    example = _usage(dialogue.domain.tools[0])
    terminal.write(f"\nTo call a tool, type its name and what it takes, such as {example}")
    terminal.write("Anything else is said to the customer. /help lists the commands.\n")


def _usage(tool: ToolSpec) -> str:
    return " ".join((tool.name, *(f"{name}=..." for name in tool.parameters)))


def _brief_customer(terminal: Terminal, task: Task) -> None:
    terminal.write("You are the customer.", _BOLD)
    terminal.write(task.instruction)
    terminal.write("\nYou speak first. Say /bye when you are done. /help lists the commands.\n")


def _show_goal(terminal: Terminal, task: Task, *, cheating: bool) -> None:
    if cheating:
        terminal.write("Peeking is cheating. The customer was told:")
    terminal.write(task.instruction)


def _show_tools(terminal: Terminal, tools: Sequence[ToolSpec]) -> None:
    column = max(len(tool.name) for tool in tools) + 2
    for tool in tools:
        parameters = ", ".join(
            f"{name} ({', '.join(schema.get('enum') or [schema['description']])})"
            for name, schema in tool.parameters.items()
        )
        name = f"{tool.name:<{column}}"
        terminal.write(parameters or "takes no arguments", first=name, rest=" " * column)


def _show_help(terminal: Terminal, line: str, commands: Mapping[str, str]) -> None:
    if line != "/help":
        terminal.write(f"There is no command {line.split()[0]} here:")
    for name, effect in commands.items():
        terminal.write(effect, first=f"{name:<8}", rest=" " * 8)


def _show_messages(
    terminal: Terminal, episode: Episode, start: int, tools: Sequence[ToolSpec]
) -> None:
    """Show the messages from number ``start`` on. Their numbers are what verdicts speak of."""
    for number, message in enumerate(episode.messages[start:], start):
        speaker = {"user": "customer", "assistant": "agent"}.get(message.role, message.role)
        text, style = message.content, ""
        if message.call is not None:
            text, style = write_call(message.call, tools), _DIM
        elif message.role == "tool":
            text, style = _laid_out(message.content), _DIM
        margin = _margin(number, speaker)
        terminal.write(text, style, first=margin, rest=" " * len(margin))


def _margin(number: int, speaker: str, mark: str = " ") -> str:
    return f"{number:>3}  {speaker:<8}{mark} "


def _laid_out(answer: str) -> str:
    """Lay a tool's answer out for people: one row a line, without what is unknown."""
    try:
        value = json.loads(answer)
    except ValueError:  # an error, or words
        return answer
    if isinstance(value, list):
        return "\n".join(map(_plain, value)) or "nothing found"
    return _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        known = {name: v for name, v in value.items() if v not in (None, {})}
        return "; ".join(f"{name}: {_plain(v)}" for name, v in known.items())
    return value if isinstance(value, str) else _json(value)


def _show_score(terminal: Terminal, dialogue: Dialogue, episode: Episode) -> None:
    ending = "The customer has said goodbye."
    if episode.outcome == "user_fault":
        ending = "The customer could not go on."
    elif episode.truncated and episode.steps < dialogue.max_steps:
        ending = "The dialogue was broken off."
    elif episode.truncated:
        ending = f"The dialogue was cut off after {episode.steps} messages of the agent's."
    terminal.write(f"\n{ending} What the score asks for:", _BOLD)
    for verdict in dialogue.domain.explain(episode):
        mark, style = (terminal.marks[0], _GREEN) if verdict.met else (terminal.marks[1], _RED)
        terminal.write(verdict.demand, style, first=f"  {mark} ", rest="    ")
        terminal.write(verdict.why, first="    ", rest="    ")
    met, total = len(dialogue.goals_met(episode)), len(dialogue.domain.goals(episode.task))
    terminal.write(
        f"reward {episode.reward}, outcome {episode.outcome}, "
        f"progress {dialogue.progress(episode):.2f} ({met} of {total} goals)",
        _BOLD,
    )


# --- the terminal ----------------------------------------------------------------------------

_BOLD, _DIM, _RED, _GREEN = "1", "2", "31", "32"

_NARROWEST, _WIDEST = 40, 100
"""Text is wrapped to the terminal's width within these bounds."""


@dataclass(frozen=True, slots=True)
class Terminal:
    """Standard input and output, as a person has them in front of them."""

    echo: bool
    """Whether what is read must be shown: nobody typed it into what is being looked at."""
    colour: bool
    marks: tuple[str, str]
    """What stands before a demand that was met, and before one that was missed."""

    @classmethod
    def open(cls) -> Terminal:
        """Take standard input and output as they are, and let them cope with any text."""
        for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace")):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors=errors)
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        marks = ("✓", "✗")
        try:
            "".join(marks).encode(sys.stdout.encoding)
        except UnicodeEncodeError:
            marks = ("+", "-")
        seen = sys.stdout.isatty()
        typed = seen and sys.stdin.isatty()
        if typed:
            with suppress(ImportError):
                import readline  # noqa: F401  gives input() a history and its editing keys
        return cls(echo=not typed, colour=seen and not plain, marks=marks)

    def write(self, text: str = "", style: str = "", first: str = "", rest: str = "") -> None:
        """Print a text, wrapped.

        Args:
            text: What to print. Its line breaks are kept.
            style: One of the styles, or none.
            first: What stands before the first line.
            rest: What stands before the others.
        """
        width = min(max(shutil.get_terminal_size().columns, _NARROWEST), _WIDEST)
        for number, part in enumerate(_printable(text).split("\n")):
            indent = rest if number else first
            lines = textwrap.wrap(
                part,
                width,
                initial_indent=indent,
                subsequent_indent=rest,
                break_on_hyphens=False,
            )
            for line in lines or [indent.rstrip()]:
                print(f"\x1b[{style}m{line}\x1b[0m" if self.colour and style and line else line)

    def ask(self, prompt: str) -> str:
        """Return the next line that is typed, without the blanks around it.

        Raises:
            EOFError: There is none.
        """
        line = input(prompt).strip()
        if self.echo:
            print(_printable(line))
        return line


def _printable(text: str) -> str:
    """Spell out what a terminal would obey and not show, such as escape sequences."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )
