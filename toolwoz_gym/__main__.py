"""``python -m toolwoz_gym``: what a person does with the environments at the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from toolwoz_gym.toolwoz.multiwoz import multiwoz_folder, prepare_multiwoz
from toolwoz_gym.types import UsageError


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: The words after the program's name; None reads ``sys.argv``.

    Returns:
        The exit code: 0, or 2 after a :class:`~toolwoz_gym.types.UsageError`, which is shown as one
        line.

    Raises:
        SystemExit: ``--help`` was asked for (0), or the words do not parse (2).
    """
    options = _parser().parse_args(args)
    try:
        _prepare(options.source)
    except UsageError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m toolwoz_gym", description="Environments for dialogue agents that use tools."
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    data = commands.add_parser("data", help="data that does not ship with the package")
    actions = data.add_subparsers(required=True, metavar="action")
    prepare = actions.add_parser(
        "prepare",
        help="fetch data, verify it and convert it",
        description="Fetch data, verify it and convert it into the folder that the environment "
        "variable TOOLWOZ_DATA names, or else into the user's cache.",
    )
    prepare.add_argument("what", choices=["multiwoz"], help="MultiWOZ 2.1, for ToolWOZ")
    prepare.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="PATH",
        help="read this archive, folder or checkout instead of downloading",
    )
    return parser


def _prepare(source: Path | None) -> None:
    folder = multiwoz_folder()
    prepared = prepare_multiwoz(folder, source)
    print(f"prepared MultiWOZ in {folder}")
    for split, count in prepared.tasks.items():
        print(f"  {split}: {count} tasks")
    for reason, count in prepared.left_out.items():
        print(f"  left out: {count} dialogues ({reason})")


if __name__ == "__main__":
    sys.exit(main())
