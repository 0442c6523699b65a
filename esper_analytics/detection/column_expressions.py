"""The contract's expressions over whole columns, meaning what `Expression.evaluate` means for a row.

NumPy adds, multiplies and compares as Python does, NaN included; what differs is division by zero.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from esper_recorder.contract.rules.expression import Expression

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]


def evaluate(expression: Expression, columns: Mapping[str, Floats]) -> Floats:
    """The expression's value for each row.

    Args:
        expression: what to compute.
        columns: by name, the numbers of every column it reads, all of one length. Where one of them is missing the
            result is a number of no meaning: the caller knows those rows.
    """
    with np.errstate(all="ignore"):  # what comes out not finite is seen to by the rules
        return np.asarray(_number(expression.tree, columns), np.float64)


def _number(node: ast.expr, columns: Mapping[str, Floats]) -> Any:
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value)
        case ast.Name(id=name):
            return columns[name]
        case ast.UnaryOp(operand=operand):
            return -_number(operand, columns)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _number(left, columns), _number(right, columns)
            match op:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
            return np.divide(a, b + 0.0)  # by +0, where b is -0: an infinity has the sign of a
        case ast.Call(func=ast.Name(id="abs"), args=[argument]):
            return abs(_number(argument, columns))
        case ast.Call(func=ast.Name(id=function), args=arguments):
            choose = np.minimum if function == "min" else np.maximum  # NaN where one of the two is
            return functools.reduce(choose, (_number(argument, columns) for argument in arguments))
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return np.where(_truth(test, columns), _number(body, columns), _number(orelse, columns))
    raise AssertionError(f"an expression holds {ast.dump(node)} and was not refused")


def _truth(node: ast.expr, columns: Mapping[str, Floats]) -> Flags | bool:
    match node:
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            a, b = _number(left, columns), _number(right, columns)
            match op:
                case ast.Lt():
                    return a < b  # type: ignore[no-any-return]
                case ast.LtE():
                    return a <= b  # type: ignore[no-any-return]
                case ast.Gt():
                    return a > b  # type: ignore[no-any-return]
            return a >= b  # type: ignore[no-any-return]
        case ast.BoolOp(op=op, values=parts):
            combine = np.logical_and if isinstance(op, ast.And) else np.logical_or
            return functools.reduce(combine, (_truth(part, columns) for part in parts))
    raise AssertionError(f"an expression holds {ast.dump(node)} and was not refused")
