"""Paint canvases: plan the tasks that are missing, and run them here or on a Dask cluster.

A task waits for exactly those tasks whose pixels its windows see: earlier stages of its own block and of the blocks to
the right and below. It reads them from the canvas and writes its own chunks whole, so that it may be repeated, on any
machine, at any time, with the same result; nothing but counts travels between processes. A few tasks a worker are in
flight; they are handed out by rows of blocks, so that a slide is finished from the top and can be encoded meanwhile.
Several slides may be under way: the next one fills the workers that the end of one leaves idle. So may be stages of one
slide, each on a canvas of its own: a task also waits for the chunks of the stage below that its windows follow from.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from wsigen.errors import ClusterError
from wsigen.painting.canvas import Canvas
from wsigen.painting.cluster import Executor, open_executor
from wsigen.painting.grid import BlockGrid, Rectangle, WindowGrid, block_windows, bounding
from wsigen.painting.process_worker import Job
from wsigen.painting.slide_worker import TaskResult, lanes_for
from wsigen.painting.spec import PaintSpec
from wsigen.painting.tasks import Task, make_plan

TICK_SECONDS = 0.25  # between looks at progress while nothing ends


@dataclass(frozen=True)
class Progress:
    """How far a run is, in windows.

    painted: went through the model. glass: filled with glass. resumed: found done. total: all of the plan.
    rows_done: pixel rows of the slide, from the top, that are finished (whole slides only).
    ended: the task that just ended, None while none has.
    seconds: since the first task was handed out. device_share: part of that time that the devices worked, 0 to 1.
    work: what ended tasks report, with the seconds of their threads.
    """

    painted: int
    glass: int
    resumed: int
    total: int
    rows_done: int = 0
    ended: Task | None = None
    seconds: float = 0.0
    device_share: float = 0.0
    work: TaskResult = TaskResult()  # noqa: RUF009  frozen

    @property
    def done(self) -> int:
        """Windows that need no more work."""
        return self.painted + self.glass + self.resumed


OnProgress = Callable[[Progress], None]


def plan_blocks(grid: WindowGrid, spec: PaintSpec, workers: int = 1) -> BlockGrid:
    """Cut a grid into blocks of a size that suits the slide and the machine; pixels do not depend on it."""
    lanes = workers * lanes_for(spec.device, workers)
    return BlockGrid(grid, block_windows(grid, spec.batch_size, lanes) // 2)


def paint_canvas(
    canvas: Canvas,
    spec: PaintSpec,
    *,
    workers: int = 1,
    scheduler: Any = None,
    region: Rectangle | None = None,
    occupied: np.ndarray | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> Progress:
    """Paint what is missing on a canvas (all of it, or what a region needs), and say how much that was.

    ``workers`` is the number of processes on this machine, one for each GPU or for a share of the cores; ``scheduler``
    the address of a running Dask cluster or its `Client` instead, whose workers see the same paths. ``occupied`` is
    what `window_occupancy` found. ``on_progress`` is called in this thread. Interrupting leaves the canvas resumable.
    Raises SettingsError, StoreError, MaskError, ModelError and ClusterError.
    """
    run = Run(canvas, spec, region=region, occupied=occupied, on_progress=on_progress)
    if run.finished:
        run.report(None)
        return run.progress
    with open_executor(spec.device, workers, scheduler) as executor:
        engine = TaskScheduler(executor)
        engine.add(run)
        while not run.finished:
            engine.step()
            if run.error is not None:
                raise run.error
    return run.progress


@dataclass(frozen=True)
class Below:
    """The stage that a run is painted from, on another canvas: a task waits for what its windows see of it.

    ``seen``: the part of the stage below, in its pixels, that a part of the slide follows from. ``run``, unless it is
    finished, is added to the scheduler before the run that it is below of.
    """

    run: Run
    seen: Callable[[Rectangle], Rectangle]

    def tasks_for(self, canvas: Canvas, task: Task) -> set[Task]:
        """Tasks of the stage below, of those that have not ended, that a task of ``canvas`` waits for."""
        layout, below = canvas.layout, self.run.canvas.layout
        found = set()
        for chunk in task.chunks:
            part = self.seen(bounding([layout.grid.extent(window) for window in layout.windows(*chunk)]))
            for window in below.grid.windows(part):
                writer = self.run.writers.get((below.block_of(window), window.parity))
                if writer is not None:
                    found.add(writer)
        return found


class Run:
    """One canvas on its way to be finished. ``error`` is set when a task fails for good."""

    def __init__(
        self,
        canvas: Canvas,
        spec: PaintSpec,
        *,
        region: Rectangle | None = None,
        occupied: np.ndarray | None = None,
        on_progress: OnProgress = lambda progress: None,
        below: Below | None = None,
    ) -> None:
        self.canvas, self.spec, self.on_progress, self.below = canvas, spec, on_progress, below
        self.job = Job.of(canvas, spec)
        self.plan = make_plan(canvas, region, occupied, spec.batch_size)
        self.error: BaseException | None = None
        self.ways: list[str] = []  # in which operations keep rows of a batch equal, of those that would not
        self.work = TaskResult()
        self._write_blank()
        self._whole = region is None
        self.writers = {
            chunk: task for task in self.plan.tasks for chunk in task.chunks
        }  # of those that have not ended
        self._open = len(self.plan.tasks)
        self._open_in_row = [0] * (canvas.layout.rows + 1)
        for task in self.plan.tasks:
            self._open_in_row[task.chunks[0][0].q] += 1
        self._row = 0
        self._started: float | None = None
        self.progress = Progress(0, self.work.glass, self.plan.resumed, self.plan.total, self._rows_done())

    @property
    def finished(self) -> bool:
        """Whether every task has ended."""
        return not self._open

    def ended(self, task: Task, result: TaskResult) -> None:
        """Count a task."""
        self.work += result
        self._open -= 1
        for chunk in task.chunks:
            del self.writers[chunk]
        self._open_in_row[task.chunks[0][0].q] -= 1

    def report(self, ended: Task | None, executor: Executor | None = None) -> None:
        """Tell how far the run is, with what running tasks have done where that is known."""
        now = time.perf_counter()
        self._started = self._started or now
        seconds, lanes = now - self._started, executor.lanes if executor else 1
        live = executor.counts(self.job) if executor and executor.live else None
        painted = max(self.work.painted, live[0] if live else 0)
        glass = max(self.work.glass, live[1] + self._blank if live else 0)
        share = min(1.0, self.work.device / (lanes * seconds)) if seconds > 0 else 0.0
        counts = (painted, glass, self.plan.resumed, self.plan.total)
        self.progress = Progress(*counts, self._rows_done(), ended, seconds, share, self.work)
        self.on_progress(self.progress)

    def _write_blank(self) -> None:
        self._blank = sum(len(self.canvas.layout.windows(*chunk)) for chunk in self.plan.blank)
        self.canvas.write_blank(self.plan.blank, self.spec.style.glass_rgb)
        self.work += TaskResult(glass=self._blank)

    def _rows_done(self) -> int:
        if not self._whole:
            return 0
        while self._row < self.canvas.layout.rows and not self._open_in_row[self._row]:
            self._row += 1
        return min(self._row * self.canvas.layout.pixels, self.canvas.grid.height)


class TaskScheduler:
    """Hands out the tasks of runs, the most urgent first, as soon as all that they wait for is done."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self._ended: SimpleQueue[Any] = SimpleQueue()
        self._running: dict[Any, tuple[_Waits, Task]] = {}
        self._ready: list[tuple[int, int]] = []  # number of the run, rank of the task
        self._runs: list[_Waits] = []

    @property
    def has_capacity(self) -> bool:
        """Whether workers would go idle without another run."""
        return len(self._running) + len(self._ready) < self.executor.capacity

    def add(self, run: Run) -> None:
        """Take a run up, after those that were added before. Lets every process open the slide first.

        A run with a stage below waits for it task by task.
        """
        run.ways = self.executor.prepare(run.job)
        waits = _Waits(len(self._runs), run)
        if run.below is not None:
            by_run = {id(other.run): other for other in self._runs}
            for task in run.plan.tasks:
                for source in run.below.tasks_for(run.canvas, task):
                    waits.wait_for(task)
                    by_run[id(run.below.run)].above.setdefault(source, []).append((waits, task))
        for rank in waits.ready:
            heapq.heappush(self._ready, (waits.number, rank))
        self._runs.append(waits)
        run.report(None, self.executor)

    def step(self) -> None:
        """Hand out tasks, wait until some end or a moment has passed, and report."""
        while self._ready and len(self._running) < self.executor.capacity:
            self._submit(*heapq.heappop(self._ready))
        for future in self._wait():
            self._collect(future)
        for run in {waits.run for waits, _ in self._running.values()}:
            run.report(None, self.executor)
        self.executor.check()

    def _submit(self, number: int, rank: int) -> None:
        waits = self._runs[number]
        if waits.run.error is None:
            task = waits.run.plan.tasks[rank]
            future = self.executor.submit(waits.run.job, task, (number << 32) + rank)
            self._running[future] = waits, task
            future.add_done_callback(self._ended.put)

    def _wait(self) -> list[Any]:
        """Futures that ended: at least one, unless a moment passes first."""
        ended = []
        try:
            ended.append(self._ended.get(timeout=TICK_SECONDS))
            while True:
                ended.append(self._ended.get_nowait())
        except Empty:
            return ended

    def _collect(self, future: Any) -> None:
        waits, task = self._running.pop(future)
        run = waits.run
        try:
            result: TaskResult = future.result()
        except CancelledError:
            run.error = ClusterError("the Dask scheduler dropped the tasks of this run; start it again and --resume")
        except Exception as error:
            run.error = error
        else:
            run.ended(task, result)
            for other, rank in waits.released_by(task):
                heapq.heappush(self._ready, (other.number, rank))
            run.report(task, self.executor)


