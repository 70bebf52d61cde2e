"""An agent that writes an action each time: even its words to the customer are a call.

After τ-bench's ``act`` agent (Yao et al. 2024, arXiv 2406.12045), with a prompt of our own.
"""

from __future__ import annotations

from collections.abc import Sequence

from agents.grammar import WORDS, call_rules
from agents.tool_calling import signature
from toolwoz_gym.actions import CALL_FORM, mistake, parse_action
from toolwoz_gym.types import Message, ToolSpec

RESPOND = ToolSpec(
    "respond",
    "Say something to the customer.",
    {"content": {**WORDS, "description": "the words"}},
    required=("content",),
)
"""What an agent speaks with."""

PROMPT = """\
{policy}

Write one action each time, a JSON object and nothing else:
{form}
Leave out parameters that the customer has not mentioned. What you want to say to the customer is \
the content of respond.

Tools:
{tools}"""

_RESPONSE = '{"name": "respond", "arguments": {"content": "<words>"}}'


def system_prompt(policy: str, tools: Sequence[ToolSpec]) -> str:
    """Write the system prompt: the policy, what an action is, and the tools, a line each."""
    return fill(PROMPT, policy, tools)


def fill(prompt: str, policy: str, tools: Sequence[ToolSpec]) -> str:
    """Fill in the prompt of an agent that writes actions."""
    signatures = "\n".join(signature(tool) for tool in (*tools, RESPOND))
    return prompt.format(
        policy=policy,
        form='{"name": "<tool>", "arguments": {"<parameter>": "<value>"}}',
        tools=signatures,
    )


def read(text: str) -> Message:
    """Read an action. ``respond`` is said to the customer, any other call is a tool's."""
    message = parse_action(text)
    if message.error is not None:
        return message
    if message.call is None:
        return mistake(
            "no action", text, f"an action is {CALL_FORM}; to speak to the customer, {_RESPONSE}"
        )
    if message.call.name != RESPOND.name:
        return message
    words = message.call.arguments.get("content")
    if not isinstance(words, str) or not words.strip():
        return mistake("wrong types", text, f"respond has content, a text: {_RESPONSE}")
    return Message("assistant", words.strip())


def grammar(tools: Sequence[ToolSpec]) -> str:
    """Return the grammar of one action, in llama.cpp's notation."""
    return f"root ::= call\n{call_rules((*tools, RESPOND))}"
