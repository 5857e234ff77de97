"""Synthetic masks: the functions behind ``wsigen mask sample``, ``mask layout`` and ``synth``.

A layout says where each region lies. The mask model paints a picture of the mask on a canvas, with the engine that
paints slides. The picture is decoded into a slide mask.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from wsigen.choices import LAYOUT_PRESETS
from wsigen.config import RenderSettings
from wsigen.errors import MaskError, ModelError, SettingsError
from wsigen.layouts.architecture import layout_by_hand, sampled_layout
from wsigen.layouts.decoded import TILE, Place, around
from wsigen.layouts.decoding import Decoder
from wsigen.layouts.layout import Layout, is_layout
from wsigen.layouts.mask_code import BLANK, MaskCode
from wsigen.layouts.regions import layout_of_mask
from wsigen.masks.conditions import HALO as MASK_HALO
from wsigen.masks.slide_mask import SlideMask
from wsigen.masks.summary import MaskSummary
from wsigen.models.config import ModelConfig
from wsigen.models.registry import (
    DEFAULT_MODEL,
    MASK_MODEL,
    find_model,
    load_config,
    shipped_models,
    weights_sha256,
)
from wsigen.models.stain import StainStyle
from wsigen.painting.grid import Rectangle, WindowGrid
from wsigen.painting.occupancy import MaskShape, layout_occupancy
from wsigen.painting.scheduler import Below, Progress
from wsigen.painting.source import note_stage
from wsigen.rendering.job import RenderJob, RenderResult, render
from wsigen.rendering.mask_file import MaskWriter
from wsigen.rendering.plan import MaskFacts, RenderPlan, plan_render, rect_of, target_mpp
from wsigen.rendering.stage import StagePlan, canvas_beside, machine_of, paint_spec
from wsigen.rendering.stage_job import StageJob, paint_stages
from wsigen.slides.formats import stem_of
from wsigen.system.pictures import load_picture

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
LARGEST_SIDE = 1 << 18  # px


@dataclass(frozen=True)
class LayoutRequest:
    """The source of a layout: a preset, a picture, a mask, or the file of a layout.

    Attributes:
        source: one of `wsigen.choices.LAYOUT_PRESETS`, or the path of a picture, a slide mask or a layout.
        size: width and height of the slide in px, 64 to 262,144 each. None: the size of the source.
        seed: seed of a preset.
        more: name of a class to the factor of its density, such as ``{"neutrophil": 3}``.
    """

    source: str = "mixed"
    size: tuple[int, int] | None = None
    seed: int = 0
    more: Mapping[str, float] = field(default_factory=dict)

    def resolve(self, config: ModelConfig) -> Layout:
        """Make the layout for a model. Raises SettingsError or MaskError."""
        layout = self._made(config)
        if layout.classes != config.classes.names:
            raise SettingsError(
                f"--layout {self.source}: its classes are {', '.join(layout.classes)}; the model has "
                f"{', '.join(config.classes.names)}"
            )
        if self.size is not None and self.size != (layout.width, layout.height):
            raise SettingsError(
                f"--size {self.size[0]}x{self.size[1]}: --layout {self.source} is of {layout.width}x{layout.height} "
                "px; leave --size out"
            )
        return layout.more(self.more) if self.more else layout

    def _made(self, config: ModelConfig) -> Layout:
        path = Path(self.source)
        if self.source in LAYOUT_PRESETS:
            return sampled_layout(self.source, *self._needed_size(), self.seed, config.classes, config.mpp)
        if not path.is_file():
            raise SettingsError(
                f"--layout {self.source}: neither a file nor one of {', '.join(LAYOUT_PRESETS)}; name one of these, a "
                "picture, a mask or a layout"
            )
        if path.suffix.lower() in PICTURES:
            return layout_by_hand(_read_picture(path), *self._needed_size(), config.classes, config.mpp)
        if is_layout(path):
            return Layout.open(path)
        with SlideMask.open(path, len(config.classes)) as mask:
            return layout_of_mask(mask, config.classes, config.mpp)

    def _needed_size(self) -> tuple[int, int]:
        if self.size is None:
            raise SettingsError(f"--layout {self.source}: give the slide's --size in px too, such as 2048 or 4096x2048")
        if not all(64 <= side <= LARGEST_SIDE for side in self.size):
            raise SettingsError(f"--size {self.size[0]}x{self.size[1]}: sides must lie from 64 to {LARGEST_SIDE} px")
        return self.size


def _read_picture(path: Path) -> np.ndarray:
    import pyvips

    try:
        image = load_picture(path).colourspace("srgb")
        if image.hasalpha():
            image = image.flatten(background=255)  # what is not painted is glass
        return np.asarray(image.numpy())
    except pyvips.Error as error:
        raise MaskError(f"{path}: cannot be read ({' '.join(str(error).split())}); give a PNG") from None


def find_mask_model(name_or_path: str) -> tuple[Path, ModelConfig]:
    """Folder and configuration of a mask model; ModelError where there is none, SettingsError for a painter."""
    if not name_or_path and MASK_MODEL not in shipped_models():
        raise ModelError(
            "no mask model ships with this version: train one with `wsigen train configs/mask.toml --data DATA -o "
            "runs/mask` and give --model runs/mask/model"
        )
    folder = find_model(name_or_path or MASK_MODEL)
    config = ModelConfig.load(folder)
    if config.paints != "mask":
        raise SettingsError(f"--model {folder}: paints slides, not masks; train a mask model with configs/mask.toml")
    return folder, config


@dataclass(frozen=True, kw_only=True)
class MaskPlan(StagePlan):
    """What sampling a mask will do, resolved and checked. `StagePlan` has the other attributes.

    Attributes:
        layout: the layout; its file is written already.
    """

    layout: Layout

    @property
    def painted_part(self) -> Rectangle | None:
        """What has to be painted for what is written: nuclei at its border are decided by what lies around."""
        return self.rect and Rectangle(*around(Place(*self.rect), self.grid.width, self.grid.height))

    @property
    def decoder(self) -> Decoder:
        """What makes a mask of the picture that is painted."""
        return Decoder(MaskCode.of(self.config.classes), self.config.limits)

    def describe(self) -> list[str]:
        """Lines to print: the model, and the layout with its expected nuclei."""
        counts = ", ".join(
            f"{count:,.0f} {name}" for name, count in zip(self.layout.classes, self.layout.expected(), strict=True)
        )
        return [
            f"model {self.config.name} v{self.config.version}, {self.spec.sampling}, on "
            f"{self.machine.device.description}",
            f"layout: {self.grid.width:,} x {self.grid.height:,} px at {self.spec.mpp:g} um/px, about {counts} nuclei; "
            f"{int(self.occupied.sum()):,} of {self.occupied.size:,} windows hold tissue",
        ]


@dataclass(frozen=True)
class MaskResult:
    """What sampling wrote.

    Attributes:
        mask: the mask.
        layout: its layout, beside it.
        width: width in px.
        height: height in px.
        nuclei: number of nuclei by class.
        dropped: decoded shapes that were left out, because no real nucleus has such a size or shape.
        seconds: time of the whole run.
    """

    mask: Path
    layout: Path
    width: int
    height: int
    nuclei: dict[str, int]
    dropped: int
    seconds: float


def layout_beside(mask: Path) -> Path:
    """Return the path of the layout of a sampled mask."""
    return mask.with_name(mask.stem + ".layout.tif")


def sample_mask(
    out: str | Path,
    request: LayoutRequest,
    settings: RenderSettings | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    keep_canvas: bool = False,
    on_plan: Callable[[MaskPlan], None] = lambda plan: None,
    on_paint: Callable[[Progress], None] = lambda progress: None,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> MaskResult:
    """Sample a synthetic mask, and write its layout beside it.

    Args:
        out: the mask to write, a name that ends in .tif.
        request: the source of the layout.
        settings: model, seed, steps, sampler, guidance_scale, window, overlap, batch_size, device, dtype, workers,
            dask_scheduler, canvas and rect are used. With ``rect`` the mask holds that part alone; it equals that part
            of the whole mask, but its nuclei have other numbers. None: the defaults.
        overwrite: replace an existing mask.
        resume: continue an interrupted run from its canvas.
        keep_canvas: keep the store of painted pixels.
        on_plan: called once with the plan, before painting begins.
        on_paint: called with the progress, again and again while windows are painted.
        on_rows: called with the number of pixel rows that are decoded.

    Raises:
        SettingsError: a setting or the request is out of its range, or a file is in the way.
        MaskError: the source of the layout cannot be read.
        ModelError: there is no such mask model.
        StoreError: the canvas is damaged, or belongs to another run.
    """
    started = time.monotonic()
    plan = plan_mask(out, request, settings or RenderSettings(), overwrite, resume)
    on_plan(plan)
    with MaskJob(plan, overwrite, resume, keep_canvas, on_paint, on_rows, started) as job:
        paint_stages([job])
        return job.finish()


class MaskJob(StageJob):
    """One mask on its way: its picture is being painted and its file written. As a context it leaves no half file."""

    plan: MaskPlan

    def make_way(self, overwrite: bool, resume: bool) -> None:
        """`plan_mask` has made way already, before it wrote the layout."""

    def new_writer(self) -> MaskWriter:
        """What decodes and writes the mask."""
        plan = self.plan
        return MaskWriter(self.canvas, plan.out, plan.layout, plan.decoder, plan.part)

    def finish(self) -> MaskResult:
        """Wait for the file, remove the canvas."""
        self.finish_file()
        plan, bands = self.plan, cast(MaskWriter, self.writer).bands
        if not self.keep_canvas:
            self.canvas.remove()
        nuclei = dict(zip(plan.layout.classes, bands.nuclei.tolist(), strict=True))
        seconds = time.monotonic() - self.started
        return MaskResult(plan.out, layout_beside(plan.out), plan.width, plan.height, nuclei, bands.dropped, seconds)


def plan_mask(
    out: str | Path, request: LayoutRequest, settings: RenderSettings, overwrite: bool = False, resume: bool = False
) -> MaskPlan:
    """Resolve and check a run, and write the layout beside ``out``, where the workers read it."""
    out = Path(out)
    folder, config = find_mask_model(settings.model)
    machine = machine_of(settings)
    _make_way(out, Path(settings.canvas) if settings.canvas else canvas_beside(out), overwrite, resume)
    layout = request.resolve(config)
    style = StainStyle("mask", glass_rgb=BLANK)
    spec = paint_spec(layout_beside(out), folder, config, style, layout.mpp, settings, machine)
    grid = spec.grid(layout.width, layout.height)
    rect = rect_of(settings.rect, grid)
    return MaskPlan(
        out=out,
        config=config,
        layout=layout.save(layout_beside(out)),
        spec=spec,
        grid=grid,
        machine=machine,
        workers=settings.default("workers"),
        model_sha256=weights_sha256(folder),
        source_sha256=layout.sha256(),
        occupied=layout_occupancy(grid, layout),
        canvas_folder=Path(settings.canvas) if settings.canvas else None,
        rect=rect,
        scheduler=settings.dask_scheduler,
    )


def _make_way(out: Path, canvas: Path, overwrite: bool, resume: bool) -> None:
    """Raise SettingsError for existing files, unless they may be replaced."""
    if out.suffix.lower() not in (".tif", ".tiff"):
        raise SettingsError(f"-o {out}: a mask is a TIFF; choose a name that ends in .tif")
    if not out.parent.is_dir():
        raise SettingsError(f"-o {out}: the folder {out.parent} does not exist; make it first")
    if out.exists() and not overwrite:
        raise SettingsError(f"{out} exists; replace it with --overwrite, or choose another name with -o")
    if canvas.exists() and not resume:
        if not overwrite:
            raise SettingsError(f"{canvas} holds an unfinished mask; continue it with --resume, or --overwrite")
        shutil.rmtree(canvas)


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
    """Sample a synthetic mask and paint its slide. A window is painted as soon as the mask around it is sampled.

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
    told: dict[str, Any] = dict(zip(("on_plan", "on_paint", "on_rows"), reports, strict=True))
    return render(mask, slide, overwrite=overwrite, resume=resume, **told, **given)


