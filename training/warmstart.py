"""The bundled model's warm start: it learns the task's form from dialogues of the scripted expert.

Untrained, the model seldom writes a valid tool call, and a search that finds nothing teaches
nothing. The warm start leaves it able enough to succeed now and then, with room left to improve.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.models import BUNDLED_BASE
from agents.scripted import ExpertAgent
from agents.tool_calling import render_prompt, system_prompt
from toolwoz_gym import make_env
from toolwoz_gym.dialogue import Dialogue
from toolwoz_gym.progress import watched
from toolwoz_gym.records import file_digest, replacing, write_jsonl
from toolwoz_gym.rollout import play
from toolwoz_gym.types import Task, UsageError
from training.output import finished, locked
from training.sft import SFTOptions, train_sft


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmstartOptions:
    """Fine-tune the bundled model on dialogues of the scripted expert in the built-in world."""

    out: Path = Path("runs/warmstart")
    """Folder for the dialogues and the adapter."""
    world: str = "builtin:domains=1"
    """World that the expert plays in; its train split, from the end, which searches reach last."""
    dialogues: int = 200
    """How many dialogues to learn from, each of them once."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    lora_r: int = 8
    """Rank of the adapter."""
    seed: int = 0
    """Decides what is said, the order of the dialogues and the start of the adapter."""


def warmstart(options: WarmstartOptions) -> dict[str, Any]:
    """Train the adapter into ``<out>/adapter``.

    Returns:
        What its ``training.json`` holds.

    Raises:
        UsageError: An option makes no sense, or the folder holds something else.
    """
    env = make_env("ToolWOZ-v0", world=options.world, split="train")
    if not 1 <= options.dialogues <= len(env.tasks):
        raise UsageError(f"dialogues: 1 to {len(env.tasks)}")
    rows, adapter = options.out / "dialogues.jsonl", options.out / "adapter"
    first = len(env.tasks) - options.dialogues
    tasks = [env.tasks[i] for i in range(first, len(env.tasks))]
    sft = SFTOptions(
        rows=rows,
        out=adapter,
        model=BUNDLED_BASE,
        lora_r=options.lora_r,
        lora_alpha=2 * options.lora_r,
        lora_dropout=0.0,
        learning_rate=options.learning_rate,
        batch=4,
        device_batch=2,
        save_dtype="bfloat16",
        seed=options.seed,
    )
    with locked(options.out):
        # An adapter keeps the dialogues that it has learned from.
        finished(adapter, {"kind": "sft", "options": sft.to_json()})
        played = demonstrate(env.dialogue, tasks, seed=options.seed)
        with replacing(rows) as fresh:
            write_jsonl(fresh, watched(played, len(tasks), "dialogues"))
            finished(adapter, {"rows_sha256": file_digest(fresh)})
        return train_sft(sft)


def demonstrate(
    dialogue: Dialogue, tasks: Sequence[Task], *, seed: int
) -> Iterator[dict[str, Any]]:
    """Play tasks with the expert.

    Yields:
        For each task a row ``{"messages": [...], "task_id": ...}``: the chat up to the expert's
        last message.
    """
    system = system_prompt(dialogue.domain.policy, dialogue.domain.tools)
    for task in tasks:
        episode = play(dialogue, ExpertAgent(task), task, seed=seed)
        assert episode.outcome == "success", f"the expert failed at {task.id}"
        yield {"messages": render_prompt(system, episode.messages[:-1]), "task_id": task.id}
