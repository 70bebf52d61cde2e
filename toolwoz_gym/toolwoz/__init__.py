"""ToolWOZ: MultiWOZ, and a built-in city like it, as tool-calling tasks with a sparse reward."""

from __future__ import annotations

from toolwoz_gym.toolwoz.domain import ToolWOZ
from toolwoz_gym.toolwoz.v0 import ToolWOZv0
from toolwoz_gym.toolwoz.v1 import ToolWOZv1

__all__ = ["VERSIONS", "ToolWOZ"]

VERSIONS: tuple[type[ToolWOZ], ...] = (ToolWOZv0, ToolWOZv1)
"""The ways to answer and to score, by version number."""
