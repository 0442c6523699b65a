"""SQL is confined and bounded, its mistakes are told in a sentence, and its types are honoured."""

from __future__ import annotations

import datetime as dt
import os
import threading
from decimal import Decimal

import polars as pl
import pytest

import esper_analytics as ea
from esper_analytics import sql
from esper_analytics.errors import DataError, EsperError, QueryError
from esper_analytics.store import VIEWS
from tests.builders import write_run

SECRET = "the secret of another file"


@pytest.fixture
def runs(tmp_path):
    """A run beside a secret; the process's folder is one of its own, to see what is written."""
    (tmp_path / "secret.txt").write_text(SECRET)
    (tmp_path / "secret.csv").write_text(f"x\n{SECRET}\n")
    updates = [{"ratio_max": 1.5, "epochs": 4}, {"ratio_max": 2.5, "epochs": 4}]
    write_run(tmp_path / "runs", "a", updates=updates, minibatches=[{"minibatch": 1}])
    return ea.open(tmp_path / "runs")


# {0} is the folder that holds `runs` and the secrets.
NOT_A_QUESTION = [
    "INSERT INTO ppo_updates VALUES (1)",
    "UPDATE ppo_updates SET epochs = 1",
    "DELETE FROM ppo_updates",
    "CREATE TABLE x AS SELECT 1",
    "CREATE MACRO x() AS 1",
    "DROP VIEW ppo_updates",
    "COPY ppo_updates TO '{0}/out.csv'",
    "COPY (SELECT 1) TO '{0}/out.parquet'",
    "EXPORT DATABASE '{0}/out'",
    "IMPORT DATABASE '{0}/out'",
    "ATTACH '{0}/out.db'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "SET GLOBAL memory_limit = '100GB'",
    "RESET lock_configuration",
    "PRAGMA enable_profiling",
    "PRAGMA database_list",
    "CALL enable_logging()",
    "BEGIN",
    "CHECKPOINT",
    "VACUUM",
    "EXPLAIN ANALYZE SELECT 1",
    "PREPARE x AS SELECT 1",
    "USE memory",
    "SELECT 1; SELECT 2",
    "SELECT 1; COPY (SELECT 1) TO '{0}/out.csv'",
    "SELECT 1 /* ; */; -- \nDROP VIEW runs",
    "",
    "   ",
    "-- nothing",
    ";",
]
OUT_OF_BOUNDS = [
    "SELECT * FROM read_csv('{0}/secret.csv')",
    "SELECT * FROM '{0}/secret.csv'",
    'SELECT * FROM "{0}/secret.csv"',
    "SELECT * FROM read_text('{0}/secret.txt')",
    "SELECT * FROM read_blob('{0}/secret.txt')",
    "SELECT * FROM read_text('{0}/runs/../secret.txt')",
    "SELECT * FROM read_json('{0}/secret.txt')",
    "SELECT * FROM read_json_objects('{0}/secret.txt')",
    "SELECT * FROM sniff_csv('{0}/secret.csv')",
    "SELECT * FROM glob('{0}/*')",
    "SELECT * FROM read_parquet('{0}/runs/*/*/*.parquet')",
    "SELECT * FROM parquet_metadata('{0}/secret.txt')",
    "SELECT * FROM parquet_schema('/etc/passwd')",
    "SELECT * FROM read_text('/proc/self/environ')",
    "SELECT * FROM read_text('/proc/self/cmdline')",
    "SELECT * FROM 'https://example.com/x.parquet'",
    "SELECT * FROM read_csv('s3://bucket/x.csv')",
    "SELECT * FROM read_duckdb('{0}/out.db')",
    "SELECT * FROM enable_logging(storage = 'file', storage_path = '{0}/out')",
    "SELECT * FROM enable_profiling(save_location = '{0}/out.json')",
    "SELECT * FROM query('COPY (SELECT 1) TO ''{0}/out.csv''')",
    "SELECT * FROM query('SELECT * FROM read_csv(''{0}/secret.csv'')')",
    "WITH t AS (SELECT * FROM read_csv('{0}/secret.csv')) SELECT * FROM t",
    "SELECT (SELECT content FROM read_text('{0}/secret.txt'))",
    "SELECT getenv('HOME')",
    "SELECT * FROM which_secret('s3://x', 's3')",
    "SELECT * FROM held_by_python",
    "SELECT * FROM duckdb_secrets() UNION ALL SELECT * FROM sqlite_scan('{0}/x', 'y')",
    "SELECT * FROM sqlite_scan('{0}/x', 'y')",
    "SELECT * FROM postgres_scan('', '', '')",
]


