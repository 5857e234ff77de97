"""From the windows of a task to batches: windows wait here until a batch is together.

Four kinds of threads work at a time: loaders read masks and context, and stack a batch and start its copy to the
device; painters launch the model, one on a GPU, one for each core of a CPU; fetchers wait for pixels on their way back;
the threads of the tasks write chunks. On a GPU at most `AHEAD` batches are queued, so that it always finds one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from wsigen.painting.painter import Launched, Painter, Prepared, WindowJob

AHEAD = 2  # batches on a GPU: one that runs and one that waits
LARGEST_LOAD = 8  # windows
LEAST_ROOM = 4 * LARGEST_LOAD
Waiting = tuple[WindowJob, "Future[Painted | None]"]  # a window that is read, and who waits for it
Painted = tuple[np.ndarray, float]  # pixels (W, W, 3) uint8, and the window's share of the device's seconds


@dataclass(frozen=True)
class Load:
    """Up to LARGEST_LOAD windows that one call reads: for each of ``count`` a job, or None if it needs no model."""

    read: Callable[[], Sequence[WindowJob | None]]
    count: int


class WorkerThreads:
    """The threads of a process; all SlideWorkers in it share them. ``lanes`` batches are painted at a time."""

    def __init__(self, lanes: int, loaders: int) -> None:
        self.lanes = lanes
        self.loaders = ThreadPoolExecutor(loaders, "wsigen-load")
        self.painters = ThreadPoolExecutor(lanes, "wsigen-paint")
        self.fetchers = ThreadPoolExecutor(AHEAD, "wsigen-fetch")

    def close(self) -> None:
        """Wait for what is under way: little, once the SlideWorkers are stopped. Nothing is dropped, or its waiter
        hangs."""
        for pool in (self.loaders, self.painters, self.fetchers):
            pool.shutdown()


class _Group:
    """Windows that are submitted together: they fill batches in their order, whichever load is read first."""

    def __init__(self, loads: Sequence[Load], batch_size: int) -> None:
        self.loads, self.batch_size = loads, batch_size
        self.futures: list[list[Future[Painted | None]]] = [[Future() for _ in range(load.count)] for load in loads]
        self._lock = threading.Lock()
        self._found: dict[int, list[Waiting]] = {}  # by load: read, while an earlier load is not
        self._next = 0  # the first load that is not read
        self._waiting: list[Waiting] = []

    def loaded(self, number: int, found: list[Waiting]) -> list[list[Waiting]]:
        """Note what a load found, and take the batches that this completes; the last one may not be full."""
        with self._lock:
            self._found[number] = found
            while self._next in self._found:
                self._waiting += self._found.pop(self._next)
                self._next += 1
            ended = self._next == len(self.loads)
            ready = len(self._waiting) if ended else len(self._waiting) // self.batch_size * self.batch_size
            taken, self._waiting = self._waiting[:ready], self._waiting[ready:]
        return [taken[start : start + self.batch_size] for start in range(0, ready, self.batch_size)]


class _Room:
    """Space for so many windows that is given out strictly in the order of submission.

    Threads that wait for a lock get it in any order: later windows of a group could take all room while an earlier one,
    without which they fill no batch, waits for ever.
    """

    def __init__(self, windows: int) -> None:
        self._free = windows
        self._changed = threading.Condition()
        self._submitting = threading.Lock()
        self._issued = self._turn = 0

    def in_turn(self, submit: Callable[[int], object]) -> None:
        """Let ``submit`` queue a load with the ticket that it gets."""
        with self._submitting:
            submit(self._issued)
            self._issued += 1

    def enter(self, ticket: int, windows: int) -> None:
        """Wait for this ticket's turn, and for room."""
        with self._changed:
            self._changed.wait_for(lambda: self._turn == ticket and self._free >= windows)
            self._free -= windows
            self._turn += 1
            self._changed.notify_all()

    def leave(self) -> None:
        """Give the room of one window back."""
        with self._changed:
            self._free += 1
            self._changed.notify_all()


class Batcher:
    """Forms batches for one painter. Threads may share it.

    Windows that are submitted together share batches, in their order: which windows share a batch, and in which row,
    follows from what is submitted, never from which thread was first.
    """

    def __init__(self, painter: Painter, pools: WorkerThreads, stopped: threading.Event) -> None:
        self.painter, self.pools, self.stopped = painter, pools, stopped
        self._queued = threading.BoundedSemaphore(AHEAD)
        # Windows that are read and not yet painted: two batches for each that can be under way. More would take memory
        # and gain nothing; with fewer than a batch the oldest group could never fill one.
        self._room = _Room(max(2 * painter.batch_size * (pools.lanes + AHEAD), LEAST_ROOM))
        self._on_gpu = painter.device.type == "cuda"

    def submit(self, loads: Sequence[Load]) -> list[Future[Painted | None]]:
        """Load and paint windows, a future for each; one that needs no model answers None.

        Loads are read in the order of submission, so that the oldest group always finds the room to fill its batches.
        """
        group = _Group(loads, self.painter.batch_size)
        for number, futures in enumerate(group.futures):

            def queue(ticket: int, number: int = number) -> object:
                return self.pools.loaders.submit(self._load, group, number, ticket)

            try:
                self._room.in_turn(queue)
            except RuntimeError:  # the pools are shut down
                for future in futures:
                    future.set_exception(InterruptedError("painting was stopped"))
        return [future for futures in group.futures for future in futures]

    def _load(self, group: _Group, number: int, ticket: int) -> None:
        futures = group.futures[number]
        self._room.enter(ticket, len(futures))
        for future in futures:
            future.add_done_callback(lambda _: self._room.leave())
        found: list[Waiting] = []
        try:
            for job, future in zip(group.loads[number].read(), futures, strict=True):
                if job is None:
                    future.set_result(None)
                else:
                    found.append((job, future))
        except BaseException as error:
            found = []
            for future in futures:
                if not future.done():
                    future.set_exception(error)
        for batch in group.loaded(number, found):
            self._guarded([future for _, future in batch], self._prepare, batch)

    def _prepare(self, batch: list[Waiting]) -> None:
        prepared = self.painter.prepare([job for job, _ in batch])
        futures = [future for _, future in batch]
        self.pools.painters.submit(self._guarded, futures, self._launch, prepared, futures)

    def _launch(self, prepared: Prepared, futures: list[Future]) -> None:
        if not self._on_gpu:
            self._deliver(self.painter.launch(prepared, self.stopped.is_set), futures)
            return
        self._queued.acquire()
        try:
            launched = self.painter.launch(prepared, self.stopped.is_set)
            self.pools.fetchers.submit(self._guarded, futures, self._fetch, launched, futures)
        except BaseException:
            self._queued.release()
            raise

    def _fetch(self, launched: Launched, futures: list[Future]) -> None:
        try:
            self._deliver(launched, futures)
        finally:
            self._queued.release()

    def _deliver(self, launched: Launched, futures: list[Future]) -> None:
        windows, seconds = self.painter.fetch(launched)
        for pixels, future in zip(windows, futures, strict=True):
            future.set_result((pixels, seconds / len(futures)))

    def _guarded(self, futures: list[Future], step: Callable, *arguments: object) -> None:
        """Run a step; its error is that of all windows of the batch."""
        try:
            step(*arguments)
        except BaseException as error:
            for future in futures:
                if not future.done():
                    future.set_exception(error)
