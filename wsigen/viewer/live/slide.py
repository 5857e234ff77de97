"""A slide that is painted while it is viewed.

One thread paints. Whoever asks for a tile gets at once what there is. Pages say where they look; what no page shows any
more is given up before its next batch. A change of what the form asks for, or of the mask's file, is taken up by the
same thread; after a change of the mask, every window that does not depend on the change is kept.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from wsigen.config import RenderSettings
from wsigen.errors import WsigenError
from wsigen.painting.grid import Rectangle, Window
from wsigen.painting.occupancy import changed_windows
from wsigen.painting.on_demand import CACHE_BYTES
from wsigen.painting.slide_worker import fixed_threads
from wsigen.painting.spec import PaintSpec
from wsigen.rendering.on_demand import GeneratedSlide
from wsigen.rendering.plan import RenderPlan, plan_render
from wsigen.viewer.form import Answers, Form
from wsigen.viewer.live.mask import WATCH_SECONDS, MaskWatch, ReadMask, read_mask
from wsigen.viewer.live.queue import BlockCutter, is_outdated, next_block
from wsigen.viewer.live.sessions import Session, Sessions
from wsigen.viewer.live.tiles import LiveTiles, Tile, View
from wsigen.viewer.overlays import MaskOverlay

Job = Callable[[], None]


class LiveSlide:
    """The slide of a mask, painted on demand by one thread. Threads may share it; close it when done.

    ``state``: "opening", "reading", "painting", "ready" or "failed"; if it is "failed", ``problem`` says why.
    """

    def __init__(self, plan: RenderPlan, mask: ReadMask, settings: RenderSettings, cache_bytes: int = CACHE_BYTES):
        self.settings, self.cache_bytes = settings, cache_bytes
        self.paused_around = False  # while a render runs: only what is visible is painted
        self.state, self.problem = "opening", ""
        self.painting_seconds, self.painted = 0.0, 0
        self.kept = 0  # windows that outlived the last change of the mask
        overlay = MaskOverlay(plan.mask, plan.config.classes, plan.summary, mask.chart, plan.spec.mpp)
        self._tiles = LiveTiles(View(0, plan, overlay, settings))
        self.form = Form(plan.config, plan.spec.style)
        self._mask, self._watch = mask, MaskWatch(plan.mask)
        self._condition = threading.Condition()  # guards what follows
        self._sessions = Sessions()
        self._choosing = threading.Lock()  # guards the choice that was accepted last, and what it paints with
        self._chosen: tuple[RenderSettings, PaintSpec] = settings, plan.spec
        self._wanted: RenderSettings | None = settings  # to be taken up
        self._current: Rectangle | None = None  # block that is being painted
        self._idle = self._closed = False
        self._cancel = threading.Event()
        self._thread = threading.Thread(target=self._work, name="wsigen-view-painter", daemon=True)
        self._thread.start()

    @property
    def view(self) -> View:
        """What is being painted."""
        return self._tiles.view

    @property
    def levels(self) -> list[tuple[int, int]]:
        """Sizes of the levels."""
        return self.view.levels

    @property
    def sessions(self) -> tuple[str, ...]:
        """Names of the open pages."""
        with self._condition:
            return self._sessions.names

    def idle(self) -> bool:
        """Whether the thread has nothing to do: all is painted that pages show, and no change waits."""
        with self._condition:
            return self._idle

    def tile(self, level: int, column: int, row: int) -> Tile:
        """Pixels of a tile as far as they are painted, uint8 (h, w, 3), and whether they all are. Never waits."""
        return self._tiles.tile(level, column, row)

    def close(self) -> None:
        """Stop painting and let go of everything."""
        with self._condition:
            self._closed = True
            self._interrupt()
        self._thread.join()
        self.view.overlay.close()

    # Pages

    def join(self) -> str | None:
        """Begin a session and return its name; None where there are too many."""
        with self._condition:
            return self._sessions.join()

    def leave(self, name: str) -> None:
        """End a session; what was painted for it alone is given up."""
        with self._condition:
            self._sessions.leave(name)
            self._reconsider()

    def look(self, name: str, x: int, y: int, width: int, height: int) -> bool:
        """Set which part of level 0 a page shows; False if there is no such session."""
        with self._condition:
            found = self._sessions.look(name, x, y, width, height, self._cutter())
            self._reconsider()
            return found

    def changes(self, name: str) -> list[Rectangle]:
        """Parts that look different since the last call."""
        with self._condition:
            session = self._sessions.find(name)
            return session.take_changes() if session else []

    def status(self, name: str) -> dict[str, Any]:
        """The status line of a page, as plain JSON: settings, state, and how much of what it shows is painted."""
        with self._condition:
            view, session = self.view, self._sessions.find(name) or Session()
            look, too_large, state, problem = session.look, session.blocks.too_large, self.state, self.problem
        needed, missing = (0, 0)
        if look is not None and view.slide is not None and not too_large:
            needed, missing = view.slide.painter.to_paint(look)
        spec = view.plan.spec
        return {
            "generation": view.generation,
            "state": state,
            "problem": problem,
            "seed": spec.seed,
            "steps": spec.num_inference_steps,
            "conditions": self.form.shown(view.settings, spec.style),
            "looking": look is not None,
            "windows": needed,
            "painted": needed - missing,
            "too_large": too_large,
            "windows_per_second": round(self.painted / self.painting_seconds, 3) if self.painting_seconds else None,
        }

    def choose(self, answers: Answers) -> None:
        """Paint with other settings from now on. Raises SettingsError or ModelError."""
        with self._choosing:  # the next choice adds to this one, whether it is taken up already or not
            settings = self.form.settings(self._chosen[0], answers)
            plan = self._planned(settings, self._mask)  # refused here, not in the thread
            if plan.spec == self._chosen[1]:
                return
            self._chosen = settings, plan.spec
            with self._condition:
                self._wanted = settings
                self._interrupt()

    def _cutter(self) -> BlockCutter:
        plan = self.view.plan
        return BlockCutter(plan.grid, plan.spec.batch_size, self.cache_bytes)

    def _reconsider(self) -> None:
        """Look again for what comes first; give up what is being painted if it is something else now."""
        self._idle = False
        if self._current is not None and is_outdated(self._current, self._sessions.blocks(), self._missing):
            self._cancel.set()
        self._condition.notify_all()

    def _interrupt(self) -> None:
        """Give up what is being painted, since the thread has something else to do."""
        self._idle = False
        self._cancel.set()
        self._condition.notify_all()

    def _missing(self, block: Rectangle) -> bool:
        slide = self.view.slide
        return slide is not None and slide.painter.to_paint(block)[1] > 0

    # The thread that paints

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

    def _next_job(self) -> Job | None:
        """What to do now; waits until there is something. None once closed."""
        with self._condition:
            self._current = None
            while not self._closed:
                self._cancel.clear()
                job = self._found_job()
                self._idle = job is None
                if job is not None:
                    return job
                self._condition.wait(WATCH_SECONDS)
        return None

    def _found_job(self) -> Job | None:
        """What there is to do: a change of the mask comes first, then one of the settings, then painting."""
        if self._watch.is_new():
            self._watch.accept()
            return self._read_again
        if self._wanted is not None:
            settings, self._wanted = self._wanted, None
            return partial(self._reopen, settings)
        if self.state == "failed":
            return None
        self._current = next_block(self._sessions.blocks(), self._missing, self.paused_around)
        self.state = "ready" if self._current is None else "painting"
        return partial(self._paint, self._current) if self._current is not None else None

    def _given_up(self) -> bool:
        """Whether to stop painting a block; called before each window and stage."""
        if self._watch.is_new_after_a_while():
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

    def _planned(self, settings: RenderSettings, mask: ReadMask) -> RenderPlan:
        return plan_render(self._watch.path, None, settings, mask.facts)

    def _reopen(self, settings: RenderSettings) -> None:
        """Begin anew with other settings."""
        self.state, self.problem = "opening", ""
        self._replace(self._planned(settings, self._mask), self.view.overlay, settings, None)

    def _read_again(self) -> None:
        """Go on with a changed mask; what does not depend on the change stays painted."""
        self.state, self.problem = "reading", ""
        old = self.view
        read = read_mask(self._watch.path, old.plan.config)
        spec = old.plan.spec
        settings = replace(old.settings, seed=spec.seed, style=spec.style, steps=spec.num_inference_steps)
        plan = self._planned(settings, read)
        overlay = MaskOverlay(plan.mask, plan.config.classes, plan.summary, read.chart, plan.spec.mpp)
        overlay.revision = old.overlay.revision + 1
        cells = self._mask.chart.changed(read.chart)
        changed = None
        same_model = plan.model_sha256 == old.plan.model_sha256
        if cells is not None and same_model and plan.grid == old.plan.grid and plan.spec == old.plan.spec:
            changed = changed_windows(plan.grid, overlay.mask, cells, plan.spec.mpp)
        self._mask = read
        self._replace(plan, overlay, settings, changed)  # the old overlay closes itself once no request holds it

    def _replace(
        self, plan: RenderPlan, overlay: MaskOverlay, settings: RenderSettings, changed: np.ndarray | None
    ) -> None:
        """Take up a plan. changed: windows that must be painted again, None for all; bool (rows, columns)."""
        old = self.view
        if changed is None:  # nothing of the old slide holds any more: show the preview while the model is loaded
            everything = Rectangle(0, 0, plan.grid.width, plan.grid.height)
            self._show(View(old.generation + 1, plan, overlay, settings), [everything])
        model = None
        if old.slide is not None:
            old.slide.close()  # at most one painter at a time holds the cores
            model = old.slide.painter.model if plan.model_sha256 == old.plan.model_sha256 else None
        slide = GeneratedSlide(plan, self.cache_bytes, model)
        if changed is not None and old.slide is not None:
            self.kept = slide.painter.inherit(old.slide.painter, changed)
        slide.painter.on_painted = self._note
        parts = [plan.grid.held(Window(int(i), int(j))) for j, i in np.argwhere(changed)] if changed is not None else []
        self._show(View(self.view.generation + (changed is not None), plan, overlay, settings, slide), parts)

    def _show(self, view: View, parts: list[Rectangle]) -> None:
        """Show another view, in which some parts look different."""
        with self._condition:
            self._tiles.show(view)
            self._sessions.cut_again(self._cutter())
            for part in parts:
                self._sessions.note(part)

    def _note(self, window: Window) -> None:
        """A window is painted from now on."""
        part = self.view.plan.grid.held(window)
        with self._condition:
            self._tiles.note(part)
            self._sessions.note(part)
