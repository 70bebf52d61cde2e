"""Data that is written as Python: read from the syntax tree, and never run or imported."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable
from math import isfinite
from typing import Any, TypeVar

from toolwoz_gym.types import UsageError

MAX_SOURCE = 1 << 20
"""Largest file that is parsed, in bytes."""

TASK = ("annotator", "user_id", "instruction", "actions", "outputs")
"""What a ``Task`` is made of, in order."""

ACTION = ("name", "kwargs")
"""What an ``Action`` is made of, in order."""

_T = TypeVar("_T")


def read_tasks(source: bytes, file: str, variable: str) -> list[dict[str, Any]]:
    """Return the tasks in a file that does nothing but assign a list of them.

    Args:
        source: The file's content: imports, and ``variable = [Task(...), ...]``, where a task's
            actions are ``Action(...)`` and all else is constants, lists and dicts.
        file: What messages call the file.
        variable: What the tasks are assigned to.

    Raises:
        UsageError: The file has anything else in it, is no Python, or is too large or too deeply
            nested; the message says where.
    """
    return _parsed(source, file, lambda module: [_task(t) for t in _assigned(module, variable)])


def read_list(source: bytes, file: str, variable: str) -> list[Any]:
    """Return the list in a file that does nothing but assign one. As :func:`read_tasks`."""
    return _parsed(source, file, lambda module: [_literal(e) for e in _assigned(module, variable)])


def read_schema(source: bytes, file: str) -> dict[str, Any]:
    """Return the dict that the ``get_info`` of a tool's class does nothing but return.

    What else the file has in it is not looked at. As :func:`read_tasks`.
    """
    return _parsed(source, file, _schema)


def _parsed(source: bytes, file: str, read: Callable[[ast.Module], _T]) -> _T:
    if len(source) > MAX_SOURCE:
        raise UsageError(f"{file} is too large: more than {MAX_SOURCE:,} bytes")
    try:
        with warnings.catch_warnings(action="ignore"):  # of code that we shall not run
            return read(ast.parse(source.decode("utf-8")))
    except SyntaxError as error:
        where = f"{file}, line {error.lineno}" if error.lineno else file
        raise UsageError(f"{where}: {error.msg}") from None
    except ValueError as error:
        raise UsageError(f"{file} is not Python: {error}") from None
    except (RecursionError, MemoryError):  # the parser has both for depth
        raise UsageError(f"{file} is too deeply nested") from None


def _assigned(module: ast.Module, variable: str) -> list[ast.expr]:
    """Return the elements of the list that is assigned to a variable."""
    match [node for node in module.body if not isinstance(node, ast.Import | ast.ImportFrom)]:
        case [ast.Assign(targets=[ast.Name(id=name)], value=ast.List(elts=elements))] if (
            name == variable
        ):
            return elements
        case [only]:
            raise _refusal(f"expected {variable} = [...]", only)
        case [_, second, *_]:
            raise _refusal(f"expected nothing besides {variable} = [...]", second)
    raise _refusal(f"there is no {variable} = [...]")


def _task(node: ast.expr) -> dict[str, Any]:
    task: dict[str, Any] = {}
    for name, value in _fields(node, "Task", TASK).items():
        if name != "actions":
            task[name] = _literal(value)
        elif isinstance(value, ast.List):
            task[name] = [_action(element) for element in value.elts]
        else:
            raise _refusal("expected actions=[...]", value)
    return task


def _action(node: ast.expr) -> dict[str, Any]:
    return {name: _literal(value) for name, value in _fields(node, "Action", ACTION).items()}


def _fields(node: ast.expr, constructor: str, names: tuple[str, ...]) -> dict[str, ast.expr]:
    """Return the arguments of a constructor call: all of them, in order, each by its name."""
    match node:
        case ast.Call(func=ast.Name(id=called), args=[], keywords=keywords) if (
            called == constructor and tuple(k.arg for k in keywords) == names
        ):
            return {name: keyword.value for name, keyword in zip(names, keywords, strict=True)}
    raise _refusal(f"expected {constructor}({', '.join(f'{name}=' for name in names)})", node)


def _schema(module: ast.Module) -> dict[str, Any]:
    methods = [
        member
        for node in module.body
        if isinstance(node, ast.ClassDef)
        for member in node.body
        if isinstance(member, ast.FunctionDef) and member.name == "get_info"
    ]
    if len(methods) != 1:
        raise _refusal(f"expected one class with get_info, found {len(methods)}")
    match methods[0].body:
        case [ast.Return(value=ast.Dict() as returned)]:
            schema: dict[str, Any] = _literal(returned)
            return schema
    raise _refusal("expected a get_info that does nothing but return a dict", methods[0])


def _literal(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=str() | int() | None as value):
            return value
        case ast.Constant(value=float(value)) if isfinite(value):
            return value
        case ast.List(elts=elements):
            return [_literal(element) for element in elements]
        case ast.Dict(keys=keys, values=values):
            return {_key(k, node): _literal(v) for k, v in zip(keys, values, strict=True)}
    raise _refusal(f"expected a constant, a list or a dict, not {type(node).__name__}", node)


def _key(node: ast.expr | None, around: ast.Dict) -> str:
    match node:
        case ast.Constant(value=str(key)):
            return key
    raise _refusal("expected keys that are strings", node or around)


def _refusal(message: str, node: ast.stmt | ast.expr | None = None) -> SyntaxError:
    """Word it as the parser words its own."""
    error = SyntaxError(message)
    error.lineno = node.lineno if node else None
    return error
