"""One question has one answer: in DuckDB and in Polars, from a journal and from parts however they were written."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest

import esper_analytics as ea
from tests.builders import add_journal, complete_rows, run_id_of, write_manifest, write_run
from tests.support import ROOT

NAN, INF = math.nan, math.inf
# One row group each: NaN among small numbers, where statistics would prune it; then NaN alone, infinities, no number.
SERIES: dict[str, list[Any]] = {
    "NaN among small numbers": [1.0, NAN, 2.0, None],
    "NaN and infinities": [NAN, INF, -INF, 0.5, None],
    "only NaN": [NAN, NAN],
    "only NULL": [None, None],
    "no NaN": [1.0, 3.0, 7.0],
}


def plain_rewrite(path: Path, **options) -> None:
    """Rewrite a run's parts as a program that knows nothing of us would: with statistics on every column."""
    for part in path.glob("ppo_updates/*.parquet"):
        pq.write_table(pq.read_table(part), part, **options)


def as_journal(root, values):
    path = root / run_id_of("run")
    path.mkdir(parents=True)
    write_manifest(path, run_id=path.name, last_update=len(values))
    add_journal(path, {"ppo_updates": complete_rows("ppo_updates", rows(values), run_id=path.name)})


def as_part(root, values):
    write_run(root, updates=rows(values))


def with_statistics(root, values):
    plain_rewrite(write_run(root, updates=rows(values)), write_statistics=True)


def with_page_index(root, values):
    plain_rewrite(write_run(root, updates=rows(values)), write_statistics=True, write_page_index=True, row_group_size=2)


def as_float32_with_statistics(root, values):
    path = write_run(root, updates=rows(values))
    for part in path.glob("ppo_updates/*.parquet"):
        table = pq.read_table(part)
        position = table.schema.get_field_index("ratio_max")
        narrow = table.column("ratio_max").cast("float")
        pq.write_table(table.set_column(position, "ratio_max", narrow), part, write_statistics=True)


def rows(values):
    return [{"ratio_max": value} for value in values]


WRITERS = [as_journal, as_part, with_statistics, with_page_index, as_float32_with_statistics]
QUESTIONS: dict[str, tuple[str, Any]] = {
    "isnan": ("SELECT update FROM ppo_updates WHERE isnan(ratio_max)", lambda t: t.filter(pl.col.ratio_max.is_nan())),
    "equal to NaN": (
        "SELECT update FROM ppo_updates WHERE ratio_max = 'nan'",
        lambda t: t.filter(pl.col.ratio_max == NAN),
    ),
    "> 1.5, as the engines have it": (
        "SELECT update FROM ppo_updates WHERE ratio_max > 1.5",
        lambda t: t.filter(pl.col.ratio_max > 1.5),
    ),
    "> 5, as the engines have it": (
        "SELECT update FROM ppo_updates WHERE ratio_max > 5",
        lambda t: t.filter(pl.col.ratio_max > 5),
    ),
    "NULL": ("SELECT update FROM ppo_updates WHERE ratio_max IS NULL", lambda t: t.filter(pl.col.ratio_max.is_null())),
    "not finite": (
        "SELECT update FROM ppo_updates WHERE NOT isfinite(ratio_max)",
        lambda t: t.filter(~pl.col.ratio_max.is_finite()),
    ),
}


def test_the_expected_answers_are_those_of_python(tmp_path):
    as_part(tmp_path, SERIES["NaN among small numbers"])
    runs = ea.open(tmp_path)
    assert runs.sql("SELECT update FROM ppo_updates WHERE isnan(ratio_max)").to_series().to_list() == [2]
    assert runs.sql("SELECT update FROM ppo_updates WHERE ratio_max IS NULL").to_series().to_list() == [4]
    assert runs.sql("SELECT update FROM ppo_updates WHERE above(ratio_max, 1.5)").to_series().to_list() == [3]


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("series", SERIES)
@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_rows_are_found_whoever_wrote_them_and_whoever_asks(tmp_path, write, series, question):
    as_part(tmp_path / "reference", SERIES[series])
    write(tmp_path / "runs", SERIES[series])
    sql, polars = QUESTIONS[question]
    everything = ea.open(tmp_path / "reference").table("ppo_updates").collect()  # no pruning is possible in memory
    expected = sorted(polars(everything.lazy()).collect()["update"])
    runs = ea.open(tmp_path / "runs")
    assert sorted(runs.sql(sql)["update"]) == expected
    assert sorted(polars(runs.table("ppo_updates")).collect()["update"]) == expected
    assert sorted(row[0] for row in runs.connect().sql(sql).fetchall()) == expected


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
@pytest.mark.parametrize("series", SERIES)
def test_a_largest_value_does_not_come_from_statistics(tmp_path, write, series):
    values = SERIES[series]
    write(tmp_path, values)
    runs = ea.open(tmp_path)
    measured = [v for v in values if v is not None]
    numbers = [v for v in measured if not math.isnan(v)]
    in_duckdb = NAN if len(numbers) < len(measured) else max(numbers, default=None)
    [(found,)] = runs.sql("SELECT max(ratio_max) FROM ppo_updates").rows()
    assert repr(found) == repr(in_duckdb)
    [(number,)] = runs.sql("SELECT max(nullif(ratio_max, 'nan')) FROM ppo_updates").rows()
    assert number == max(numbers, default=None)
    assert runs.table("ppo_updates").select(pl.col.ratio_max.fill_nan(None).max()).collect().item() == number


def documented():
    page = (ROOT / "docs" / "sql.md").read_text(encoding="utf-8")
    return re.findall(r"^\| (.+?) \| `(SELECT .+?)` \| `(t\..+?)` \|$", page, re.MULTILINE)


def test_the_page_has_its_table():
    assert len(documented()) == 10


@pytest.mark.parametrize("series", SERIES)
@pytest.mark.parametrize(("question", "sql", "polars"), documented(), ids=[row[0] for row in documented()])
def test_the_page_gives_the_same_question_for_both_engines(tmp_path, question, sql, polars, series):
    write_run(tmp_path, "a", updates=rows(SERIES[series]))
    plain_rewrite(write_run(tmp_path, "b", updates=rows(SERIES["no NaN"])), write_statistics=True)
    runs = ea.open(tmp_path)
    from_sql = runs.sql(sql).rows()
    from_polars = eval(polars, {"pl": pl, "t": runs.table("ppo_updates")}).collect().rows()
    assert repr(from_sql) == repr(from_polars)


def test_above_and_below_are_never_true_for_null_or_nan(tmp_path):
    as_part(tmp_path, [1.0])
    runs = ea.open(tmp_path)
    terms = ("'nan'::DOUBLE, 1", "NULL::DOUBLE, 1", "1, 'nan'::DOUBLE", "1, NULL", "'nan'::FLOAT, 'nan'::FLOAT")
    for term in terms:
        assert runs.sql(f"SELECT above({term}), below({term})").rows() == [(False, False)], term
    assert runs.sql("SELECT above(2, 1), above(1, 1), below(1, 2), above('inf'::DOUBLE, 5)").rows() == [
        (True, False, True, True)
    ]
    assert runs.sql("SELECT finite('inf'::DOUBLE), finite('nan'::DOUBLE), finite(NULL), finite(3)").rows() == [
        (None, None, None, 3)
    ]
