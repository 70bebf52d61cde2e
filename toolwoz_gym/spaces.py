"""The space of texts in any language."""

from __future__ import annotations

import string
from typing import Any, NoReturn

import numpy as np
from gymnasium.error import CustomSpaceError
from gymnasium.spaces import Text
from gymnasium.vector.utils import create_shared_memory


class UnicodeText(Text):
    """Every string of at most ``max_length`` characters.

    ``gymnasium.spaces.Text`` knows a fixed set of characters, and even ``string.printable`` lacks
    "£" and "–". Here any string is a member; samples are drawn from printable ASCII.
    """

    def __init__(self, max_length: int, *, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(max_length, min_length=0, charset=string.printable, seed=seed)

    def contains(self, x: Any) -> bool:
        """Return whether ``x`` is a string that is short enough."""
        return isinstance(x, str) and len(x) <= self.max_length

    def __repr__(self) -> str:
        return f"UnicodeText({self.max_length})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnicodeText) and self.max_length == other.max_length


@create_shared_memory.register(UnicodeText)
def _refuse_shared_memory(space: UnicodeText, n: int = 1, ctx: Any = None) -> NoReturn:
    # Gymnasium would share the numbers of the characters in its alphabet, and read zeros.
    raise CustomSpaceError("texts of any alphabet cannot be shared: use shared_memory=False")
