"""Render a plan: the function behind ``wsigen render``, and a slide while it is rendered.

:func:`render` paints the canvas, encodes the pyramid and keeps a picture of the whole slide up to date meanwhile, and
writes the record from which the same pixels can be painted again. `wsigen.rendering.many` does so for many slides on
one set of workers.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Unpack

from wsigen.config import RenderKeywords, RenderSettings
from wsigen.errors import SettingsError
from wsigen.masks.slide_mask import MaskSource, MaskWindow, SlideMask, resampled_to, write_slide_mask
from wsigen.painting.canvas import Canvas, write_json
from wsigen.painting.cluster import open_executor
from wsigen.painting.estimate import refuse_what_does_not_fit
from wsigen.painting.scheduler import Progress, Run, TaskScheduler
from wsigen.rendering.plan import RenderPlan, plan_render
from wsigen.rendering.records import record_data
from wsigen.rendering.slide_file import Assembler
from wsigen.slides.formats import check_target


@dataclass(frozen=True)
class RenderResult:
    """What a render wrote. ``timings``: seconds by stage, and the share of the painting that devices were idle."""

    slide: Path
    picture: Path
    record: Path
    width: int
    height: int
    windows: int
    painted: int
    seconds: float
    timings: dict[str, float] = field(default_factory=dict)


def render(
    mask: str | Path,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    keep_canvas: bool = False,
    on_plan: Callable[[RenderPlan], None] = lambda plan: None,
    on_paint: Callable[[Progress], None] = lambda progress: None,
    on_rows: Callable[[int], None] = lambda rows: None,
    **settings: Unpack[RenderKeywords],
) -> RenderResult:
    """Paint the slide of ``mask`` to ``out`` (default: beside the mask), and a picture and a record beside it.

    Further keywords are those of :class:`wsigen.config.RenderSettings`: ``model``, ``style``, ``seed``, ``steps`` and
    so on. An existing slide is replaced only with ``overwrite``; a canvas that an interrupted render left is continued
    with ``resume`` and discarded with ``overwrite``. ``on_plan``, ``on_paint`` and ``on_rows`` report the plan, windows
    painted, and pixel rows encoded. With more than one worker call it under ``if __name__ == "__main__"``.
    """
    started = time.monotonic()
    plan = plan_render(mask, out, RenderSettings.from_keywords(settings))
    on_plan(plan)
    with ExitStack() as stack:
        slide = stack.enter_context(RenderJob(plan, overwrite, resume, keep_canvas, on_paint, on_rows, started))
        if not slide.run.finished:
            engine = TaskScheduler(stack.enter_context(open_executor(plan.spec.device, plan.workers, plan.scheduler)))
            engine.add(slide.run)
            while not slide.run.finished:
                engine.step()
                if slide.run.error is not None:
                    raise slide.run.error
        return slide.finish()


class RenderJob:
    """One slide on its way: its canvas is being painted and its file written. As a context it leaves no half file."""

    def __init__(
        self,
        plan: RenderPlan,
        overwrite: bool,
        resume: bool,
        keep_canvas: bool,
        on_paint: Callable[[Progress], None] = lambda progress: None,
        on_rows: Callable[[int], None] = lambda rows: None,
        started: float | None = None,
    ) -> None:
        self.plan, self.keep_canvas, self.on_paint, self.on_rows = plan, keep_canvas, on_paint, on_rows
        self.started = started or time.monotonic()
        self.assembler: Assembler | None = None
        check_canvas_folder(plan)
        refuse_what_does_not_fit(plan.projection, plan.spec, plan.canvas, plan.out, plan.workers)
        _make_way(plan, overwrite, resume)
        if plan.resamples:
            _write_resampled(plan)
        self.planned = time.monotonic()
        self.canvas = Canvas.resume(plan.canvas, plan.layout, plan.run)
        region, occupied = plan.rect, plan.occupied
        self.run = Run(self.canvas, plan.spec, region=region, occupied=occupied, on_progress=self._on_progress)

    def __enter__(self) -> RenderJob:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to write the file."""
        plan = self.plan
        glass_rgb = plan.spec.style.glass_rgb
        self.assembler = Assembler(
            self.canvas,
            plan.out,
            plan.picture,
            plan.metadata,
            glass_rgb,
            plan.jpeg_quality,
            plan.rect,
            plan.format,
            plan.patient_id,
        )
        if self.run.finished:
            self.run.report(None)

    def stop(self) -> None:
        """Give up what is not finished: the canvas stays, half a file does not."""
        if self.assembler is not None:
            self.assembler.stop()

    def encoded(self) -> bool:
        """Whether `finish` would not wait. To be asked once all is painted."""
        assert self.assembler is not None
        return self.assembler.ended()

    def _on_progress(self, progress: Progress) -> None:
        assert self.assembler is not None
        self.assembler.painted(progress.rows_done, progress.ended)
        self.on_paint(progress)
        if self.assembler.rows_encoded:
            self.on_rows(self.assembler.rows_encoded)

    def finish(self) -> RenderResult:
        """Wait for the file, write the record, remove the canvas."""
        assert self.assembler is not None
        painted = time.monotonic()
        self.assembler.finish(self.on_rows)
        ended, plan, progress = time.monotonic(), self.plan, self.run.progress
        timings = {
            "planning": self.planned - self.started,
            "opening": painted - self.planned - progress.seconds,
            "painting": progress.seconds,
            "encoding": ended - painted,  # what painting did not hide
            "device": progress.work.device,
            "reading": progress.work.reading,
            "writing": progress.work.writing,
            "idle_share": 1 - progress.device_share,
        }
        if plan.labels is not None:
            from wsigen.masks.exporters import export_mask  # late: few renders want labels, and it imports much

            labelled = plan.resampled_mask if plan.resamples else plan.mask
            export_mask(labelled, plan.labels, plan.config.classes, plan.labels_format, True)
        write_json(plan.record, record_data(plan, timings, self.run.ways))
        if not self.keep_canvas:
            self.canvas.remove()
        return RenderResult(
            plan.out,
            plan.picture,
            plan.record,
            plan.width,
            plan.height,
            progress.total,
            progress.painted,
            time.monotonic() - self.started,
            timings,
        )


