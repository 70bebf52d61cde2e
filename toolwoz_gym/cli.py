"""Command lines: one dataclass of options per command, filled from a YAML file and from flags."""

from __future__ import annotations

import dataclasses
import inspect
import io
import os
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from toolwoz_gym.types import UsageError, one_line

Command: TypeAlias = tuple[type, Callable[[Any], object]]
"""An options dataclass, with a docstring under each field, and the function that takes it."""

Count: TypeAlias = int | Literal["all"]
"""How many of something to take, from the first on."""

_EXTRAS = {
    **dict.fromkeys(("tyro", "yaml", "rich", "matplotlib"), "cli"),
    **dict.fromkeys(("torch", "transformers", "tokenizers", "safetensors"), "train"),
    **dict.fromkeys(("huggingface_hub", "peft", "trl", "datasets", "accelerate", "gguf"), "train"),
    **dict.fromkeys(("tenacity", "truststore"), "openai"),
}
"""Which extra of setup.cfg brings a package."""

_KEPT = "what is finished is kept: run again to go on"


def main_cli(
    prog: str,
    description: str,
    commands: Mapping[str, Command],
    args: Sequence[str] | None = None,
    *,
    resumable: tuple[type[Exception], ...] = (),
) -> int:
    """Run the command that the command line asks for.

    Flags are the field names of the command's options. ``--config FILE`` reads values for them from
    a YAML mapping; flags win. A program of a single command also takes its flags without its name,
    and a command with the option ``run`` takes that folder as its first word too. Options that have
    an attribute ``given`` are told there which of them were named.

    Args:
        prog: What the program is called in its help.
        description: One sentence for its help.
        commands: The commands by name.
        args: The words after the program's name; None reads ``sys.argv``.
        resumable: What can break off a command that goes on where it was when it is run again. A
            program that names some keeps what is finished after an interrupt too, and says so; a
            second interrupt ends its process at once.

    Returns:
        The exit code, with one line that says why where it is not 0: 2 after a
        :class:`~toolwoz_gym.types.UsageError`, 1 after an exception of ``resumable``, 130 after an
        interrupt from the keyboard or a SIGTERM.

    Raises:
        SystemExit: ``--help`` was asked for (0), the flags do not parse (2), or nobody reads the
            output any more (141).
    """
    with read_or_quiet():
        return _main(prog, description, commands, args, resumable)


def _main(
    prog: str,
    description: str,
    commands: Mapping[str, Command],
    args: Sequence[str] | None,
    resumable: tuple[type[Exception], ...],
) -> int:
    words = list(sys.argv[1:] if args is None else args)
    helping = _fitting if {"-h", "--help"} & set(words) else nullcontext
    try:
        import tyro

        named = bool(words) and words[0] in commands
        if not named and len(commands) > 1:
            known = [Annotated[c, tyro.conf.subcommand(n)] for n, (c, _) in commands.items()]
            with helping():
                tyro.cli(Union[tuple(known)], prog=prog, description=description, args=words)  # type: ignore[call-overload]  # noqa: UP007
        name = words.pop(0) if named else next(iter(commands))
        options_class, run = commands[name]
        hint = "Options can also come from a YAML file: --config FILE."
        fields = {field.name for field in dataclasses.fields(options_class)}
        if words and not words[0].startswith("-") and "run" in fields:
            words.insert(0, "--run")
        words = _with_config(words, options_class)
        with helping():
            options: Any = tyro.cli(
                options_class,
                prog=f"{prog} {name}" if named else prog,
                description=f"{inspect.getdoc(options_class)}\n\n{hint}",
                args=words,
            )
        if "given" in fields:
            flags = {word.partition("=")[0].replace("-", "_") for word in words}
            named_ones = (n for n in fields if not flags.isdisjoint((f"__{n}", f"__no_{n}")))
            object.__setattr__(options, "given", frozenset(named_ones))  # frozen, but new
        with _interruptible(_press_twice() if resumable else signal.default_int_handler):
            run(options)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        install = f"pip install 'toolwoz-gym[{_EXTRAS[package]}]'"
        print(f"error: {package} is not installed: {install}", file=sys.stderr)
        return 2
    except resumable as error:
        print(f"error: {error}; {_KEPT}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted; {_KEPT}" if resumable else "interrupted", file=sys.stderr)
        return 130
    return 0


