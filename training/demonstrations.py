"""Whole dialogues of the scripted expert: what the bundled model's warm start learns from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agents.scripted import ExpertAgent
from agents.tool_calling import render_prompt, system_prompt
from toolwoz_gym.dialogue import Dialogue
from toolwoz_gym.rollout import play
from toolwoz_gym.types import Task


def demonstrate(dialogue: Dialogue, tasks: list[Task], *, seed: int) -> Iterator[dict[str, Any]]:
    """Play tasks with the expert.

    Yields:
        For each task a row ``{"messages": [...], "task_id": ...}``: the chat up to the expert's
        last message.
    """
    system = system_prompt(dialogue.domain.policy, dialogue.domain.tools)
    for task in tasks:
        episode = play(dialogue, ExpertAgent(task), task, seed=seed)
        assert episode.outcome == "success", f"the expert failed at {task.id}"
        chat = render_prompt(system, episode.messages[:-1])
        yield {"messages": chat, "task_id": task.id}
