"""What a model has read before: keys and values of token sequences that share their prefixes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Ints: TypeAlias = NDArray[np.int64]

Layers: TypeAlias = "Sequence[tuple[torch.Tensor, torch.Tensor]]"
"""Keys and values of each layer, each of shape [1, heads, tokens, head size]."""


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    tokens: Ints
    slots: Ints
    """Where each token's keys and values are; entries with a common prefix share its slots."""


class PrefixStore:
    """A bounded pool of slots, one for the keys and values of one token after all before it.

    Entries that were used least recently give way. Not safe for several threads at once.
    """

    def __init__(self, sample: Layers, capacity: int) -> None:
        """Make an empty store.

        Args:
            sample: Keys and values of any text: their shapes, type and device are the pool's.
            capacity: Number of slots.
        """
        self.capacity = capacity
        self._pool = [
            tuple(x.new_empty(1, x.shape[1], capacity, x.shape[3]) for x in layer)
            for layer in sample
        ]
        self._entries: list[_Entry] = []  # least recently used first

    def longest(self, tokens: Ints) -> Ints:
        """Return the slots of the longest prefix of ``tokens`` that is in the store."""
        best, length = None, 0
        for entry in self._entries:
            common = _common(entry.tokens, tokens)
            if common > length:
                best, length = entry, common
        if best is None:
            return np.empty(0, np.int64)
        self._entries.remove(best)
        self._entries.append(best)
        return best.slots[:length]

    def reserve(self, count: int, *, keep: Iterable[Ints]) -> Ints | None:
        """Find free slots; entries give way until there are enough.

        Args:
            count: How many.
            keep: Slots that are in use, whether an entry holds them or not.

        Returns:
            The slots, or None when there is no room besides what is in use.
        """
        kept = np.zeros(self.capacity, bool)
        for slots in keep:
            kept[slots] = True
        while True:
            used = kept.copy()
            for entry in self._entries:
                used[entry.slots] = True
            free = np.flatnonzero(~used)
            if len(free) >= count:
                return free[:count]
            if not self._entries:
                return None
            del self._entries[0]

    def add(self, tokens: Ints, slots: Ints) -> None:
        """Make an entry, the most recently used, in place of those that it continues."""
        self._entries = [e for e in self._entries if _common(e.tokens, tokens) < len(e.tokens)]
        self._entries.append(_Entry(tokens, slots))

    def read(self, slots: Ints) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return a copy of the keys and values in ``slots``, in their order."""
        import torch

        index = torch.from_numpy(slots).to(self._pool[0][0].device)
        return [(k.index_select(2, index), v.index_select(2, index)) for k, v in self._pool]

    def write(self, slots: Ints, layers: Layers) -> None:
        """Put keys and values into ``slots``, in their order."""
        import torch

        index = torch.from_numpy(slots).to(self._pool[0][0].device)
        for pool, layer in zip(self._pool, layers, strict=True):
            for to, new in zip(pool, layer, strict=True):
                to.index_copy_(2, index, new)


def _common(a: Ints, b: Ints) -> int:
    """Return the length of the longest common prefix."""
    length = min(len(a), len(b))
    different = a[:length] != b[:length]
    return int(different.argmax()) if different.any() else length
