"""What holds for every test: one thread per worker, one time zone, no network, nothing of the developer's shell."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Read by torch, numpy, polars and matplotlib when they are imported, and inherited by every process a test starts.
# The time zone is not UTC and not a whole hour off it: what shows local time where UTC is meant, shows.
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

# The same examples every time, and none is hurried: a slow machine is no failure.
settings.register_profile("esper", deadline=None, derandomize=True)
settings.load_profile("esper")

ROOT = Path(__file__).resolve().parents[1]


# Workers take a file at a time; the long ones first, so that none is left to one worker alone at the end. Two that wait
# for the demo do not stand side by side.
LONG_FILES = (
    "test_docs.py",
    "test_sb3_scalars.py",
    "test_two_evaluators.py",
    "test_end_to_end.py",
    "test_durability.py",
    "test_import_boundaries.py",
    "test_queries.py",
    "test_sql.py",
    "test_maintenance.py",
    "test_esper_jsonl.py",
    "test_processes.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
    for item in items:
        if "demo_folder" in getattr(item, "fixturenames", ()):
            item.add_marker("trains")


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Nothing we do needs a network, so a test that reaches for one fails with a sentence."""
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
    """Run code in a fresh interpreter and return what it printed; what it wrote to stderr is in the failure."""

    def run(code: str, *args: str, cwd: Path | None = None, timeout: float = 120) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, *args], capture_output=True, text=True, cwd=cwd, timeout=timeout, check=False
        )
        assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `esper demo --out demo` leaves: runs/ and report.html. Made once for all workers; copy it to change it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # each worker has a folder of its own in it
    folder = shared / "demo"
    with (shared / "demo.lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        if not (shared / "demo.done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            esper = Path(sys.executable).with_name("esper")
            done = subprocess.run(
                [esper, "demo", "--out", "demo"], cwd=shared, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"esper demo: exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
            (shared / "demo.done").touch()
    return folder


@pytest.fixture(scope="session")
def chromium() -> list[str]:
    """The words that start a headless Chromium which reaches for no network; add --user-data-dir=DIR and an address."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine: `apt-get install chromium` brings it")
    offline = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic")
    return [program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", *offline]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB, or a skip that says why there is none."""
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
