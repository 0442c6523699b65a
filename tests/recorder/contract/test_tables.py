"""The declared tables: complete, consistent, and the schema of the Parquet parts."""

from __future__ import annotations

import dataclasses
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from esper_recorder.contract.tables import (
    SCHEMA_VERSION,
    TABLES,
    Reducer,
    column_names,
    columns,
    key_columns,
)
from esper_recorder.storage.arrow_batches import columns_to_table
from esper_recorder.storage.parquet import arrow_schema, write_part

IDENTITY = ("run_id", "attempt", "rank", "update", "time", "elapsed_s")

EXAMPLES: dict[str, list[Any]] = {
    "int64": [-1, 2],
    "float64": [math.nan, 1.5],
    "string": ["", "layer.0.weight"],
    "bool": [True, False],
    "timestamp[us, UTC]": [datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 0, 0, 1, 5, tzinfo=UTC)],
    "list<int64>": [[], [1, 2]],
    "list<float64>": [[math.nan, 1.0], [0.5]],
    "list<string>": [[], ["a"]],
}


def two_rows(table: str) -> dict[str, list[Any]]:
    return {c.name: EXAMPLES[c.type] for c in columns(table)}


class TestDeclarations:
    @pytest.mark.parametrize("table", TABLES)
    def test_every_table_begins_with_identity_and_time_then_its_other_keys(self, table):
        names = column_names(table)
        assert names[: len(IDENTITY)] == IDENTITY
        own = [c.reducer is Reducer.KEY for c in columns(table)[len(IDENTITY) :]]
        assert own == sorted(own, reverse=True)
        assert key_columns(table)[:4] == IDENTITY[:4]

    @pytest.mark.parametrize("table", TABLES)
    def test_no_table_has_a_column_twice(self, table):
        assert len(set(column_names(table))) == len(columns(table)) == len(dataclasses.fields(TABLES[table]))

    @pytest.mark.parametrize("table", TABLES)
    def test_every_table_describes_its_row(self, table):
        assert TABLES[table].table == table
        assert TABLES[table].row.startswith("one ")

    @pytest.mark.parametrize("table", TABLES)
    def test_every_column_says_what_it_means_and_what_null_means(self, table):
        for column in columns(table):
            assert column.meaning.strip(), column.name
            assert column.null.strip(), column.name
            assert 1 <= column.since <= SCHEMA_VERSION, column.name
            assert column.type in EXAMPLES, column.name

    @pytest.mark.parametrize("table", TABLES)
    def test_numbers_have_a_unit_and_names_and_flags_do_not(self, table):
        numbers = [c.name for c in columns(table) if c.type in ("int64", "float64", "list<int64>", "list<float64>")]
        assert [c.name for c in columns(table) if c.unit] == numbers

    @pytest.mark.parametrize("table", TABLES)
    def test_only_numbers_are_added_up_or_compared(self, table):
        allowed = {
            Reducer.SUM: ("int64", "float64", "list<int64>"),
            Reducer.MIN: ("int64", "float64"),
            Reducer.MAX: ("int64", "float64"),
        }
        for column in columns(table):
            assert column.type in allowed.get(column.reducer, EXAMPLES), column.name

    @pytest.mark.parametrize("table", TABLES)
    def test_counts_are_whole_numbers_and_add_up(self, table):
        endings = ("_n", "_count", "_nan", "_posinf", "_neginf", "_nonfinite")
        for column in columns(table):
            if column.name == "n" or column.name.endswith(endings):
                assert (column.type, column.reducer) == ("int64", Reducer.SUM), column.name

    @pytest.mark.parametrize("table", TABLES)
    def test_every_sum_of_squares_stands_beside_its_sum(self, table):
        names = set(column_names(table))
        alone = {"weight_sum_sq", "step_sum_sq"}  # norms are made of them, and no deviation
        squares = {name for name in names if name.endswith("_sum_sq") and name not in alone}
        assert {name.removesuffix("_sq") for name in squares} <= names

    def test_the_sums_of_an_update_are_those_of_its_minibatches(self):
        """Whatever an update adds up over its minibatches is declared the same in both tables."""
        update = {c.name: c for c in columns("ppo_updates")}
        for column in columns("minibatches"):
            if column.reducer in (Reducer.SUM, Reducer.DERIVED) and column.name in update:
                assert (column.type, column.unit) == (update[column.name].type, update[column.name].unit)
        shared = {c.name for c in columns("minibatches") if c.reducer is Reducer.SUM}
        assert shared <= set(update)

    def test_a_table_that_is_not_declared_is_refused(self):
        with pytest.raises(KeyError):
            columns("ppo_update")

    def test_a_declaration_can_not_be_changed(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            columns("ppo_updates")[0].name = "other"  # type: ignore[misc]


class TestArrow:
    @pytest.mark.parametrize("table", TABLES)
    def test_the_schema_has_the_declared_columns_in_their_order(self, table):
        schema = arrow_schema(table)
        assert tuple(schema.names) == column_names(table)
        printed = {"double": "float64", "timestamp[us, tz=UTC]": "timestamp[us, UTC]"}
        for field, column in zip(schema, columns(table), strict=True):
            type_ = field.type
            inner = f"list<{type_.value_type}>" if pa.types.is_list(type_) else str(type_)
            assert printed.get(inner, inner).replace("double", "float64") == column.type

    @pytest.mark.parametrize("table", TABLES)
    def test_a_column_not_given_is_null(self, table):
        data = columns_to_table(table, {"update": [1, 2]})
        assert data.num_rows == 2
        assert all(data.column(name).null_count == 2 for name in data.schema.names if name != "update")

    def test_a_column_not_declared_is_refused_by_name(self):
        with pytest.raises(KeyError, match="ratio_maxx"):
            columns_to_table("ppo_updates", {"update": [1], "ratio_maxx": [1.0]})


class TestParts:
    @pytest.mark.parametrize("table", TABLES)
    def test_float_columns_carry_no_statistics_in_the_footer_and_the_others_do(self, table, tmp_path):
        path = tmp_path / table / "part-a1-r0-000001.parquet"
        write_part(path, table, columns_to_table(table, two_rows(table)))
        group = pq.read_metadata(path).row_group(0)
        chunks = {c.path_in_schema.split(".")[0]: c for c in map(group.column, range(group.num_columns))}
        assert set(chunks) == set(column_names(table))
        for column in columns(table):
            if column.is_float:
                assert not chunks[column.name].is_stats_set, column.name
                assert not chunks[column.name].has_column_index, column.name
            elif not column.type.startswith("list"):
                assert chunks[column.name].is_stats_set, column.name

    @pytest.mark.parametrize("table", TABLES)
    def test_what_was_written_is_read_back_value_for_value(self, table, tmp_path):
        path = tmp_path / table / "part-a1-r0-000001.parquet"
        data = columns_to_table(table, {name: [*values, None] for name, values in two_rows(table).items()})
        write_part(path, table, data)
        back = pq.read_table(path)
        assert back.schema.equals(data.schema)
        assert repr(back.to_pylist()) == repr(data.to_pylist())  # NaN equals NaN here

    def test_nan_is_found_by_duckdb_and_by_polars(self, tmp_path):
        path = tmp_path / "ppo_updates" / "part-a1-r0-000001.parquet"
        values = [0.5, math.nan, None, math.inf, -math.inf, 2.0]
        write_part(path, "ppo_updates", columns_to_table("ppo_updates", {"update": range(1, 7), "ratio_max": values}))
        where = {"isnan(ratio_max)": [2], "ratio_max IS NULL": [3], "ratio_max > 1 AND NOT isnan(ratio_max)": [4, 6]}
        ratio = pl.col("ratio_max")
        same = [ratio.is_nan(), ratio.is_null(), (ratio > 1) & ratio.is_not_nan()]
        for (condition, updates), expression in zip(where.items(), same, strict=True):
            found = duckdb.execute(f"SELECT update FROM '{path}' WHERE {condition} ORDER BY 1").fetchall()
            assert [row[0] for row in found] == updates
            assert pl.scan_parquet(path).filter(expression).collect()["update"].to_list() == updates

    def test_a_part_says_what_it_holds(self, tmp_path):
        path = tmp_path / "episodes" / "part-a1-r0-000001.parquet"
        write_part(path, "episodes", columns_to_table("episodes", {"update": [3, 3, 7]}))
        metadata = pq.read_metadata(path).metadata
        assert metadata[b"esper_table"] == b"episodes"
        assert metadata[b"esper_schema_version"] == str(SCHEMA_VERSION).encode()
        assert (metadata[b"esper_rows"], metadata[b"esper_first_update"], metadata[b"esper_last_update"]) == (
            b"3",
            b"3",
            b"7",
        )

    def test_a_part_without_rows_is_a_part(self, tmp_path: Path):
        path = tmp_path / "alarms" / "part-a1-r0-000001.parquet"
        write_part(path, "alarms", columns_to_table("alarms", {}))
        assert pq.read_table(path).num_rows == 0
        assert [p.name for p in path.parent.iterdir()] == [path.name]
