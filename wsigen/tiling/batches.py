"""Full batches from many tasks: windows wait here until a batch is together, whichever tasks they come from.

Four kinds of threads work at a time: loaders read masks and context, and stack a batch and start its copy to the
device; painters launch the model, one on a GPU, one for each core of a CPU; fetchers wait for pixels on their way back;
the threads of the tasks write chunks. On a GPU at most `AHEAD` batches are queued, so that it always finds one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from wsigen.tiling.painter import Launched, Painter, Prepared, WindowJob

AHEAD = 2  # batches on a GPU: one that runs and one that waits
LARGEST_LOAD = 8  # windows
LEAST_ROOM = 4 * LARGEST_LOAD
Painted = tuple[np.ndarray, float]  # pixels (W, W, 3) uint8, and the window's share of the device's seconds


@dataclass(frozen=True)
class Load:
    """Up to LARGEST_LOAD windows that one call reads: for each of ``count`` a job, or None if it needs no model."""

    read: Callable[[], Sequence[WindowJob | None]]
    count: int


class Crew:
    """The threads of a process; all Studios in it share them. ``lanes`` batches are painted at a time."""

    def __init__(self, lanes: int, loaders: int) -> None:
        self.lanes = lanes
        self.loaders = ThreadPoolExecutor(loaders, "wsigen-load")
        self.painters = ThreadPoolExecutor(lanes, "wsigen-paint")
        self.fetchers = ThreadPoolExecutor(AHEAD, "wsigen-fetch")

    def close(self) -> None:
        """Wait for what is under way: little, once the Studios are stopped. Nothing is dropped, or its waiter hangs."""
        for pool in (self.loaders, self.painters, self.fetchers):
            pool.shutdown()


class Batcher:
    """Forms batches for one painter. Threads may share it."""

    def __init__(self, painter: Painter, crew: Crew, stopped: threading.Event) -> None:
        self.painter, self.crew, self.stopped = painter, crew, stopped
        self._lock = threading.Lock()
        self._waiting: deque[tuple[WindowJob, Future]] = deque()
        self._loading = 0
        self._under_way = 0  # batches that were taken and are not painted
        self._queued = threading.BoundedSemaphore(AHEAD)
        # Windows that are read and not yet painted: two batches for each that can be under way. More would take memory
        # and gain nothing; fewer than a batch and the threads that read would wait for one that never fills.
        self._room = threading.Semaphore(max(2 * painter.batch_size * (crew.lanes + AHEAD), LEAST_ROOM))
        self._door = threading.Lock()  # so that two loads do not each wait for room that the other has taken
        self._on_gpu = painter.device.type == "cuda"
        self._enough = 1 if self._on_gpu else crew.lanes  # batches under way that leave the device no rest

    def submit(self, loads: Sequence[Load]) -> list[Future[Painted | None]]:
        """Load and paint windows, a future for each; one that needs no model answers None."""
        groups: list[list[Future[Painted | None]]] = [[Future() for _ in range(load.count)] for load in loads]
        with self._lock:
            self._loading += sum(map(len, groups))
        for load, futures in zip(loads, groups, strict=True):
            try:
                self.crew.loaders.submit(self._load, load, futures)
            except RuntimeError:  # the crew was sent home
                self._dismiss(futures)
        return [future for futures in groups for future in futures]

    def _dismiss(self, futures: list[Future]) -> None:
        for future in futures:
            future.set_exception(InterruptedError("painting was stopped"))

    def _load(self, load: Load, futures: list[Future]) -> None:
        with self._door:
            for _ in futures:
                self._room.acquire()
        for future in futures:
            future.add_done_callback(lambda _: self._room.release())
        found: list[tuple[WindowJob, Future]] = []
        try:
            for job, future in zip(load.read(), futures, strict=True):
                if job is None:
                    future.set_result(None)
                else:
                    found.append((job, future))
        except BaseException as error:
            found = []
            for future in futures:
                if not future.done():
                    future.set_exception(error)
        with self._lock:
            self._loading -= len(futures)
            self._waiting.extend(found)
            batches = list(iter(self._take, []))
        for batch in batches:
            self._guarded([future for _, future in batch], self._prepare, batch)

    def _take(self) -> list[tuple[WindowJob, Future]]:
        """Take a batch, or nothing yet; with the lock held.

        One that is not full costs the device as much as a full one: it waits for more windows while any are being
        loaded or the device is busy.
        """
        size = self.painter.batch_size
        if len(self._waiting) < size and (self._loading or self._under_way >= self._enough):
            return []
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), size))]
        if batch:
            self._under_way += 1
            batch[-1][1].add_done_callback(self._painted)
        return batch

    def _painted(self, _: Future) -> None:
        """Go on after a batch, whose last window this is, with what waits."""
        with self._lock:
            self._under_way -= 1
            batch = self._take()
        if batch:
            futures = [future for _, future in batch]
            try:
                self.crew.loaders.submit(self._guarded, futures, self._prepare, batch)
            except RuntimeError:  # the crew was sent home
                self._dismiss(futures)

    def _prepare(self, batch: list[tuple[WindowJob, Future]]) -> None:
        prepared = self.painter.prepare([job for job, _ in batch])
        futures = [future for _, future in batch]
        self.crew.painters.submit(self._guarded, futures, self._launch, prepared, futures)

    def _launch(self, prepared: Prepared, futures: list[Future]) -> None:
        if not self._on_gpu:
            self._deliver(self.painter.launch(prepared, self.stopped.is_set), futures)
            return
        self._queued.acquire()
        try:
            launched = self.painter.launch(prepared, self.stopped.is_set)
            self.crew.fetchers.submit(self._guarded, futures, self._fetch, launched, futures)
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
