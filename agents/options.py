"""Which agent plays: the options that harvest and evaluation share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal

from agents.base import Agent, AgentFactory, Backend
from agents.erring import ErringAgent
from agents.gold import GoldAgent
from agents.scripted import ExpertAgent, RandomAgent
from agents.tool_calling import ToolCallingAgent, system_prompt
from toolwoz_gym.tau_bench.domain import TauTask
from toolwoz_gym.types import Domain, Task


def expert(task: Task) -> Agent:
    """Return an agent that solves a task, knowing its goal."""
    return GoldAgent(task) if isinstance(task, TauTask) else ExpertAgent(task)


INDIFFERENT = frozenset(
    ("device", "base_url", "concurrency", "max_usd", "max_total_tokens", "run", "trees")
)
"""Options that do not decide what the records of a run say: another session may change them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentOptions:
    """Which agent plays, and with what model."""

    agent: Literal["tool_calling", "expert", "erring", "random"] = "tool_calling"
    """tool_calling: a language model; expert: a script that knows the goal; erring: the same with
    slips (ToolWOZ only); random: a script that does not know it."""
    model: str = "bundled"
    """The language model: "bundled" (SmolLM2-135M-Instruct, warm-started), "bundled-base" (without
    the warm start), a folder of a model or of an adapter, a .gguf file, or a name on the Hugging
    Face hub."""
    backend: Literal["transformers", "openai", "litellm"] = "transformers"
    """What runs the model: transformers, in this process; openai, a server that speaks OpenAI's
    protocol; litellm, any service that LiteLLM knows."""
    base_url: str = "https://api.openai.com/v1"
    """openai: address of the server. Its key comes from OPENAI_API_KEY."""
    concurrency: int = 16
    """openai, litellm: calls in flight at a time."""
    max_usd: float | None = None
    """openai, litellm: US dollars that the run may spend; then it stops, and can go on later."""
    max_total_tokens: int | None = None
    """openai, litellm: the same for tokens, read and written."""
    device: str = "auto"
    """Where it runs: auto, cpu, cuda or mps."""
    dtype: str = "auto"
    """Its arithmetic: auto, float32, bfloat16 or float16."""
    temperature: float = 1.0
    """Sampling temperature; 0 always takes the likeliest token."""
    max_tokens: int = 96
    """Longest message of the model's, in tokens."""

    @contextmanager
    def open(self, domain: Domain) -> Iterator[AgentFactory]:
        """Load what the agent needs, and give what makes it.

        Raises:
            UsageError: There is no such model or device.
        """
        if self.agent == "expert":
            yield expert
        elif self.agent == "erring":
            yield lambda task: ErringAgent(task, domain.tools)
        elif self.agent == "random":
            yield lambda task: RandomAgent(domain.tools)
        else:
            system = system_prompt(domain.policy, domain.tools)
            with self.open_backend() as backend:
                agent = ToolCallingAgent(backend, system, self.temperature, self.max_tokens)
                yield lambda task: agent

    def open_backend(self) -> AbstractContextManager[Backend]:
        """Load or reach the language model.

        Raises:
            UsageError: There is no such model or device, or a limit cannot be kept.
        """
        if self.backend == "transformers":
            from agents.backends.transformers import TransformersBackend

            return TransformersBackend.load(self.model, self.device, self.dtype)
        from agents.backends.openai import OpenAIBackend
        from agents.backends.spending import Budget

        budget = Budget(max_usd=self.max_usd, max_tokens=self.max_total_tokens)
        if self.backend == "litellm":
            return OpenAIBackend.litellm(self.model, concurrency=self.concurrency, budget=budget)
        return OpenAIBackend.connect(
            self.model, self.base_url, concurrency=self.concurrency, budget=budget, logprobs=True
        )
