"""Arithmetic over the columns of one table row, as a rule writes it: `clip_fraction if approx_kl > 0.03 else 0.0`.

The text is parsed with `ast`, and nothing but the following is accepted: numbers, column names, `+ - * /`, unary minus,
`abs`, `min`, `max`, comparisons (`< <= > >=`), `and`, `or`, and `a if condition else b`.

Both evaluators walk the same tree, with operators for numbers here and for whole columns in the replay. A column that
is NULL makes the whole expression NULL, whichever branch is taken. Numbers are 64-bit floats; a / 0 is an infinity with
the sign of a whatever the sign of the zero, and 0 / 0 is NaN. A comparison with NaN is false, and `min` and `max` with
a NaN are NaN.
"""

from __future__ import annotations

import ast
import functools
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

Evaluate = Callable[[Mapping[str, Any]], Any]
"""From the columns an expression reads, by name, to its value."""

FUNCTIONS: Final = ("abs", "min", "max")


class ExpressionError(ValueError):
    """The text is not an expression that a rule may contain; the message names the part that is refused."""


@dataclass(frozen=True, slots=True)
class Operators:
    """The operations that Python does not define alike for a number and for an array of them."""

    divide: Callable[[Any, Any], Any]
    least: Callable[[Any, Any], Any]
    greatest: Callable[[Any, Any], Any]
    both: Callable[[Any, Any], Any]
    either: Callable[[Any, Any], Any]
    choose: Callable[[Any, Any, Any], Any]
    """From a condition and the values if it is true and if it is false."""


class Expression:
    """One parsed expression.

    Attributes:
        text: as it was written.
        columns: the columns it reads, in alphabetical order.
    """

    __slots__ = ("_evaluate", "_tree", "columns", "text")

    def __init__(self, text: str) -> None:
        """Parse. Raises ExpressionError."""
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ExpressionError(f"{text!r} is not an expression ({error.__class__.__name__})") from None
        self._evaluate = self.compile(NUMBERS)
        self.text = text
        nodes = list(ast.walk(self._tree))
        functions = {node.func for node in nodes if isinstance(node, ast.Call)}
        names = {node.id for node in nodes if isinstance(node, ast.Name) and node not in functions}
        self.columns = tuple(sorted(names))
        if not self.columns:
            raise ExpressionError(f"{text!r} reads no column")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expression) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Expression({self.text!r})"

    def evaluate(self, row: Mapping[str, Any]) -> float | None:
        """Return the value for one row; None if one of its columns is NULL or absent."""
        values = {}
        for name in self.columns:
            value = row.get(name)
            if value is None:
                return None
            values[name] = float(value)
        result: float = self._evaluate(values)
        return result

    def compile(self, operators: Operators) -> Evaluate:
        """Return the expression as a function on the values that the operators work on."""
        return _number(self._tree, operators)


def divide(a: float, b: float) -> float:
    """a / b; by zero an infinity with the sign of a, or NaN for 0 / 0, where Python would raise."""
    if b != 0.0:
        return a / b
    return math.nan if a == 0.0 or a != a else math.copysign(math.inf, a)


NUMBERS: Final = Operators(
    divide=divide,
    least=lambda a, b: min(a, b) if a == a and b == b else math.nan,
    greatest=lambda a, b: max(a, b) if a == a and b == b else math.nan,
    both=lambda a, b: a and b,
    either=lambda a, b: a or b,
    choose=lambda condition, a, b: a if condition else b,
)
_ARITHMETIC: Final[dict[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}
_COMPARISONS: Final[dict[type[ast.cmpop], Callable[[Any, Any], Any]]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def _number(node: ast.expr, operators: Operators) -> Evaluate:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            try:
                constant = float(value)
            except OverflowError:
                raise ExpressionError("a number in it is too large") from None
            return lambda values: constant
        case ast.Name(id=name):
            return operator.itemgetter(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _number(operand, operators)
            return lambda values: -inner(values)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC or isinstance(op, ast.Div):
            return _joined(
                _ARITHMETIC.get(type(op), operators.divide), _number(left, operators), _number(right, operators)
            )
        case ast.Call(func=ast.Name(id="abs"), args=[argument], keywords=[]):
            only = _number(argument, operators)
            return lambda values: abs(only(values))
        case ast.Call(func=ast.Name(id="min" | "max" as function), args=[_, _, *_] as arguments, keywords=[]):
            combine = operators.least if function == "min" else operators.greatest
            return functools.reduce(functools.partial(_joined, combine), [_number(one, operators) for one in arguments])
        case ast.IfExp(test=test, body=body, orelse=orelse):
            condition, then, other = _truth(test, operators), _number(body, operators), _number(orelse, operators)
            return lambda values: operators.choose(condition(values), then(values), other(values))
    raise ExpressionError(
        f"{ast.unparse(node)!r} is not allowed; an expression holds numbers, columns, + - * /, abs(a), min(a, b), "
        "max(a, b), and `a if b > c else d`"
    )


def _truth(node: ast.expr, operators: Operators) -> Evaluate:
    match node:
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARISONS:
            return _joined(_COMPARISONS[type(op)], _number(left, operators), _number(right, operators))
        case ast.BoolOp(op=op, values=parts):
            combine = operators.both if isinstance(op, ast.And) else operators.either
            return functools.reduce(functools.partial(_joined, combine), [_truth(part, operators) for part in parts])
    raise ExpressionError(
        f"{ast.unparse(node)!r} is not a condition; write one as `a > b`, with < <= > >=, joined by `and` and `or`"
    )


def _joined(combine: Callable[[Any, Any], Any], left: Evaluate, right: Evaluate) -> Evaluate:
    return lambda values: combine(left(values), right(values))
