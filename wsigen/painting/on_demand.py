"""Paint on demand: any region of a slide, in memory, without a canvas.

Windows are pure functions of the slide's inputs, so a region painted alone has the pixels of the whole slide. A region
needs its windows and those that they see, at most nine a window; painted windows are kept in a bounded cache, and what
was dropped is painted again. Threads may share a LivePainter: a window is painted once, and windows that several
threads want at a time share batches.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial

import numpy as np

from wsigen.networks.denoiser import Denoiser
from wsigen.painting.batching import Batcher, Load
from wsigen.painting.blending import Mosaic
from wsigen.painting.grid import STAGES, Rectangle, Window, WindowGrid
from wsigen.painting.painter import WindowJob
from wsigen.painting.slide_worker import (
    fixed_threads,
    load_model,
    load_windows,
    make_painter,
    new_threads,
    open_source,
)
from wsigen.painting.spec import PaintSpec

CACHE_BYTES = 512 << 20  # 2,600 windows of 256 px

Cancelled = Callable[[], bool]
Pixels = dict[Window, np.ndarray]  # what windows hold, (h, w, 3) uint8


def never() -> bool:
    """Nobody cancels."""
    return False


class LivePainter:
    """Paints regions of the slide of a spec. ``occupied`` is what `window_occupancy` found.

    Close it when done. On a CPU torch runs each operation on one thread meanwhile, in the whole process, since pixels
    would differ otherwise. ``model`` is the spec's, where it is loaded already; ``on_painted`` hears of each window
    that is at hand from now on, in any thread.
    """

    def __init__(
        self,
        spec: PaintSpec,
        grid: WindowGrid,
        occupied: np.ndarray,
        cache_bytes: int = CACHE_BYTES,
        model: Denoiser | None = None,
    ) -> None:
        self.spec, self.grid, self.occupied = spec, grid, occupied
        with ExitStack() as stack:
            stack.enter_context(fixed_threads())
            model = model or load_model(spec)
            self.model = model
            self._source = open_source(spec, model)
            stack.callback(self._source.close)
            self._painter = make_painter(spec, model)
            self._stopped = threading.Event()
            pools = new_threads(spec.device)
            stack.callback(pools.close)
            stack.callback(self._stopped.set)
            self._batcher = Batcher(self._painter, pools, self._stopped)
            self._open = stack.pop_all()
        self._lock = threading.Lock()
        self._cache: OrderedDict[Window, np.ndarray] = OrderedDict()
        self._cache_bytes, self._cached_bytes = cache_bytes, 0
        self._claimed: dict[Window, Future[np.ndarray]] = {}
        self.painted = 0  # windows that went through the model so far
        self.on_painted: Callable[[Window], None] = lambda window: None

    @property
    def glass_rgb(self) -> tuple[int, int, int]:
        """Colour of clear glass."""
        return self.spec.style.glass_rgb

    def close(self) -> None:
        """Stop painting: regions under way raise InterruptedError."""
        self._open.close()

    def region(self, x: int, y: int, width: int, height: int, cancelled: Cancelled = never) -> np.ndarray:
        """Pixels of a region inside the slide: uint8 (height, width, 3).

        ``cancelled`` is asked before each window and each stage; InterruptedError is raised once it answers yes.
        """
        part = Rectangle(x, y, width, height)
        wanted = list(self.grid.windows(part))
        have = self._cached(wanted)
        missing = [window for window in wanted if window not in have]
        needed = {near for window in missing for near in (window, *self.grid.dependencies(window))}
        for stage in sorted({window.stage for window in needed}):
            self._paint([window for window in needed if window.stage == stage and window not in have], have, cancelled)
        return self._mosaic(part, have).rgb

    def is_painted(self, x: int, y: int, width: int, height: int) -> bool:
        """Whether a region is at hand, so that `region` will not paint."""
        windows = list(self.grid.windows(Rectangle(x, y, width, height)))
        with self._lock:
            return all(window in self._cache or not self._occupied(window) for window in windows)

    def at_hand(self, x: int, y: int, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
        """What is final of a region: pixels (height, width, 3) uint8, and which of them are known (height, width)."""
        part = Rectangle(x, y, width, height)
        mosaic = self._mosaic(part, self._cached(self.grid.windows(part)))
        return mosaic.rgb, mosaic.known

    def to_paint(self, part: Rectangle) -> tuple[int, int]:
        """How many windows of a region need the model, and how many of those are not at hand."""
        windows = [window for window in self.grid.windows(part) if self._occupied(window)]
        with self._lock:
            return len(windows), sum(window not in self._cache for window in windows)

    def inherit(self, other: LivePainter, changed: np.ndarray) -> int:
        """Take over painted windows of a slide that is this one but for ``changed``, bool (rows, columns) of the grid.

        Returns how many. Grids, settings and model must be the same: nothing here can tell.
        """
        with other._lock:
            kept = {window: held for window, held in other._cache.items() if not changed[window.j, window.i]}
        for window, held in kept.items():
            if self._occupied(window):
                self._keep(window, held, False)
        return len(kept)

    def _occupied(self, window: Window) -> bool:
        return bool(self.occupied[window.j, window.i])

    def _cached(self, windows: Iterable[Window]) -> Pixels:
        found: Pixels = {}
        with self._lock:
            for window in windows:
                if not self._occupied(window):
                    found[window] = self._glass(window)
                elif window in self._cache:
                    self._cache.move_to_end(window)
                    found[window] = self._cache[window]
        return found

    def _glass(self, window: Window) -> np.ndarray:
        width, height = self.grid.held_size(window.parity)
        return np.broadcast_to(np.array(self.glass_rgb, np.uint8), (height, width, 3))

    def _paint(self, windows: Sequence[Window], have: Pixels, cancelled: Cancelled) -> None:
        """Add windows of one stage to ``have``; those that another thread is painting are waited for."""
        while windows:
            have |= self._cached(windows)
            mine, others = self._claim([window for window in windows if window not in have])
            self._paint_claimed(mine, have, cancelled)
            # Every thread paints its own claims before it waits, so that none waits for another in a circle.
            for window, future in others.items():
                if future.exception() is None:
                    have[window] = future.result()
            windows = [window for window in windows if window not in have]  # the other thread was cancelled

    def _claim(self, windows: Iterable[Window]) -> tuple[dict[Window, Future], dict[Window, Future]]:
        """Futures of windows that nobody else is painting, now claimed, and of those that somebody is."""
        mine: dict[Window, Future] = {}
        others: dict[Window, Future] = {}
        with self._lock:
            for window in windows:
                if window in self._claimed:
                    others[window] = self._claimed[window]
                else:
                    mine[window] = self._claimed[window] = Future()
        return mine, others

    def _paint_claimed(self, claims: dict[Window, Future], have: Pixels, cancelled: Cancelled) -> None:
        try:
            loads = [Load(partial(self._load, window, have, cancelled), 1) for window in claims]
            for window, result in zip(claims, self._batcher.submit(loads), strict=True):
                painted = result.result()
                held = self._glass(window) if painted is None else painted[0][self.grid.held_within(window)].copy()
                have[window] = held
                self._keep(window, held, painted is not None)
                claims[window].set_result(held)
        finally:
            with self._lock:
                for window, claim in claims.items():
                    del self._claimed[window]
                    if not claim.done():
                        claim.set_exception(InterruptedError("painting was cancelled"))

    def _load(self, window: Window, have: Pixels, cancelled: Cancelled) -> list[WindowJob | None]:
        if cancelled() or self._stopped.is_set():
            raise InterruptedError("painting was cancelled")
        near = {neighbour: have[neighbour] for neighbour in self.grid.dependencies(window)}

        def context(extent: Rectangle, stage: int) -> tuple[np.ndarray, np.ndarray]:
            mosaic = self._mosaic(extent, near, stage)
            return mosaic.rgb, mosaic.known

        return load_windows(self._source, self.grid, [window], context)

    def _mosaic(self, part: Rectangle, have: Pixels, stages_below: int = STAGES) -> Mosaic:
        """What is known of a part, with the windows that are at hand."""
        mosaic = Mosaic(self.grid, part, stages_below)
        for window in mosaic.windows:
            if window in have:
                mosaic.add(window, have[window])
        return mosaic

    def _keep(self, window: Window, held: np.ndarray, painted: bool) -> None:
        with self._lock:
            self.painted += painted
            self._cache[window] = held
            self._cached_bytes += _bytes_held(held)
            while self._cached_bytes > self._cache_bytes and len(self._cache) > 1:
                self._cached_bytes -= _bytes_held(self._cache.popitem(last=False)[1])
        self.on_painted(window)


def _bytes_held(pixels: np.ndarray) -> int:
    """Memory of an array; glass takes none."""
    return pixels.nbytes if pixels.strides[0] else 0
