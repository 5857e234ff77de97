"""What a process holds to paint: its threads, a model, and a SlideWorker for each slide that it works on.

One ProcessWorker serves many slides in turn or at a time. Models are loaded once; SlideWorkers are opened by the first
task of their slide and closed when others need their place.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from wsigen.errors import StoreError
from wsigen.networks.denoiser import Denoiser
from wsigen.painting.batching import WorkerThreads
from wsigen.painting.canvas import Canvas
from wsigen.painting.slide_worker import SlideWorker, TaskResult, load_model
from wsigen.painting.spec import PaintSpec, environment
from wsigen.painting.tasks import Task
from wsigen.system.caching import LastUsed

OPEN_SLIDES = 4  # slides that a process keeps open; each holds a mask's and a canvas's cache
LOADED_MODELS = 2


@dataclass(frozen=True)
class Job:
    """One slide to paint, as plain data: what a process needs to open it, and what it must itself be."""

    spec: PaintSpec
    canvas: str
    environment: str  # JSON
    model_sha256: str = ""  # of the weights that the run was planned with

    @classmethod
    def of(cls, canvas: Canvas, spec: PaintSpec) -> Job:
        """The job of a canvas, with paths that hold in every process."""
        if torch.device(spec.device).type == "cuda":
            spec = replace(spec, device="cuda")  # each process sees one GPU, or the one that its cluster chose
        spec = replace(spec, source=str(Path(spec.source).resolve()))
        required = json.dumps(canvas.run["environment"], sort_keys=True)
        return cls(spec, str(canvas.path.resolve()), required, canvas.run.get("model_sha256", ""))

    @property
    def name(self) -> str:
        """A short name that follows from the job alone."""
        return hashlib.sha256(f"{self.canvas} {self.spec.to_json()}".encode()).hexdigest()[:12]


class ProcessWorker:
    """Paints tasks of any slide with one set of threads. Threads may share it.

    ``device``: the GPU of this process, where the process sees several ("cuda:1"); None: that of the job.
    """

    def __init__(self, pools: WorkerThreads, where: str = "this process", device: str | None = None) -> None:
        self.pools, self.where, self.device = pools, where, device
        self._lock = threading.RLock()
        self._slide_workers: OrderedDict[str, SlideWorker] = OrderedDict()
        self._users: dict[str, int] = {}
        self._models = LastUsed[tuple[str, str, str, str], Denoiser](LOADED_MODELS)

    def run(self, job: Job, task: Task) -> TaskResult:
        """Run a task; raises what SlideWorker.run raises, and StoreError on a machine that would paint otherwise."""
        with self.slide_worker(job) as slide_worker:
            return slide_worker.run(task)

    @contextmanager
    def slide_worker(self, job: Job) -> Iterator[SlideWorker]:
        """The SlideWorker of a slide, opened if need be, and kept open meanwhile."""
        with self._lock:
            if job.name not in self._slide_workers:
                self._slide_workers[job.name] = self._open(job)
            self._slide_workers.move_to_end(job.name)
            self._users[job.name] = self._users.get(job.name, 0) + 1
            slide_worker = self._slide_workers[job.name]
            self._close_idle()
        try:
            yield slide_worker
        finally:
            with self._lock:
                self._users[job.name] -= 1

    def counts(self, job: Job) -> tuple[int, int]:
        """Windows painted, and filled with glass, by the tasks of a slide so far."""
        slide_worker = self._slide_workers.get(job.name)
        return (slide_worker.painted, slide_worker.glass) if slide_worker else (0, 0)

    def stop(self) -> None:
        """Let running tasks end early, without a result."""
        for slide_worker in list(self._slide_workers.values()):
            slide_worker.stop()

    def close(self) -> None:
        """Stop, wait for the threads, close the masks."""
        self.stop()
        self.pools.close()
        for slide_worker in self._slide_workers.values():
            slide_worker.close()

    def _open(self, job: Job) -> SlideWorker:
        spec = replace(job.spec, device=self.device or job.spec.device)
        found = json.dumps(environment(spec.device), sort_keys=True)
        if found != job.environment:
            raise StoreError(f"{self.where} has {found}, this run needs {job.environment}; use like machines")
        for path in (job.spec.source, job.spec.model, job.canvas):
            if not Path(path).exists():
                raise StoreError(
                    f"{self.where} cannot see {path}; put masks, models and slides where all workers find them "
                    "under the same path"
                )
        return SlideWorker.open(spec, job.canvas, self.pools, self._model(spec, job.model_sha256))

    def _model(self, spec: PaintSpec, sha256: str) -> Denoiser:
        key = (spec.model, sha256, spec.device, spec.dtype)  # a folder may hold other weights by now
        model = self._models.get(key)
        if model is None:
            self._models.make_room()  # before a model is loaded: memory need not hold one more
            model = load_model(spec)
            self._models.keep(key, model)
        return model

    def _close_idle(self) -> None:
        idle = [name for name in self._slide_workers if not self._users[name]]
        for name in idle[: max(0, len(self._slide_workers) - OPEN_SLIDES)]:
            self._slide_workers.pop(name).close()
            del self._users[name]
