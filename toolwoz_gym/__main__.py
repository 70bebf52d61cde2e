"""``python -m toolwoz_gym``: what a person does with the environments at the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import SystemRandom
from typing import NoReturn

from toolwoz_gym import make_env
from toolwoz_gym.cli import read_or_quiet, require_ours
from toolwoz_gym.play import Terminal, play
from toolwoz_gym.progress import phase
from toolwoz_gym.rollout import Policy
from toolwoz_gym.tau_bench.data import prepare_tau_bench, tau_bench_folder
from toolwoz_gym.toolwoz.multiwoz import multiwoz_folder, prepare_multiwoz
from toolwoz_gym.toolwoz.task import ToolWOZTask
from toolwoz_gym.types import Domain, Task, UsageError


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: The words after the program's name; None reads ``sys.argv``.

    Returns:
        The exit code, with one line that says why where it is not 0: 2 after a
        :class:`~toolwoz_gym.types.UsageError`, 130 after an interrupt from the keyboard, which in
        a dialogue only ends it.

    Raises:
        SystemExit: ``--help`` was asked for (0), the words do not parse (2), a model failed while
            it played (1), or nobody reads the output any more (141).
    """
    try:
        with read_or_quiet():
            options = _parser().parse_args(args)
            options.run(options)
    except UsageError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong, as all our commands do."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, and exit."""
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m toolwoz_gym", description="Environments for dialogue agents that use tools."
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    data = commands.add_parser("data", help="data that does not ship with the package")
    _add_prepare(data)
    _add_play(commands.add_parser("play", help="play the agent or the customer yourself"))
    return parser


def _add_prepare(data: argparse.ArgumentParser) -> None:
    actions = data.add_subparsers(required=True, metavar="action")
    prepare = actions.add_parser(
        "prepare",
        help="fetch data, verify it and convert it",
        description="Fetch data, verify it and convert it into the folder that the environment "
        "variable TOOLWOZ_DATA names, or else into the user's cache.",
    )
    prepare.add_argument(
        "what",
        choices=["multiwoz", "tau_bench"],
        help="MultiWOZ 2.1, for ToolWOZ, or tau-bench's retail and airline desks",
    )
    prepare.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="PATH",
        help="read this archive, folder or checkout instead of downloading",
    )
    prepare.set_defaults(run=_prepare)


def _prepare(options: argparse.Namespace) -> None:
    if options.what == "tau_bench":
        folder = tau_bench_folder()
        with phase("preparing tau_bench"):
            tasks = prepare_tau_bench(folder, options.source)
        print(f"prepared tau_bench in {folder}")
        for split, count in tasks.items():
            print(f"  {split}: {count} tasks")
        return
    folder = multiwoz_folder()
    with phase("preparing multiwoz"):
        prepared = prepare_multiwoz(folder, options.source)
    print(f"prepared multiwoz in {folder}")
    for split, count in prepared.tasks.items():
        print(f"  {split}: {count} tasks, of which ToolWOZ-v1 has {prepared.kept.get(split, 0)}")
    for reason, count in prepared.left_out.items():
        print(f"  left out: {count} dialogues ({reason})")
    for verb, counts in (("repaired", prepared.repaired), ("dropped", prepared.dropped)):
        for reason, count in counts.items():
            print(f"  {verb} in v1: {count} tasks ({reason})")


def _add_play(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Play one dialogue in the terminal: the agent, who has the tools, or the customer. In the "
        "end the score is explained."
    )
    add = parser.add_argument
    add(
        "--as",
        dest="role",
        choices=["agent", "customer"],
        default="agent",
        help="whom you play (default: agent)",
    )
    add("--env", default="ToolWOZ-v1", help="environment, as gymnasium.make knows it")
    add(
        "--world",
        default="auto",
        help="builtin, builtin:<options>, multiwoz, or auto: multiwoz where it has the split",
    )
    add("--split", default="val", help="split of the world's tasks (default: val)")
    add("--task", metavar="ID", help="the task's id, or its number in the split; default: any")
    add("--seed", help="the same seed gives the same task and customer; default: any")
    add("--user", default="scripted", help="the customer, if you are not (default: scripted)")
    add(
        "--agent",
        default="expert",
        help="the agent, if you are not: expert, a script that knows what you want, or a model: "
        "bundled, a folder, an adapter, a .gguf file or a name on the Hugging Face hub",
    )
    parser.set_defaults(run=_play)


def _play(options: argparse.Namespace) -> None:
    seed = SystemRandom().randrange(10_000) if options.seed is None else _number(options.seed)
    if seed is None:
        raise UsageError(f"--seed is {options.seed!r}: it must be a number of at most 18 digits")
    user = options.user if options.role == "agent" else "scripted"
    env = make_env(options.env, world=options.world, split=options.split, user=user)
    number = None if options.task is None else _number(options.task)
    env.reset(seed=seed, options={"task_id": options.task if number is None else number})
    task = env.snapshot().task
    domain = env.dialogue.domain
    with ExitStack() as stack:
        agent = None
        if options.role == "customer":
            agent = stack.enter_context(_desk(options.agent, domain, task))
        terminal = Terminal.open()
        terminal.write(f"{options.env}, {domain.name}, task {task.id}, --seed {seed}\n")
        wishes = [wish.domain for wish in task.wishes] if isinstance(task, ToolWOZTask) else []
        if options.role == "customer" and options.agent == "expert" and len(wishes) > 1:
            terminal.write(
                f"The expert serves your wishes in this order: {', '.join(wishes)}. Say 'also' "
                "when you turn to the next.\n"
            )
        play(terminal, env.dialogue, task, seed=seed, agent=agent)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None


@contextmanager
def _desk(name: str, domain: Domain, task: Task) -> Iterator[Policy]:
    """Load the agent that a person who plays the customer talks to.

    Raises:
        UsageError: There is no such model, or the packages that run it are not installed.
        SystemExit: The model failed while it played (1).
    """
    # Agents are built on the environments, not the reverse. This file is no part of them: it is a
    # program, which nothing imports, and it needs an agent only here.
    try:
        require_ours("toolwoz_gym", "agents")
    except ImportError as error:
        raise UsageError(str(error)) from None
    from agents.base import BackendError
    from agents.options import AgentOptions

    options = AgentOptions(agent="expert") if name == "expert" else AgentOptions(model=name)
    with ExitStack() as stack:
        try:
            make = stack.enter_context(options.open(domain))
        except ModuleNotFoundError as error:
            raise UsageError(
                f"a model needs the package {error.name}: install toolwoz-gym[train], or play with "
                "--agent expert"
            ) from error
        try:
            yield make(task)
        except BackendError as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    sys.exit(main())
