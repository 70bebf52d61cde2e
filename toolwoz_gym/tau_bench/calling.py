"""How τ-bench's tools are called, and what a call that makes no sense is answered with.

The tools check no types: a wrong one earns the text of whatever Python raises over it, which the
original shows to the agent.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeAlias

from toolwoz_gym.tau_bench.tables import Tables, copied

Tool: TypeAlias = Callable[..., str]
"""Takes the :class:`Tables` and then its parameters, all of which are required."""


def invoke(domain: str, name: str, tool: Tool, tables: Tables, arguments: Mapping[str, Any]) -> str:
    """Call a tool and return what the agent is shown.

    What the tool changed before it failed stays changed, as in the original.

    Args:
        domain: ``retail`` or ``airline``.
        name: The tool's name.
        tool: The tool.
        tables: What it reads and changes.
        arguments: As the agent wrote them. The tables never come to share anything with them.
    """
    if fault := _signature_fault(domain, name, _parameters(tool), arguments):
        return f"Error: {fault}"
    try:
        return tool(tables, **copied(dict(arguments)))
    except (TypeError, LookupError, AttributeError, ValueError, ArithmeticError) as error:
        return f"Error: {error}"


def dump(value: Any) -> str:
    """Write a result as the agent is shown it."""
    return json.dumps(value)


@cache
def _parameters(tool: Tool) -> tuple[str, ...]:
    """Return what a tool takes besides the tables."""
    return tuple(inspect.signature(tool).parameters)[1:]


def _signature_fault(
    domain: str, name: str, parameters: tuple[str, ...], arguments: Mapping[str, Any]
) -> str | None:
    """Say what Python 3.11 would say of the call; newer versions word it differently."""
    method = f"{''.join(word.capitalize() for word in name.split('_'))}.invoke()"
    if "data" in arguments:
        path = f"tau_bench.envs.{domain}.tools.{name}.{method}"
        return f"{path} got multiple values for keyword argument 'data'"
    for unexpected in arguments:
        if unexpected not in parameters:
            return f"{method} got an unexpected keyword argument '{unexpected}'"
    missing = [f"'{parameter}'" for parameter in parameters if parameter not in arguments]
    if not missing:
        return None
    listed = " and ".join(missing)
    if len(missing) > 2:
        listed = f"{', '.join(missing[:-1])}, and {missing[-1]}"
    arguments_word = "argument" if len(missing) == 1 else "arguments"
    return f"{method} missing {len(missing)} required positional {arguments_word}: {listed}"
