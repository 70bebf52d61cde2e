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


class KeyValues:
    """Cells for keys and values, a cell for what a model has made of one token."""

    def __init__(self, layers: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Take over tensors.

        Args:
            layers: Keys and values of each layer, each of shape [1, heads, cells, head size].
        """
        self.layers = list(layers)

    @property
    def nbytes(self) -> int:
        """The memory that they take."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer)

    def read(self, cells: Ints) -> KeyValues:
        """Return a copy of some cells, in their order."""
        index = self._index(cells)
        return KeyValues(
            [(k.index_select(2, index), v.index_select(2, index)) for k, v in self.layers]
        )

    def write(self, cells: Ints, new: KeyValues) -> None:
        """Fill some cells, in their order."""
        index = self._index(cells)
        for layer, filling in zip(self.layers, new.layers, strict=True):
            for tensor, x in zip(layer, filling, strict=True):
                tensor.index_copy_(2, index, x)

    def blank(self, count: int) -> KeyValues:
        """Return so many cells of the same kind, with anything in them."""

        def blank(x: torch.Tensor) -> torch.Tensor:
            return x.new_empty(1, x.shape[1], count, x.shape[3])

        return KeyValues([(blank(k), blank(v)) for k, v in self.layers])

    def extend(self, count: int) -> None:
        """Add so many cells of zeros."""
        import torch

        def longer(x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.pad(x, (0, 0, 0, count))

        self.layers = [(longer(k), longer(v)) for k, v in self.layers]

    def _index(self, cells: Ints) -> torch.Tensor:
        import torch

        return torch.from_numpy(cells).to(self.layers[0][0].device)


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    tokens: Ints
    slots: Ints
    """Where each token's keys and values are; entries with a common prefix share its slots."""


class PrefixStore:
    """A bounded pool of slots, one for the keys and values of one token after all before it.

    Entries that were used least recently give way. Not safe for several threads at once.
    """

    def __init__(self, sample: KeyValues, capacity: int) -> None:
        """Make an empty store.

        Args:
            sample: Keys and values of any token: their shapes, type and device are the store's.
            capacity: Number of slots.
        """
        self.capacity = capacity
        self.cells = sample.blank(capacity)
        self._entries: list[_Entry] = []  # least recently used first

    def longest(self, tokens: Ints) -> Ints:
        """Return the slots of the longest prefix of ``tokens`` that is in the store."""
        best, length = None, 0
        for entry in self._entries:
            common = common_length(entry.tokens, tokens)
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
        if kept.sum() + count > self.capacity:
            return None
        while True:
            used = kept.copy()
            for entry in self._entries:
                used[entry.slots] = True
            free = np.flatnonzero(~used)
            if len(free) >= count:
                return free[:count]
            del self._entries[0]

    def add(self, tokens: Ints, slots: Ints) -> None:
        """Make an entry, the most recently used, in place of those that it continues."""
        self._entries = [
            e for e in self._entries if common_length(e.tokens, tokens) < len(e.tokens)
        ]
        self._entries.append(_Entry(tokens, slots))


def common_length(a: Ints, b: Ints) -> int:
    """Return the length of the longest common prefix."""
    length = min(len(a), len(b))
    different = a[:length] != b[:length]
    return int(different.argmax()) if different.any() else length
