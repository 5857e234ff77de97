"""Stages while they are painted: each has a canvas, and a thread that writes its file as rows are finished."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

from wsigen.errors import SettingsError
from wsigen.painting.canvas import Canvas
from wsigen.painting.cluster import open_executor
from wsigen.painting.estimate import refuse_what_does_not_fit
from wsigen.painting.scheduler import Below, Progress, Run, TaskScheduler
from wsigen.painting.tasks import Task
from wsigen.rendering.stage import StagePlan


class Writer(Protocol):
    """Writes a stage's file in a thread of its own while the canvas is painted."""

    rows_encoded: int  # from the top

    def painted(self, rows: int, ended: Task | None) -> None:
        """Hear that ``rows`` rows are finished from the top, and which task has ended; raises what went wrong."""

    def ended(self) -> bool:
        """Hear that all is painted; whether the file is written, or will never be."""

    def finish(self, on_rows: Callable[[int], None]) -> None:
        """Hear that all is painted, and wait for the file; raises what went wrong."""

    def stop(self) -> None:
        """Give up: no file is left behind."""


class StageJob(ABC):
    """A stage under way. As a context it leaves no half file; what is painted stays on the canvas."""

    def __init__(
        self,
        plan: Any,
        overwrite: bool,
        resume: bool,
        keep_canvas: bool,
        on_paint: Callable[[Progress], None] = lambda progress: None,
        on_rows: Callable[[int], None] = lambda rows: None,
        started: float | None = None,
        below: Below | None = None,
    ) -> None:
        self.plan, self.keep_canvas, self.on_paint, self.on_rows = plan, keep_canvas, on_paint, on_rows
        self.started = started or time.monotonic()
        self.writer: Writer | None = None
        check_canvas_folder(plan)
        refuse_what_does_not_fit(plan.projection, plan.spec, plan.canvas, plan.out, plan.workers)
        self.make_way(overwrite, resume)
        self.planned = time.monotonic()
        self.canvas = Canvas.resume(plan.canvas, plan.blocks, plan.run)
        self.run = Run(
            self.canvas,
            plan.spec,
            region=plan.painted_part,
            occupied=plan.occupied,
            on_progress=self._on_progress,
            below=below,
        )

    @abstractmethod
    def make_way(self, overwrite: bool, resume: bool) -> None:
        """Refuse to touch what exists unless told to; discard an old canvas only to overwrite."""

    @abstractmethod
    def new_writer(self) -> Writer:
        """What writes the file; its thread runs already."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to write the file."""
        self.writer = self.new_writer()
        if self.run.finished:
            self.run.report(None)

    def stop(self) -> None:
        """Give up what is not finished: the canvas stays, half a file does not."""
        if self.writer is not None:
            self.writer.stop()

    def check(self) -> None:
        """Raise what went wrong with the canvas or the file meanwhile."""
        if self.run.error is not None:
            raise self.run.error
        if self.writer is not None:
            self.writer.painted(self.run.progress.rows_done, None)

    def encoded(self) -> bool:
        """Whether the file is written, so that finishing would not wait. To be asked once all is painted."""
        assert self.writer is not None
        return self.writer.ended()

    def finish_file(self) -> None:
        """Wait for the file."""
        assert self.writer is not None
        self.writer.finish(self.on_rows)

    def _on_progress(self, progress: Progress) -> None:
        assert self.writer is not None
        self.writer.painted(progress.rows_done, progress.ended)
        self.on_paint(progress)
        if self.writer.rows_encoded:
            self.on_rows(self.writer.rows_encoded)


def paint_stages(jobs: Sequence[StageJob]) -> None:
    """Paint what is missing of stages, each from the one before, on the machine of the first."""
    missing = [job.run for job in jobs if not job.run.finished]
    if not missing:
        return
    plan: StagePlan = jobs[0].plan
    with open_executor(plan.spec.device, plan.workers, plan.scheduler) as executor:
        engine = TaskScheduler(executor)
        for run in missing:
            engine.add(run)
        while not all(run.finished for run in missing):
            engine.step()
            for job in jobs:
                job.check()


def check_canvas_folder(plan: StagePlan) -> None:
    """Raise SettingsError if the folder that shall hold the canvas has no place to be."""
    if not plan.canvas.parent.is_dir():
        raise SettingsError(f"--canvas {plan.canvas}: the folder {plan.canvas.parent} does not exist; make it first")
