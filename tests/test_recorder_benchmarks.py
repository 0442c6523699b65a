"""The recorder's benchmarks run, and write no figure that was not measured."""

from __future__ import annotations

import sys

import pytest
import torch

from tests.support import ROOT, run_process

BENCHMARKS = ROOT / "benchmarks"


def run(script: str, *arguments: str) -> str:
    return run_process(sys.executable, BENCHMARKS / script, *arguments).stdout


@pytest.mark.slow
class TestBenchmarks:
    def test_memory_is_measured(self):
        output = run("bench_memory.py", "--updates", "500", "--dry")
        assert output.startswith("peak memory grew by 0.0 MB after the first 500 of 500 updates")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device: it would be measured")
    def test_overhead_on_a_gpu_is_not_measured_without_one(self):
        before = sorted(BENCHMARKS.glob("results/*"))
        assert run("bench_gpu_overhead.py") == "overhead on a GPU: not measured, there is no CUDA device\n"
        assert sorted(BENCHMARKS.glob("results/*")) == before

    def test_overhead_on_a_gpu_can_be_tried_out_on_a_cpu(self):
        output = run("bench_gpu_overhead.py", "--device", "cpu", "--pairs", "1", "--updates", "7", "--n-envs", "4")
        assert "'level': 'debug'" in output and output.endswith("no result is written\n")