class _Waits:
    """Which tasks of a run become ready when one ends. ``above``: tasks of other runs that wait for those of this."""

    def __init__(self, number: int, run: Run) -> None:
        self.number, self.run = number, run
        self.above: dict[Task, list[tuple[_Waits, Task]]] = {}
        plan = run.plan
        self._rank = {task: rank for rank, task in enumerate(plan.tasks)}
        self._open = [len(plan.waits_for[task]) for task in plan.tasks]
        self._successors: dict[Task, list[Task]] = {}
        for task, sources in plan.waits_for.items():
            for source in sources:
                self._successors.setdefault(source, []).append(task)

    @property
    def ready(self) -> list[int]:
        """Ranks of the tasks that wait for nothing."""
        return [rank for rank, count in enumerate(self._open) if not count]

    def wait_for(self, task: Task) -> None:
        """Let a task of this run wait for one more."""
        self._open[self._rank[task]] += 1

    def released_by(self, ended: Task) -> list[tuple[_Waits, int]]:
        """Tasks, by run and rank, that waited for this one last."""
        own = [(self, task) for task in self._successors.pop(ended, ())]
        released = []
        for waits, task in (*own, *self.above.pop(ended, ())):
            rank = waits._rank[task]
            waits._open[rank] -= 1
            if not waits._open[rank]:
                released.append((waits, rank))
        return released
