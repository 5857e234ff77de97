"""How full batches are and how much a device rests: the engine's own plan, with loaders and a device that only sleep.

    python benchmarks/batching.py
    python benchmarks/batching.py --size 8192 --device-ms 280

The defaults are what was measured on one H200: 24 ms to read a window in one of 16 threads, 140 ms for 64 windows.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from wsigen.models.config import ModelConfig
from wsigen.models.registry import DEFAULT_MODEL, find_model
from wsigen.painting.batching import LARGEST_LOAD, Batcher, Load, WorkerThreads
from wsigen.painting.canvas import Canvas
from wsigen.painting.grid import BlockGrid, usual_blend
from wsigen.painting.process_worker import Job
from wsigen.painting.scheduler import Run, TaskScheduler, plan_blocks
from wsigen.painting.slide_worker import TaskResult, tasks_at_once
from wsigen.painting.spec import PaintSpec, run_record
from wsigen.painting.tasks import Task

WRITE_S = 0.1  # a task's chunks
PREPARE_S = 0.012  # a batch


class SleepingPainter:
    """A device that takes as long for every batch, one after the other."""

    device = torch.device("cuda")

    def __init__(self, batch_size: int, seconds: float) -> None:
        self.batch_size, self.seconds = batch_size, seconds
        self.sizes: list[int] = []
        self._free = 0.0

    def prepare(self, jobs: list[Any]) -> int:
        """Stack a batch."""
        time.sleep(PREPARE_S)
        return len(jobs)

    def launch(self, count: int, stop: Any) -> tuple[int, float]:
        """Queue a batch: its size, and when it will be painted."""
        self._free = max(time.perf_counter(), self._free) + self.seconds
        self.sizes.append(count)
        return count, self._free

    def fetch(self, launched: tuple[int, float]) -> tuple[list[None], float]:
        """Wait for a batch."""
        count, end = launched
        time.sleep(max(0.0, end - time.perf_counter()))
        return [None] * count, self.seconds


class SleepingPainters:
    """Where the engine sends its tasks."""

    live = False
    lanes = 1
    capacity = tasks_at_once("cuda", 1)

    def __init__(self, batcher: Batcher, layout: BlockGrid, load_s: float) -> None:
        self._batcher, self._layout, self._load_s = batcher, layout, load_s
        self._executor = ThreadPoolExecutor(self.capacity)

    def prepare(self, job: Job) -> None:
        """Nothing to open."""

    def submit(self, job: Job, task: Task, priority: int) -> Future:
        """Start a task."""
        return self._executor.submit(self._run, sum(len(self._layout.windows(*chunk)) for chunk in task.chunks))

    def counts(self, job: Job) -> tuple[int, int]:
        """Unknown."""
        return 0, 0

    def check(self) -> None:
        """All is well."""

    def _run(self, windows: int) -> TaskResult:
        sizes = [min(LARGEST_LOAD, windows - first) for first in range(0, windows, LARGEST_LOAD)]
        loads = [Load(partial(self._load, size), size) for size in sizes]
        wait(self._batcher.submit(loads))
        time.sleep(WRITE_S)
        return TaskResult(windows)

    def _load(self, count: int) -> list[Any]:
        time.sleep(self._load_s * count)
        return [object()] * count  # windows of nothing


@click.command()
@click.option("--size", default=32768, show_default=True, help="Side of the slide, px.")
@click.option("--load-ms", default=24.0, show_default=True, help="To read a window.")
@click.option("--loaders", default=16, show_default=True, help="Threads that read.")
@click.option("--device-ms", default=140.0, show_default=True, help="Of the device for a batch.")
@click.option("--batch-size", default=64, show_default=True)
def main(size: int, load_ms: float, loaders: int, device_ms: float, batch_size: int) -> None:
    """Simulate a render on one GPU; prints JSON."""
    config = ModelConfig.load(find_model(DEFAULT_MODEL))
    spec = PaintSpec(
        source="",
        model="",
        style=config.style(),
        mpp=config.mpp,
        window=config.window,
        overlap=config.overlap,
        blend=usual_blend(config.overlap),
        batch_size=batch_size,
        device="cuda",
    )
    layout = plan_blocks(spec.grid(size, size), spec)
    painter, pools = SleepingPainter(batch_size, device_ms / 1e3), WorkerThreads(1, loaders)
    batcher = Batcher(painter, pools, threading.Event())  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory(prefix="wsigen-batching-") as folder:
        record = run_record(spec, "", "", where={"device": "none"})
        run = Run(Canvas.create(Path(folder) / "canvas", layout, record), spec)
        engine = TaskScheduler(SleepingPainters(batcher, layout, load_ms / 1e3))
        started = time.perf_counter()
        engine.add(run)
        while not run.finished:
            engine.step()
        seconds = time.perf_counter() - started
    pools.close()
    windows = run.progress.painted
    figures = {
        "windows": windows,
        "batches": len(painter.sizes),
        "fill": windows / (batch_size * len(painter.sizes)),
        "seconds": seconds,
        "device_busy": len(painter.sizes) * painter.seconds / seconds,
    }
    click.echo(json.dumps(figures))


if __name__ == "__main__":
    main()
