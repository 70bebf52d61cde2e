"""An agent that knows a task's gold actions: what it earns, anybody could."""

from __future__ import annotations

from collections.abc import Sequence

from toolwoz_gym.tau_bench.domain import TRANSFER, TauTask
from toolwoz_gym.types import Message, Task


class GoldAgent:
    """Makes a τ-bench task's gold actions in order, and says its outputs."""

    def __init__(self, task: Task) -> None:
        assert isinstance(task, TauTask)
        self._task = task

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        """Return the agent's next message."""
        actions = [goal for goal in self._task.goals if goal.name != TRANSFER]
        made = 0
        for message in view:  # other calls may be among them
            made += made < len(actions) and message.call == actions[made]
        if made < len(actions):
            return Message("assistant", call=actions[made])
        said = any(message.role == "assistant" and message.call is None for message in view)
        transfers = [goal for goal in self._task.goals if goal.name == TRANSFER]
        if transfers and (said or not self._task.outputs):
            return Message("assistant", call=transfers[0])
        return Message("assistant", f"It is done. {' ; '.join(self._task.outputs)}".strip())
