"""Luck is derived, never carried.

Every random choice draws from a seed that is a hash of what it depends on: the episode's seed,
what was said, the branch. There is no generator to fork, and the same words meet the same answer in
every branch, on every machine, in any order of threads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


def derive(*parts: int | str) -> int:
    """Hash ``parts`` to an integer in [0, 2**63).

    The parts are told apart by type and by position: ``derive(1, "2")``, ``derive("1", 2)`` and
    ``derive("12")`` differ.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = str(part).encode("utf-8", "surrogatepass")
        digest.update(b"%c%d:" % (b"i"[0] if isinstance(part, int) else b"s"[0], len(data)))
        digest.update(data)
    return int.from_bytes(digest.digest(), "big") >> 1


class Luck:
    """A stream of random choices from a derived seed.

    Only ``random.Random.random`` stands behind it, the one method whose stream Python promises to
    keep the same between versions.
    """

    def __init__(self, *parts: int | str) -> None:
        self._random = Random(derive(*parts)).random

    def below(self, n: int) -> int:
        """Return an integer in [0, n)."""
        return int(self._random() * n)

    def uniform(self) -> float:
        """Return a number in [0, 1)."""
        return self._random()

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return self._random() < probability

    def choice(self, items: Sequence[T]) -> T:
        """Return one of the items.

        Raises:
            IndexError: There are none.
        """
        return items[self.below(len(items))]

    def sample(self, items: Sequence[T], k: int) -> list[T]:
        """Return ``k`` different items (all of them when there are fewer), in random order."""
        pool = list(items)
        return [pool.pop(self.below(len(pool))) for _ in range(min(k, len(pool)))]
