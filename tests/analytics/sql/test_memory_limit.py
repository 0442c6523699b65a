"""Time and memory of a query are bounded, where DuckDB does not bound them too; each in a process of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import esper_analytics as ea
from esper_analytics.sql.memory_limit import SLACK, bounded_growth, size_of
from tests.builders import write_run

ESPER = Path(sys.executable).with_name("esper")

TOO_LARGE = [
    "SELECT list_sum(range(2000000000))",
    "SELECT range(0, 1000000000)",
    "SELECT list_resize([1], 4000000000)",
    "SELECT list(i) FROM range(1000000000) t(i)",
    "SELECT array_agg(r) FROM (SELECT range(100000) r FROM range(100000))",
    "SELECT list_sort(range(2000000000))",
    "SELECT flatten(list_transform(range(100000), lambda x: range(100000)))",
    "SELECT sum(length(x)) FROM (SELECT repeat('x', 1000000) || i AS x FROM range(100000) t(i) ORDER BY x)",
]
# Steps that DuckDB does not interrupt, and such that it does.
TOO_LONG = [
    "SELECT levenshtein(repeat('a', 1000000), repeat('b', 1000000))",
    "SELECT length(repeat('x', 3000000000))",
    "SELECT length(lpad('x', 2000000000, 'y'))",
    "SELECT length(format('{:>2000000000}', 1))",
    "WITH RECURSIVE t AS (SELECT [1] x UNION ALL SELECT x || x FROM t) SELECT count(*) FROM t",
    "WITH RECURSIVE t AS (SELECT 1 x UNION ALL SELECT x + 1 FROM t) SELECT count(*) FROM t",
    "SELECT count(*) FROM range(100000000000)",
    "SELECT sum(a.i * b.i) FROM range(10000000) a(i), range(10000000) b(i)",
]

# One process asks them all, as a notebook would, and says how each ended and how much memory it ever held.
ASK_ALL = """
import json, os, resource, sys, time
import esper_analytics as ea
runs = ea.open(sys.argv[1])
for query in json.loads(sys.argv[2]):
    began = time.monotonic()
    try:
        told = str(runs.sql(query, timeout_s=float(sys.argv[3]), memory="1GB").rows())
    except ea.QueryError as error:
        told = str(error)
    print(json.dumps([query, told, time.monotonic() - began]), flush=True)
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss), flush=True)
os._exit(0)  # what could not be stopped ends with the process
"""


@pytest.fixture
def root(tmp_path):
    write_run(tmp_path / "runs", "a", updates=[{"ratio_max": 1.0}])
    return tmp_path / "runs"


def ask_all(run_python, root, queries, timeout_s):
    *answers, peak_kb = map(
        json.loads, run_python(ASK_ALL, str(root), json.dumps(queries), str(timeout_s)).splitlines()
    )
    assert [query for query, _, _ in answers] == queries
    return answers, peak_kb


@pytest.mark.slow
def test_python_survives_queries_that_need_too_much_memory(run_python, root):
    answers, peak_kb = ask_all(run_python, root, TOO_LARGE, 20)
    for query, told, _ in answers:
        assert "needs more than the 1GB it may use" in told or "after 20 s" in told, query
    assert peak_kb * 1024 < 10**9 + SLACK + 2 * 10**9


def test_one_step_beyond_duckdbs_own_limit_is_refused_in_python_too(run_python, root):
    answers, peak_kb = ask_all(run_python, root, TOO_LARGE[:3], 20)
    assert all("needs more than the 1GB it may use" in told for _, told, _ in answers)
    assert peak_kb * 1024 < 2 * 10**9


@pytest.mark.slow
def test_python_gives_up_queries_that_take_too_long_whether_they_can_be_stopped_or_not(run_python, root):
    for query in TOO_LONG:  # each alone: what goes on in the background takes the time of the next
        [(_, told, seconds)], _ = ask_all(run_python, root, [query], 0.5)
        assert "after 0.5 s" in told or "needs more than" in told, query
        assert seconds < 30, query


@pytest.mark.parametrize("query", [TOO_LONG[0], pytest.param(TOO_LONG[1], marks=pytest.mark.slow)])
def test_the_command_ends_though_the_query_cannot_be_stopped(root, query):
    words = [ESPER, "sql", root, query, "--timeout", "0.2"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("esper: The query was given up after 0.2 s") and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_an_answer_too_large_to_print_is_told(root):
    words = [
        ESPER,
        "sql",
        root,
        "SELECT i, i::VARCHAR AS text FROM range(150000000) t(i)",
        "-o",
        root.parent / "x.json",
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "The answer takes" in done.stderr
    assert not [path.name for path in root.parent.iterdir() if path.name != "runs"]


def test_a_smaller_answer_is_refused_the_same_way(root):
    with pytest.raises(ea.QueryError, match=r"The answer takes 0\.0 GB, more than half of the 40MB there is"):
        ea.open(root).sql("SELECT * FROM range(3000000)", memory="40MB")


class TestBoundedGrowth:
    def test_a_limit_is_lowered_and_put_back(self):
        before = resource.getrlimit(resource.RLIMIT_AS)
        with bounded_growth(10**9):
            assert resource.getrlimit(resource.RLIMIT_AS)[0] < 2**62
            with pytest.raises(MemoryError):
                bytearray(10**9 + SLACK + 10**8)
        assert resource.getrlimit(resource.RLIMIT_AS) == before

    def test_a_lower_limit_is_not_raised(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        low = 60 * 2**30
        resource.setrlimit(resource.RLIMIT_AS, (low, hard))
        try:
            with bounded_growth(2**40):
                assert resource.getrlimit(resource.RLIMIT_AS)[0] == low
            assert resource.getrlimit(resource.RLIMIT_AS)[0] == low
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

    def test_it_is_put_back_when_the_last_of_several_is_done(self):
        before = resource.getrlimit(resource.RLIMIT_AS)
        inside, leave = threading.Event(), threading.Event()

        def other():
            with bounded_growth(10**9):
                inside.set()
                leave.wait(10)

        thread = threading.Thread(target=other)
        thread.start()
        inside.wait(10)
        with bounded_growth(10**9):
            pass
        assert resource.getrlimit(resource.RLIMIT_AS) != before
        leave.set()
        thread.join()
        assert resource.getrlimit(resource.RLIMIT_AS) == before

    @pytest.mark.parametrize(
        ("text", "bytes_"), [("4GB", 4 * 10**9), ("1.5 GiB", 1610612736), ("500mb", 500 * 10**6), ("7B", 7)]
    )
    def test_an_amount_is_read(self, text, bytes_):
        assert size_of(text) == bytes_

    @pytest.mark.parametrize("text", ["", "GB", "-1GB", "4", "80%", "4 PB", "4GB; SET x = 1"])
    def test_a_text_that_is_no_amount(self, text):
        assert size_of(text) is None
