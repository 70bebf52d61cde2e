"""τ-bench's calculator: as Python's ``eval`` has it, and never more work than it is worth."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolwoz_gym.tau_bench.calling import invoke
from toolwoz_gym.tau_bench.common import calculate
from toolwoz_gym.tau_bench.tables import Base, Tables

TOO_LARGE = "Error: int too large to convert to float"


def answer(expression: Any) -> str:
    tables = Tables(Base({}), {})
    return invoke("retail", "calculate", calculate, tables, {"expression": expression})


def evaluated(expression: str) -> str:
    try:
        with warnings.catch_warnings(action="ignore"):
            return str(round(float(eval(expression)), 2))
    except (SyntaxError, TypeError, ArithmeticError) as error:
        return f"Error: {error}"


def test_answers_are_as_recorded(shared: Path) -> None:
    recorded = json.loads((shared / "oracle/tau_bench/calculate_cases.json").read_text())
    assert len(recorded["cases"]) == 106
    for expression, observation in recorded["cases"]:
        given_now = answer(expression)
        if sys.version_info[:2] != (3, 11) and observation.startswith("Error: "):
            # Python's own words change from version to version.
            assert given_now.startswith("Error: "), expression
        else:
            assert given_now == observation, expression


@given(st.text("0123456789+-*/(). ", max_size=12).filter(lambda e: "**" not in e))
def test_a_jumble_is_answered_as_python_would(expression: str) -> None:
    # With nothing to call, "2(*3)" is wrong in two ways, of which Python names the other.
    if "(*" not in expression.replace(" ", ""):
        assert answer(expression) == evaluated(expression)


NUMBERS = st.integers(0, 99).map(str) | st.floats(0, 1000).map(lambda x: f"{x:.2f}")
EXPRESSIONS = st.recursive(
    NUMBERS | st.just("()"),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//"]), inner).map(" ".join),
        inner.map("({})".format),
        inner.map("-{}".format),
        st.tuples(inner, st.sampled_from(["2", "3", "-1", "0.5"])).map("({0[0]}) ** {0[1]}".format),
    ),
    max_leaves=12,
)


@given(EXPRESSIONS)
def test_an_expression_is_answered_as_python_would(expression: str) -> None:
    # Powers of powers may pass the calculator's bound, far beyond what a float holds.
    expected = evaluated(expression)
    assert answer(expression) in (expected, TOO_LARGE)
    assert expected.startswith("Error: ") or answer(expression) == expected


@pytest.mark.parametrize(
    "expression",
    [
        "9**9**9",
        "9**(9**(9**9))",
        "(2**16000) * (2**16000)",
        "1 - 9**9**9",
        "*".join(["(2**16000)"] * 100),
        "*".join(["9" * 4200] * 3),
    ],
)
def test_huge_integers_are_not_worked_out(expression: str) -> None:
    assert answer(expression) == TOO_LARGE


@pytest.mark.parametrize(
    "expression",
    [
        "(" * 10_000,
        "(" * 10_000 + "1" + ")" * 10_000,
        "-" * 16_000 + "1",
        "1" + "()" * 8_000,
        "+".join("1" * 8_000),
        "**".join("2" * 5_000),
        "1" * 16_000,
        "1 " * 8_000,
        "." * 16_000,
        " " * 16_000,
        "(1+" * 300 + "1" + ")" * 300,
        "(-" * 300 + "1" + ")" * 300,
    ],
)
def test_long_and_deep_expressions_are_answered_with_an_error(expression: str) -> None:
    assert answer(expression).startswith("Error: ")


def test_long_and_deep_expressions_that_are_reasonable_are_worked_out() -> None:
    assert answer("+".join(["1.25"] * 900)) == "1125.0"
    assert answer("-" * 900 + "1") == "1.0"
    assert answer("(" * 100 + "1" + ")" * 100) == "1.0"
    assert answer("1" * 16_000 + ".0") == "inf"
    assert answer("10**4000 // 10**3999") == "10.0"
    assert answer("1 ** (2**16000)") == "1.0"
    assert answer("2 ** -(9**9)") == "0.0"


def test_a_sum_has_a_thousand_signs_at_most() -> None:
    assert answer("+".join("1" * 1001)) == "1001.0"
    assert answer("+".join("1" * 1002)) == "Error: expression has more than 1000 signs"


def test_the_depth_of_the_caller_does_not_matter() -> None:
    expression = "-" * 900 + "1"

    def deeper(levels: int) -> str:
        return deeper(levels - 1) if levels else answer(expression)

    assert deeper(400) == "1.0"
