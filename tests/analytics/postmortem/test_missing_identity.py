"""A row without its update, attempt, time or minibatch, in any table, is left out where it has no place, and counted.

Covers: every command that reads rows, over a run whose every table has one such row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from esper_analytics.plots.registry import PLOTS
from esper_recorder.contract.tables import TABLES, column_names, columns
from esper_recorder.storage.parquet import write_part
from tests.builders import write_run
from tests.support import esper

RULES = """
[rules.kl]
severity = "critical"
column = "approx_kl"
above = 0.01

[rules.layers]
severity = "warning"
table = "gradient_layers"
column = "grad_norm"
key = "layer"
take = "max"
above = 0.01

[rules.heads]
severity = "warning"
table = "heads"
column = "ratio_max"
key = "head"
above = 0.5
"""
IDENTITY = ("update", "attempt", "rank", "time", "elapsed_s", "epoch", "minibatch")
COMMANDS: list[tuple[str, ...]] = [
    ("runs",),
    ("show",),
    ("show", "--format", "json"),
    ("replay", "--rules", "RULES"),
    ("replay", "--rules", "RULES", "--show", "coverage"),
    ("replay", "--rules", "RULES", "--against", "live"),
    ("replay", "--rules", "RULES", "--against", "default"),
    ("sweep", "--rules", "RULES", "--rule", "layers", "--values", "0.5,1"),
    ("forensics",),
    ("forensics", "--update", "1"),
    ("report", "--rules", "RULES", "-o", "x.html", "--against", "live"),
    ("report", "--rules", "default", "-o", "x.json"),
    *(("plot", "--kind", kind, "-o", "x.svg") for kind in PLOTS),
    ("verify",),
]


def row(table: str) -> dict[str, Any]:
    """A row in which every number is 1 and every text is x."""
    values = {"string": "x", "int64": 1, "float64": 1.0, "bool": True}
    values |= {"list<string>": ["x"], "list<int64>": [1], "list<float64>": [1.0]}
    own = ("run_id", *IDENTITY[:5])
    return {c.name: values[c.type] for c in columns(table) if c.name not in own and c.type in values}


def write_nulls(root: Path, column: str) -> None:
    """Write a run of updates 1 to 3 in which `column` is NULL in the second row of each table that has it."""
    rows = {table: [row(table) | {"update": update} for update in (1, 2, 3)] for table in TABLES}
    path = write_run(root, "run", tables=rows, rules=RULES, profile="mine")
    for part in path.glob("*/*.parquet"):
        if column in column_names(part.parent.name):
            data = pq.ParquetFile(part).read()
            place = data.schema.get_field_index(column)
            values = [None if position == 1 else value for position, value in enumerate(data[column].to_pylist())]
            data = data.set_column(place, data.schema.field(place), pa.array(values, data.schema.field(place).type))
            write_part(part, part.parent.name, data, durable=False)


@pytest.mark.parametrize(
    "column", ["update", *(pytest.param(column, marks=pytest.mark.slow) for column in IDENTITY[1:])]
)
def test_no_command_fails_on_a_row_without_a_part_of_its_identity(tmp_path, monkeypatch, column):
    monkeypatch.chdir(tmp_path)
    write_nulls(tmp_path / "runs", column)
    (tmp_path / "rules.toml").write_text(RULES)
    for command, *options in COMMANDS:
        words = [option.replace("RULES", "rules.toml") for option in options]
        result = esper(command, "runs", *words, code=None)
        failed = result.exception is not None and not isinstance(result.exception, SystemExit)
        assert not failed, (command, options, result.exception)
        assert result.exit_code in (0, 2), (command, options, result.stderr)


def test_a_report_says_how_many_rows_have_no_update(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_nulls(tmp_path / "runs", "update")
    esper("report", "runs", "--rules", "default", "-o", "x.md")
    text = Path("x.md").read_text()
    assert "1 row of ppo_updates has no update, and has no place in what follows." in text
    assert "1 update of 3 not recorded: 2." in text  # updates 1 and 3 have their rows
    esper("sql", "runs", 'SELECT count(*) AS n FROM ppo_updates WHERE "update" IS NULL', "-o", "n.csv")
    assert pl.read_csv("n.csv")["n"].to_list() == [1]
