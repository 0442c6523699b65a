"""What the replay's evaluator computes with: NumPy arrays of one value, reason code or flag per update.

NumPy adds and compares as Python does: a comparison with NaN is false. A value that is missing is NaN, with the code of
its reason in an array beside it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from esper_recorder.contract.rules.expression import ExpressionOperators
from esper_recorder.contract.rules.signal import Reason

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]
Codes = np.ndarray[Any, np.dtype[np.uint8]]

REASONS: Final = tuple(Reason)
"""A reason's code is its place here plus one; 0 means that there is a value."""

COLUMNS: Final = ExpressionOperators(
    divide=lambda a, b: np.divide(a, b + 0.0),  # + 0.0 turns -0.0 into 0.0: an infinity has the sign of a
    least=np.minimum,
    greatest=np.maximum,
    choose=np.where,
)
"""The operators of a rule's expression on whole columns."""


def code(reason: Reason) -> int:
    """Return the code of a reason."""
    return REASONS.index(reason) + 1
