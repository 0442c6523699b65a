"""Rooms that are named like the one function most people want of them: `ea.replay(...)` and `ea.replay.diff`.

Importing `esper_analytics.replay` binds the module to the package's attribute `replay`, over any function of that
name. So the module itself can be called.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def make_callable(name: str, function: Callable[..., Any]) -> None:
    """Let the module of this name be called as the function is."""

    class CallableModule(ModuleType):
        __wrapped__ = staticmethod(function)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

    sys.modules[name].__class__ = CallableModule
