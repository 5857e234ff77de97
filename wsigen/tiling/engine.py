"""Paint a canvas: plan the tasks that are missing, and run them here or on a Dask cluster.

A task is one stage of one block of windows. It waits for exactly those tasks whose pixels its windows see: earlier
stages of its own block and of the blocks to the right and below. It reads them from the canvas and writes its own
chunks whole, so that it may be repeated, on any machine, at any time, with the same result; nothing but counts travels
between processes. Tasks are handed out by rows of blocks, so that the slide is finished from the top.

Inside a process several threads read masks and context while the model runs (see Studio). With one worker all of it
happens in this process; with more, or with the address of a scheduler, Dask runs the same tasks.
"""

import hashlib
import heapq
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from distributed import Client, Nanny, Scheduler, SpecCluster, Worker, WorkerPlugin, get_worker
from distributed import wait as wait_distributed

from wsigen.errors import SettingsError, StoreError
from wsigen.tiling.canvas import Canvas
from wsigen.tiling.grid import BlockGrid, Rectangle, WindowGrid, block_windows
from wsigen.tiling.plan import Plan, Task, make_plan
from wsigen.tiling.spec import INTRA_OP_THREADS, PaintSpec, environment
from wsigen.tiling.studio import Studio, TaskResult, fixed_threads, lanes_for

TASKS_PER_PROCESS = 2  # while one task ends with a part of a batch, the next has begun
RETRIES = 3  # of a task whose worker died or whose file system failed
TICK_SECONDS = 0.25  # between progress reports while tasks run in this process


@dataclass(frozen=True)
class Progress:
    """How far a run is, in windows.

    painted: went through the model. glass: filled with glass. resumed: found done. total: all of the plan.
    rows_done: pixel rows of the slide, from the top, that are finished (whole slides only).
    region, stage: the task that just ended painted the pixels of this stage there; None while none has.
    """

    painted: int
    glass: int
    resumed: int
    total: int
    rows_done: int = 0
    region: Rectangle | None = None
    stage: int | None = None

    @property
    def done(self) -> int:
        """Windows that need no more work."""
        return self.painted + self.glass + self.resumed


