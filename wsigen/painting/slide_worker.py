"""What one process holds to paint one slide: source, model and canvas, opened once. A task runs in a SlideWorker."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch

from wsigen.conditions.registry import source_of
from wsigen.errors import SettingsError, StoreError
from wsigen.networks.denoiser import Denoiser
from wsigen.painting.batching import LARGEST_LOAD, Batcher, Load, WorkerThreads
from wsigen.painting.canvas import CACHE_BYTES, Canvas
from wsigen.painting.grid import Rectangle, Window, WindowGrid, bounding
from wsigen.painting.painter import Painter, WindowJob
from wsigen.painting.source import SOURCES, Source
from wsigen.painting.spec import INTRA_OP_THREADS, PaintSpec
from wsigen.painting.tasks import Task
from wsigen.system.cores import available_cores

LOADERS = (4, 6)  # threads of a process that read ahead of the model, at least and at most: Python runs one at a time
TASKS_PER_PROCESS = 3  # one reads, one paints, one writes
TASKS_PER_GPU = 6  # a batch takes it less time than its task takes to be read and written
GPU_CACHE_BYTES = 1 << 30  # what two rows of blocks of 30,000 px hold, so that a GPU does not wait for it again


@dataclass(frozen=True)
class TaskResult:
    """What tasks report; results add up.

    painted: windows that went through the model. glass: windows filled with glass. reading, writing: seconds that
    threads spent on masks and context, and on chunks. device: seconds that the device worked.
    """

    painted: int = 0
    glass: int = 0
    reading: float = 0.0
    device: float = 0.0
    writing: float = 0.0

    def __add__(self, other: "TaskResult") -> "TaskResult":
        return TaskResult(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


class SlideWorker:
    """Paints tasks of one slide. Threads may share it, and several tasks may run at a time."""

    def __init__(self, canvas: Canvas, source: Source, painter: Painter, pools: WorkerThreads) -> None:
        self.canvas, self.painter, self.source = canvas, painter, source
        self.verdict = painter.open(canvas.grid.window)
        self.painted = 0
        self.glass = 0
        self._counting = threading.Lock()
        self._stopped = threading.Event()
        self._batcher = Batcher(painter, pools, self._stopped)

    @classmethod
    def open(
        cls, spec: PaintSpec, canvas_path: str | Path, pools: WorkerThreads, model: Denoiser | None = None
    ) -> "SlideWorker":
        """Open everything a spec names. Raises StoreError if the canvas is of another grid than source and spec."""
        canvas = Canvas.open(canvas_path, cache_bytes(spec.device))
        model = model or load_model(spec)
        source = open_source(spec, model, cache_bytes(spec.device))
        here, there = astuple(spec.grid(source.width, source.height)), astuple(canvas.grid)
        if here != there:
            source.close()
            raise StoreError(f"{canvas_path}: its width, height, window, overlap and blend are {there}, not {here}")
        return cls(canvas, source, make_painter(spec, model), pools)

    def run(self, task: Task) -> TaskResult:
        """Paint the windows of a task and write its chunks.

        Raises InterruptedError after stop, and StoreError if what the task builds on is missing or damaged.
        """
        layout, reading = self.canvas.layout, _Clock()
        windows = [layout.windows(*chunk) for chunk in task.chunks]
        parts = [part for group in windows for part in strips(group)]
        submitted = self._batcher.submit([Load(partial(self._load, part, reading), len(part)) for part in parts])
        for future in submitted:
            future.add_done_callback(self._count)
        futures = iter(submitted)
        result = TaskResult()
        for chunk, group in zip(task.chunks, windows, strict=True):
            result += self._fill(chunk, group, [next(futures) for _ in group])
        return result + TaskResult(reading=reading.seconds)

    def _fill(self, chunk: tuple, windows: tuple[Window, ...], futures: list[Future]) -> TaskResult:
        """Gather the windows of a chunk as they are painted, and write it."""
        layout, (block, parity) = self.canvas.layout, chunk
        wait(futures)
        painted = {
            window: pixels for window, future in zip(windows, futures, strict=True) if (pixels := future.result())
        }
        started = time.perf_counter()
        if painted:
            width, height = layout.chunk_size(parity)
            pixels = np.broadcast_to(self.painter.glass_rgb, (height, width, 3)).copy()
            for window, (window_pixels, _) in painted.items():
                pixels[layout.within_chunk(window)] = window_pixels[layout.grid.held_within(window)]
            self.canvas.write(block, parity, pixels)
        else:
            self.canvas.write_blank([chunk], self.painter.glass_rgb.tolist())
        device = sum(seconds for _, seconds in painted.values())
        writing = time.perf_counter() - started
        return TaskResult(len(painted), len(windows) - len(painted), device=device, writing=writing)

    def stop(self) -> None:
        """Let running tasks end early, without a result: at the next step of the solver."""
        self._stopped.set()

    def close(self) -> None:
        """Stop and close the source. Tasks must have ended."""
        self.stop()
        self.source.close()

    def _load(self, windows: Sequence[Window], clock: "_Clock") -> list[WindowJob | None]:
        """Read windows; None for one of which all that it holds is clear glass."""
        if self._stopped.is_set():
            raise InterruptedError("painting was stopped")
        with clock:
            return load_windows(self.source, self.canvas.grid, windows, self._context)

    def _count(self, future: Future) -> None:
        if future.exception() is None:
            with self._counting:
                self.glass += future.result() is None
                self.painted += future.result() is not None

    def _context(self, region: Rectangle, stage: int) -> tuple[np.ndarray, np.ndarray]:
        return self.canvas.read_region(*region, stages_below=stage, require=True)


class _Clock:
    """Sums up seconds that several threads spend inside it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._local = threading.local()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._local.started = time.perf_counter()

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self.seconds += time.perf_counter() - self._local.started


