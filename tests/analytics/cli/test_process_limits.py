"""Time and memory of a query are bounded, also by what DuckDB does not bound; each in a separate process."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import esper_analytics as ea
from esper_analytics.cli.process_limits import SLACK, bounded_memory, limited
from esper_analytics.sql.confined import size_in_bytes
from tests.builders import write_run
from tests.support import esper, run_process

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
# Steps that DuckDB does not interrupt, and steps that it does.
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

# Steps that are done while the statement is parsed or bound, before DuckDB can be interrupted.
UNBOUND = [
    "SELECT strptime(repeat('a', 100000000), repeat('%Y', 100000000))",
    "SELECT regexp_matches(repeat('a', 100000000), '(a|b|ab)*c' || repeat('(a|aa)*', 100))",
    "SELECT 1 WHERE 1 IN (" + ",".join(map(str, range(15000))) + ") AND length(repeat('x', 3000000000)) > 1",
    "SELECT levenshtein(repeat('a', 1000000), repeat('b', 1000000)) WHERE 1 = 2 + 1",
    "SELECT list_reduce(range(3000000), lambda a, b: (a * 48271 + b) % 2147483647) FROM range(100)",
    "SELECT list_distinct(list_transform(range(3000000), lambda i: repeat('x', 100) || i))",
    "SELECT regexp_replace(repeat('ab', 100000000), '(a)(b)', '\\2\\1', 'g')",
]

# As a notebook would: the query runs in a process that only imports the library.
RUN_QUERY = """
import os, sys, time
import esper_analytics as ea
runs = ea.open(sys.argv[1])
began = time.monotonic()
try:
    print(runs.sql(sys.argv[2], timeout_s=0.5, memory="1GB").rows())
except ea.QueryError as error:
    print(error)
print(time.monotonic() - began, flush=True)
os._exit(0)  # what could not be stopped ends with the process
"""

# The command, then the most memory that its child ever held.
RUN_COMMAND = """
import resource, sys
from esper_analytics.cli.app import main
try:
    main()
finally:
    print("peak", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, file=sys.stderr)
