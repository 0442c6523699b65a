"""Arithmetic over the columns of a row: what it means, and what it refuses."""

from __future__ import annotations

import math

import pytest

from esper_recorder.contract.rules.expression import Expression, ExpressionError


@pytest.mark.parametrize(
    ("text", "row", "value"),
    [
        ("a + b * 2", {"a": 1, "b": 3}, 7.0),
        ("-a / b", {"a": 1.0, "b": 4.0}, -0.25),
        ("abs(a - b)", {"a": 1.0, "b": 4.0}, 3.0),
        ("max(a - 1, 1 - b)", {"a": 1.2, "b": 0.5}, 0.5),
        ("min(a, b, 0.5)", {"a": 1.2, "b": 0.7}, 0.5),
        ("a if b > 0.5 else 0.0", {"a": 9.0, "b": 0.5}, 0.0),
        ("0.3 if a < 1e-7 or a > 100 else 1.0", {"a": 100.5}, 0.3),
        ("1 if a >= 1 and a <= 2 else 0", {"a": 2.0}, 1.0),
        ("a", {"a": True}, 1.0),
    ],
)
def test_an_expression_is_arithmetic_over_the_row(text: str, row: dict[str, float], value: float) -> None:
    assert Expression(text).evaluate(row) == value


def test_a_column_that_is_null_makes_it_null_whichever_branch_is_taken() -> None:
    expression = Expression("a if b > 0 else 0.0")
    assert expression.evaluate({"a": None, "b": -1.0}) is None
    assert expression.evaluate({"a": 1.0}) is None
    assert expression.columns == ("a", "b")


def test_division_by_zero_is_an_infinity_or_nan_and_does_not_raise() -> None:
    ratio = Expression("a / b")
    assert ratio.evaluate({"a": 1.0, "b": 0.0}) == math.inf
    assert ratio.evaluate({"a": -1.0, "b": -0.0}) == -math.inf
    assert math.isnan(ratio.evaluate({"a": 0.0, "b": 0.0}) or 0.0)


def test_nan_propagates_and_is_on_neither_side_of_a_comparison() -> None:
    assert math.isnan(Expression("max(a, 1)").evaluate({"a": math.nan}) or 0.0)
    assert Expression("1 if a > 0 else 2").evaluate({"a": math.nan}) == 2.0
    assert Expression("1 if a <= 0 else 2").evaluate({"a": math.nan}) == 2.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1 + 2",
        "a +",
        "a ** 2",
        "a // 2",
        "a == 1",
        "not a",
        "a > 1",
        "1 < a < 2",
        "exp(a)",
        "max(a)",
        "abs(a, b)",
        "max(*a, b)",
        "a.b",
        "a[0]",
        "'text'",
        "True + a",
        "lambda: a",
        "(a := 1)",
        "__import__('os').system('true')",
        "[a for a in (1,)]",
        "a if b else c",
        "1" + "0" * 400 + " * a",
        "(" * 500 + "a" + ")" * 500,
        "a" + " + a" * 900,
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        Expression(text)
