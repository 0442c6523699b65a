"""SQL is confined and bounded, its mistakes end in one message, and its types are honoured."""

from __future__ import annotations

import datetime as dt
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import polars as pl
import pytest

import esper_analytics as ea
from esper_analytics.errors import DataError, EsperError, QueryError, UsageError
from esper_analytics.runs import VIEWS
from esper_analytics.sql import confined as sql
from esper_analytics.sql import named_queries
from esper_analytics.sql.named_queries import NamedQuery
from tests.builders import add_journal, add_part, complete_rows, run_id_of, write_run
from tests.support import esper

SECRET = "the secret of another file"


@pytest.fixture
def runs(tmp_path):
    """A run beside a secret; a separate working directory shows what is written."""
    (tmp_path / "secret.txt").write_text(SECRET)
    (tmp_path / "secret.csv").write_text(f"x\n{SECRET}\n")
    updates = [{"ratio_max": 1.5, "epochs": 4}, {"ratio_max": 2.5, "epochs": 4}]
    write_run(tmp_path / "runs", "a", updates=updates, minibatches=[{"minibatch": 1}])
    return ea.open(tmp_path / "runs")


# {0} is the folder that holds `runs` and the secrets, {part} a recorded part.
NOT_A_SELECT = [
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
    "COPY (SELECT 1) TO '{part}' (FORMAT parquet, USE_TMP_FILE false)",
    "COPY ppo_updates TO '{part}' (USE_TMP_FILE false, OVERWRITE true)",
    "COPY (SELECT 1) TO '{0}/runs' (FORMAT csv, PARTITION_BY (x), OVERWRITE)",
    "COPY ppo_updates FROM '{0}/secret.csv'",
    "EXPLAIN COPY (SELECT 1) TO '{0}/out.csv'",
    "EXPLAIN SELECT * FROM read_text('{0}/secret.txt')",
    "EXECUTE x",
    "DEALLOCATE x",
    "SET VARIABLE x = 1",
    "SET allowed_directories = ['/']",
    "SET allowed_paths = ['/etc/passwd']",
    "SET memory_limit = '1TB'",
    "SET lock_configuration = false",
    "PRAGMA memory_limit = '1TB'",
    "PRAGMA import_database('{0}/out')",
    "CREATE SECRET s (TYPE http)",
    "CREATE VIEW x AS SELECT * FROM read_text('{0}/secret.txt')",
    "CREATE OR REPLACE TEMP VIEW ppo_updates AS SELECT 1",
    "CREATE SEQUENCE s",
    "CREATE TYPE t AS ENUM ('a')",
    "ALTER VIEW ppo_updates RENAME TO x",
    "TRUNCATE ppo_updates",
    "MERGE INTO ppo_updates USING runs ON true WHEN MATCHED THEN DELETE",
    "DETACH memory",
    "COMMIT",
    "ROLLBACK",
    "ANALYZE",
    "CALL pragma_version()",
    "COMMENT ON VIEW ppo_updates IS 'x'",
    "FORCE INSTALL httpfs FROM 'http://127.0.0.1:1'",
    "UPDATE EXTENSIONS",
    "FROM ppo_updates; FROM ppo_updates",
    "SELECT 1;; ;SELECT 2",
    "WITH t AS (DELETE FROM ppo_updates RETURNING *) SELECT * FROM t",
    "WITH t AS (INSERT INTO ppo_updates VALUES (1) RETURNING *) SELECT * FROM t",
    "/* SELECT 1 */ DROP VIEW runs -- SELECT",
    "SELECT 1 --\n; COPY (SELECT 1) TO '{0}/out.csv'",
    "PIVOT ppo_updates ON epochs USING count(*)",
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
    "FROM '/etc/passwd'",
    "TABLE '{0}/secret.csv'",
    "SELECT * FROM read_csv_auto('/etc/passwd', sep = ':')",
    "SELECT * FROM read_csv('/dev/stdin')",
    "SELECT * FROM read_text('file://{0}/secret.txt')",
    "SELECT * FROM read_parquet('{0}/runs/*/ppo_updates/../../../secret.csv')",
    "SELECT * FROM read_text('{0}/runs/' || (SELECT any_value(run_id) FROM ppo_updates) || '/run.json')",
    "SELECT * FROM read_text((SELECT folder || '/run.json' FROM runs))",
    "SELECT * FROM read_blob(['{0}/secret.txt'])",
    "SELECT * FROM read_ndjson_objects('{0}/secret.txt')",
    "SELECT * FROM parquet_file_metadata('{0}/secret.txt')",
    "SELECT * FROM parquet_kv_metadata('{0}/secret.txt')",
    "SELECT * FROM parquet_bloom_probe('{0}/secret.txt', 'x', 1)",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM glob('{0}/runs/**')",
    "SELECT * FROM query_table('{0}/secret.csv')",
    "SELECT * FROM query_table(['ppo_updates', '{0}/secret.csv'])",
    "SELECT * FROM query('SELECT 1; DROP VIEW runs')",
    "SELECT * FROM query('ATTACH ''{0}/out.db'' ')",
    "FROM query('FROM ''{0}/secret.csv'' ')",
    "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT * FROM read_text(''{0}/secret.txt'')'))",
    "SELECT * FROM read_text('{0}/secret.txt') WHERE false",
    "SELECT count(*) FROM ppo_updates WHERE EXISTS (FROM read_text('{0}/secret.txt'))",
    "SELECT 1 WHERE (SELECT content FROM read_text('/etc/hostname')) IS NOT NULL",
    "WITH RECURSIVE t AS (SELECT 1 x UNION ALL SELECT x + 1 FROM t, read_text('{0}/secret.txt') WHERE x < 3) FROM t",
    "SELECT * FROM ppo_updates, LATERAL (SELECT * FROM read_text('{0}/secret.txt'))",
    "SELECT * FROM duckdb_secrets()",
    "SELECT * FROM duckdb_extensions()",
    "SELECT getvariable('x'), getenv('PATH')",
    "SELECT * FROM pg_read_file('{0}/secret.txt')",
    "SELECT load_extension('x')",
    "SELECT system('id')",
    "SELECT * FROM load_aws_credentials()",
    "SELECT * FROM shell('id')",
    "SELECT * FROM iceberg_scan('{0}')",
    "SELECT * FROM delta_scan('{0}')",
    "SELECT * FROM st_read('{0}/secret.csv')",
    "SELECT * FROM read_xlsx('{0}/x.xlsx')",
    "SELECT * FROM http_get('http://127.0.0.1:1')",
    "SELECT * FROM 'http://127.0.0.1:1/x.csv'",
    "SELECT * FROM read_parquet('hf://datasets/x/y.parquet')",
    "SELECT * FROM '\\\\host\\share\\x.csv'",
]


