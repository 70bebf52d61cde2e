"""Who imports whom: the arrows point one way, and what is heavy is imported where it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

MAY_IMPORT = {
    "toolwoz_gym": set(),
    "agents": {"toolwoz_gym"},
    "josh_search": {"toolwoz_gym", "agents"},
    "training": {"toolwoz_gym", "agents"},
    "benchmarks": {"toolwoz_gym", "agents", "josh_search", "training"},
}
"""Which packages of ours each package may import, anywhere in its code."""

PROGRAMS = {"toolwoz_gym/__main__.py": {"agents"}}
"""What single files may import besides. A command line is no part of the package it belongs to:
nothing imports it. Who plays the customer at the command line talks to one of the agents."""

HEAVY = (
    *("torch", "transformers", "trl", "peft", "datasets", "accelerate", "matplotlib", "gguf"),
    *("ray", "openai", "tenacity", "litellm", "xgrammar", "jinja2"),
)


def files(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"there is no package {package}"
    return found


def imports(tree: ast.AST, *, of_module: bool) -> Iterator[str]:
    """Yield what is imported: anywhere, or only when the module itself is (``of_module``)."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, "imports are absolute here"
            yield node.module
        lazy = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not (of_module and (lazy or typing_only)):
            yield from imports(node, of_module=of_module)


def packages(file: Path, *, of_module: bool) -> set[str]:
    tree = ast.parse(file.read_bytes())
    return {name.partition(".")[0] for name in imports(tree, of_module=of_module)}


def programs(file: Path) -> set[str]:
    return PROGRAMS.get(str(file.relative_to(ROOT)), set())


def test_nothing_imports_a_program() -> None:
    modules = {name.removesuffix(".py").replace("/", ".") for name in PROGRAMS}
    for package in MAY_IMPORT:
        for file in files(package):
            assert not modules & set(imports(ast.parse(file.read_bytes()), of_module=False))


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_arrows_point_one_way(package: str) -> None:
    forbidden = {*MAY_IMPORT, "tests"} - MAY_IMPORT[package] - {package}
    crossing = {
        f"{file.relative_to(ROOT)} imports {', '.join(sorted(found))}"
        for file in files(package)
        if (found := packages(file, of_module=False) & forbidden - programs(file))
    }
    assert not crossing


def test_the_environments_need_gymnasium_and_numpy_only() -> None:
    allowed = {*sys.stdlib_module_names, "gymnasium", "numpy", "toolwoz_gym"}
    strangers = {
        f"{file.relative_to(ROOT)} imports {', '.join(sorted(found))}"
        for file in files("toolwoz_gym")
        if (found := packages(file, of_module=True) - allowed)
    }
    assert not strangers


MODULES = sorted(
    str(file.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")
    for package in ("toolwoz_gym", "josh_search")
    for file in files(package)
)


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    code += "print(*sys.modules)"
    asked = [sys.executable, "-c", code, *MODULES, "agents.options", "agents.tool_calling"]
    run = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "toolwoz_gym.toolwoz.multiwoz" in loaded and "josh_search.search" in loaded
    assert not loaded & set(HEAVY)


def test_importing_the_environments_loads_little() -> None:
    code = "import sys, toolwoz_gym\nprint(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    ours = {name.partition(".")[0] for name in run.stdout.split()} & {*MAY_IMPORT, "rich", "tyro"}
    assert ours == {"toolwoz_gym"}
