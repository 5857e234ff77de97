"""What a render will need, before anything is touched: memory, disk, operations, time; and whether that fits.

Projections are upper bounds where they can be: glass is counted only where the map of occupied windows is sure, pixels
are taken to compress by a tenth (measured on painted tissue), and every thread to hold its share at the same time.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

from wsigen.errors import SettingsError
from wsigen.models.config import ModelConfig
from wsigen.painting.canvas import CanvasPanels
from wsigen.painting.cost import BatchCost, batch_cost
from wsigen.painting.grid import BlockGrid, Parity
from wsigen.painting.occupancy import windows_by_parity
from wsigen.painting.slide_worker import cache_bytes, fixed_threads, lanes_for, load_model, make_painter, tasks_at_once
from wsigen.painting.spec import PaintSpec

PROCESS_BYTES = 700 << 20  # Python, torch and the libraries of a process on a CPU
CUDA_PROCESS_BYTES = 3 << 30  # with CUDA's, and page-locked buffers
CUDA_CONTEXT_BYTES = 700 << 20
WORKSPACE = 1.25  # share that convolutions and the allocator's gaps add to what lives
WINDOW_BYTES_PER_PIXEL = 14  # a loaded window: masks with what is around 7, context 3, known 1, pixels that come back 3
CANVAS_SHARE = 0.9  # of a byte that zstd leaves of a painted one
SLIDE_BYTES_PER_PIXEL = 0.8  # JPEG at quality 87 of textured tissue, all levels; 0.6 was measured at most
_GROUPS = Path("/sys/fs/cgroup")
CONTROL_GROUPS = (  # limit and use, of version 2 and of version 1
    (_GROUPS / "memory.max", _GROUPS / "memory.current"),
    (_GROUPS / "memory/memory.limit_in_bytes", _GROUPS / "memory/memory.usage_in_bytes"),
)
ENCODER_PANELS = 10  # panels that are read, encoded or gathered at a time


@dataclass(frozen=True)
class Projection:
    """What a render needs. ``windows``: for each parity all of them, and those that may need the model.

    Bytes: ``device_bytes`` on each GPU (0 on a CPU), ``host_bytes`` on this machine, ``canvas_bytes`` and
    ``slide_bytes`` on disk. ``operations``: of the network, 2 a multiply-add. ``batches``: calls of the whole solver.
    """

    windows: Mapping[Parity, tuple[int, int]]
    blocks: int
    block_windows: int
    batches: int
    operations: int
    device_bytes: int
    host_bytes: int
    canvas_bytes: int
    slide_bytes: int

    @property
    def painted(self) -> int:
        """Windows that may go through the model."""
        return sum(occupied for _, occupied in self.windows.values())

    def describe(self, seconds: float | None = None) -> list[str]:
        """Lines for people; ``seconds`` is an estimate of the painting."""
        parities = ", ".join(f"({c.x}, {c.y}) {occupied:,}" for c, (_, occupied) in self.windows.items())
        total = sum(count for count, _ in self.windows.values())
        lines = [
            f"windows: {total:,}, of which {self.painted:,} go through the model (by parity: {parities}) and "
            f"{total - self.painted:,} are glass",
            f"blocks: {self.blocks:,} of {self.block_windows} x {self.block_windows} windows; "
            f"batches: {self.batches:,}; {self.operations / 1e15:.3g} PFLOP",
            (f"device memory: {gigabytes(self.device_bytes)} a GPU; " if self.device_bytes else "")
            + f"host memory: {gigabytes(self.host_bytes)}; disk: {gigabytes(self.canvas_bytes)} canvas (removed in the "
            f"end), {gigabytes(self.slide_bytes)} slide",
        ]
        return lines + ([f"time: about {duration(seconds)} to paint (from one batch, timed here)"] if seconds else [])


def project(
    spec: PaintSpec, config: ModelConfig, layout: BlockGrid, occupied: np.ndarray, workers: int, *, remote: bool = False
) -> Projection:
    """Project a render by ``workers`` processes on this machine, or (``remote``) by a cluster elsewhere."""
    grid, cost = layout.grid, _cost(spec, config)
    windows = windows_by_parity(occupied)
    painted = sum(count for _, count in windows.values())
    batches = -(-painted // spec.batch_size)
    on_gpu = torch.device(spec.device).type == "cuda"
    # On the average a window holds half a period and a band along each axis, and shows half a period.
    held, shown = painted * (grid.stride + grid.blend) ** 2, painted * grid.stride**2
    device = int(CUDA_CONTEXT_BYTES + cost.weight_bytes + WORKSPACE * cost.work_bytes) if on_gpu else 0
    encoder = ENCODER_PANELS * 3 * min(CanvasPanels.side_of(grid) ** 2, grid.width * grid.height)
    process = _process_bytes(spec, cost, layout, lanes_for(spec.device, workers), on_gpu)
    host = PROCESS_BYTES + encoder + (0 if remote else process * workers)
    return Projection(
        windows=windows,
        blocks=layout.columns * layout.rows,
        block_windows=2 * layout.b,
        batches=batches,
        operations=batches * cost.operations,
        device_bytes=device,
        host_bytes=host,
        canvas_bytes=int(held * 3 * CANVAS_SHARE),
        slide_bytes=int(shown * SLIDE_BYTES_PER_PIXEL),
    )


def _cost(spec: PaintSpec, config: ModelConfig) -> BatchCost:
    calls = config.guidance(spec.guidance_scale).calls
    return batch_cost(config, spec.window, spec.batch_size, spec.num_inference_steps, calls, spec.dtype)


def _process_bytes(spec: PaintSpec, cost: BatchCost, layout: BlockGrid, lanes: int, on_gpu: bool) -> int:
    task = 2 * max(layout.b**2, spec.batch_size) * spec.window**2 * WINDOW_BYTES_PER_PIXEL
    chunk = 3 * layout.pixels**2 // 2
    caches = 2 * cache_bytes(spec.device)  # chunks, mask
    model = 0 if on_gpu else int(cost.weight_bytes + lanes * WORKSPACE * cost.work_bytes)
    base = CUDA_PROCESS_BYTES if on_gpu else PROCESS_BYTES
    return base + caches + model + tasks_at_once(spec.device, lanes) * (task + chunk)


def refuse_what_does_not_fit(projection: Projection, spec: PaintSpec, canvas: Path, slide: Path, workers: int) -> None:
    """Raise SettingsError if memory or disk do not suffice, with the option that makes it fit."""
    if projection.device_bytes and torch.cuda.is_available():
        _refuse_device(projection, spec)
    available = available_memory()
    if projection.host_bytes > available:
        mend = f"--workers {workers // 2}" if workers > 1 else _smaller_batch(spec, available / projection.host_bytes)
        raise SettingsError(
            f"this render needs about {gigabytes(projection.host_bytes)} of memory, {gigabytes(available)} are free; "
            f"try {mend}"
        )
    done = _bytes_in(canvas)
    needs = {canvas.parent: max(0, projection.canvas_bytes - done)}
    needs[slide.parent] = needs.get(slide.parent, 0) + projection.slide_bytes
    shared = len({os.stat(folder).st_dev for folder in needs}) == 1
    for folder, need in needs.items():
        need, free = sum(needs.values()) if shared else need, shutil.disk_usage(folder).free
        if need > free:
            raise SettingsError(
                f"this render needs about {gigabytes(need)} on the disk of {folder}, {gigabytes(free)} are free; give "
                "--canvas a folder on a larger one, or -o"
            )


def _refuse_device(projection: Projection, spec: PaintSpec) -> None:
    free, total = torch.cuda.mem_get_info()
    mend = _smaller_batch(spec, free / projection.device_bytes)
    if projection.device_bytes > free:
        raise SettingsError(
            f"--batch-size {spec.batch_size} needs about {gigabytes(projection.device_bytes)} on the GPU, "
            f"{gigabytes(free)} of {gigabytes(total)} are free; try {mend}"
        )


def _smaller_batch(spec: PaintSpec, share: float) -> str:
    size = 2
    while 2 * size <= spec.batch_size * share:
        size *= 2
    return f"--batch-size {size}" if size < spec.batch_size else "a smaller --window, or a machine with more"


def available_memory() -> int:
    """Bytes that this process may still take: free on the machine, and within its control group."""
    free = psutil.virtual_memory().available
    for limit, used in CONTROL_GROUPS:
        try:
            free = min(free, int(limit.read_text()) - int(used.read_text()))
        except (OSError, ValueError):  # no such control group, or "max": no limit
            continue
    return free


def measured_seconds(spec: PaintSpec, batches: int, workers: int) -> float:
    """Seconds to paint so many batches, from one batch of two steps timed on this machine (and one to warm up)."""
    steps = min(2, spec.num_inference_steps)
    with fixed_threads():
        painter = make_painter(spec, load_model(spec), num_inference_steps=steps)
        jobs = [painter.any_window(spec.window)] * spec.batch_size
        painter.paint(jobs)
        started = time.perf_counter()
        painter.paint(jobs)
        seconds = time.perf_counter() - started
    return seconds * spec.num_inference_steps / steps * batches / (workers * lanes_for(spec.device, workers))


def gigabytes(count: float) -> str:
    """A number of bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"


def duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
