"""Packages whose public names are loaded when they are first used, so that importing them loads no library."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(
    package: str, names_by_module: Mapping[str, tuple[str, ...]], *, distribution: str | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package (PEP 562).

    Args:
        package: the package's `__name__`.
        names_by_module: module -> the public names that it defines.
        distribution: the distribution whose metadata `__version__` comes from; None for a package without one.
    """
    module_of = {name: module for module, names in names_by_module.items() for name in names}

    def get(name: str) -> Any:
        value: Any
        if name == "__version__" and distribution is not None:
            from importlib.metadata import version

            value = version(distribution)
        elif name in module_of:
            value = getattr(importlib.import_module(module_of[name]), name)
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name)
        setattr(sys.modules[package], name, value)  # the next access does not come here
        return value

    def names() -> list[str]:
        return sorted(module_of)

    return get, names
