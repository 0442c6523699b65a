"""The tables of a recorded run. `base` declares columns, `ppo` and `esper` the tables, `registry` lists them."""

from esper_recorder.contract.tables.base import IDENTITY, SCHEMA_VERSION, AcrossRanks, Column, Reducer, Row
from esper_recorder.contract.tables.registry import (
    TABLES,
    all_columns,
    column_names,
    columns,
    former_names,
    key_columns,
    stored_names,
)

__all__ = [
    "IDENTITY",
    "SCHEMA_VERSION",
    "TABLES",
    "AcrossRanks",
    "Column",
    "Reducer",
    "Row",
    "all_columns",
    "column_names",
    "columns",
    "former_names",
    "key_columns",
    "stored_names",
]
