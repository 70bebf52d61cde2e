"""An agent that plans, then acts: each message is a thought and an action.

After τ-bench's ``react`` agent (Yao et al. 2023, arXiv 2210.03629; 2024, arXiv 2406.12045), with a
prompt of our own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from agents import act
from agents.grammar import call_rules
from toolwoz_gym.actions import CALL_FORM, mistake
from toolwoz_gym.types import Message, ToolSpec

PROMPT = """\
{policy}

Write two lines each time, a plan and an action:
Thought: <what you know, what is still missing, and what you do next>
Action: {form}
Leave out parameters that the customer has not mentioned. What you want to say to the customer is \
the content of respond; the customer does not see your thoughts.

Tools:
{tools}"""

_ACTION = re.compile(r"^\W{0,3}Action\W{0,3}:\**", re.MULTILINE)


def system_prompt(policy: str, tools: Sequence[ToolSpec]) -> str:
    """Write the system prompt: the policy, what to write, and the tools, a line each."""
    return act.fill(PROMPT, policy, tools)


def read(text: str) -> Message:
    """Read the action that follows a thought. A thought alone is no action."""
    found = _ACTION.search(text)
    if found is None:
        return mistake("no action", text, f'write "Thought: ...", then "Action: {CALL_FORM}"')
    message = act.read(text[found.end() :])
    return message if message.error is None else replace(message, content=text)


def grammar(tools: Sequence[ToolSpec]) -> str:
    """Return the grammar of a thought, which is one line, and an action."""
    return f'root ::= "Thought: " [^\\n]+ "\\nAction: " call\n{call_rules((*tools, act.RESPOND))}'
