"""What completions cost, and how much a run may spend on them."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from threading import Lock
from urllib.parse import urlsplit

from agents.base import RunStopped
from toolwoz_gym.types import Usage

OPENAI = "https://api.openai.com/v1"
"""The address of OpenAI's own service: only there are its prices known."""

_HOST = urlsplit(OPENAI).hostname

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

    def cost(self, usage: Usage) -> float | None:
        """Return what a call costs, in US dollars; None if its tokens are not known.

        Where it is not known what came from the cache, nothing did: it costs no more than that.
        """
        if usage.prompt is None or usage.completion is None:
            return None
        cached = usage.cached or 0
        read = (usage.prompt - cached) * self.input + cached * self.cached_input
        return (read + usage.completion * self.output) / 1e6


def is_openai(base_url: str) -> bool:
    """Return whether an address is OpenAI's, however it ends."""
    try:
        return urlsplit(base_url.strip()).hostname == _HOST
    except ValueError:  # it is none at all
        return False


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
        spent: Usage | None = None,
    ) -> None:
        """Open a budget.

        Args:
            max_usd: Most US dollars; None: no limit.
            max_tokens: Most tokens, read and written together; None: no limit.
            spent: What the run's earlier sessions have spent.
        """
        self.max_usd = max_usd
        self.max_tokens = max_tokens
        self.spent = spent or Usage()
        self._lock = Lock()

    def check(self) -> None:
        """Refuse a call when a limit is reached.

        Raises:
            BudgetSpent: It is.
        """
        usd, tokens = self.spent.usd, self.spent.tokens
        if self.max_usd is not None and (usd is None or usd >= self.max_usd):
            part = "an unknown part" if usd is None else f"{usd:.4f}"
            raise BudgetSpent(
                f"the spending limit is reached ({part} of {self.max_usd:g} US dollars); raise it"
            )
        if self.max_tokens is not None and tokens is None:
            raise BudgetSpent(
                "tokens cannot be limited: a server does not say how many it used; leave the limit "
                "out"
            )
        if self.max_tokens is not None and tokens is not None and tokens >= self.max_tokens:
            raise BudgetSpent(
                f"the token limit is reached ({tokens:,} of {self.max_tokens:,} tokens); raise it"
            )

    def charge(self, usage: Usage) -> None:
        """Count what an answer cost."""
        with self._lock:
            self.spent += usage
