"""Tasks on a Dask cluster: of processes on this machine, or anywhere.

A worker plugin opens a ProcessWorker on every worker, also on workers that come later or start again; only tasks and
counts travel, pixels go to the canvas.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, cast

import dask
import torch
from distributed import Client, Nanny, Scheduler, SpecCluster, Worker, WorkerPlugin, get_worker

from wsigen.errors import ClusterError, SettingsError, WsigenError
from wsigen.painting.batching import WorkerThreads
from wsigen.painting.process_worker import Job, ProcessWorker
from wsigen.painting.slide_worker import TaskResult, lanes_for, loaders_for, new_loaders, tasks_at_once
from wsigen.painting.spec import INTRA_OP_THREADS
from wsigen.painting.tasks import Task

RETRIES = 3  # of a task whose worker died or whose file system failed
CONNECT_SECONDS = 20
QUIET = {"DASK_LOGGING__DISTRIBUTED": "critical"}  # what goes wrong in a worker is told by the one line of its error


class ProcessWorkerPlugin(WorkerPlugin):
    """Opens a ProcessWorker on every worker of a cluster, also on those that come later or start again.

    ``lanes`` batches are painted at a time (None: as many as the worker has threads), ``loaders`` threads read ahead.
    ``by_number``: a worker's name is the number of its GPU. Variables such as CUDA_VISIBLE_DEVICES come too late where
    a worker imports the user's script, which imports torch, before they are set.
    """

    def __init__(self, name: str, lanes: int | None, loaders: int | None, by_number: bool = False) -> None:
        self.name, self.lanes, self.loaders, self.by_number = name, lanes, loaders, by_number
        self.process_worker: ProcessWorker | None = None

    def setup(self, worker: Worker) -> None:
        """Hire the threads; slides and models are opened when tasks name them."""
        torch.set_num_threads(INTRA_OP_THREADS)
        threads = worker.state.nthreads
        pools = WorkerThreads(self.lanes or threads, self.loaders or loaders_for(threads))
        device = f"cuda:{worker.name}" if self.by_number else None
        self.process_worker = ProcessWorker(pools, f"worker {worker.address}", device)

    def teardown(self, worker: Worker) -> None:
        """Stop painting."""
        if self.process_worker is not None:
            self.process_worker.close()


def _process_worker(worker: Worker, name: str) -> ProcessWorker:
    process_worker = cast(ProcessWorkerPlugin, worker.plugins[name]).process_worker
    assert process_worker is not None
    return process_worker


def run_on_worker(name: str, job: Job, task: Task) -> TaskResult:
    """Run a task on a Dask worker, with the ProcessWorker that its plugin opened."""
    return _process_worker(get_worker(), name).run(job, task)


def prepare_on_worker(name: str, job: Job, dask_worker: Worker) -> list[str] | str:
    """Open a slide on a Dask worker, and return what `Executor.prepare` does.

    What is wrong is returned, as a string: Dask would repeat what is raised in its log.
    """
    try:
        with _process_worker(dask_worker, name).slide_worker(job) as slide_worker:
            return slide_worker.verdict.describe()
    except WsigenError as error:
        return f"{type(error).__name__} {error}"


class DaskExecutor:
    """Tasks on a Dask cluster, whose workers each hold a ProcessWorker."""

    live = False

    def __init__(self, client: Client, plugin: ProcessWorkerPlugin, lanes_per_worker: int | None) -> None:
        self.client, self.plugin = client, plugin
        threads = client.nthreads()
        # Some more than the threads that run tasks, so that a worker never waits for this process.
        self.capacity = sum(threads.values()) + 2 * len(threads)
        self.lanes = sum(lanes_per_worker or count for count in threads.values())

    @classmethod
    @contextmanager
    def on_this_machine(cls, device: str, workers: int) -> Iterator[DaskExecutor]:
        """Start ``workers`` processes here, one for each GPU or for a share of the cores."""
        lanes = lanes_for(device, workers)
        loaders = new_loaders(workers)
        with (
            local_cluster(device, workers, tasks_at_once(device, lanes)) as cluster,
            Client(cluster.scheduler_address, set_as_default=False) as client,
        ):
            plugin = ProcessWorkerPlugin("wsigen", lanes, loaders, torch.device(device).type == "cuda")
            with client.as_current():
                client.register_plugin(plugin)
            yield cls(client, plugin, lanes)

    @classmethod
    @contextmanager
    def on_cluster(cls, device: str, scheduler: str | Client) -> Iterator[DaskExecutor]:
        """Use a running cluster, by its address or client. Raises ClusterError where none answers or works."""
        with ExitStack() as stack:
            client = scheduler if isinstance(scheduler, Client) else stack.enter_context(connect(scheduler))
            if not client.nthreads():
                raise ClusterError(f"{address_of(client)}: the cluster has no workers; start some and try again")
            lanes = 1 if torch.device(device).type == "cuda" else None
            plugin = ProcessWorkerPlugin(f"wsigen-{uuid.uuid4().hex[:8]}", lanes, None)
            with client.as_current():
                client.register_plugin(plugin)
            try:
                yield cls(client, plugin, lanes)
            finally:
                # Frees the models on a cluster that lives on; a failure must not hide the error that ended the run.
                with suppress(Exception):
                    client.unregister_worker_plugin(plugin.name)

    def prepare(self, job: Job) -> list[str]:
        """See `wsigen.painting.cluster.Executor`."""
        answers = self.client.run(prepare_on_worker, self.plugin.name, job, on_error="return")
        for address, answer in answers.items():
            if isinstance(answer, OSError):
                continue  # a worker that died just now; if it comes back, its first task opens the slide
            if isinstance(answer, BaseException):
                raise ClusterError(f"worker {address} failed to open the slide: {answer}") from answer
            if isinstance(answer, str):
                kind, _, text = answer.partition(" ")
                raise _ERRORS.get(kind, ClusterError)(text)
        ways = {address: answer for address, answer in answers.items() if isinstance(answer, list)}
        for address, answer in ways.items():
            if answer != next(iter(ways.values())):
                raise ClusterError(f"worker {address} keeps rows of a batch equal in other ways; use like machines")
        return next(iter(ways.values()), [])

    def submit(self, job: Job, task: Task, priority: int) -> Any:
        """See `wsigen.painting.cluster.Executor`."""
        key = f"wsigen-{job.name}-{task.key}"
        options = {"key": key, "priority": -priority, "retries": RETRIES, "pure": False}
        return self.client.submit(run_on_worker, self.plugin.name, job, task, **options)

    def counts(self, job: Job) -> tuple[int, int]:
        """Nothing: what running tasks have done is known to their workers alone."""
        return 0, 0

    def check(self) -> None:
        """See `wsigen.painting.cluster.Executor`."""
        if self.client.status != "running":
            raise ClusterError(f"{address_of(self.client)}: the Dask scheduler is gone; start it and --resume")


_ERRORS = {kind.__name__: kind for kind in WsigenError.__subclasses__()}


def ask_a_worker(scheduler: str | Client, question: Callable, *arguments: Any) -> tuple[str, Any]:
    """Call a function on one worker of a cluster: its address, and the answer."""
    with ExitStack() as stack:
        client = scheduler if isinstance(scheduler, Client) else stack.enter_context(connect(scheduler))
        workers = list(client.nthreads())
        if not workers:
            raise ClusterError(f"{address_of(client)}: the cluster has no workers; start some and try again")
        return workers[0], client.run(question, *arguments, workers=workers[:1])[workers[0]]


@contextmanager
def connect(address: str) -> Iterator[Client]:
    """A client of the scheduler at an address; ClusterError where none answers."""
    _silence_dask()
    try:
        client = Client(address, set_as_default=False, timeout=CONNECT_SECONDS)
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ClusterError(f"--dask-scheduler {address}: no Dask scheduler answers there ({reason})") from error
    with client:
        yield client


def _silence_dask() -> None:
    """What goes wrong with our cluster ends in one line; Dask and its loop would add a traceback for each retry."""
    for name in ("distributed", "tornado.application", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def address_of(client: Client) -> str:
    """Where the scheduler of a client is, for people."""
    return str(client.scheduler.address) if client.scheduler is not None else "the cluster"


@contextmanager
def local_cluster(device: str, workers: int, threads: int) -> Iterator[SpecCluster]:
    """A cluster of processes on this machine, named by number; each has a GPU of its own if they paint on GPUs."""
    _silence_dask()
    if torch.device(device).type == "cuda" and workers > torch.cuda.device_count():
        raise SettingsError(
            f"--workers {workers}: this machine shows {torch.cuda.device_count()} GPUs; use at most one worker each"
        )
    nannies = {
        index: {
            "cls": Nanny,
            "options": {
                "nthreads": threads,
                "memory_limit": 0,
                "preload": ["wsigen.painting.worker_start"],
            },
        }
        for index in range(workers)
    }
    scheduler = {
        "cls": Scheduler,
        "options": {"host": "127.0.0.1", "port": 0, "dashboard": False, "dashboard_address": "127.0.0.1:0"},
    }
    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ": QUIET}),
        SpecCluster(workers=nannies, scheduler=scheduler, silence_logs=logging.CRITICAL) as cluster,
    ):
        yield cluster