def plan_blocks(grid: WindowGrid, spec: PaintSpec, workers: int = 1) -> BlockGrid:
    """Cut a grid into blocks of a size that suits the slide and the machine; pixels do not depend on it."""
    lanes = workers * lanes_for(spec.device, workers)
    return BlockGrid(grid, block_windows(grid, spec.batch_size, lanes) // 2)


def paint_canvas(
    canvas: Canvas,
    spec: PaintSpec,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    region: Rectangle | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Paint what is missing on a canvas (all of it, or what a region needs), and say how much that was.

    ``workers`` is the number of processes on this machine, one for each GPU or for a share of the cores; ``scheduler``
    the address of a running Dask cluster instead, whose workers see the same paths. ``on_progress`` is called in this
    thread. Interrupting leaves the canvas resumable. Raises SettingsError, StoreError, MaskError and ModelError.
    """
    if workers < 1:
        raise SettingsError(f"--workers {workers}: must be at least 1")
    plan = make_plan(canvas, region)
    if not plan.tasks:
        progress = Progress(0, 0, plan.resumed, plan.total, canvas.grid.height if region is None else 0)
        on_progress(progress)
        return progress
    open_backend = _local if workers == 1 and scheduler is None else _dask
    with open_backend(canvas, spec, workers, scheduler) as backend:
        return _drive(plan, canvas, backend, on_progress, whole=region is None)


class _Backend(Protocol):
    """Something that runs tasks."""

    capacity: int  # tasks to have in flight

    @property
    def painted(self) -> int:
        """Windows painted so far."""

    @property
    def glass(self) -> int:
        """Windows filled with glass so far."""

    def submit(self, task: Task, priority: int) -> Any:
        """Start a task; returns its future."""

    def wait(self, futures: list) -> list:
        """Wait until some futures are done, or a moment has passed; returns those that are done."""

    def collect(self, future: Any) -> None:
        """Take the result of a future that is done, or raise its error."""


def _drive(
    plan: Plan, canvas: Canvas, backend: _Backend, on_progress: Callable[[Progress], None], whole: bool
) -> Progress:
    """Hand out tasks, the most urgent first, as soon as all that they wait for is done."""
    rank = {task: index for index, task in enumerate(plan.tasks)}
    open_waits = {task: len(plan.waits_for[task]) for task in plan.tasks}
    successors: dict[Task, list[Task]] = {}
    for task, sources in plan.waits_for.items():
        for source in sources:
            successors.setdefault(source, []).append(task)
    ready = [index for index, task in enumerate(plan.tasks) if not open_waits[task]]
    heapq.heapify(ready)
    running: dict[Any, Task] = {}
    unfinished = set(plan.tasks)

    def report(ended: Task | None = None) -> Progress:
        rows = _rows_done(unfinished, canvas) if whole else 0
        region, stage = (canvas.layout.region(ended.block), ended.stage) if ended else (None, None)
        progress = Progress(backend.painted, backend.glass, plan.resumed, plan.total, rows, region, stage)
        on_progress(progress)
        return progress

    progress = report()
    while ready or running:
        while ready and len(running) < backend.capacity:
            index = heapq.heappop(ready)
            running[backend.submit(plan.tasks[index], index)] = plan.tasks[index]
        for future in backend.wait(list(running)):
            backend.collect(future)
            task = running.pop(future)
            unfinished.discard(task)
            for successor in successors.get(task, ()):
                open_waits[successor] -= 1
                if not open_waits[successor]:
                    heapq.heappush(ready, rank[successor])
            progress = report(task)
        if backend.painted + backend.glass > progress.painted + progress.glass:
            progress = report()
    return progress


def _rows_done(unfinished: set[Task], canvas: Canvas) -> int:
    first = min((task.block.q for task in unfinished), default=canvas.layout.rows)
    return min(first * canvas.layout.pixels, canvas.grid.height)


class _LocalBackend:
    """Tasks in threads of this process."""

    def __init__(self, studio: Studio, executor: ThreadPoolExecutor, capacity: int) -> None:
        self.studio, self.executor, self.capacity = studio, executor, capacity

    @property
    def painted(self) -> int:
        """Windows painted so far, those of running tasks too."""
        return self.studio.painted

    @property
    def glass(self) -> int:
        """Windows filled with glass so far."""
        return self.studio.glass

    def submit(self, task: Task, priority: int) -> Future:
        """Start a task."""
        return self.executor.submit(self.studio.run, task)

    def wait(self, futures: list[Future]) -> list[Future]:
        """Wait for a future, or for a moment, so that progress is seen and an interrupt is felt."""
        return list(wait(futures, TICK_SECONDS, FIRST_COMPLETED).done)

    def collect(self, future: Future) -> None:
        """Raise the error of a failed task."""
        future.result()


@contextmanager
def _local(canvas: Canvas, spec: PaintSpec, _workers: int, _scheduler: str | None) -> Iterator[_LocalBackend]:
    lanes = lanes_for(spec.device)
    capacity = _tasks_at_once(canvas, spec, lanes)
    with fixed_threads(), ThreadPoolExecutor(capacity, "wsigen-task") as executor:
        studio = Studio.open(spec, canvas.path, lanes)
        try:
            yield _LocalBackend(studio, executor, capacity)
        finally:
            studio.close()


def _tasks_at_once(canvas: Canvas, spec: PaintSpec, lanes: int) -> int:
    """Tasks in flight in one process: enough for two batches for each lane."""
    batches_in_a_task = max(1, canvas.layout.b**2 // spec.batch_size)
    return max(TASKS_PER_PROCESS, -(-2 * lanes // batches_in_a_task))


class _DaskBackend:
    """Tasks on a Dask cluster, whose workers each hold a Studio."""

    def __init__(self, client: Client, plugin: "StudioPlugin", capacity: int) -> None:
        self.client, self.name, self.capacity = client, plugin.name, capacity
        self.painted: int = 0
        self.glass: int = 0

    def submit(self, task: Task, priority: int) -> Any:
        """Start a task under a key that names it."""
        key = f"{self.name}-stage{task.stage}-{task.block.p}-{task.block.q}"
        return self.client.submit(
            run_on_worker, self.name, task, key=key, priority=-priority, retries=RETRIES, pure=False
        )

    def wait(self, futures: list) -> list:
        """Wait for a future."""
        return list(wait_distributed(futures, return_when="FIRST_COMPLETED").done)

    def collect(self, future: Any) -> None:
        """Count what a task did, or raise its error, and let the cluster forget it."""
        result: TaskResult = future.result()
        self.painted += result.painted
        self.glass += result.glass
        future.release()


class StudioPlugin(WorkerPlugin):
    """Opens a Studio on every worker of a cluster, also on those that come later or start again."""

    def __init__(
        self, name: str, spec: PaintSpec, canvas_path: Path, expected: dict[str, str], lanes: int | None
    ) -> None:
        self.name = name
        self.spec, self.canvas_path, self.expected, self.lanes = spec, canvas_path, expected, lanes
        self.studio: Studio | None = None

    def setup(self, worker: Worker) -> None:
        """Load mask, model and canvas by their paths. Raises StoreError on a machine that would paint otherwise."""
        torch.set_num_threads(INTRA_OP_THREADS)
        found = environment(self.spec.device)
        if found != self.expected:
            raise StoreError(f"worker {worker.address} has {found}, this run needs {self.expected}; use like machines")
        lanes = self.lanes or (1 if torch.device(self.spec.device).type == "cuda" else worker.state.nthreads)
        self.studio = Studio.open(self.spec, self.canvas_path, lanes)

    def teardown(self, worker: Worker) -> None:
        """Stop painting."""
        if self.studio is not None:
            self.studio.close()


def run_on_worker(name: str, task: Task) -> TaskResult:
    """Run a task on a Dask worker, with the Studio that its plugin opened."""
    plugin = cast(StudioPlugin, get_worker().plugins[name])
    assert plugin.studio is not None
    return plugin.studio.run(task)


@contextmanager
def _dask(canvas: Canvas, spec: PaintSpec, workers: int, scheduler: str | None) -> Iterator[_DaskBackend]:
    if torch.device(spec.device).type == "cuda":
        spec = replace(spec, device="cuda")  # each worker sees one GPU, or the one that its cluster chose
    lanes = None if scheduler else lanes_for(spec.device, workers)  # workers of others know their own threads
    with ExitStack() as stack:
        if lanes:
            cluster = local_cluster(spec.device, workers, _tasks_at_once(canvas, spec, lanes))
            scheduler = stack.enter_context(cluster).scheduler_address
        client = stack.enter_context(Client(scheduler, set_as_default=False))
        name = _run_name(canvas, spec)
        plugin = StudioPlugin(name, spec, canvas.path.resolve(), canvas.run["environment"], lanes)
        stack.enter_context(client.as_current())
        client.register_plugin(plugin)
        if not lanes:
            stack.callback(_unregister, client, plugin)
        # One more than the threads that run tasks, so that a worker never waits for this process.
        threads = sum(client.nthreads().values())
        yield _DaskBackend(client, plugin, threads + len(client.nthreads()))


def _unregister(client: Client, plugin: StudioPlugin) -> None:
    """Free the models on a cluster that lives on; a failure must not hide the error that ended the run."""
    with suppress(KeyError, OSError):
        client.unregister_worker_plugin(plugin.name)


@contextmanager
def local_cluster(device: str, workers: int, tasks_at_once: int) -> Iterator[SpecCluster]:
    """A cluster of processes on this machine; each has a GPU of its own if they paint on GPUs."""
    gpus = visible_gpus() if torch.device(device).type == "cuda" else []
    if gpus and workers > len(gpus):
        raise SettingsError(f"--workers {workers}: this machine shows {len(gpus)} GPUs; use at most one worker each")
    nannies = {
        index: {
            "cls": Nanny,
            "options": {
                "nthreads": tasks_at_once,
                "memory_limit": 0,
                "env": {"CUDA_VISIBLE_DEVICES": gpus[index]} if gpus else {},
            },
        }
        for index in range(workers)
    }
    scheduler = {
        "cls": Scheduler,
        "options": {"host": "127.0.0.1", "port": 0, "dashboard": False, "dashboard_address": "127.0.0.1:0"},
    }
    with SpecCluster(workers=nannies, scheduler=scheduler, silence_logs=logging.ERROR) as cluster:
        yield cluster


def visible_gpus() -> list[str]:
    """Names that CUDA_VISIBLE_DEVICES takes for the GPUs that this process may use."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [name for name in chosen.split(",") if name] if chosen else list(map(str, range(torch.cuda.device_count())))


def _run_name(canvas: Canvas, spec: PaintSpec) -> str:
    identity = f"{canvas.path.resolve()} {spec.to_json()}"
    return f"wsigen-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
