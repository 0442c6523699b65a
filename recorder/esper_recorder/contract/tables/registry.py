"""The tables of the contract and their columns."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from esper_recorder.contract.tables import esper, ppo
from esper_recorder.contract.tables.base import IDENTITY, TYPES, Column, Reducer, Row

TABLES: dict[str, type[Row]] = {
    declared.table: declared
    for module in (ppo, esper)
    for declared in vars(module).values()
    if isinstance(declared, type) and issubclass(declared, Row) and "table" in vars(declared)
}
"""Table -> its declaration, in the order the modules declare them."""


@functools.cache
def columns(table: str) -> tuple[Column, ...]:
    """Return a table's columns: identity, other keys, the rest in the order of declaration. Raises KeyError."""
    cls = TABLES[table]
    hints = typing.get_type_hints(cls)
    declared = [Column(name=f.name, type=_type_name(hints[f.name]), **f.metadata) for f in dataclasses.fields(cls)]
    return tuple(sorted(declared, key=lambda c: (c.name not in IDENTITY, c.reducer is not Reducer.KEY)))


def column_names(table: str) -> tuple[str, ...]:
    """Return the names of a table's columns, in order."""
    return tuple(c.name for c in columns(table))


def key_columns(table: str) -> tuple[str, ...]:
    """Return the names of the columns that identify a row."""
    return tuple(c.name for c in columns(table) if c.reducer is Reducer.KEY)


@functools.cache
def former_names(table: str) -> dict[str, str]:
    """Map the former names of a table's renamed columns to the present ones."""
    return {c.renamed_from: c.name for c in columns(table) if c.renamed_from is not None}


def stored_names(table: str, names: Iterable[str]) -> dict[str, str]:
    """Map columns to the names that store them, out of the names in a file of any schema version.

    A column's present name wins: a file that has both (ours never do) is read by that one. Names that are not declared
    (of a newer recorder) are left out.
    """
    available = set(names)
    return {c.name: name for c in columns(table) for name in (c.renamed_from, c.name) if name in available}


def all_columns() -> Iterator[tuple[str, Column]]:
    """Iterate over every (table, column) of the contract."""
    for table in TABLES:
        for column in columns(table):
            yield table, column


def _type_name(hint: Any) -> str:
    (not_none,) = (arg for arg in typing.get_args(hint) if arg is not type(None))
    return TYPES[not_none]
