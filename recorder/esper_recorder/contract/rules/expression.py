"""Arithmetic over the columns of one table row, as a rule writes it: `clip_fraction if approx_kl > 0.03 else 0.0`.

The text is parsed with `ast` and nothing but what is listed here is accepted: numbers, column names, `+ - * /`, unary
minus, `abs`, `min`, `max`, comparisons (`< <= > >=`), `and`, `or`, and `a if condition else b`.

Both evaluators mean the same by it. A column that is NULL makes the whole expression NULL, whichever branch is taken.
Numbers are 64-bit floats; a / 0 is an infinity of a's sign whatever the sign of the zero, and 0 / 0 is NaN. A
comparison with NaN is false, and `min` and `max` with a NaN are NaN.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

Values = Mapping[str, float]

FUNCTIONS: Final = ("abs", "min", "max")


class ExpressionError(ValueError):
    """The text is no expression a rule may hold; the message says what in it is not."""


class Expression:
    """One parsed expression.

    Attributes:
        text: as it was written.
        tree: its `ast` node, checked.
        columns: the columns it reads, in alphabetical order.
    """

    __slots__ = ("_evaluate", "columns", "text", "tree")

    def __init__(self, text: str) -> None:
        """Parse. Raises ExpressionError."""
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ExpressionError(f"{text!r} is not an expression ({error.__class__.__name__})") from None
        names: set[str] = set()
        self._evaluate = _number(tree, names)
        self.text = text
        self.tree = tree
        self.columns = tuple(sorted(names))
        if not names:
            raise ExpressionError(f"{text!r} reads no column")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expression) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"

    def evaluate(self, row: Mapping[str, Any]) -> float | None:
        """The value for one row; None where one of its columns is NULL or not there."""
        values = {}
        for name in self.columns:
            value = row.get(name)
            if value is None:
                return None
            values[name] = float(value)
        return self._evaluate(values)


def divide(a: float, b: float) -> float:
    """a / b; by zero an infinity of a's sign, or NaN for 0 / 0, where Python would raise."""
    if b != 0.0:
        return a / b
    return math.nan if a == 0.0 or a != a else math.copysign(math.inf, a)


def _least(values: list[float]) -> float:
    return math.nan if any(v != v for v in values) else min(values)


def _greatest(values: list[float]) -> float:
    return math.nan if any(v != v for v in values) else max(values)


_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: divide,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
}


def _number(node: ast.expr, names: set[str]) -> Callable[[Values], float]:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            try:
                constant = float(value)
            except OverflowError:
                raise ExpressionError("a number in it is too large") from None
            return lambda values: constant
        case ast.Name(id=name):
            names.add(name)
            return lambda values: values[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _number(operand, names)
            return lambda values: -inner(values)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            a, operate, b = _number(left, names), _OPERATORS[type(op)], _number(right, names)
            return lambda values: operate(a(values), b(values))
        case ast.Call(func=ast.Name(id="abs"), args=[argument], keywords=[]):
            only = _number(argument, names)
            return lambda values: abs(only(values))
        case ast.Call(func=ast.Name(id="min" | "max" as function), args=[_, _, *_] as arguments, keywords=[]):
            terms = [_number(argument, names) for argument in arguments]
            choose = _least if function == "min" else _greatest
            return lambda values: choose([term(values) for term in terms])
        case ast.IfExp(test=test, body=body, orelse=orelse):
            condition, then, other = _truth(test, names), _number(body, names), _number(orelse, names)
            return lambda values: then(values) if condition(values) else other(values)
    raise ExpressionError(
        f"{ast.unparse(node)!r} is not allowed; an expression holds numbers, columns, + - * /, abs(a), min(a, b), "
        "max(a, b), and `a if b > c else d`"
    )


def _truth(node: ast.expr, names: set[str]) -> Callable[[Values], bool]:
    match node:
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARISONS:
            a, compare, b = _number(left, names), _COMPARISONS[type(op)], _number(right, names)
            return lambda values: compare(a(values), b(values))
        case ast.BoolOp(op=op, values=parts):
            conditions = [_truth(part, names) for part in parts]
            quantify = all if isinstance(op, ast.And) else any
            return lambda values: quantify(condition(values) for condition in conditions)
    raise ExpressionError(
        f"{ast.unparse(node)!r} is not a condition; write one as `a > b`, with < <= > >=, joined by `and` and `or`"
    )
