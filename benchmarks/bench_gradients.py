"""What the statistics of gradients cost: operations, CPU or device time, against per-layer torch ops and a plain copy.

For each number of tensors and of parameters, in float32 and bfloat16:

* `launches`: operations torch ran for one step of all layers; on a GPU kernels, on a CPU operations, views included;
* `seconds`: time of one step, best of the turns: CPU time of the thread, on a GPU the device's own time;
* `per_layer`: time of torch's ops, layer by layer, for the same statistics, over ours;
* `of_copy`: bytes of gradients per second, over those that a plain copy of as many bytes reads and writes a second.

    python benchmarks/bench_gradients.py [--turns 5] [--largest 1e9]

Sizes that would take more than a quarter of the memory there is are left out, and the result says so.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from results_file import write_result
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from esper_recorder.contract.histogram import gradient_edges
from esper_recorder.reductions.gradients import LayerReducer

TENSORS = (1, 10, 100, 1000)
PARAMETERS = (10**6, 10**7, 10**8, 10**9)
TYPES = (torch.float32, torch.bfloat16)


def per_layer(parameters: list[Tensor]) -> list[Tensor]:
    """The same statistics with torch's own ops, one layer after the other: what a trainer would write."""
    found = []
    edges = torch.tensor(gradient_edges(), device=parameters[0].device)
    for parameter in parameters:
        assert parameter.grad is not None
        g, w = parameter.grad.flatten().float(), parameter.detach().flatten().float()
        finite = torch.isfinite(g)
        wide = torch.where(finite, g, 0).double()
        bins = torch.bucketize(g.abs(), edges, right=True) + (g != 0)
        counts = torch.zeros(len(edges) + 2, dtype=torch.int64, device=g.device)
        counts.scatter_add_(0, bins, torch.ones_like(bins))
        found += [
            torch.isnan(g).sum(),
            (g == torch.inf).sum(),
            (g == -torch.inf).sum(),
            (g == 0).sum(),
            wide.sum(),
            wide.square().sum(),
            torch.where(torch.isnan(g), torch.inf, g).amin(),
            torch.where(torch.isnan(g), -torch.inf, g).amax(),
            torch.where(torch.isfinite(w), w, 0).double().square().sum(),
            counts,
        ]
    return found


def timed(work: Callable[[], Any], turns: int, device: torch.device) -> float:
    """Seconds of one call, best of the turns: CPU time of this thread, or the device's time."""
    work()
    best = float("inf")
    for _ in range(turns):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            work()
            end.record()
            end.synchronize()
            best = min(best, begin.elapsed_time(end) / 1e3)
        else:
            began = time.thread_time()
            work()
            best = min(best, time.thread_time() - began)
    return best


def launches(work: Callable[[], Any], device: torch.device) -> int:
    """Operations one call runs: kernels on a GPU, torch's outermost operations on a CPU."""
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as seen:
        work()
    events = seen.events() or []
    return sum(1 for e in events if cuda or (e.cpu_parent is None and e.name.startswith("aten::")))


def measure(tensors: int, parameters: int, dtype: torch.dtype, device: torch.device, turns: int) -> dict[str, Any]:
    """One row of the result."""
    size = parameters // tensors
    layers: list[Tensor] = []
    for _ in range(tensors):
        layer = torch.empty(size, dtype=dtype, device=device).normal_()
        layer.grad = torch.empty_like(layer).normal_(std=1e-3)
        layers.append(layer)
    reducer = LayerReducer(layers)

    def ours() -> None:
        reducer.take(layers)
        reducer.drain()

    seconds, theirs = timed(ours, turns, device), timed(lambda: per_layer(layers), turns, device)
    bytes_read = tensors * size * layers[0].element_size()
    half = torch.empty(bytes_read // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(half)
    copy = timed(lambda: target.copy_(half), turns, device)
    return {
        "device": device.type,
        "tensors": tensors,
        "parameters": tensors * size,
        "dtype": str(dtype).removeprefix("torch."),
        "launches": launches(ours, device),
        "seconds": round(seconds, 6),
        "per_layer": round(theirs / seconds, 2),
        "of_copy": round(copy / seconds, 4),  # the copy reads half of the bytes and writes as many
    }


def memory_for_one_measurement(device: torch.device) -> int:
    """Bytes a measurement may use."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 4
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")) // 4


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--largest", type=float, default=float(max(PARAMETERS)), help="most parameters to try")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    devices = [torch.device("cpu")] + ([torch.device("cuda")] if torch.cuda.is_available() else [])
    for device in devices:
        for parameters, tensors, dtype in itertools.product(PARAMETERS, TENSORS, TYPES):
            if parameters > arguments.largest:
                continue
            # Weights and gradients; the per-layer ops take a float32 copy and a few of eight bytes of one layer.
            needed = 2 * parameters * dtype.itemsize + 40 * (parameters // tensors)
            if needed > memory_for_one_measurement(device):
                row: dict[str, Any] = {
                    "device": device.type,
                    "tensors": tensors,
                    "parameters": parameters,
                    "dtype": str(dtype).removeprefix("torch."),
                    "left_out": f"needs {needed / 1e9:.1f} GB",
                }
            else:
                row = measure(tensors, parameters, dtype, device, arguments.turns)
            rows.append(row)
            print(row, file=sys.stderr)
    if len(devices) == 1:
        rows.append({"device": "cuda", "result": "not measured: there is no GPU"})
    print(write_result("gradients", {"turns": arguments.turns, "largest": arguments.largest, "threads": 1}, rows))


if __name__ == "__main__":
    main()