def everything_under(folder):
    return sorted((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("attack", [*NOT_A_QUESTION, *OUT_OF_BOUNDS])
def test_an_attack_is_refused_with_one_sentence_and_leaves_no_trace(runs, tmp_path, attack, monkeypatch):
    held_by_python = pl.DataFrame({"secret": [SECRET]})  # noqa: F841 - DuckDB would find it by its name
    working = tmp_path / "working"
    working.mkdir()
    monkeypatch.chdir(working)
    before = everything_under(tmp_path)
    with pytest.raises(QueryError) as caught:
        runs.sql(attack.format(tmp_path))
    message = str(caught.value)
    assert SECRET not in message
    assert "\n" not in message and 10 < len(message) < 400
    assert everything_under(tmp_path) == before


@pytest.mark.parametrize(
    "query",
    [
        "SELECT count(*) FROM ppo_updates",
        "FROM ppo_updates SELECT count(*)",
        "SELECT count(*) FROM PPO_Updates;",
        'SELECT count(*) FROM "ppo_updates"',
        "SELECT count(*) FROM main.ppo_updates",
        "SELECT count(*) FROM memory.main.ppo_updates -- a comment; with a semicolon",
        "WITH t AS (SELECT * FROM ppo_updates) SELECT count(*) FROM t",
        "SELECT (SELECT count(*) FROM ppo_updates)",
        'SELECT count(*) FROM (SELECT run_id, "update" FROM ppo_updates) JOIN runs USING (run_id)',
        "SELECT count(*) FROM query('SELECT * FROM ppo_' || 'updates')",
        "SELECT count(*) FROM query_table('ppo_' || 'updates')",
        "SELECT count(*) FROM ppo_updates_all",
        "WITH runs AS (SELECT 1 UNION ALL SELECT 2) SELECT count(*) FROM runs",
        "WITH ppo_updates AS (FROM ppo_updates) SELECT count(*) FROM ppo_updates",
        "SELECT count(*) FROM ppo_updates WHERE run_id IN (SELECT run_id FROM minibatches)",
        "SELECT count(*) FROM ppo_updates p SEMI JOIN minibatches USING (run_id)",
    ],
)
def test_every_way_of_naming_a_view_reaches_its_rows(runs, query):
    assert runs.sql(query).item() == 2


def test_the_names_of_all_views_can_be_asked_for(runs):
    assert sorted(runs.sql("SHOW TABLES")["name"]) == sorted(VIEWS)
    assert len(runs.sql("DESCRIBE ppo_updates")) == len(runs.sql("SELECT * FROM ppo_updates").columns)
    assert "ppo_updates" in set(runs.sql("SELECT table_name FROM information_schema.tables")["table_name"])


def test_only_the_views_a_query_names_are_made():
    assert sql.views_named_in("SELECT * FROM Gaps JOIN runs USING (run_id)", VIEWS) == ["runs", "gaps"]
    assert sql.views_named_in("SELECT 1", VIEWS) == []
    assert sql.views_named_in("SHOW TABLES", VIEWS) == list(VIEWS)


class TestMistakes:
    @pytest.mark.parametrize(
        ("query", "sentence"),
        [
            (
                "SELECT ratio_mx FROM ppo_updates",
                "There is no column ratio_mx (line 1, column 8). Did you mean ratio_max, ratio_sum or ratio_min?",
            ),
            (
                "SELECT update,\n  epoks\nFROM ppo_updates",
                "There is no column epoks (line 2, column 3). Did you mean epochs?",
            ),
            (
                "SELECT * FROM ppo_update",
                "There is no view ppo_update (line 1, column 15). Did you mean ppo_updates or ppo_updates_all?",
            ),
            (
                "SELEC 1",
                'Syntax error at or near "SELEC" (line 1, column 1). '
                "One SELECT is expected, such as SELECT * FROM runs.",
            ),
            ("SELECT finit(1)", "There is no function finit (line 1, column 8). Did you mean finite?"),
            ("SELECT CAST('x' AS INT)", "Could not convert string 'x' to INT32 (line 1, column 8)."),
            ("SELECT error('mine')", "Mine."),
            ("SELECT $1", "Values were not provided for the following parameters: 1."),
            ("DROP VIEW runs", "Only a SELECT is run here, and this is a DROP statement. Recordings are read-only."),
            (
                "INSERT INTO x VALUES (1)",
                "Only a SELECT is run here, and this is an INSERT statement. Recordings are read-only.",
            ),
            ("SELECT 1; SELECT 2", "These are 2 statements; only one SELECT at a time is run."),
            ("", "There is no SQL statement to run. Write one SELECT."),
            (
                "PIVOT ppo_updates ON epochs USING count(*)",
                "Only one plain SELECT is run here; write a PIVOT as FROM (PIVOT ... ON column IN (...)).",
            ),
        ],
    )
    def test_a_mistake_is_told_in_a_sentence(self, runs, query, sentence):
        with pytest.raises(QueryError) as caught:
            runs.sql(query)
        assert str(caught.value) == sentence
        assert caught.value.__cause__ is None and (caught.value.__suppress_context__ or not caught.value.__context__)

    def test_a_column_like_none_of_ours_points_to_the_list(self, runs):
        with pytest.raises(QueryError, match="There is no column zzz"):
            runs.sql("SELECT zzz FROM ppo_updates")

    def test_the_form_of_pivot_that_is_told_works(self, runs):
        answer = runs.sql("FROM (PIVOT (SELECT epochs, ratio_max FROM ppo_updates) ON epochs IN (4) USING count(*))")
        assert answer["4"].sum() == 2


class TestLimits:
    def test_a_query_is_stopped_after_its_time(self, runs):
        endless = "SELECT sum(a.i * b.i) FROM range(10000000) a(i), range(10000000) b(i)"
        with pytest.raises(QueryError, match=r"stopped after 0\.2 s"):
            runs.sql(endless, timeout_s=0.2)

    def test_recursion_without_end_is_stopped(self, runs):
        with pytest.raises(QueryError, match=r"stopped after|more than the"):
            runs.sql(
                "WITH RECURSIVE t AS (SELECT 1 x UNION ALL SELECT x + 1 FROM t) SELECT count(*) FROM t", timeout_s=0.2
            )

    def test_no_thread_outlives_its_query(self, runs):
        before = threading.active_count()
        runs.sql("SELECT 1")
        assert threading.active_count() == before

    def test_a_query_that_needs_too_much_memory_is_told(self, runs):
        with pytest.raises(QueryError, match="more than the 20MB it may use"):
            runs.sql("SELECT count(DISTINCT i::VARCHAR) FROM range(5000000) t(i)", memory="20MB")

    def test_an_amount_of_memory_that_is_none_is_told(self, runs):
        with pytest.raises(QueryError, match="'lots' is no amount of memory"):
            runs.sql("SELECT 1", memory="lots")


class TestTypes:
    def test_types_are_honoured(self, runs):
        answer = runs.sql(
            "SELECT sum(epochs) AS s, sum(12345678901234567890::HUGEINT * 10) AS big, time,"
            " max(time) OVER () - time AS d, [1, 2] AS l, {'a': 1} AS st, DATE '2026-01-02' AS day,"
            " 1.50::DECIMAL(4, 2) AS dec, NULL AS nothing,"
            " 'a'::ENUM('a', 'b') AS e, uuid() AS u, '{}'::JSON AS j, INTERVAL 2 MONTH AS months, 'ab'::BLOB AS b"
            " FROM ppo_updates WHERE update = 1 GROUP BY time"
        )
        assert answer.schema["s"] == pl.Int64
        assert answer.schema["time"] == pl.Datetime("us", "UTC")
        assert answer.schema["d"] == pl.Duration("us")
        assert answer.row(0)[:10] == (
            4,
            Decimal(123456789012345678900),
            dt.datetime(2026, 1, 1, 0, 0, 1, tzinfo=dt.UTC),
            dt.timedelta(0),
            [1, 2],
            {"a": 1},
            dt.date(2026, 1, 2),
            Decimal("1.50"),
            None,
            "a",
        )
        assert answer["months"].item() == "2 months 0 days 0 s"

    def test_columns_of_one_name_are_told_apart(self, runs):
        assert runs.sql("SELECT 1 AS n, 2 AS n, 3 AS n_1").to_dicts() == [{"n": 1, "n_1": 2, "n_1_1": 3}]

    def test_times_are_utc_whatever_the_machines_zone(self, runs):
        assert os.environ["TZ"] != "UTC"
        assert runs.sql("SELECT hour(time) FROM ppo_updates WHERE update = 1").item() == 0
        assert runs.connect().sql("SELECT hour(time) FROM ppo_updates WHERE update = 1").fetchall() == [(0,)]

    def test_an_answer_without_rows_keeps_its_columns(self, runs):
        answer = runs.sql("SELECT update, ratio_max FROM ppo_updates WHERE false")
        assert answer.schema == {"update": pl.Int64, "ratio_max": pl.Float64}


class TestConnect:
    def test_the_connection_is_trusted_and_has_every_view(self, runs, tmp_path):
        connection = runs.connect()
        assert {row[0] for row in connection.sql("SHOW TABLES").fetchall()} == set(VIEWS)
        assert connection.sql(f"SELECT count(*) FROM read_csv('{tmp_path}/secret.csv')").fetchall() == [(1,)]
        assert connection.sql("SELECT count(*) FROM ppo_updates WHERE above(ratio_max, 2)").fetchall() == [(1,)]


def test_every_error_is_one_of_ours(runs):
    assert issubclass(QueryError, EsperError)
    assert issubclass(DataError, EsperError)
