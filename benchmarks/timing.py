"""Timing on a GPU or a CPU, in one way for every benchmark of kernels.

On a GPU a call is captured as a CUDA graph first, so that what is timed is the device and not Python, and the L2 cache
is overwritten before every repeat, since in the network other tensors pass through it in between. Times are medians of
CUDA events. Candidates take turns, so that a slow moment of the machine falls on all of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

WARM_UP = 3
FLUSH_BYTES = 256 << 20  # four times the 60 MB of an H200's L2 cache
COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 26}
MATMUL_SIDE = {"cuda": 8192, "cpu": 1024}


def graphed(function: Callable[[], Any], device: str) -> Callable[[], Any]:
    """Warm a function up (which compiles it) and return what replays it; the function itself on a CPU."""
    if device != "cuda":
        function()
        return function
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            function()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = function()

    def replay(_kept: Any = kept) -> None:
        graph.replay()

    return replay


def seconds(functions: list[Callable[[], Any]], device: str, repeats: int, flush: bool = True) -> list[float]:
    """Median seconds of each function, in turn."""
    if device != "cuda":
        return [
            statistics.median(column) for column in zip(*(_clocked(functions) for _ in range(repeats)), strict=True)
        ]
    waste = torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device="cuda") if flush else None
    rows = []
    for _ in range(repeats):
        events = []
        for function in functions:
            if waste is not None:
                waste.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            end.record()
            events.append((start, end))
        torch.cuda.synchronize()
        rows.append([start.elapsed_time(end) / 1e3 for start, end in events])
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def _clocked(functions: list[Callable[[], Any]]) -> list[float]:
    times = []
    for function in functions:
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return times


def copy_bandwidth(device: str, repeats: int) -> float:
    """Bytes a second, read and written together, of a copy far larger than any cache."""
    source = torch.zeros(COPY_BYTES[device] // 4, dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    (taken,) = seconds([lambda: target.copy_(source)], device, repeats, flush=False)
    return 2 * source.nbytes / taken


def matmul_rate(device: str, repeats: int) -> float:
    """Operations a second of a large bfloat16 matrix product of random data."""
    side = MATMUL_SIDE[device]
    left, right = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    left @ right
    (taken,) = seconds([lambda: left @ right], device, repeats, flush=False)
    return 2 * side**3 / taken
