"""A slide that is painted while it is looked at.

One thread paints: first the windows that a page shows, from the middle outwards, then those around. Whoever asks for a
tile gets at once what there is: painted windows, and the preview where nothing is painted yet. Pages tell where they
look; what no page looks at any more is given up before its next batch. A change of seed, style or steps, or of the
mask's file, is the same thread's work; a changed mask keeps every window that does not depend on the change.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from wsigen.config import RenderSettings
from wsigen.errors import WsigenError
from wsigen.masks.slide_mask import MaskWindow, SlideMask
from wsigen.models.config import ModelConfig
from wsigen.models.stain import StainStyle
from wsigen.painting.grid import Rectangle, Window
from wsigen.painting.occupancy import changed_windows
from wsigen.painting.on_demand import CACHE_BYTES
from wsigen.painting.slide_worker import fixed_threads
from wsigen.rendering.on_demand import GeneratedSlide
from wsigen.rendering.plan import MaskFacts, RenderPlan, plan_render
from wsigen.slides.pyramid import halve, level_sizes
from wsigen.slides.tiled_tiff import TILE
from wsigen.system.caching import file_stamp
from wsigen.system.reporting import Reporter, silent
from wsigen.viewer.chart import ChartMaker, MaskChart
from wsigen.viewer.overlays import MaskOverlay
from wsigen.viewer.stain_preview import preview_pixels
from wsigen.viewer.tiles import tile_box

MOST_SESSIONS = 16
MOST_CHANGES = 256  # rectangles that wait for a page; of more it gets their hull
JOINED_LEVEL = 3  # tiles up to here are made from windows, coarser ones from tiles
FAR_TILES = 256  # of JOINED_LEVEL that are kept
LARGEST_BLOCK = 3
WATCH_SECONDS = 0.5


@dataclass(frozen=True)
class ReadMask:
    """A mask that was read from end to end."""

    facts: MaskFacts
    chart: MaskChart


def read_mask(path: Path, config: ModelConfig, progress: Reporter = silent) -> ReadMask:
    """Read a mask once, for painting and for looking at. Raises MaskError."""
    with SlideMask.open(path, len(config.classes)) as source:
        maker = ChartMaker(
            source.width, source.height, len(config.classes), source.has_tissue, source.mpp or config.mpp
        )
        height = source.height

    def watch(band: MaskWindow) -> None:
        maker.add(band)
        progress("reading the mask", maker.rows_seen / height)

    facts = MaskFacts.read(path, config, watch)
    return ReadMask(facts, maker.result())


@dataclass
class Session:
    """One page: where it looks, what is to be painted for it, and what has changed since it last asked.

    visible, near: blocks of windows, the first ones first. too_large: more than can be painted in good time.
    """

    look: Rectangle | None = None
    visible: list[Rectangle] = field(default_factory=list)
    near: list[Rectangle] = field(default_factory=list)
    too_large: bool = False
    changes: list[Rectangle] = field(default_factory=list)

    def note(self, part: Rectangle) -> None:
        """Remember that a part looks different now."""
        self.changes.append(part)
        if len(self.changes) > MOST_CHANGES:
            left, top = min(r.x for r in self.changes), min(r.y for r in self.changes)
            right = max(r.x + r.width for r in self.changes)
            bottom = max(r.y + r.height for r in self.changes)
            self.changes = [Rectangle(left, top, right - left, bottom - top)]


@dataclass(frozen=True)
class View:
    """What is being painted, all of one mask and one choice of settings; ``slide`` is None until the model is there."""

    generation: int
    plan: RenderPlan
    overlay: MaskOverlay
    slide: GeneratedSlide | None = None

    @property
    def levels(self) -> list[tuple[int, int]]:
        """Sizes of the levels."""
        return level_sizes(self.plan.grid.width, self.plan.grid.height)


class LiveSlide:
    """The slide of a mask, painted on demand by one thread. Threads may share it; close it when done."""

    def __init__(self, plan: RenderPlan, mask: ReadMask, settings: RenderSettings, cache_bytes: int = CACHE_BYTES):
        self.settings, self.cache_bytes = settings, cache_bytes
        self._mask_path = plan.mask
        self._read = mask
        self._condition = threading.Condition()
        self._sessions: dict[str, Session] = {}
        self._cancel = threading.Event()
        self._closed = False
        self._current: Rectangle | None = None
        self._wanted: RenderSettings | None = settings
        self._far: dict[tuple[int, int], tuple[np.ndarray, bool]] = {}
        self._touched: set[tuple[int, int]] = set()
        self._notes = 0
        self._stamp = file_stamp(self._mask_path)
        self._looked_at_mask = time.monotonic()
        self.paused_around = False  # while a render runs: only what is visible is painted
        self.state, self.problem = "opening", ""
        self.painting_seconds, self.painted = 0.0, 0
        self.kept = 0  # windows that outlived the last change of the mask
        overlay = MaskOverlay(plan.mask, plan.config.classes, plan.summary, mask.chart, plan.spec.mpp)
        self.view = View(0, plan, overlay)
        self._thread = threading.Thread(target=self._work, name="wsigen-view-painter", daemon=True)
        self._thread.start()

    @property
    def levels(self) -> list[tuple[int, int]]:
        """Sizes of the levels."""
        return self.view.levels

    @property
    def styles(self) -> dict[str, StainStyle]:
        """Styles by name: the model's, and the one that was measured for the start."""
        first = self.settings.style
        measured = {first.name: first} if isinstance(first, StainStyle) else {}
        return {style.name: style for style in self.view.plan.config.styles} | measured

    def close(self) -> None:
        """Stop painting and let go of everything."""
        with self._condition:
            self._closed = True
            self._cancel.set()
            self._condition.notify_all()
        self._thread.join()
        self.view.overlay.close()

    # Pages

    def join(self) -> str | None:
        """Begin a session and return its name; None where there are too many."""
        with self._condition:
            if len(self._sessions) >= MOST_SESSIONS:
                return None
            name = secrets.token_urlsafe(12)
            self._sessions[name] = Session()
            return name

    def leave(self, name: str) -> None:
        """End a session; what was painted for it alone is given up."""
        with self._condition:
            self._sessions.pop(name, None)
            self._reconsider()

    def look(self, name: str, x: int, y: int, width: int, height: int) -> bool:
        """Say which part of level 0 a page shows; False if there is no such session."""
        with self._condition:
            session = self._sessions.get(name)
            if session is None:
                return False
            session.look = self._clipped(x, y, width, height)
            self._lay_out(session)
            del self._sessions[name]
            self._sessions[name] = session  # the page that moved last comes last, and is served first
            self._reconsider()
            return True

    def changes(self, name: str) -> list[Rectangle]:
        """Parts that look different since the last call."""
        with self._condition:
            session = self._sessions.get(name)
            if session is None:
                return []
            found, session.changes = session.changes, []
            return found

    def status(self, name: str) -> dict[str, Any]:
        """What a page should know, as plain JSON: settings, state, and how much of what it shows is painted."""
        view = self.view
        with self._condition:
            session = self._sessions.get(name) or Session()
            look, too_large, state, problem = session.look, session.too_large, self.state, self.problem
        needed, missing = (0, 0)
        if look is not None and view.slide is not None and not too_large:
            needed, missing = view.slide.painter.to_paint(look)
        spec = view.plan.spec
        return {
            "generation": view.generation,
            "state": state,
            "problem": problem,
            "seed": spec.seed,
            "style": spec.style.name,
            "steps": spec.num_inference_steps,
            "looking": look is not None,
            "windows": needed,
            "painted": needed - missing,
            "too_large": too_large,
            "windows_per_second": round(self.painted / self.painting_seconds, 3) if self.painting_seconds else None,
        }

    def choose(self, seed: int, style: str, steps: int) -> None:
        """Paint with other settings from now on. Raises SettingsError or ModelError."""
        settings = replace(self.settings, seed=seed, style=self.styles[style], steps=steps)
        plan = plan_render(self._mask_path, None, settings, self._read.facts)  # refused here, not in the thread
        if plan.spec == self.view.plan.spec and self._wanted is None:
            return
        with self._condition:
            self._wanted = settings
            self._cancel.set()
            self._condition.notify_all()

    # Tiles

    def tile(self, level: int, column: int, row: int) -> tuple[np.ndarray, bool]:
        """Pixels of a tile as far as they are painted, uint8 (h, w, 3), and whether they all are. Never waits."""
        return self._tile(self.view, level, column, row)

    def _tile(self, view: View, level: int, column: int, row: int) -> tuple[np.ndarray, bool]:
        box = tile_box(view.levels, level, column, row)
        if box is None:  # the mask has shrunk at this moment
            return np.zeros((1, 1, 3), np.uint8), False
        if level > JOINED_LEVEL:
            return self._far_tile(view, level, box)
        key = (column, row)
        if level == JOINED_LEVEL and key in self._far:
            return self._far[key]
        notes = self._notes
        tile = self._near_tile(view, level, column, row, box)
        if level == JOINED_LEVEL:
            with self._condition:
                if view is not self.view or notes != self._notes:
                    return tile
                while len(self._far) >= FAR_TILES:
                    self._far.pop(next(iter(self._far)), None)
                self._far[key] = tile
        return tile

    def _near_tile(
        self, view: View, level: int, column: int, row: int, box: tuple[int, int, int, int]
    ) -> tuple[np.ndarray, bool]:
        slide = view.slide
        if slide is not None:
            if slide.tile_is_painted(level, column, row):
                try:
                    return slide.paint_tile(level, column, row, cancelled=lambda: True), True
                except InterruptedError:  # dropped from the cache at this moment
                    pass
            pixels, known = slide.painter.at_hand(*(side << level for side in box))
            if known.any():
                for _ in range(level):
                    pixels, known = halve(pixels), _all_known(known)
                return np.where(known[..., None], pixels, self._preview(view, level, box)), False
        return self._preview(view, level, box), False

    def _far_tile(self, view: View, level: int, box: tuple[int, int, int, int]) -> tuple[np.ndarray, bool]:
        """A tile from the four of the level below, if anything beneath it is painted."""
        x, y, width, height = box
        shift = level - JOINED_LEVEL
        with self._condition:
            near = any((i >> shift, j >> shift) == (x // TILE, y // TILE) for i, j in self._touched)
        if not near:
            return self._preview(view, level, box), False
        finer = np.empty((2 * height, 2 * width, 3), np.uint8)
        painted = True
        for row in range(2 * y // TILE, (2 * (y + height) - 1) // TILE + 1):
            for column in range(2 * x // TILE, (2 * (x + width) - 1) // TILE + 1):
                pixels, done = self._tile(view, level - 1, column, row)
                left, top = column * TILE - 2 * x, row * TILE - 2 * y
                part = finer[top : top + TILE, left : left + TILE]
                part[:] = pixels[: part.shape[0], : part.shape[1]]
                painted &= done
        return halve(finer), painted

    @staticmethod
    def _preview(view: View, level: int, box: tuple[int, int, int, int]) -> np.ndarray:
        return preview_pixels(view.overlay, view.plan.spec.style, level, *box)

    # What to paint

    def _clipped(self, x: int, y: int, width: int, height: int) -> Rectangle | None:
        grid = self.view.plan.grid
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + width, grid.width), min(y + height, grid.height)
        return Rectangle(left, top, right - left, bottom - top) if left < right and top < bottom else None

    def _lay_out(self, session: Session) -> None:
        """Cut what a page shows, and what lies around it, into blocks."""
        session.visible, session.near, look = [], [], session.look
        session.too_large = False
        if look is None:
            return
        session.too_large = self._windows(look) > self._most_windows()
        if session.too_large:
            return
        session.visible = self._blocks(look, look)
        around = self._clipped(look.x - look.width // 2, look.y - look.height // 2, 2 * look.width, 2 * look.height)
        if around is not None and self._windows(around) <= self._most_windows():
            session.near = self._blocks(around, look)

    def _windows(self, part: Rectangle) -> int:
        stride = self.view.plan.grid.stride
        return (part.width // stride + 2) * (part.height // stride + 2)

    def _most_windows(self) -> int:
        """Half of what the cache holds, so that what is shown and what it depends on stays there."""
        window = self.view.plan.grid.window
        return self.cache_bytes // (2 * 3 * window * window)

    def _blocks(self, part: Rectangle, middle: Rectangle) -> list[Rectangle]:
        """Blocks that a part is cut into, those near the middle first.

        Large ones fill batches, of small ones less is painted in vain once the page has moved on: some batches each.
        """
        grid, batch = self.view.plan.grid, self.view.plan.spec.batch_size
        exponent = round(np.log2(max(1.0, np.sqrt(16 * batch) * grid.stride / TILE)))
        side = TILE << min(LARGEST_BLOCK, exponent)
        columns, rows = -(-part.width // side), -(-part.height // side)
        xs = [part.x + part.width * i // columns for i in range(columns + 1)]
        ys = [part.y + part.height * j // rows for j in range(rows + 1)]
        cx, cy = middle.x + middle.width / 2, middle.y + middle.height / 2
        blocks = [
            Rectangle(left, top, right - left, bottom - top)
            for top, bottom in pairwise(ys)
            for left, right in pairwise(xs)
        ]
        return sorted(blocks, key=lambda r: (r.x + r.width / 2 - cx) ** 2 + (r.y + r.height / 2 - cy) ** 2)

    def _missing(self, block: Rectangle) -> bool:
        slide = self.view.slide
        return slide is not None and slide.painter.to_paint(block)[1] > 0

    def _next_block(self) -> Rectangle | None:
        sessions = list(reversed(self._sessions.values()))
        for session in sessions:
            for block in session.visible:
                if self._missing(block):
                    return block
        if not self.paused_around:
            for session in sessions:
                for block in session.near:
                    if self._missing(block):
                        return block
        return None

    def _reconsider(self) -> None:
        """Give up what is being painted if something else comes first now."""
        current = self._current
        if current is not None and not self._holds(current, lambda session: session.visible):
            near = self._holds(current, lambda session: session.near)
            waiting = any(self._missing(block) for session in self._sessions.values() for block in session.visible)
            if not near or waiting:
                self._cancel.set()
        self._condition.notify_all()

    def _holds(self, current: Rectangle, blocks: Callable[[Session], list[Rectangle]]) -> bool:
        """Whether any of some blocks of a session shares pixels with what is being painted."""
        parts = (_common(current, block) for session in self._sessions.values() for block in blocks(session))
        return any(part.width > 0 and part.height > 0 for part in parts)

    # The painter's thread

    def _work(self) -> None:
        with fixed_threads():  # all the time, so that changing slides does not let go of it
            while (job := self._next_job()) is not None:
                try:
                    job()
                except InterruptedError:
                    pass
                except WsigenError as error:
                    self._fail(str(error))
                except Exception as error:
                    self._fail(f"painting failed: {type(error).__name__}: {error}")
            if self.view.slide is not None:
                self.view.slide.close()

    def _fail(self, problem: str) -> None:
        with self._condition:
            self.state, self.problem = "failed", problem

    def _next_job(self) -> Callable[[], None] | None:
        """What to do now; waits until there is something. None once closed."""
        with self._condition:
            self._current = None
            while not self._closed:
                self._cancel.clear()
                if self._mask_is_new():
                    self._stamp = file_stamp(self._mask_path)
                    return self._read_again
                if self._wanted is not None:
                    settings, self._wanted = self._wanted, None
                    return partial(self._reopen, settings)
                block = self._next_block() if self.state != "failed" else None
                if block is not None:
                    self._current, self.state = block, "painting"
                    return partial(self._paint, block)
                if self.state != "failed":
                    self.state = "ready"
                self._condition.wait(WATCH_SECONDS)
        return None

    def _mask_is_new(self) -> bool:
        self._looked_at_mask = time.monotonic()
        stamp = file_stamp(self._mask_path)
        return stamp is not None and stamp != self._stamp

    def _given_up(self) -> bool:
        """Asked by the painter before each window and stage."""
        if time.monotonic() - self._looked_at_mask > WATCH_SECONDS and self._mask_is_new():
            self._cancel.set()
        return self._cancel.is_set()

    def _paint(self, block: Rectangle) -> None:
        slide = self.view.slide
        assert slide is not None
        before, started = slide.painter.painted, time.monotonic()
        try:
            slide.painter.region(*block, self._given_up)
        finally:
            self.painted += slide.painter.painted - before
            self.painting_seconds += time.monotonic() - started

    def _reopen(self, settings: RenderSettings) -> None:
        """Begin anew with other settings."""
        self.state, self.problem = "opening", ""
        plan = plan_render(self._mask_path, None, settings, self._read.facts)
        self._replace(plan, self.view.overlay, None)

    def _read_again(self) -> None:
        """Go on with a changed mask; what does not depend on the change stays painted."""
        self.state, self.problem = "reading", ""
        old = self.view
        read = read_mask(self._mask_path, old.plan.config)
        spec = old.plan.spec
        settings = replace(self.settings, seed=spec.seed, style=spec.style, steps=spec.num_inference_steps)
        plan = plan_render(self._mask_path, None, settings, read.facts)
        overlay = MaskOverlay(self._mask_path, plan.config.classes, plan.summary, read.chart, plan.spec.mpp)
        overlay.revision = old.overlay.revision + 1
        cells = self._read.chart.changed(read.chart)
        changed = None
        same_model = plan.model_sha256 == old.plan.model_sha256
        if cells is not None and same_model and plan.grid == old.plan.grid and plan.spec == old.plan.spec:
            changed = changed_windows(plan.grid, overlay.mask, cells, plan.spec.mpp)
        self._read = read
        self._replace(plan, overlay, changed)  # the old overlay closes itself once no request holds it

    def _replace(self, plan: RenderPlan, overlay: MaskOverlay, changed: np.ndarray | None) -> None:
        """Take up a plan. changed: windows that must be painted again, None for all; bool (rows, columns)."""
        old = self.view
        if changed is None:  # nothing of the old slide holds any more: show the preview while the model is loaded
            self._show(View(old.generation + 1, plan, overlay), [Rectangle(0, 0, plan.grid.width, plan.grid.height)])
        model = None
        if old.slide is not None:
            old.slide.close()  # at most one painter at a time holds the cores
            model = old.slide.painter.model if plan.model_sha256 == old.plan.model_sha256 else None
        slide = GeneratedSlide(plan, self.cache_bytes, model)
        if changed is not None and old.slide is not None:
            self.kept = slide.painter.inherit(old.slide.painter, changed)
        slide.painter.on_painted = self._note
        parts = [plan.grid.held(Window(int(i), int(j))) for j, i in np.argwhere(changed)] if changed is not None else []
        self._show(View(self.view.generation + (changed is not None), plan, overlay, slide), parts)

    def _show(self, view: View, parts: list[Rectangle]) -> None:
        with self._condition:
            self.view = view
            self._far.clear()
            if view.slide is None:
                self._touched.clear()
            for session in self._sessions.values():
                if session.look is not None:
                    session.look = self._clipped(*session.look)
                self._lay_out(session)
                for part in parts:
                    session.note(part)

    def _note(self, window: Window) -> None:
        """A window is at hand from now on."""
        part = self.view.plan.grid.held(window)
        side = TILE << JOINED_LEVEL
        with self._condition:
            self._notes += 1
            for j in range(part.y // side, (part.y + part.height - 1) // side + 1):
                for i in range(part.x // side, (part.x + part.width - 1) // side + 1):
                    self._touched.add((i, j))
                    self._far.pop((i, j), None)
            for session in self._sessions.values():
                session.note(part)


def _common(a: Rectangle, b: Rectangle) -> Rectangle:
    """What two rectangles share; without pixels where they share nothing."""
    left, top = max(a.x, b.x), max(a.y, b.y)
    right, bottom = min(a.x + a.width, b.x + b.width), min(a.y + a.height, b.y + b.height)
    return Rectangle(left, top, max(0, right - left), max(0, bottom - top))


def _all_known(known: np.ndarray) -> np.ndarray:
    """Whether all four pixels are known: bool (h, w) -> (h // 2, w // 2)."""
    height, width = known.shape[0] // 2 * 2, known.shape[1] // 2 * 2
    even = known[:height, :width]
    return even[0::2, 0::2] & even[0::2, 1::2] & even[1::2, 0::2] & even[1::2, 1::2]
