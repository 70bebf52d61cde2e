"""What completions cost, and how much a run may spend on them."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from threading import Lock

from agents.base import RunStopped

_PRICES = Path(__file__).resolve().parents[1] / "prices.toml"


class BudgetSpent(RunStopped):
    """The run has spent what it may. It can go on with a higher limit."""


@dataclass(frozen=True, slots=True)
class Price:
    """What a model's tokens cost, in US dollars per million."""

    input: float
    """Tokens read that the service had not in its cache."""
    cached_input: float
    output: float
    seen: date
    """When the source was looked up."""
    source: str
    """Address of the page that says so."""

    def cost(self, prompt: int, cached: int, completion: int) -> float:
        """Return what a call costs, in US dollars.

        Args:
            prompt: Tokens read, those from the cache among them.
            cached: Tokens read from the cache.
            completion: Tokens written.
        """
        read = (prompt - cached) * self.input + cached * self.cached_input
        return (read + completion * self.output) / 1e6


@cache
def prices() -> dict[str, Price]:
    """Return the prices of ``prices.toml``, by the model's name there."""
    with _PRICES.open("rb") as file:
        return {name: Price(**entry) for name, entry in tomllib.load(file).items()}


class Budget:
    """What a run has spent and may spend: all its models together, from all threads.

    A call is not begun once a limit is reached. Calls that are under way then are answered and
    counted, so a run can exceed its limit by as much as they cost.
    """

    def __init__(
        self,
        *,
        max_usd: float | None = None,
        max_tokens: int | None = None,
        spent_usd: float | None = 0.0,
        spent_tokens: int = 0,
    ) -> None:
        """Open a budget.

        Args:
            max_usd: Most US dollars; None: no limit.
            max_tokens: Most tokens, read and written together; None: no limit.
            spent_usd: What the run's earlier sessions have spent; None: that is not known.
            spent_tokens: The tokens of earlier sessions.
        """
        self.max_usd = max_usd
        self.max_tokens = max_tokens
        self.usd = spent_usd
        """US dollars spent; None once a call was made whose price is unknown."""
        self.tokens = spent_tokens
        """Tokens read and written."""
        self._lock = Lock()

    def check(self) -> None:
        """Refuse a call when a limit is reached.

        Raises:
            BudgetSpent: It is.
        """
        with self._lock:
            if self.max_usd is not None and (self.usd is None or self.usd >= self.max_usd):
                spent = "an unknown part" if self.usd is None else f"{self.usd:.4f}"
                raise BudgetSpent(
                    f"the spending limit is reached ({spent} of {self.max_usd:g} US dollars); "
                    "raise it to go on"
                )
            if self.max_tokens is not None and self.tokens >= self.max_tokens:
                raise BudgetSpent(
                    f"the token limit is reached ({self.tokens:,} of {self.max_tokens:,} tokens); "
                    "raise it to go on"
                )

    def charge(self, tokens: int, usd: float | None) -> None:
        """Count an answered call.

        Args:
            tokens: Tokens read and written.
            usd: What it cost; None: its price is unknown.
        """
        with self._lock:
            self.tokens += tokens
            self.usd = None if self.usd is None or usd is None else self.usd + usd
