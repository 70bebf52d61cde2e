"""The tools that both desks of τ-bench have: calculate, think, transfer_to_human_agents."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from toolwoz_gym.tau_bench.tables import Tables

_MOST_SIGNS = 1000
"""Signs in an expression: this bounds how deep it nests."""
_MOST_BITS = 2**14
"""Bits of an integer on the way to a result."""

_UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}


def calculate(tables: Tables, expression: Any) -> str:
    """Work out an arithmetic expression, as Python would, to two decimals.

    Args:
        tables: Left alone.
        expression: Digits, ``+ - * /``, parentheses, points and spaces.

    Raises:
        ValueError: It has other characters, is no expression, or is too long.
        TypeError: It is not a string, or makes Python add, negate or call what cannot be.
        ArithmeticError: It divides by zero, or becomes too large.
    """
    if not all(character in "0123456789+-*/(). " for character in expression):
        raise ValueError("invalid characters in expression")
    if not isinstance(expression, str):
        raise TypeError("eval() arg 1 must be a string, bytes or code object")
    if sum(map(expression.count, "+-*/(")) > _MOST_SIGNS:
        raise ValueError(f"expression has more than {_MOST_SIGNS} signs")
    try:
        tree = ast.parse(expression.lstrip(" "), "<string>", "eval")
    except SyntaxError as error:
        raise ValueError(str(error)) from error
    except (MemoryError, RecursionError) as error:
        raise ValueError("expression is nested too deeply") from error
    return str(round(float(_value(tree.body)), 2))


def think(tables: Tables, thought: Any) -> str:
    """Do nothing."""
    return ""


def transfer_to_human_agents(tables: Tables, summary: Any) -> str:
    """Confirm that a person takes over."""
    return "Transfer successful"


def _value(tree: ast.expr) -> Any:
    """Evaluate, left to right and without recursion: a long sum nests as deep as it is long."""
    order: list[ast.AST] = []
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        order.append(node)
        operands = ast.iter_child_nodes(node)
        pending += [child for child in operands if isinstance(child, (ast.expr, ast.keyword))]
    values: list[Any] = []
    for node in reversed(order):
        match node:
            case ast.Constant():
                values.append(node.value)
            case ast.Tuple():
                values.append(())
            case ast.UnaryOp():
                values.append(_UNARY[type(node.op)](values.pop()))
            case ast.BinOp():
                right, left = values.pop(), values.pop()
                values.append(_binary(node.op, left, right))
            case ast.Call():
                # There are no names, so nothing that can be called.
                function = values[-1 - len(node.args) - len(node.keywords)]
                raise TypeError(f"'{type(function).__name__}' object is not callable")
            case _:
                pass  # The star before an argument: the argument's value stands for it.
    return values.pop()


def _binary(sign: ast.operator, left: Any, right: Any) -> Any:
    """Apply an operator, unless its result is beyond what is worth computing.

    Raises:
        OverflowError: In the words that so large a number would earn in the end.
    """
    integers = isinstance(left, int) and isinstance(right, int)
    power = integers and isinstance(sign, ast.Pow)
    if power and (left.bit_length() - 1) * right > _MOST_BITS:
        raise OverflowError("int too large to convert to float")
    value = _BINARY[type(sign)](left, right)
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise OverflowError("int too large to convert to float")
    return value
