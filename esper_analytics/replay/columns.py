"""The contract's comparisons and expressions on Polars columns, meaning what they mean on Python values.

Polars says `NaN > 5` is true; `esper_recorder.contract.compare` says it is false, and so do these.
"""

from __future__ import annotations

import ast
import math

import polars as pl

from esper_recorder.contract.expressions import Expression


def above(value: pl.Expr, threshold: pl.Expr) -> pl.Expr:
    """value > threshold; false where either is NULL or NaN."""
    return ((value > threshold) & value.is_not_nan() & threshold.is_not_nan()).fill_null(False)


def below(value: pl.Expr, threshold: pl.Expr) -> pl.Expr:
    """value < threshold; false where either is NULL or NaN."""
    return ((value < threshold) & value.is_not_nan() & threshold.is_not_nan()).fill_null(False)


def nonfinite(value: pl.Expr) -> pl.Expr:
    """NaN or an infinity; false for NULL."""
    return value.is_finite().not_().fill_null(False)


def compiled(expression: Expression, prefix: str = "") -> pl.Expr:
    """The expression over the columns of its names, each with the prefix, as `Expression.evaluate` has it for a row."""
    measured = pl.all_horizontal(pl.col(f"{prefix}{name}").is_not_null() for name in expression.columns)
    return pl.when(measured).then(_number(expression.tree, prefix)).otherwise(None)


def _number(node: ast.expr, prefix: str) -> pl.Expr:
    match node:
        case ast.Constant(value=int() | float() as value):
            return pl.lit(float(value))
        case ast.Name(id=name):
            return pl.col(f"{prefix}{name}").cast(pl.Float64)
        case ast.UnaryOp(operand=operand):
            return -_number(operand, prefix)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _divide(_number(left, prefix), _number(right, prefix))
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _number(left, prefix), _number(right, prefix)
            return a + b if isinstance(op, ast.Add) else a - b if isinstance(op, ast.Sub) else a * b
        case ast.Call(func=ast.Name(id="abs"), args=[argument]):
            return _number(argument, prefix).abs()
        case ast.Call(func=ast.Name(id=function), args=arguments):
            terms = [_number(argument, prefix) for argument in arguments]
            least = pl.min_horizontal(terms) if function == "min" else pl.max_horizontal(terms)
            return pl.when(pl.any_horizontal(term.is_nan() for term in terms)).then(math.nan).otherwise(least)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return pl.when(_truth(test, prefix)).then(_number(body, prefix)).otherwise(_number(orelse, prefix))
    raise AssertionError(f"an expression holds {ast.dump(node)} and was not refused")


def _truth(node: ast.expr, prefix: str) -> pl.Expr:
    match node:
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            a, b = _number(left, prefix), _number(right, prefix)
            numbers = a.is_not_nan() & b.is_not_nan()
            match op:
                case ast.Lt():
                    return (a < b) & numbers
                case ast.LtE():
                    return (a <= b) & numbers
                case ast.Gt():
                    return (a > b) & numbers
            return (a >= b) & numbers
        case ast.BoolOp(op=op, values=parts):
            conditions = [_truth(part, prefix) for part in parts]
            return pl.all_horizontal(conditions) if isinstance(op, ast.And) else pl.any_horizontal(conditions)
    raise AssertionError(f"an expression holds {ast.dump(node)} and was not refused")


def _divide(a: pl.Expr, b: pl.Expr) -> pl.Expr:
    infinity = pl.when(a > 0.0).then(math.inf).otherwise(-math.inf)
    by_zero = pl.when((a == 0.0) | a.is_nan()).then(math.nan).otherwise(infinity)
    return pl.when(b == 0.0).then(by_zero).otherwise(a / b)
