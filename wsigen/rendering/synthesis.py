"""A slide and its mask, both synthetic: the function behind ``wsigen synth``.

The mask is one stage and the slide the next: a window of the slide is painted as soon as the mask around it is there.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from wsigen.config import RenderSettings
from wsigen.errors import SettingsError
from wsigen.layouts.decoded import TILE, Place, around
from wsigen.masks.conditions import HALO as MASK_HALO
from wsigen.masks.summary import MaskSummary
from wsigen.masks.window import reflected
from wsigen.models.registry import (
    DEFAULT_MODEL,
    load_config,
)
from wsigen.painting.grid import Rectangle, WindowGrid
from wsigen.painting.occupancy import MaskShape, layout_occupancy
from wsigen.painting.scheduler import Below, Progress
from wsigen.painting.source import note_stage
from wsigen.rendering.job import RenderJob, RenderResult, render
from wsigen.rendering.layout_request import LayoutRequest
from wsigen.rendering.mask_job import MaskJob, MaskPlan, MaskResult, layout_beside, plan_mask
from wsigen.rendering.plan import MaskFacts, RenderPlan, plan_render, target_mpp
from wsigen.rendering.stage import canvas_beside
from wsigen.rendering.stage_job import paint_stages
from wsigen.slides.formats import stem_of


@dataclass(frozen=True)
class SynthResult:
    """A synthetic slide and its mask.

    Attributes:
        mask: what sampling the mask wrote.
        slide: what painting the slide wrote.
    """

    mask: MaskResult
    slide: RenderResult


def mask_of(slide: Path) -> Path:
    """Return the path of the mask that ``synth`` writes beside a slide."""
    return slide.with_name(stem_of(slide) + "_masks.tif")


def synthesise(
    slide: str | Path,
    request: LayoutRequest,
    settings: RenderSettings | None = None,
    *,
    mask_model: str = "",
    mask_steps: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    on_mask_plan: Callable[[MaskPlan], None] = lambda plan: None,
    on_mask: Callable[[Progress], None] = lambda progress: None,
    on_mask_rows: Callable[[int], None] = lambda rows: None,
    on_plan: Callable[[RenderPlan], None] = lambda plan: None,
    on_paint: Callable[[Progress], None] = lambda progress: None,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> SynthResult:
    """Sample a synthetic mask and paint its slide.

    Workers that the mask leaves idle begin with those windows of the slide around which the mask is sampled.

    Args:
        slide: the slide to write; the mask is written beside it.
        request: the source of the layout.
        settings: settings of the slide; seed, batch_size, device, dtype, workers and dask_scheduler hold for the mask
            too. None: the defaults.
        mask_model: name or folder of the mask model; "" for the one that ships.
        mask_steps: denoising steps of the mask. None: those of the mask model.
        overwrite: replace an existing slide and mask.
        resume: continue an interrupted run; a mask that is finished is used as it is.
        on_mask_plan: called once with the plan of the mask.
        on_mask: called with the progress of the mask, again and again while its windows are painted.
        on_mask_rows: called with the number of pixel rows of the mask that are decoded.
        on_plan: called once with the plan of the slide.
        on_paint: called with the progress of the slide.
        on_rows: called with the number of pixel rows of the slide that are encoded.

    Raises:
        WsigenError: the errors of `sample_mask` and of `render`.
    """
    started, settings = time.monotonic(), settings or RenderSettings()
    slide = Path(slide)
    mask = mask_of(slide)
    if slide.exists() and not (overwrite or resume):
        raise SettingsError(f"{slide} exists; replace it with --overwrite, or choose another name with -o")
    canvas_left = canvas_beside(mask).exists()
    over_mask = overwrite or (resume and canvas_left)  # a mask beside its canvas is one that was written already
    for_mask = _of_mask(settings, mask_model, mask_steps)
    if resume and mask.exists() and not canvas_left:
        sampled = MaskResult(mask, layout_beside(mask), 0, 0, {}, 0, 0.0)
        return SynthResult(sampled, _from_file(mask, slide, settings, overwrite, resume, on_plan, on_paint, on_rows))
    below = plan_mask(mask, request, for_mask, over_mask, resume)
    on_mask_plan(below)
    plan = plan_above(below, slide, settings)
    if plan is None:
        with MaskJob(below, over_mask, resume, False, on_mask, on_mask_rows, started) as job:
            paint_stages([job])
            sampled = job.finish()
        return SynthResult(sampled, _from_file(mask, slide, settings, overwrite, resume, on_plan, on_paint, on_rows))
    on_plan(plan)
    with ExitStack() as stack:
        first = stack.enter_context(MaskJob(below, over_mask, resume, True, on_mask, on_mask_rows, started))
        note_stage(below.canvas, layout_beside(mask), Path(below.spec.model))
        seen = Below(first.run, partial(seen_of_mask, below.grid))
        second = RenderJob(plan, overwrite, resume, False, on_paint, on_rows, started, seen)
        stack.enter_context(second)
        paint_stages([first, second])
        sampled = first.finish()
        second.plan = painted_from_file(plan, mask)
        result = SynthResult(sampled, second.finish())
        first.canvas.remove()
        return result


def _from_file(
    mask: Path, slide: Path, settings: RenderSettings, overwrite: bool, resume: bool, *reports: Callable
) -> RenderResult:
    """Render a mask that is finished; ``reports`` are `render`'s, in order."""
    given = {name: value for name, value in vars(settings).items() if value is not None}
    named: dict[str, Any] = dict(zip(("on_plan", "on_paint", "on_rows"), reports, strict=True))
    return render(mask, slide, overwrite=overwrite, resume=resume, **named, **given)


