"""Arithmetic over the columns of one table row, as a rule writes it: `clip_fraction if approx_kl > 0.03 else 0.0`.

Covers: numbers, column names, `+ - * /`, unary minus, `abs`, `min`, `max`, comparisons (`< <= > >=`), `and`, `or`, and
`a if condition else b`. Everything else that Python can write is refused.

One tree serves both evaluators: `Expression.compile` walks it with the operators of Python values or of NumPy columns.
A NULL column makes the whole expression NULL, whichever branch is taken. Numbers are 64-bit floats; a / 0 is an
infinity with a's sign whatever the sign of the zero, and 0 / 0 is NaN. A comparison with NaN is false, and `min` and
`max` with a NaN are NaN.
"""

from __future__ import annotations

import ast
import functools
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

Compiled = Callable[[Mapping[str, Any]], Any]
"""From the columns by name: the value."""

_MOST_NODES: Final = 1000
"""A deeper tree could exceed Python's recursion limit, where the trainer's thread evaluates it."""

_SHARED: Final[dict[type[ast.AST], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.And: operator.and_,
    ast.Or: operator.or_,
}
"""What Python values and NumPy arrays compute alike."""


@dataclass(frozen=True, slots=True)
class ExpressionOperators:
    """What Python values and NumPy arrays compute differently.

    Attributes:
        divide: a / b as the module's docstring defines it.
        least, greatest: of two; NaN if one of them is.
        choose: of (condition, then, otherwise). Both branches are computed: no operation raises.
    """

    divide: Callable[[Any, Any], Any]
    least: Callable[[Any, Any], Any]
    greatest: Callable[[Any, Any], Any]
    choose: Callable[[Any, Any, Any], Any]


class ExpressionError(ValueError):
    """The text is not an expression that a rule may contain; the message says what in it is not."""


class Expression:
    """One parsed expression.

    Attributes:
        text: as it was written.
        columns: the columns it reads, in alphabetical order.
    """

    __slots__ = ("_of_row", "_tree", "columns", "text")

    def __init__(self, text: str) -> None:
        """Parse. Raises ExpressionError."""
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ExpressionError(f"{text[:100]!r} is not an expression ({error.__class__.__name__})") from None
        nodes = list(ast.walk(self._tree))
        if len(nodes) > _MOST_NODES:
            raise ExpressionError(f"'{text.strip()[:40]}...' is too long; it may have {_MOST_NODES} parts")
        self.text = text
        try:
            self._of_row = self.compile(ROW_OPERATORS)
        except RecursionError:
            raise ExpressionError(f"'{text.strip()[:40]}...' is nested too deep") from None
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

    def compile(self, operators: ExpressionOperators) -> Compiled:
        """Return the function that computes the expression with these operators. Raises ExpressionError."""
        return _compile_number(self._tree, operators)

    def evaluate(self, row: Mapping[str, Any]) -> float | None:
        """Compute the value for one row; None if one of its columns is NULL or missing."""
        values = {}
        for name in self.columns:
            value = row.get(name)
            if value is None:
                return None
            values[name] = float(value)
        result: float = self._of_row(values)
        return result


def _divide(a: float, b: float) -> float:
    if b != 0.0:
        return a / b
    return math.nan if a == 0.0 or a != a else math.copysign(math.inf, a)  # Python would raise


ROW_OPERATORS: Final = ExpressionOperators(
    divide=_divide,
    least=lambda a, b: math.nan if a != a or b != b else min(a, b),
    greatest=lambda a, b: math.nan if a != a or b != b else max(a, b),
    choose=lambda condition, then, otherwise: then if condition else otherwise,
)


def _compile_number(node: ast.expr, o: ExpressionOperators) -> Compiled:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            try:
                constant = float(value)
            except OverflowError:
                raise ExpressionError("a number in it is too large") from None
            return lambda columns: constant
        case ast.Name(id=name):
            return operator.itemgetter(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _compile_number(operand, o)
            return lambda columns: -inner(columns)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _apply(o.divide, _compile_number(left, o), _compile_number(right, o))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _SHARED:
            return _apply(_SHARED[type(op)], _compile_number(left, o), _compile_number(right, o))
        case ast.Call(func=ast.Name(id="abs"), args=[argument], keywords=[]):
            absolute = _compile_number(argument, o)
            return lambda columns: abs(absolute(columns))
        case ast.Call(func=ast.Name(id="min" | "max" as function), args=[_, _, *_] as arguments, keywords=[]):
            choose = o.least if function == "min" else o.greatest
            terms = [_compile_number(argument, o) for argument in arguments]
            return functools.reduce(functools.partial(_apply, choose), terms)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            condition, then, other = _compile_condition(test, o), _compile_number(body, o), _compile_number(orelse, o)
            return lambda columns: o.choose(condition(columns), then(columns), other(columns))
    raise ExpressionError(
        f"{ast.unparse(node)!r} is not allowed; an expression contains numbers, columns, + - * /, abs(a), min(a, b), "
        "max(a, b), and `a if b > c else d`"
    )


def _compile_condition(node: ast.expr, o: ExpressionOperators) -> Compiled:
    match node:
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _SHARED:
            return _apply(_SHARED[type(op)], _compile_number(left, o), _compile_number(right, o))
        case ast.BoolOp(op=op, values=parts):
            conditions = [_compile_condition(part, o) for part in parts]
            return functools.reduce(functools.partial(_apply, _SHARED[type(op)]), conditions)
    raise ExpressionError(
        f"{ast.unparse(node)!r} is not a condition; write one as `a > b`, with < <= > >=, joined by `and` and `or`"
    )


def _apply(operation: Callable[[Any, Any], Any], left: Compiled, right: Compiled) -> Compiled:
    return lambda columns: operation(left(columns), right(columns))
