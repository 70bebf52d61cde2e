"""What a person sees of an evaluation: while it runs, and at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.comparison import Comparison, tables
from benchmarks.episodes import Tally
from toolwoz_gym.progress import LiveLine


class Progress(LiveLine):
    """Shows an evaluation's tally; a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        """Show on ``console``, standard output unless told otherwise."""
        super().__init__("episodes", console)

    def update(self, tally: Tally, record: Mapping[str, Any] | None) -> None:
        """Show the tally, and a line for an episode that has just been finished."""
        figures = [
            *(Text(f"{m}: {tally.solved[m]}/{n} solved") for m, n in tally.played.items()),
            Text(f"{tally.tokens / 1000:.0f}k tokens"),
        ]
        if tally.lost:
            figures.append(Text(f"{tally.lost.total()} lost", "red"))
        line = None if record is None else _episode_line(record, tally)
        self.show(tally.played.total(), tally.episodes, figures, line)


def _episode_line(record: Mapping[str, Any], tally: Tally) -> Text:
    met, total = len(record["goals_met"]), record["goals_total"]
    line = Text(f"{tally.played.total():>4}/{tally.episodes}  ")
    line.append(f"{record['outcome']:<10}", "green" if record["outcome"] == "success" else "yellow")
    line.append(f"  {record['model']}  {record['task_id']}/{record['trial']}  ")
    line.append(f"goals {met}/{total}, {record['steps']} steps")
    return line


def print_tables(comparison: Comparison, console: Console | None = None) -> None:
    """Print the figures of an evaluation on ``console``, standard output unless told otherwise."""
    for table in tables(comparison):
        shown = Table(box=SIMPLE_HEAD, pad_edge=False)
        for i, name in enumerate(table.header):
            shown.add_column(name, justify="right" if i else "left", overflow="fold")
        for row in table.rows:
            shown.add_row(*map(Text, row))
        (console or Console(highlight=False)).print(shown)