ATTACKS = [*NOT_A_SELECT, *OUT_OF_BOUNDS]


def everything_under(folder):
    """Every file, folder and link, with what it holds."""
    return {
        str(path): path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def filled_in(attack, folder):
    [part] = folder.glob("runs/*/ppo_updates/part-*")
    return attack.replace("{part}", str(part)).replace("{0}", str(folder))


def is_one_message(message):
    return SECRET not in message and "root:" not in message and "\n" not in message and 10 < len(message) < 500


def tamper_with_a_named_query(monkeypatch, text):
    """The SQL files are trusted, but even one that was tampered with can do no more than `esper sql`."""
    query = NamedQuery("tampered", "It was tampered with.", (), text)
    monkeypatch.setattr(named_queries, "named_queries", lambda: {"tampered": query})


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_with_one_message_and_leaves_no_trace(runs, tmp_path, attack, monkeypatch):
    held_by_python = pl.DataFrame({"secret": [SECRET]})  # noqa: F841 - DuckDB would find it by its name
    working = tmp_path / "working"
    working.mkdir()
    monkeypatch.chdir(working)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    text = filled_in(attack, tmp_path)
    before = everything_under(tmp_path)
    with pytest.raises(QueryError) as caught:
        runs.sql(text)
    assert is_one_message(str(caught.value))
    tamper_with_a_named_query(monkeypatch, text)
    with pytest.raises(QueryError) as caught:
        runs.query("tampered")
    assert is_one_message(str(caught.value))
    assert everything_under(tmp_path) == before
    assert runs.sql("SELECT count(*) FROM ppo_updates").item() == 2


def test_there_are_many_attacks_and_no_duplicates():
    assert len(ATTACKS) == len(set(ATTACKS)) >= 130


@pytest.mark.parametrize("words", [["sql"], pytest.param(["query"], marks=pytest.mark.slow)])
def test_the_commands_refuse_every_attack_too(runs, tmp_path, words, monkeypatch):
    before = everything_under(tmp_path)
    for attack in ATTACKS:
        text = filled_in(attack, tmp_path)
        tamper_with_a_named_query(monkeypatch, text)
        asked = ["--", text] if words == ["sql"] else ["tampered"]
        result = esper(*words, str(tmp_path / "runs"), *asked, code=2)
        assert result.stdout == "", attack
        assert result.stderr.startswith("esper: ") and is_one_message(result.stderr.rstrip("\n")), attack
    assert everything_under(tmp_path) == before


class TestPlaces:
    """Where runs lie, what they are called, and what lies beside them makes no difference."""

    def test_a_link_in_a_run_or_among_the_runs_is_not_followed(self, tmp_path):
        outside = write_run(tmp_path / "elsewhere", "outside", updates=[{"ratio_max": 99.0}])
        path = write_run(tmp_path / "runs", "a", updates=[{"ratio_max": 1.0}], minibatches=[{"minibatch": 1}])
        (tmp_path / "runs" / "linked").symlink_to(outside)
        [part] = (outside / "ppo_updates").glob("*")
        (path / "ppo_updates" / "part-a1-r0-000009.parquet").symlink_to(part)
        (path / "heads").symlink_to(outside / "ppo_updates")
        runs = ea.open(tmp_path / "runs")
        assert runs.sql("SELECT max(ratio_max), count(*) FROM ppo_updates").row(0) == (1.0, 1)
        assert runs.sql("SELECT count(*) FROM heads").item() == 0
        assert sum("link, which is not followed" in problem.reason for problem in runs.problems) == 3

    def test_a_journal_that_is_a_link_is_not_read(self, tmp_path):
        outside = write_run(tmp_path / "elsewhere", "outside")
        rows = complete_rows("ppo_updates", [{"ratio_max": 99.0}], run_id=run_id_of("outside"))
        journal = add_journal(outside, {"ppo_updates": rows})
        path = write_run(tmp_path / "runs", "a", updates=[{"ratio_max": 1.0}])
        (path / "journal").mkdir()
        (path / "journal" / "a1-r0-000007.journal").symlink_to(journal)
        runs = ea.open(tmp_path / "runs")
        assert runs.sql("SELECT max(ratio_max), count(*) FROM ppo_updates").row(0) == (1.0, 1)
        assert any("link, which is not followed" in problem.reason for problem in runs.problems)

    @pytest.mark.parametrize(
        "name",
        [
            "x'); DROP VIEW runs; --",
            "'; COPY (SELECT 1) TO 'out.csv'; --",
            "\"quoted\" and 'quoted'",
            "*",
            "?",
            "[a-z]",
            "{a,b}",
            "$HOME",
            "~",
            "new\nline",
            "s3:",
            "-rf",
            "..hidden",
        ],
    )
    def test_a_run_folder_may_be_called_anything(self, tmp_path, name, monkeypatch):
        write_run(tmp_path / "runs", "other", updates=[{"ratio_max": 5.0}])
        write_run(tmp_path / "runs", "odd", updates=[{"ratio_max": 1.0}, {"ratio_max": math.nan}], folder=name)
        monkeypatch.chdir(tmp_path)
        before = everything_under(tmp_path)
        runs = ea.open("runs")
        expected = [(run_id_of("odd"), 2, 1), (run_id_of("other"), 1, 0)]
        asked = "SELECT run_id, count(*), count_if(isnan(ratio_max)) FROM ppo_updates GROUP BY 1 ORDER BY 1"
        assert runs.sql(asked).rows() == expected if name != "..hidden" else runs.sql(asked).rows() == expected[1:]
        assert runs.query("ratio_exceeded", above=4)["run_id"].to_list() == [run_id_of("other")]
        assert everything_under(tmp_path) == before

    def test_sql_files_beside_the_runs_are_not_read(self, runs, tmp_path, monkeypatch):
        for folder in (tmp_path, tmp_path / "runs"):
            (folder / "real" / "views").mkdir(parents=True)
            (folder / "real" / "views" / "gaps.sql").write_text("-- One row is a lie.\nSELECT 1 AS lie")
            (folder / "real" / "evil.sql").write_text("-- Evil.\nSELECT content FROM read_text('/etc/passwd')")
            (folder / "queries").symlink_to(folder / "real")
        monkeypatch.chdir(tmp_path)
        assert "lie" not in runs.sql("SELECT * FROM gaps").columns
        with pytest.raises(UsageError, match="There is no query 'evil'"):
            runs.query("evil")
        with pytest.raises(UsageError, match="There is no query"):
            runs.query("../runs/queries/evil")

    def test_secrets_that_duckdb_keeps_for_its_user_stay_unseen(self, runs, tmp_path, run_python):
        store = (
            "import duckdb\nduckdb.connect().execute(\"CREATE PERSISTENT SECRET s (TYPE http, BEARER_TOKEN 'tok')\")"
        )
        code = (
            f"import os\nos.environ['HOME'] = {str(tmp_path / 'home')!r}\n{store}\n"
            "import sys, esper_analytics as ea\nruns = ea.open(sys.argv[1])\n"
            "for query in ('FROM duckdb_secrets()', \"FROM which_secret('http://x', 'http')\"):\n"
            "    try:\n        print(runs.sql(query))\n"
            "    except ea.QueryError as error:\n        print('refused', error)\n"
        )
        (tmp_path / "home").mkdir()
        output = run_python(code, str(tmp_path / "runs"))
        assert output.count("refused") == 2 and "tok" not in output

    def test_a_query_leaves_nothing_behind_for_the_next(self, runs):
        runs.sql("SELECT setseed(0.5), write_log('x') FROM ppo_updates")
        assert runs.sql("SELECT count(*) FROM ppo_updates").item() == 2
        with pytest.raises(QueryError):
            runs.sql("SELECT * FROM read_text('/etc/passwd')")
        assert runs.sql("SELECT count(*) FROM ppo_updates").item() == 2


class TestTheSameConnection:
    def test_it_is_kept_as_long_as_the_files_are_the_same(self, runs, tmp_path):
        asked = "SELECT count(*) FROM ppo_updates"
        assert runs.sql(asked).item() == 2
        kept = runs._connection
        assert runs.sql(asked).item() == 2 and runs._connection is kept
        write_run(tmp_path / "runs", "b", updates=[{}])
        assert runs.sql(asked).item() == 3 and runs._connection is not kept

    def test_a_new_part_of_a_known_run_is_seen(self, runs):
        asked = "SELECT count(*) FROM ppo_updates"
        assert runs.sql(asked).item() == 2
        rows = complete_rows("ppo_updates", [{"update": 3}], run_id=run_id_of("a"))
        add_part(runs.folder("a"), "ppo_updates", rows, seq=2)
        assert runs.sql(asked).item() == 3

    def test_rows_of_a_journal_are_read_again_each_time(self, runs):
        asked = "SELECT count(*) FROM ppo_updates"
        for update in (3, 4):
            rows = complete_rows("ppo_updates", [{"update": update}], run_id=run_id_of("a"))
            add_journal(runs.folder("a"), {"ppo_updates": rows}, seq=update)
            assert runs.sql(asked).item() == update

    def test_several_threads_may_query_at_once(self, runs):
        with ThreadPoolExecutor(4) as pool:
            answers = [*pool.map(lambda n: runs.sql(f"SELECT count(*) + {n} FROM ppo_updates").item(), range(12))]
        assert answers == [2 + n for n in range(12)]


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


def test_the_names_of_all_views_can_be_queried(runs):
    assert sorted(runs.sql("SHOW TABLES")["name"]) == sorted(VIEWS)
    assert len(runs.sql("DESCRIBE ppo_updates")) == len(runs.sql("SELECT * FROM ppo_updates").columns)
    assert "ppo_updates" in set(runs.sql("SELECT table_name FROM information_schema.tables")["table_name"])


def test_only_the_views_a_query_names_are_made():
    assert sql.views_named_in("SELECT * FROM Gaps JOIN runs USING (run_id)", VIEWS) == ["runs", "gaps"]
    assert sql.views_named_in("SELECT 1", VIEWS) == []
    assert sql.views_named_in("SHOW TABLES", VIEWS) == list(VIEWS)


class TestMistakes:
    @pytest.mark.parametrize(
        ("query", "message"),
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
                "There is no view ppo_update (line 1, column 15). "
                "Did you mean ppo_updates, ppo_updates_all or esper_updates?",
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
    def test_a_mistake_ends_in_one_message(self, runs, query, message):
        with pytest.raises(QueryError) as caught:
            runs.sql(query)
        assert str(caught.value) == message
        assert caught.value.__cause__ is None and (caught.value.__suppress_context__ or not caught.value.__context__)

    def test_a_column_unlike_any_of_ours_points_to_the_list(self, runs):
        with pytest.raises(QueryError, match="There is no column zzz"):
            runs.sql("SELECT zzz FROM ppo_updates")

    def test_the_suggested_form_of_pivot_works(self, runs):
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

    def test_a_query_that_needs_too_much_memory_is_refused(self, runs):
        with pytest.raises(QueryError, match="more than the 20MB it may use"):
            runs.sql("SELECT count(DISTINCT i::VARCHAR) FROM range(5000000) t(i)", memory="20MB")

    def test_an_invalid_amount_of_memory_is_refused(self, runs):
        with pytest.raises(QueryError, match="'lots' is not an amount of memory"):
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

    def test_columns_of_one_name_are_renamed(self, runs):
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
