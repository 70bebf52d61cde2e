"""An agent that calls tools: in its model's own format, or in plain text.

In plain text, the model is told the policy and the tools in its system prompt and answers in the
environment's own action format, so what it writes is the action. Tool answers come back as user
messages, since many chat templates know no role for them. In its own format, the model's chat
template shows it the tools, the calls and their answers, and the backend reads what it writes:
:mod:`agents.tool_formats`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from agents.base import Backend, ChatMessage, Completion, Sampling
from agents.grammar import SPEECH, call_rules
from agents.tool_formats import without_thoughts
from toolwoz_gym.actions import (
    CALL_FORM,
    format_action,
    format_call,
    holds_call,
    mistake,
    parse_action,
)
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
    tools: tuple[ToolSpec, ...] = ()
    """Tools that the model is shown in its own format; none: the system prompt tells of them."""
    read: Callable[[str], Message] = parse_action
    """Understands what the model writes."""
    grammar: str | None = None
    """What it writes is a text of this grammar; None: any text."""

    def act(self, view: Sequence[Message], *, seed: int) -> Message:
        """Return the model's next message.

        Raises:
            AgentFailure: The dialogue no longer fits the model's context.
            BackendError: The model did not answer.
        """
        sampling = Sampling(self.temperature, self.max_tokens, seed, self.grammar)
        completion = self.backend.complete(self.prompt(view), sampling, self.tools)
        if completion.finish == "context":
            raise AgentFailure("the dialogue no longer fits the model's context")
        said = without_thoughts(completion.text)
        message = self._read(said, completion)
        raw = completion.text
        if self.tools and message.call is not None:
            raw = format_call(message.call)  # however it was spelt, the template shows it one way
        return replace(
            message,
            raw=raw,
            usage=completion.usage,
            logprob=completion.logprob,
            # A call that could be read is whole, and so are words that were read out of one.
            cut_off=completion.finish == "length"
            and message.content.strip() in (said.strip(), completion.text.strip()),
        )

    def _read(self, said: str, completion: Completion) -> Message:
        """Understand what the model says, its thoughts apart."""
        message = self.read(said)
        if not said and (completion.text or completion.finish == "length"):
            # Without any text, thoughts that a server keeps for itself have used up the tokens.
            return replace(message, content=completion.text, mistake="only thoughts")
        if message.error is None and holds_call(message.content):
            error = f"a call among words is not made; to call a tool, write {CALL_FORM} and no more"
            return mistake("call among words", said, error)
        return message

    def prompt(self, view: Sequence[Message]) -> list[ChatMessage]:
        """Return exactly what the model is shown before it writes its next message."""
        return render_prompt(self.system, view, native=bool(self.tools))


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
        *(signature(tool) for tool in tools),
    ]
    return "\n".join(lines)


read = parse_action
"""What the model writes is the action."""


def grammar(tools: Sequence[ToolSpec]) -> str:
    """Return the grammar of a call or a word to the customer, in llama.cpp's notation."""
    return f"root ::= call | speech\n{call_rules(tools)}{SPEECH}"


def render_prompt(
    system: str, view: Sequence[Message], *, native: bool = False
) -> list[ChatMessage]:
    """Write a dialogue as the chat that a model is shown.

    What the customer says to an agent that has fallen silent is shown with what comes before it, in
    one user message: many chat templates want roles to alternate.

    Args:
        system: The system prompt.
        view: The dialogue so far.
        native: Whether the answers of tools keep their role, for a backend that shows them in the
            model's own format; if not, they are written as user messages.
    """
    chat: list[ChatMessage] = [{"role": "system", "content": system}]
    for message in view:
        if message.role == "assistant":
            text = format_action(message) if message.raw is None else message.raw
            chat.append({"role": "assistant", "content": text})
        elif message.role == "tool" and not native:
            chat.append({"role": "user", "content": f"[tool] {message.content}"})
        elif message.role == chat[-1]["role"] == "user":
            chat[-1]["content"] += f"\n{message.content}"
        else:
            chat.append({"role": message.role, "content": message.content})
    return chat


def signature(tool: ToolSpec) -> str:
    """Write a tool as a function's signature, short enough for small models."""
    parameters = ", ".join(
        f"{name}: {'|'.join(schema['enum'])}" if "enum" in schema else name
        for name, schema in tool.parameters.items()
    )
    return f"{tool.name}({parameters})"
