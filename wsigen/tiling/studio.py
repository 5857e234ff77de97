"""What one process holds to paint: mask, model and canvas, opened once, and the threads that keep the model busy."""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from wsigen.errors import SettingsError, StoreError
from wsigen.masks.conditions import read_conditions
from wsigen.masks.slide_mask import SlideMask, resampled_to
from wsigen.models.nasdm import NasdmModel
from wsigen.tiling.canvas import Canvas
from wsigen.tiling.grid import Window
from wsigen.tiling.painter import Painter, WindowJob
from wsigen.tiling.plan import Task
from wsigen.tiling.spec import INTRA_OP_THREADS, PaintSpec

LOADERS = 4  # threads that read masks and context ahead of the model


@dataclass(frozen=True)
class TaskResult:
    """What a task reports: windows that went through the model, windows filled with glass, and the time it took."""

    painted: int
    glass: int
    seconds: float


class Studio:
    """Paints tasks. Threads may share it, and several tasks may run at a time.

    Loader threads read masks and context, ``lanes`` painter threads run the model, a batch each. A GPU has one lane; a
    CPU has one for each core, since every operation runs on a single thread there (see INTRA_OP_THREADS).
    """

    def __init__(self, canvas: Canvas, source: SlideMask, painter: Painter, mpp: float, lanes: int = 1) -> None:
        self.canvas, self.painter, self.mpp = canvas, painter, mpp
        self.source = source
        self.mask = resampled_to(source, mpp)
        self.painted = 0
        self.glass = 0
        self._counting = threading.Lock()
        self._stopped = threading.Event()
        self._loaders = ThreadPoolExecutor(LOADERS, "wsigen-load")
        self._painters = ThreadPoolExecutor(lanes, "wsigen-paint")

    @classmethod
    def open(cls, spec: PaintSpec, canvas_path: str | Path, lanes: int = 1) -> "Studio":
        """Open everything a spec names. Raises StoreError if the canvas is of another grid than mask and spec."""
        canvas = Canvas.open(canvas_path)
        model = load_model(spec)
        source = SlideMask.open(spec.mask, len(model.config.classes))
        mask = resampled_to(source, spec.mpp)
        here = (mask.width, mask.height, spec.window, spec.overlap)
        there = (canvas.grid.width, canvas.grid.height, canvas.grid.window, canvas.grid.overlap)
        if here != there:
            source.close()
            raise StoreError(f"{canvas_path}: its width, height, window and overlap are {there}, not {here}")
        return cls(canvas, source, make_painter(spec, model), spec.mpp, lanes)

    def run(self, task: Task) -> TaskResult:
        """Paint the windows of a task and write its chunks.

        Raises InterruptedError after stop, and StoreError if what the task builds on is missing or damaged.
        """
        started = time.perf_counter()
        layout = self.canvas.layout
        windows = [window for colour in task.colours for window in layout.windows(task.block, colour)]
        chunks = {colour: self._glass(*layout.chunk_size(colour)) for colour in task.colours}
        painted = 0
        for batch, pixels in self._paint(windows):
            for window, window_pixels in zip(batch, pixels.result(), strict=True):
                chunks[window.colour][layout.within_chunk(window)] = window_pixels[layout.grid.owned_within(window)]
            painted += len(batch)
        for colour, chunk in chunks.items():
            self.canvas.write(task.block, colour, chunk)
        return TaskResult(painted, len(windows) - painted, time.perf_counter() - started)

    def stop(self) -> None:
        """Let running tasks end early, without a result: at the next step of the solver."""
        self._stopped.set()

    def close(self) -> None:
        """Stop, wait for the threads, close the mask."""
        self.stop()
        self._loaders.shutdown(cancel_futures=True)
        self._painters.shutdown(cancel_futures=True)
        self.source.close()

    def _paint(self, windows: list[Window]) -> list[tuple[list[Window], Future]]:
        """Start painting those windows that need the model, in full batches while they last."""
        loads = [self._loaders.submit(self._load, window) for window in windows]
        batches: list[tuple[list[Window], Future]] = []
        waiting: list[tuple[Window, WindowJob]] = []
        for window, load in zip(windows, loads, strict=True):
            if job := load.result():
                waiting.append((window, job))
            if len(waiting) == self.painter.batch_size or (waiting and window is windows[-1]):
                jobs = [job for _, job in waiting]
                batches.append(([w for w, _ in waiting], self._painters.submit(self._paint_batch, jobs)))
                waiting = []
        return batches

    def _load(self, window: Window) -> WindowJob | None:
        """Read one window; None if all that it owns is clear glass."""
        if self._stopped.is_set():
            raise InterruptedError("painting was stopped")
        grid = self.canvas.grid
        x, y, width, height = grid.extent(window)
        conditions = read_conditions(self.mask, x, y, width, height, self.mpp)
        if not self.painter.needs_model(conditions, grid.owned_within(window)):
            with self._counting:
                self.glass += 1
            return None
        context, known = self.canvas.read_region(x, y, width, height, stages_below=window.stage, require=True)
        return WindowJob(x, y, conditions, context, known)

    def _paint_batch(self, jobs: list[WindowJob]) -> np.ndarray:
        pixels = self.painter.paint(jobs, self._stopped.is_set)
        with self._counting:
            self.painted += len(jobs)
        return pixels

    def _glass(self, width: int, height: int) -> np.ndarray:
        return np.broadcast_to(self.painter.glass_rgb, (height, width, 3)).copy()


def load_model(spec: PaintSpec) -> NasdmModel:
    """Load the model of a spec onto its device, in its dtype. Raises SettingsError if the window does not suit it."""
    model = NasdmModel.from_pretrained(spec.model)
    if spec.window % model.unet.size_multiple:
        raise SettingsError(
            f"--window {spec.window}: must be a multiple of {model.unet.size_multiple} for model {model.config.name}"
        )
    model = model.to(spec.device, getattr(torch, spec.dtype)).eval()
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs


def make_painter(spec: PaintSpec, model: NasdmModel) -> Painter:
    """Build the painter of a spec around its loaded model."""
    return Painter(
        model,
        spec.style,
        sampler=spec.sampler,
        num_inference_steps=spec.num_inference_steps,
        eta=spec.eta,
        guidance_scale=spec.guidance_scale,
        seed=spec.seed,
        batch_size=spec.batch_size,
        device=spec.device,
        dtype=getattr(torch, spec.dtype),
    )


def lanes_for(device: str, processes: int = 1) -> int:
    """Batches that one of so many processes on this machine paints at a time: 1 on a GPU, its share of the cores."""
    if torch.device(device).type != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // processes)


@contextmanager
def fixed_threads() -> Iterator[None]:
    """Let torch run each operation on INTRA_OP_THREADS threads of the CPU, in all Python threads, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(INTRA_OP_THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)
