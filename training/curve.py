"""The course of a training: a live line while it runs, a table and a picture of it afterwards."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.text import Text
from transformers import TrainerCallback

from toolwoz_gym.progress import LiveLine

COLUMNS = {
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "mean_token_accuracy": "token_accuracy",
    "rewards/chosen": "good",
    "rewards/rejected": "bad",
    "kl": "kl",
}
"""What is kept of the trainer's logs, and under which name."""


class NotFinite(Exception):
    """What a training computes is no number any more."""


class Curve(TrainerCallback):  # type: ignore[misc]
    """Listens to a trainer: keeps a row of numbers per optimiser step, and shows them.

    Raises :class:`NotFinite` at the first figure that is no number, and at such a gradient before
    it reaches the weights.
    """

    def __init__(self, live: LiveLine) -> None:
        """Show on ``live`` what comes."""
        self.rows: list[dict[str, float]] = []
        """``step`` and the columns that the trainer logged at it. Rewards are β times the log-ratio
        of policy to reference, averaged over the step's good or bad rows."""
        self.stopped: str | None = None
        """Why the training ended before its last step."""
        self._live = live

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Show that it begins."""
        self._live.show(0, state.max_steps, [], None)

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: torch.nn.Module, **_: Any
    ) -> None:
        """Look at the gradient."""
        gradients = (weight.grad for weight in model.parameters() if weight.grad is not None)
        if not all(torch.isfinite(gradient).all() for gradient in gradients):
            raise NotFinite(f"the gradient of step {state.global_step + 1} of {state.max_steps}")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """Take down one step; every tenth of the way, print it."""
        if "loss" not in logs:  # the closing summary
            return
        row = {name: float(logs[key]) for key, name in COLUMNS.items() if key in logs}
        step, steps = state.global_step, state.max_steps
        for name, value in row.items():
            if not math.isfinite(value):
                raise NotFinite(f"the {name.replace('_', ' ')} of step {step} of {steps}")
        self.rows.append({"step": step, **row})
        shown = ("loss", "token_accuracy", "good", "bad")
        figures = [Text(f"{n.replace('_', ' ')} {row[n]:.3f}") for n in shown if n in row]
        line = Text("  ").join([Text(f"step {step}/{steps}"), *figures])
        milestone = step * 10 // steps > (step - 1) * 10 // steps
        self._live.show(step, steps, figures, line if milestone else None)


def write_curve(rows: list[dict[str, float]], folder: Path, title: str) -> None:
    """Write ``curve.csv`` and ``curve.png``."""
    columns = ["step", *(c for c in COLUMNS.values() if any(c in row for row in rows))]
    with open(folder / "curve.csv", "w", encoding="ascii", newline="") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        table.writerows({k: f"{v:.6g}" for k, v in row.items()} for row in rows)
    _draw(rows, folder / "curve.png", title)


def smooth(values: list[float], half: int) -> list[float]:
    """Average each value with up to ``half`` neighbours on either side."""
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _draw(rows: list[dict[str, float]], file: Path, title: str) -> None:
    panels = [("Loss", {"loss": ("loss", "#4053d3")})]
    if any("good" in row or "bad" in row for row in rows):
        rewards = {"good": ("good rows", "#00843d"), "bad": ("bad rows", "#c8102e")}
        panels.append((r"Reward  $\beta\,\log\,\pi/\pi_{\mathrm{ref}}$", rewards))
    elif any("token_accuracy" in row for row in rows):
        panels.append(("Token accuracy", {"token_accuracy": ("accuracy", "#00843d")}))
    figure = Figure(figsize=(4.8 * len(panels), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12)
    half = len(rows) // 20
    for axes, (label, lines) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        for column, (name, colour) in lines.items():
            points = [(row["step"], row[column]) for row in rows if column in row]
            steps, values = [p[0] for p in points], [p[1] for p in points]
            marker = "o" if len(points) < 20 else None
            if half:
                axes.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
            axes.plot(
                steps, smooth(values, half), color=colour, linewidth=2, marker=marker, label=name
            )
        axes.set(xlabel="optimiser step", ylabel=label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(lines) > 1:
            axes.axhline(0, color="black", linewidth=0.8)
            axes.legend(frameon=False)
    figure.savefig(file, dpi=150)
