"""Thousands of files changed at random: no command ends by an exception, hangs, grows, or believes a wrong value.

The jobs are in `soak_jobs`; two child processes do them, so that a child that dies costs one job and is the finding.
"""

from __future__ import annotations

import collections
import json
import queue
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests import soak_jobs
from tests.support import ROOT

CHILDREN = 2
PATIENCE = 120.0
"""Seconds until a child that does not answer is ended: a job takes tenths, and machines may be busy."""
SECONDS = 20.0
"""The most seconds of CPU that a job may take."""


class Child:
    """A process that does jobs."""

    def __init__(self, base: Path) -> None:
        command = [sys.executable, "-m", "tests.soak_jobs", str(base)]
        with (base.parent / "stderr").open("ab") as stderr:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, cwd=ROOT
            )
        self.ready = self._answer()["ready"]

    def do(self, kind: str, seed: int) -> dict[str, Any]:
        """Do one job; a child that dies or does not answer is an error of the job."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{kind} {seed}\n".encode())
        self._process.stdin.flush()
        return {"kind": kind, "seed": seed, **self._answer()}

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], PATIENCE)[0]:
            return {"error": f"no answer within {PATIENCE:.0f} s", "died": True}
        line = self._process.stdout.readline()
        if not line:
            return {"error": f"the process died ({self._process.wait()})", "died": True}
        answer: dict[str, Any] = json.loads(line)
        return answer


def do_jobs(base: Path, jobs: queue.SimpleQueue[tuple[str, int]], answers: list[dict[str, Any]]) -> None:
    """Do all jobs, in a child that is replaced if it dies or has grown."""
    child = Child(base)
    try:
        while True:
            kind, seed = jobs.get_nowait()
            answer = child.do(kind, seed)
            answer["grown"] = answer.get("bytes", 0) - child.ready
            answers.append(answer)
            if answer.get("died") or answer["grown"] > soak_jobs.MEMORY / 2:
                child.end()
                child = Child(base)
    except queue.Empty:
        pass
    finally:
        child.end()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_files_changed_at_random_cost_themselves_alone(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    soak_jobs.make_base(base)
    jobs: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
    for kind, (_, number) in soak_jobs.JOBS.items():
        for seed in range(1, number + 1):
            jobs.put((kind, seed))
    answers: list[dict[str, Any]] = []
    workers = [threading.Thread(target=do_jobs, args=(base, jobs, answers)) for _ in range(CHILDREN)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    failed = [answer for answer in answers if answer["error"]]
    slow = [answer for answer in answers if answer.get("seconds", 0) > SECONDS]
    large = [answer for answer in answers if answer["grown"] > soak_jobs.MEMORY]
    counts = collections.Counter(answer["kind"] for answer in answers)
    longest, grown = (max(answer.get(key, 0) for answer in answers) for key in ("seconds", "grown"))
    cpu = sum(answer.get("seconds", 0) for answer in answers)
    print(f"{len(answers)} files: {dict(counts)}; {cpu:.0f} s of CPU, {longest:.1f} s at most, {grown >> 20} MiB more")
    assert counts == {kind: number for kind, (_, number) in soak_jobs.JOBS.items()}
    assert not (failed or slow or large), "\n\n".join(map(str, (failed + slow + large)[:20]))