"""


@pytest.fixture
def root(tmp_path):
    write_run(tmp_path / "runs", "a", updates=[{"ratio_max": 1.0}])
    return tmp_path / "runs"


SLOW = [pytest.param(query, marks=pytest.mark.slow) for query in TOO_LARGE[3:]]


@pytest.mark.parametrize("query", [*TOO_LARGE[:3], *SLOW])
def test_the_command_refuses_queries_that_need_too_much_memory(root, query):
    words = [sys.executable, "-c", RUN_COMMAND, "sql", root, query, "--memory", "1GB", "--timeout", "20"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    message, *rest = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert message.startswith("esper: ")
    assert "needs more than the 1GB it may use" in message or "after 20 s" in message
    if rest:  # a query that cannot be stopped ends with its process, at once
        assert int(rest[-1].removeprefix("peak ")) < 10**9 + SLACK + 2 * 10**9


@pytest.mark.parametrize("command", [["sql"], ["query"]])
def test_the_library_leaves_the_limits_of_its_process_alone(root, command, monkeypatch):
    monkeypatch.setattr(resource, "setrlimit", lambda *limits: pytest.fail(f"the limits were set: {limits}"))
    runs = ea.open(root)
    assert runs.sql("SELECT count(*) FROM ppo_updates").item() == 1
    assert runs.query("ratio_exceeded").is_empty()
    with pytest.raises(ea.QueryError, match="needs more than the 20MB"):
        runs.sql("SELECT list(i) FROM range(100000000) t(i)", memory="20MB")
    esper(*command, root, "SELECT 1" if command == ["sql"] else "ratio_exceeded")  # run here, not by `main`


@pytest.mark.slow
@pytest.mark.parametrize("query", TOO_LONG)
def test_python_gives_up_queries_that_take_too_long_whether_they_can_be_stopped_or_not(run_python, root, query):
    message, seconds = run_python(RUN_QUERY, str(root), query).splitlines()
    assert "after 0.5 s" in message or "needs more than" in message
    assert float(seconds) < 30


STOPPED = "esper: The query was stopped after 0.2 s. Select less, or allow more time (timeout).\n"


@pytest.mark.parametrize("query", [TOO_LONG[0], *(pytest.param(query, marks=pytest.mark.slow) for query in UNBOUND)])
def test_the_command_ends_at_its_time_though_the_query_cannot_be_stopped(root, query):
    done = run_process(ESPER, "sql", root, query, "--timeout", "0.2", code=2, timeout=60)
    assert (done.stdout, done.stderr) == ("", STOPPED)


def test_a_file_whose_writing_takes_too_long_is_not_left_behind(root):
    query = "SELECT i, i::VARCHAR AS text FROM range(2000000) t(i)"
    done = run_process(ESPER, "sql", root, query, "--timeout", "1.5", "-o", root.parent / "x.json", code=2)
    assert done.stderr.startswith(
        "esper: Writing the answer was stopped, since with the query it takes more than 1.5 s"
    )
    assert [path.name for path in root.parent.iterdir()] == ["runs"]


def test_a_reader_that_waits_costs_no_time(root):
    # 60,000 numbers take more than a pipe holds, and the reader takes the first after the time is over.
    command = [ESPER, "sql", root, "SELECT i FROM range(60000) t(i)", "--timeout", "1", "--format", "ndjson"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(2.5)
        rest = process.stdout.read()
    assert process.returncode == 0
    assert [json.loads(line)["i"] for line in (first + rest).splitlines()] == [*range(60000)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_query_with_the_command(root, number, code):
    command = [ESPER, "sql", root, "SELECT count(*) FROM range(100000000000)", "-o", root.parent / "x.csv"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (child := children.read_text().strip()):
            time.sleep(0.01)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == code
    assert stderr == ("esper: interrupted\n" if number == signal.SIGINT else "")
    with pytest.raises(ProcessLookupError):
        os.kill(int(child), 0)


def test_a_query_that_is_killed_meets_a_message(root):
    command = [ESPER, "sql", root, "SELECT count(*) FROM range(100000000000)"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (child := children.read_text().strip()):
            time.sleep(0.01)
        os.kill(int(child), signal.SIGKILL)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 2
    assert stderr.startswith("esper: The query's process was ended by SIGKILL") and stderr.count("\n") == 1


@pytest.mark.parametrize("seconds", ["nan", "inf", "1e300"])
def test_an_unusual_time_limit_is_a_limit_or_meets_a_message(root, seconds):
    done = run_process(ESPER, "sql", root, "SELECT 1 AS x", "--timeout", seconds, "--format", "csv", code=None)
    expected = (2, "") if seconds == "nan" else (0, "x\n1\n")
    assert (done.returncode, done.stdout) == expected, done.stderr
    assert "--timeout" in done.stderr and "Traceback" not in done.stderr if seconds == "nan" else done.stderr == ""


@pytest.mark.slow
def test_a_result_too_large_to_print_is_refused(root):
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
    assert "The result takes" in done.stderr
    assert not [path.name for path in root.parent.iterdir() if path.name != "runs"]


def test_python_refuses_a_result_too_large_to_convert(root):
    with pytest.raises(ea.QueryError, match=r"The result takes 0\.0 GB, more than half of the 40MB it may use"):
        ea.open(root).sql("SELECT * FROM range(3000000)", memory="40MB")


class TestBoundedMemory:
    @pytest.fixture(autouse=True)
    def _restored(self):
        before = resource.getrlimit(resource.RLIMIT_AS)
        yield
        resource.setrlimit(resource.RLIMIT_AS, before)

    def test_the_limit_is_low_during_the_query_and_higher_to_print_its_result(self):
        with bounded_memory("1GB"):
            low = resource.getrlimit(resource.RLIMIT_AS)[0]
            with pytest.raises(MemoryError):
                bytearray(10**9 + SLACK + 10**8)
        assert 0 < low < 2**62
        assert resource.getrlimit(resource.RLIMIT_AS)[0] == 8 * 2**30

    def test_a_lower_limit_is_not_raised(self):
        soft = 60 * 2**30
        resource.setrlimit(resource.RLIMIT_AS, (soft, resource.getrlimit(resource.RLIMIT_AS)[1]))
        with bounded_memory("1TB"):
            assert resource.getrlimit(resource.RLIMIT_AS)[0] == soft
        assert resource.getrlimit(resource.RLIMIT_AS)[0] == soft

    def test_a_process_that_is_not_the_command_is_not_limited(self, monkeypatch):
        monkeypatch.setattr(signal, "setitimer", lambda *limits: pytest.fail(f"a timer was set: {limits}"))
        before = resource.getrlimit(resource.RLIMIT_AS)
        with limited(0.001, "1GB"):
            assert resource.getrlimit(resource.RLIMIT_AS) == before


@pytest.mark.parametrize(
    ("text", "size"), [("4GB", 4 * 10**9), ("1.5 GiB", 1610612736), ("500mb", 500 * 10**6), ("7B", 7)]
)
def test_an_amount_of_memory_is_parsed(text, size):
    assert size_in_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "4", "80%", "4 PB", "4GB; SET x = 1", "0GB", "9" * 400 + "GB"])
def test_a_text_that_is_not_an_amount_of_memory_is_refused(text):
    assert size_in_bytes(text) is None