def plan_above(below: MaskPlan, slide: Path, settings: RenderSettings) -> RenderPlan | None:
    """The plan of the slide that is painted from a mask while that is painted itself.

    None for a painter of another scale: there is no mask yet that could be brought to it.
    """
    layout = below.layout
    shape = MaskShape(layout.width, layout.height, has_tissue=True)
    stage = hashlib.sha256(json.dumps(below.run, sort_keys=True).encode()).hexdigest()
    expected = tuple(round(count) for count in layout.expected())
    summary = MaskSummary(layout.width, layout.height, expected, (), None, stage)
    config = load_config(settings.model or DEFAULT_MODEL)
    if target_mpp(layout.mpp, config.mpp) != layout.mpp:
        return None
    plan = plan_render(below.out, slide, settings, MaskFacts(summary, layout.mpp, layout.mpp, shape))
    spec = replace(plan.spec, source=str(below.canvas.resolve()))
    return replace(plan, spec=spec, occupied=layout_occupancy(plan.grid, layout, MASK_HALO))


def seen_of_mask(grid: WindowGrid, part: Rectangle) -> Rectangle:
    """What of a mask's picture decides the mask around a part of the slide, which may reach beyond it."""
    left, top = max(0, part.x - MASK_HALO), max(0, part.y - MASK_HALO)
    right = min(grid.width, part.x + part.width + MASK_HALO)
    bottom = min(grid.height, part.y + part.height + MASK_HALO)
    return Rectangle(*around(Place(left, top, right - left, bottom - top), grid.width, grid.height, TILE))


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