def plan_above(below: MaskPlan, slide: Path, settings: RenderSettings) -> RenderPlan | None:
    """The plan of the slide that is painted from a mask while that is painted itself.

    None for a painter of another scale: there is no mask yet that could be brought to it. Raises SettingsError for a
    painter of fewer classes than the mask has.
    """
    layout = below.layout
    shape = MaskShape(layout.width, layout.height, has_tissue=True)
    stage = hashlib.sha256(json.dumps(below.run, sort_keys=True).encode()).hexdigest()
    expected = tuple(round(count) for count in layout.expected())
    summary = MaskSummary(layout.width, layout.height, expected, (), None, stage)
    config = load_config(settings.model or DEFAULT_MODEL)
    if len(config.classes) < len(layout.classes):
        raise SettingsError(
            f"--model {settings.model or DEFAULT_MODEL}: paints {len(config.classes)} classes of nuclei, and the mask "
            f"has {len(layout.classes)}; choose a painter of the same classes"
        )
    if target_mpp(layout.mpp, config.mpp) != layout.mpp:
        return None
    plan = plan_render(below.out, slide, settings, MaskFacts(summary, layout.mpp, layout.mpp, shape))
    spec = replace(plan.spec, source=str(below.canvas.resolve()))
    return replace(plan, spec=spec, occupied=layout_occupancy(plan.grid, layout, MASK_HALO))


def seen_of_mask(grid: WindowGrid, part: Rectangle) -> Rectangle:
    """What of a mask's picture decides the mask around a part of the slide, which may reach beyond it.

    Beyond the slide the mask is reflected, so that a window there reads what lies up to its width inside the border.
    """
    columns = reflected(part.x - MASK_HALO, part.width + 2 * MASK_HALO, grid.width)
    rows = reflected(part.y - MASK_HALO, part.height + 2 * MASK_HALO, grid.height)
    left, top, right, bottom = (int(edge) for edge in (columns.min(), rows.min(), columns.max(), rows.max()))
    return Rectangle(*around(Place(left, top, right - left + 1, bottom - top + 1), grid.width, grid.height, TILE))


def painted_from_file(plan: RenderPlan, mask: Path) -> RenderPlan:
    """The plan that paints the same pixels from the mask's file: what the slide's record says."""
    summary = MaskFacts.read(mask, plan.config).summary
    return replace(
        plan, summary=summary, source_sha256=summary.sha256, spec=replace(plan.spec, source=str(mask.resolve()))
    )


def _of_mask(settings: RenderSettings, model: str, steps: int | None) -> RenderSettings:
    """Settings of the mask of a slide: seed and machine are the slide's."""
    return RenderSettings(
        model=model,
        seed=settings.seed,
        steps=steps,
        batch_size=settings.batch_size,
        device=settings.device,
        dtype=settings.dtype,
        workers=settings.workers,
        dask_scheduler=settings.dask_scheduler,
    )
