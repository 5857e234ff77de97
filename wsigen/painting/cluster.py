"""Where tasks run: threads of this process, processes of this machine, or a Dask cluster anywhere.

All three answer `submit` with a future and keep a `ProcessWorker` in each process. Locally there is one process for
each GPU, which it is given by number, or for a share of the cores. On a cluster a worker plugin opens the
ProcessWorker, also on workers that come later or start again; only tasks and counts travel, pixels go to the canvas.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from wsigen.errors import SettingsError, WsigenError
from wsigen.painting.process_worker import Job, ProcessWorker
from wsigen.painting.slide_worker import fixed_threads, new_threads, tasks_at_once
from wsigen.painting.spec import environment
from wsigen.painting.tasks import Task
from wsigen.system.devices import DeviceChoice, choose_device

if TYPE_CHECKING:
    from distributed import Client


class Executor(Protocol):
    """Something that runs tasks."""

    capacity: int  # tasks to have in flight
    lanes: int  # batches that are painted at a time, over all processes
    live: bool  # whether `counts` knows what running tasks have done

    def prepare(self, job: Job) -> list[str]:
        """Let every process open a slide now, so that what is wrong is said once and before any task.

        Returns what is computed otherwise than torch would, so that rows of a batch are equal: a line an operation.
        """

    def submit(self, job: Job, task: Task, priority: int) -> Any:
        """Start a task, the lowest priority first; its future has `add_done_callback`, `result` and `cancel`."""

    def counts(self, job: Job) -> tuple[int, int]:
        """Windows painted and filled with glass so far, those of running tasks too; only where `live`."""

    def check(self) -> None:
        """Raise ClusterError if no task will ever end."""


@dataclass(frozen=True)
class Machine:
    """What paints: the resolved device, what stands in a run's record about it, and the implementations it chose."""

    device: DeviceChoice
    environment: dict[str, str | int]
    back_ends: dict[str, str]

    @classmethod
    def here(cls, device: str = "auto", dtype: str = "auto") -> Machine:
        """This machine. Raises SettingsError for a device that it has not."""
        from wsigen_kernels.dispatch import attention_choice, norm_choice

        choice = choose_device(device, dtype)
        back_ends = {"attention": attention_choice().name, "norm": norm_choice().name}
        return cls(choice, environment(choice.device), back_ends)

    @classmethod
    def of_cluster(cls, scheduler: str | Client, device: str = "auto", dtype: str = "auto") -> Machine:
        """The machine of a cluster's workers, which may have GPUs where this one has none; one of them is asked."""
        from wsigen.painting.dask_cluster import ask_a_worker

        worker, answer = ask_a_worker(scheduler, machine_here, device, dtype)
        if isinstance(answer, str):
            raise SettingsError(f"worker {worker}: {answer}")
        return cast(Machine, answer)


def machine_here(device: str, dtype: str) -> Machine | str:
    """This machine, or what is wrong with the settings on it."""
    try:
        return Machine.here(device, dtype)
    except WsigenError as error:
        return str(error)


@contextmanager
def open_executor(device: str, workers: int = 1, scheduler: str | Client | None = None) -> Iterator[Executor]:
    """Open a place to paint: a cluster by its address or client, ``workers`` processes here, or this process.

    Raises SettingsError for more workers than GPUs, ClusterError where no scheduler answers.
    """
    if workers < 1:
        raise SettingsError(f"--workers {workers}: must be at least 1")
    with ExitStack() as stack:
        if scheduler is None and workers == 1:
            yield stack.enter_context(LocalExecutor.open(device))
            return
        from wsigen.painting.dask_cluster import DaskExecutor  # Dask takes a second to import

        if scheduler is None:
            yield stack.enter_context(DaskExecutor.on_this_machine(device, workers))
        else:
            yield stack.enter_context(DaskExecutor.on_cluster(device, scheduler))


class LocalExecutor:
    """Tasks in threads of this process."""

    live = True

    def __init__(self, process_worker: ProcessWorker, executor: ThreadPoolExecutor, capacity: int) -> None:
        self.process_worker, self.executor, self.capacity = process_worker, executor, capacity
        self.lanes = process_worker.pools.lanes

    @classmethod
    @contextmanager
    def open(cls, device: str) -> Iterator[LocalExecutor]:
        """Start the threads of this process, and end them."""
        pools = new_threads(device)
        process_worker = ProcessWorker(pools)
        capacity = tasks_at_once(device, pools.lanes)
        with fixed_threads(), ThreadPoolExecutor(capacity, "wsigen-task") as executor:
            try:
                yield cls(process_worker, executor, capacity)
            finally:
                process_worker.close()

    def prepare(self, job: Job) -> list[str]:
        """See `Executor`."""
        with self.process_worker.slide_worker(job) as slide_worker:
            return slide_worker.verdict.describe()

    def submit(self, job: Job, task: Task, priority: int) -> Any:
        """See `Executor`."""
        return self.executor.submit(self.process_worker.run, job, task)

    def counts(self, job: Job) -> tuple[int, int]:
        """See `Executor`."""
        return self.process_worker.counts(job)

    def check(self) -> None:
        """Nothing can be lost: tasks run here."""