def strips(windows: Sequence[Window]) -> Iterator[Sequence[Window]]:
    """Cut windows of one parity, sorted by row, into runs of a row that are worth one load."""
    for _, row in groupby(windows, attrgetter("j")):
        rest = list(row)
        while rest:
            yield rest[:LARGEST_LOAD]
            rest = rest[LARGEST_LOAD:]


def load_windows(
    source: Source,
    grid: WindowGrid,
    windows: Sequence[Window],
    context_of: Callable[[Rectangle, int], tuple[np.ndarray, np.ndarray]],
) -> list[WindowJob | None]:
    """Read windows of one row and stage; None for one that holds clear glass alone.

    The source is read once for all, and so are the pixels that are final before their stage, by ``context_of``: many
    small reads cost more than a large one, most of all where many threads read.
    """
    extents = [grid.extent(window) for window in windows]
    around = source.read(extents)
    needed = [not part.is_glass(grid.held_within(window)) for part, window in zip(around, windows, strict=True)]
    if not any(needed):
        return [None] * len(windows)
    seen = bounding([extent for extent, needs in zip(extents, needed, strict=True) if needs])
    pixels, known = context_of(seen, windows[0].stage)
    jobs: list[WindowJob | None] = []
    for part, (x, y, width, height), needs in zip(around, extents, needed, strict=True):
        place = slice(y - seen.y, y - seen.y + height), slice(x - seen.x, x - seen.x + width)
        jobs.append(WindowJob(x, y, part, pixels[place], known[place]) if needs else None)
    return jobs


def open_source(spec: PaintSpec, model: Denoiser, cache_bytes: int = CACHE_BYTES) -> Source:
    """Open what a model paints the slide of a spec from."""
    return SOURCES[source_of(model.config)].open(spec.source, model.config, spec.mpp, cache_bytes)


def load_model(spec: PaintSpec) -> Denoiser:
    """Load the model of a spec onto its device, in its dtype. Raises SettingsError if the window does not suit it."""
    model = Denoiser.from_pretrained(spec.model)
    if spec.window % model.size_multiple:
        raise SettingsError(
            f"--window {spec.window}: must be a multiple of {model.size_multiple} for model {model.config.name}"
        )
    model = model.to(spec.device, getattr(torch, spec.dtype)).eval()
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs


def make_painter(spec: PaintSpec, model: Denoiser, num_inference_steps: int | None = None) -> Painter:
    """Build the painter of a spec, or one of another number of steps, around its loaded model."""
    return Painter(
        model,
        spec.style,
        sampler=spec.sampler,
        num_inference_steps=num_inference_steps or spec.num_inference_steps,
        guidance_scale=spec.guidance_scale,
        seed=spec.seed,
        batch_size=spec.batch_size,
        device=spec.device,
        dtype=getattr(torch, spec.dtype),
        values=dict(spec.conditions),
    )


def new_threads(device: str, lanes: int | None = None, processes: int = 1) -> WorkerThreads:
    """Threads for one of so many processes on this machine."""
    return WorkerThreads(lanes or lanes_for(device, processes), loaders_for(available_cores() // processes))


def loaders_for(cores: int) -> int:
    """Threads that read for a process with so many cores."""
    least, most = LOADERS
    return min(max(cores, least), most)


def tasks_at_once(device: str, lanes: int) -> int:
    """Tasks in flight in one process."""
    return TASKS_PER_GPU if torch.device(device).type == "cuda" else TASKS_PER_PROCESS + lanes - 1


def new_loaders(processes: int) -> int:
    """Threads of one of so many processes on this machine that read ahead."""
    return loaders_for(available_cores() // processes)


def cache_bytes(device: str) -> int:
    """Memory that a process keeps for decoded chunks, and as much for decoded parts of the mask."""
    return CACHE_BYTES if torch.device(device).type == "cpu" else GPU_CACHE_BYTES


def lanes_for(device: str, processes: int = 1) -> int:
    """Batches that one of so many processes on this machine paints at a time: 1 on a GPU, its share of the cores."""
    if torch.device(device).type != "cpu":
        return 1
    return max(1, available_cores() // processes)


@contextmanager
def fixed_threads() -> Iterator[None]:
    """Let torch run each operation on INTRA_OP_THREADS threads of the CPU, in all Python threads, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(INTRA_OP_THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)
