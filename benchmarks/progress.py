"""What a person sees of a measurement: while it runs, and at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmarks.comparison import Table
from benchmarks.episodes import Tally
from toolwoz_gym.progress import LiveLine

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


class Progress(LiveLine):
    """Shows an evaluation's tally; a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        """Show on ``console``, standard output unless told otherwise."""
        super().__init__("episodes", console)

    def update(self, tally: Tally, record: Mapping[str, Any] | None) -> None:
        """Show the tally, and a line for an episode that has just been finished."""
        from rich.text import Text

        figures = [
            *(Text(f"{m}: {tally.solved[m]}/{n} solved") for m, n in tally.played.items()),
            Text(f"{tally.tokens / 1000:.0f}k tokens"),
        ]
        if tally.lost:
            figures.append(Text(f"{tally.lost.total()} lost", "red"))
        line = None if record is None else _episode_line(record, tally)
        self.show(tally.played.total(), tally.episodes, figures, line)


def _episode_line(record: Mapping[str, Any], tally: Tally) -> Text:
    from rich.text import Text

    met, total = len(record["goals_met"]), record["goals_total"]
    line = Text(f"{tally.played.total():>4}/{tally.episodes}  ")
    line.append(f"{record['outcome']:<10}", "green" if record["outcome"] == "success" else "yellow")
    line.append(f"  {record['model']}  {record['task_id']}/{record['trial']}  ")
    line.append(f"goals {met}/{total}, {record['steps']} steps")
    return line


def fitted(table: Table) -> str:
    """Write a table as text that fits the terminal; 80 columns where there is none."""
    import rich.table
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.text import Text

    shown = rich.table.Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    for i, name in enumerate(table.header):
        shown.add_column(Text(name), justify="right" if i else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*map(Text, row))
    console = Console(highlight=False)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()
