"""Settings of every test: one thread per worker, one time zone, no network, nothing of the developer's shell."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.support import run_process

# torch, numpy, polars and matplotlib read these when they are imported; every process a test starts inherits them.
# The time zone is neither UTC nor a whole hour from it, so that local time in place of UTC is noticed.
os.environ.update(
    OMP_NUM_THREADS="1",
    OPENBLAS_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    POLARS_MAX_THREADS="2",
    MPLBACKEND="Agg",
    TZ="Asia/Kolkata",
    COLUMNS="160",
    NO_COLOR="1",
    PYTHONHASHSEED="0",
)
for _name in ("FORCE_COLOR", "PYTHONWARNINGS", "MPLCONFIGDIR", "PYTHONPATH"):
    os.environ.pop(_name, None)
time.tzset()
# A shell's background job ignores Ctrl-C, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples every time, without a deadline: a slow machine is not a failure.
settings.register_profile("esper", deadline=None, derandomize=True)
settings.load_profile("esper")

# Workers take one file at a time. The long files come first, so that at the end no worker is left with one alone; two
# that wait for the demo are not adjacent.
LONG_FILES = (
    "test_docs.py",
    "test_sb3_scalars.py",
    "test_two_evaluators.py",
    "test_end_to_end.py",
    "test_durability.py",
    "test_import_boundaries.py",
    "test_queries.py",
    "test_sql.py",
    "test_interruption.py",
    "test_esper_jsonl.py",
    "test_processes.py",
)


# As `esper demo --out demo`, with 16 updates in place of 30; from the eighth on, the learning rate is broken.
SHORT_DEMO = """
import sys
from pathlib import Path
from esper_analytics.cli import demo
command = [sys.executable, "-m", "esper_recorder.demo", "--steps", "20480"]
demo.evaluate(Path("demo"), demo.record(Path("demo"), lambda *step: None, command=command))
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: position for position, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
    for item in items:
        if "demo_folder" in getattr(item, "fixturenames", ()):
            item.add_marker("trains")


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Fail a test that connects to another machine, with a message: nothing of ours needs a network."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        host = address[0] if self.family in (socket.AF_INET, socket.AF_INET6) else None
        if host is not None and host not in ("localhost", "::1") and not str(host).startswith("127."):
            raise RuntimeError(f"a test tried to reach {host}; tests have no network")
        connect(self, address)

    socket.socket.connect = local_only  # type: ignore[method-assign,assignment]
    yield
    socket.socket.connect = connect  # type: ignore[method-assign]


@pytest.fixture(scope="session")
def run_python() -> Callable[..., str]:
    """Return a function that runs code in a fresh interpreter and returns what it printed."""

    def run(code: str, *args: str, cwd: Path | None = None, timeout: float = 120) -> str:
        return run_process(sys.executable, "-c", code, *args, cwd=cwd, timeout=timeout).stdout

    return run


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a demo, made once for all workers, with half its training; copy it to change it.

    A slow test runs `esper demo` itself, and checks the whole.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # of the workers' own folders
    folder = shared / "demo"
    with (shared / "demo.lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        if not (shared / "demo.done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            run_process(sys.executable, "-c", SHORT_DEMO, cwd=shared, timeout=900)
            (shared / "demo.done").touch()
    return folder


@pytest.fixture(scope="session")
def chromium() -> list[str]:
    """The command of a headless Chromium without network; add --user-data-dir=DIR and an address."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine: `apt-get install chromium` installs it")
    offline = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic")
    return [program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", *offline]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB; the test is skipped if none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
        mounted = done.returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("a small tmpfs cannot be mounted here (needs root): a really full disk is not tested")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
