"""Which agent plays: the options that harvest and evaluation share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from agents.base import Agent, AgentFactory
from agents.erring import ErringAgent
from agents.gold import GoldAgent
from agents.scripted import ExpertAgent, RandomAgent
from agents.tool_calling import ToolCallingAgent, system_prompt
from toolwoz_gym.tau_bench.domain import TauTask
from toolwoz_gym.types import Domain, Task


def expert(task: Task) -> Agent:
    """Return an agent that solves a task, knowing its goal."""
    return GoldAgent(task) if isinstance(task, TauTask) else ExpertAgent(task)


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
    backend: Literal["transformers"] = "transformers"
    """What runs the model."""
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
            from agents.backends.transformers import TransformersBackend

            with TransformersBackend.load(self.model, self.device, self.dtype) as backend:
                system = system_prompt(domain.policy, domain.tools)
                agent = ToolCallingAgent(backend, system, self.temperature, self.max_tokens)
                yield lambda task: agent
