"""The recorder's benchmarks run, and a figure that could not be measured is not made up."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tests.support import ROOT

BENCHMARKS = ROOT / "benchmarks"


def run(script: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / script, *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
class TestBenchmarks:
    def test_memory(self):
        told = run("bench_memory.py", "--updates", "500", "--dry")
        assert told.startswith("peak memory grew by 0.0 MB after the first 500 of 500 updates")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device: it would be measured")
    def test_overhead_on_a_gpu_is_not_measured_without_one(self):
        before = sorted(BENCHMARKS.glob("results/*"))
        assert run("bench_gpu_overhead.py") == "overhead on a GPU: not measured, there is no CUDA device\n"
        assert sorted(BENCHMARKS.glob("results/*")) == before

    def test_overhead_on_a_gpu_can_be_tried_out_on_a_cpu(self):
        told = run("bench_gpu_overhead.py", "--device", "cpu", "--pairs", "1", "--updates", "7", "--n-envs", "4")
        assert "'level': 'debug'" in told and told.endswith("no result is written\n")
