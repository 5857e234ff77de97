"""Render a plan: the function behind ``wsigen render``, and a slide while it is rendered.

``render`` paints the canvas, encodes the pyramid and keeps a picture of the whole slide up to date meanwhile. It
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
from wsigen.masks.resampling import resampled_to
from wsigen.masks.slide_mask import SlideMask
from wsigen.masks.source import MaskSource
from wsigen.masks.window import MaskWindow
from wsigen.masks.writer import write_slide_mask
from wsigen.painting.canvas import write_json
from wsigen.painting.scheduler import Progress
from wsigen.rendering.plan import RenderPlan, plan_render
from wsigen.rendering.records import record_data
from wsigen.rendering.slide_file import Assembler
from wsigen.rendering.stage_job import StageJob, Writer, paint_stages
from wsigen.slides.formats import check_target


@dataclass(frozen=True)
class RenderResult:
    """What a render wrote.

    Attributes:
        slide: the slide.
        picture: picture of the whole slide, beside it.
        record: record of the render, beside the slide; `wsigen render --from` takes it.
        width: width of the slide in px.
        height: height of the slide in px.
        windows: windows of the slide, or of its part.
        painted: windows that this run painted; the others are glass, or were painted before the run was resumed.
        seconds: time of the whole run.
        timings: seconds by stage, and ``idle_share``, the share of the painting in which the devices were idle.
    """

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
    """Paint the slide of a mask, and write a picture and a record beside it.

    With more than one worker, call it under ``if __name__ == "__main__"``: worker processes import the main file.

    Args:
        mask: the slide mask.
        out: the slide to write. None: beside the mask, with the ending of the format.
        overwrite: replace an existing slide, and discard the canvas of an interrupted render.
        resume: continue an interrupted render from its canvas.
        keep_canvas: keep the store of painted pixels when the slide is finished.
        on_plan: called once with the plan, before anything is written.
        on_paint: called with the progress, again and again while windows are painted.
        on_rows: called with the number of pixel rows that are encoded.
        **settings: fields of `RenderSettings`, such as ``model``, ``style``, ``seed`` and ``steps``.

    Raises:
        SettingsError: a setting is unknown or out of its range, or a file is in the way.
        MaskError: the mask cannot be read.
        ModelError: the model or the style cannot be found.
        StoreError: the canvas is damaged, or belongs to another run.
        SlideError: the slide cannot be written.
        ClusterError: the workers or the Dask cluster failed.
    """
    started = time.monotonic()
    plan = plan_render(mask, out, RenderSettings.from_keywords(settings))
    on_plan(plan)
    with ExitStack() as stack:
        slide = stack.enter_context(RenderJob(plan, overwrite, resume, keep_canvas, on_paint, on_rows, started))
        paint_stages([slide])
        return slide.finish()


class RenderJob(StageJob):
    """One slide on its way: its canvas is being painted and its file written. As a context it leaves no half file."""

    plan: RenderPlan

    def make_way(self, overwrite: bool, resume: bool) -> None:
        """Refuse to touch what exists unless told to; write the mask at the slide's scale where that is another."""
        _make_way(self.plan, overwrite, resume)
        if self.plan.resamples:
            _write_resampled(self.plan)

    def new_writer(self) -> Writer:
        """What writes the slide and its picture."""
        plan = self.plan
        return Assembler(
            self.canvas,
            plan.out,
            plan.picture,
            plan.metadata,
            plan.spec.style.glass_rgb,
            plan.jpeg_quality,
            plan.rect,
            plan.format,
            plan.patient_id,
        )

    def finish(self) -> RenderResult:
        """Wait for the file, write the record, remove the canvas."""
        painted = time.monotonic()
        self.finish_file()
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


def _make_way(plan: RenderPlan, overwrite: bool, resume: bool) -> None:
    """Raise SettingsError for existing files, unless they may be replaced; delete an old canvas only to overwrite."""
    if plan.out.exists() and not (overwrite or resume):
        raise SettingsError(f"{plan.out} exists; replace it with --overwrite, or choose another name with -o")
    if plan.out.exists() and resume and not overwrite and not plan.canvas.exists():
        raise SettingsError(f"{plan.out} is finished, nothing is left to resume; paint it anew with --overwrite")
    if plan.out.exists():
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