@contextmanager
def read_or_quiet() -> Iterator[None]:
    """End without a word when nobody reads the output any more, as ``head`` does after ten lines.

    Raises:
        SystemExit: With 141, as shells say of programs that a closed pipe has ended.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left to write
        raise SystemExit(141) from None


def require_ours(importer: str, *packages: str) -> None:
    """Check that names of our packages, which are common words, stand for our packages.

    Args:
        importer: Which package needs them. Python then says in one line why ``python -m`` with it
            fails.
        packages: What it needs.

    Raises:
        ImportError: Another distribution's package comes first, or has overwritten ours.
    """
    here = Path(__file__).resolve().parents[1]
    for name in packages:
        spec = find_spec(name)
        file = Path(spec.origin) if spec and spec.origin else here / name / "__init__.py"
        is_ours = file.resolve().parent == here / name and file.is_file()
        if not is_ours or "toolwoz" not in file.read_text("utf-8"):
            raise ImportError(
                f"the package {name!r} in {file.parent} is not the one of toolwoz-gym: install "
                "toolwoz-gym in an environment of its own, and start it outside of folders with "
                "such names",
                name=importer,
            )


def how_many(tasks: Count, there: int, source: str) -> int:
    """Return the number of tasks that was asked for.

    Args:
        tasks: What was asked for.
        there: How many there are.
        source: What has them, for the message.

    Raises:
        UsageError: There are not so many, or it is none.
    """
    number = there if tasks == "all" else tasks
    if number < 1:
        raise UsageError("tasks must be at least 1, or all")
    if number > there:
        raise UsageError(f"{source} has {there} tasks only")
    return number


@contextmanager
def _fitting() -> Iterator[None]:
    """Fold the lines above a help text's boxes, which tyro leaves as long as they are."""
    text = io.StringIO()
    text.isatty = sys.stdout.isatty  # type: ignore[method-assign]  # decides about colours
    try:
        with redirect_stdout(text):
            yield
    finally:
        head, box, boxes = text.getvalue().partition("╭")
        width = shutil.get_terminal_size().columns
        lines = [textwrap.fill(line, width, subsequent_indent="  ") for line in head.split("\n")]
        sys.stdout.write("\n".join(lines) + box + boxes)


def check_counts(options: object, *names: str) -> None:
    """Refuse options that are less than 1. One that is None is left to somebody else.

    Raises:
        UsageError: One of these is.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1")


def check_choices(options: object) -> None:
    """Refuse a value that an option of a few values cannot have: ``__post_init__`` of options.

    A command line refuses it by itself. This is for options that are built in code.

    Args:
        options: A dataclass; what is declared as a ``Literal`` is checked, in a union too.

    Raises:
        UsageError: It has such a value.
    """
    kind = type(options)
    if getattr(sys.modules.get(kind.__module__), kind.__name__, None) is not kind:
        return  # another process has sent its class, without the module: it was checked there
    for name, hint in get_type_hints(kind).items():
        parts = (hint,) if get_origin(hint) is Literal else get_args(hint)
        choices = [c for part in parts if get_origin(part) is Literal for c in get_args(part)]
        others = tuple(part for part in parts if isinstance(part, type))  # int, or that of None
        value = getattr(options, name)
        if choices and value not in choices and not isinstance(value, others):
            raise UsageError(f"there is no {name} {value!r}: choose {', '.join(map(str, choices))}")


def _press_twice() -> Callable[[int, FrameType | None], None]:
    """Have the first Ctrl-C break off as usual, which can take a while, and the second not."""
    pressed = count()

    def press(number: int, frame: FrameType | None) -> None:
        # No print: whoever is interrupted may hold a lock of the stream, or of a live line.
        if next(pressed):
            try:
                if os.isatty(1):
                    os.write(1, b"\x1b[?25h")  # the cursor, which a live line hides
                os.write(2, f"interrupted twice; {_KEPT}\n".encode())
            finally:
                os._exit(130)
        os.write(2, b"stopping; Ctrl-C again ends at once\n")
        raise KeyboardInterrupt

    return press


@contextmanager
def _interruptible(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle Ctrl-C, and what batch systems end a job with (SIGTERM), unless somebody else does."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    ours = {number: old for number, old in usual.items() if signal.getsignal(number) is old}
    if current_thread() is not main_thread():
        ours = {}
    for number in ours:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in ours.items():
            signal.signal(number, old)


def _with_config(words: list[str], options_class: type) -> list[str]:
    """Put the flags that ``--config FILE`` stands for before the others, so that those win."""
    for i, word in enumerate(words):
        if word == "--config":
            if i + 1 == len(words):
                raise UsageError("--config wants a YAML file after it")
            return [*_flags(Path(words[i + 1]), options_class), *words[:i], *words[i + 2 :]]
        if word.startswith("--config="):
            file = Path(word.removeprefix("--config="))
            return [*_flags(file, options_class), *words[:i], *words[i + 1 :]]
    return words


def _flags(file: Path, options_class: type) -> list[str]:
    """Write a YAML file's options as flags: the command line's types then read both alike."""
    import yaml

    try:
        values = yaml.safe_load(file.read_text("utf-8")) or {}
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{file} is not YAML: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{file} must hold a mapping of option names to values")
    known = [field.name for field in dataclasses.fields(options_class)]
    flags = []
    for key, value in values.items():
        if key not in known:
            raise UsageError(f"{file}: unknown option {key!r}; there are {', '.join(known)}")
        if isinstance(value, bool):
            flags.append(f"--{'' if value else 'no-'}{key}".replace("_", "-"))
            continue
        items = value if isinstance(value, list) else [value]
        flags += [f"--{key}".replace("_", "-"), *(str(item) for item in items)]
    return flags
