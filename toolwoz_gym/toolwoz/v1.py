"""ToolWOZ-v1: the repaired benchmark."""

from __future__ import annotations

from toolwoz_gym.toolwoz.v0 import ToolWOZv0


class ToolWOZv1(ToolWOZv0):
    """To come."""

    version = 1
