"""An agent that calls tools in plain text: a prompt, and nothing else.

The model is told the policy and the tools in its system prompt and answers in the environment's own
action format, so what it writes is the action. Tool answers come back as user messages, since many
chat templates know no role for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from agents.base import Backend, ChatMessage, Sampling
from toolwoz_gym.actions import format_action, parse_action
from toolwoz_gym.types import AgentFailure, Message, ToolSpec


@dataclass(frozen=True, slots=True)
class ToolCallingAgent:
    """Plays what a language model writes."""

    backend: Backend
    system: str
    """The system prompt, as :func:`system_prompt` writes it."""
    temperature: float = 1.0
    max_tokens: int = 128
    """Longest message of the model's."""

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        """Return the model's next message.

        Raises:
            AgentFailure: The dialogue no longer fits the model's context.
            BackendError: The model did not answer.
        """
        sampling = Sampling(self.temperature, self.max_tokens, seed)
        completion = self.backend.complete(self.prompt(view), sampling)
        if completion.finish == "context":
            raise AgentFailure("the dialogue no longer fits the model's context")
        message = parse_action(completion.text)
        return replace(
            message, raw=completion.text, usage=completion.usage, logprob=completion.logprob
        )

    def prompt(self, view: Sequence[Message]) -> list[ChatMessage]:
        """Return exactly what the model is shown before it writes its next message."""
        return render_prompt(self.system, view)


def system_prompt(policy: str, tools: Sequence[ToolSpec]) -> str:
    """Write the system prompt: the policy, how to call a tool, and the tools, a line each."""
    lines = [
        policy,
        "",
        "To call a tool, write only one JSON object:",
        '{"name": "<tool>", "arguments": {"<parameter>": "<value>"}}',
        "Leave out parameters that the customer has not mentioned. Anything else you write is said "
        "to the customer.",
        "",
        "Tools:",
        *(_signature(tool) for tool in tools),
    ]
    return "\n".join(lines)


def render_prompt(system: str, view: Sequence[Message]) -> list[ChatMessage]:
    """Write a dialogue as the chat that a model is shown."""
    chat: list[ChatMessage] = [{"role": "system", "content": system}]
    for message in view:
        if message.role == "assistant":
            text = format_action(message) if message.raw is None else message.raw
            chat.append({"role": "assistant", "content": text})
        elif message.role == "tool":
            chat.append({"role": "user", "content": f"[tool] {message.content}"})
        else:
            chat.append({"role": "user", "content": message.content})
    return chat


def _signature(tool: ToolSpec) -> str:
    """Write a tool as a function's signature, short enough for small models."""
    parameters = ", ".join(
        f"{name}: {'|'.join(schema['enum'])}" if "enum" in schema else name
        for name, schema in tool.parameters.items()
    )
    return f"{tool.name}({parameters})"