def check_canvas_folder(plan: RenderPlan) -> None:
    """Raise SettingsError if the folder that shall hold the canvas has no place to be."""
    if not plan.canvas.parent.is_dir():
        raise SettingsError(f"--canvas {plan.canvas}: the folder {plan.canvas.parent} does not exist; make it first")


def _make_way(plan: RenderPlan, overwrite: bool, resume: bool) -> None:
    """Refuse to touch what exists unless told to; discard an old canvas only to overwrite."""
    if plan.out.exists() and not (overwrite or resume):
        raise SettingsError(f"{plan.out} exists; replace it with --overwrite, or choose another name with -o")
    if plan.out.exists() and resume and not overwrite and not plan.canvas.exists():
        raise SettingsError(f"{plan.out} is finished, nothing is left to resume; paint it anew with --overwrite")
    if plan.out.exists() and plan.format.name != "svs":
        check_target(plan.out, plan.format, overwrite=True)
    if plan.resamples and plan.resampled_mask.resolve() == plan.mask.resolve():
        raise SettingsError(
            f"{plan.mask}: the mask at the slide's scale would be written over it; choose another name with -o"
        )
    for path in plan.companions:
        if path.exists() and not (overwrite or resume):
            raise SettingsError(f"{path} exists; replace it with --overwrite, or choose another name with -o")
    if plan.canvas.exists() and not resume:
        if not overwrite:
            raise SettingsError(f"{plan.canvas} holds an unfinished render; continue it with --resume, or --overwrite")
        shutil.rmtree(plan.canvas)


def _write_resampled(plan: RenderPlan) -> None:
    """Write the mask that the slide's pixels follow, so that its labels are exact too."""
    with SlideMask.open(plan.mask, len(plan.config.classes)) as source:
        scaled: MaskSource = resampled_to(source, plan.spec.mpp)

        def band(y0: int, y1: int) -> MaskWindow:
            return scaled.read(0, y0, scaled.width, y1 - y0)

        write_slide_mask(
            plan.resampled_mask,
            scaled.width,
            scaled.height,
            plan.spec.mpp,
            band,
            instances=scaled.has_instances,
            tissue=scaled.has_tissue,
            overwrite=True,
        )
