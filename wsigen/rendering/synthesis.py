"""Synthetic masks: the functions behind ``wsigen mask sample``, ``mask layout`` and ``synth``.

A layout says where each region lies. The mask model paints a picture of the mask on a canvas, with the engine that
paints slides. The picture is decoded into a slide mask.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wsigen.choices import LAYOUT_PRESETS
from wsigen.config import RenderSettings
from wsigen.errors import MaskError, ModelError, SettingsError
from wsigen.masks.slide_mask import SlideMask, write_slide_mask
from wsigen.masks.synthesis.architecture import layout_by_hand, sampled_layout
from wsigen.masks.synthesis.bands import DecodedBands
from wsigen.masks.synthesis.decoding import HALO, Decoder
from wsigen.masks.synthesis.layout import Layout, is_layout
from wsigen.masks.synthesis.mask_code import BLANK, MaskCode
from wsigen.masks.synthesis.regions import layout_of_mask
from wsigen.masks.window import MaskWindow
from wsigen.models.config import ModelConfig
from wsigen.models.nasdm import weights_sha256
from wsigen.models.registry import MASK_MODEL, find_model, shipped_models
from wsigen.models.stain import StainStyle
from wsigen.painting.canvas import Canvas, CanvasPanels
from wsigen.painting.cluster import Machine
from wsigen.painting.estimate import Projection, project, refuse_what_does_not_fit
from wsigen.painting.grid import BlockGrid, Rectangle, WindowGrid
from wsigen.painting.occupancy import survey_layout
from wsigen.painting.scheduler import Progress, paint_canvas, plan_blocks
from wsigen.painting.spec import PaintSpec, run_record
from wsigen.rendering.job import RenderResult, render
from wsigen.rendering.plan import machine_of, paint_spec, rect_of
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


@dataclass(frozen=True)
class MaskPlan:
    """What sampling a mask will do, resolved and checked.

    Attributes:
        out: the mask to write.
        config: configuration of the mask model.
        layout: the layout; its file is written already.
        spec: all settings that decide pixels.
        grid: the windows of the mask.
        machine: devices and versions of what will paint.
        workers: processes.
        model_sha256: hash of the model's configuration and weights.
        occupied: windows that may hold tissue, bool (rows, columns).
        canvas: folder of the store of painted pixels.
        rect: the part that is written, in px of level 0; None: the whole mask.
        scheduler: address or client of a Dask cluster, or None.
    """

    out: Path
    config: ModelConfig
    layout: Layout
    spec: PaintSpec
    grid: WindowGrid
    machine: Machine
    workers: int
    model_sha256: str
    occupied: np.ndarray
    canvas: Path
    rect: Rectangle | None = None
    scheduler: object = None

    @property
    def blocks(self) -> BlockGrid:
        """Blocks of the canvas. With ``rect`` each block is one window, so that few other windows are painted."""
        return BlockGrid(self.grid, 1) if self.rect else plan_blocks(self.grid, self.spec, self.workers)

    @property
    def height(self) -> int:
        """Height in px of what is written."""
        return self.part.height

    @property
    def part(self) -> Rectangle:
        """The part that is written, in px of level 0."""
        return self.rect or Rectangle(0, 0, self.grid.width, self.grid.height)

    @property
    def painted_part(self) -> Rectangle | None:
        """The part that is painted for it: larger, since nuclei at a border depend on the pixels around them."""
        if self.rect is None:
            return None
        x, y = max(0, self.rect.x - HALO), max(0, self.rect.y - HALO)
        right = min(self.grid.width, self.rect.x + self.rect.width + HALO)
        bottom = min(self.grid.height, self.rect.y + self.rect.height + HALO)
        return Rectangle(x, y, right - x, bottom - y)

    @property
    def projection(self) -> Projection:
        """Memory, disk and time that painting needs; the file of a mask is smaller than a slide."""
        needed = self.occupied
        if self.painted_part is not None:
            needed = np.zeros_like(needed)
            for i, j in self.grid.closure(self.painted_part):
                needed[j, i] = self.occupied[j, i]
        remote = self.scheduler is not None
        return project(self.spec, self.config, self.blocks, needed, self.workers, remote=remote)

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
    refuse_what_does_not_fit(plan.projection, plan.spec, plan.canvas, plan.out, plan.workers)
    extra = {"back_ends": plan.machine.back_ends}
    record = run_record(plan.spec, plan.layout.sha256(), plan.model_sha256, extra, plan.machine.environment)
    canvas = Canvas.resume(plan.canvas, plan.blocks, record)
    paint_canvas(
        canvas,
        plan.spec,
        workers=plan.workers,
        scheduler=plan.scheduler,
        region=plan.painted_part,
        occupied=plan.occupied,
        on_progress=on_paint,
    )
    panels = CanvasPanels(canvas, BLANK)
    decoder = Decoder(MaskCode.of(plan.config.classes), plan.config.limits)
    bands = DecodedBands(panels, plan.layout, decoder, plan.part)

    def reported() -> Iterator[MaskWindow]:
        rows = 0
        for band in bands:
            yield band
            rows += band.shape[0]
            on_rows(rows)

    write_slide_mask(plan.out, plan.part.width, plan.part.height, plan.spec.mpp, reported(), True, True, overwrite=True)
    if not keep_canvas:
        canvas.remove()
    nuclei = dict(zip(plan.layout.classes, bands.nuclei.tolist(), strict=True))
    seconds = time.monotonic() - started
    return MaskResult(
        plan.out, layout_beside(plan.out), plan.part.width, plan.part.height, nuclei, bands.dropped, seconds
    )


def plan_mask(
    out: str | Path, request: LayoutRequest, settings: RenderSettings, overwrite: bool = False, resume: bool = False
) -> MaskPlan:
    """Resolve and check a run, and write the layout beside ``out``, where the workers read it."""
    out = Path(out)
    folder, config = find_mask_model(settings.model)
    machine = machine_of(settings)
    _make_way(out, Path(settings.canvas) if settings.canvas else canvas_of(out), overwrite, resume)
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
        occupied=survey_layout(grid, layout),
        canvas=Path(settings.canvas) if settings.canvas else canvas_of(out),
        rect=rect,
        scheduler=settings.dask_scheduler,
    )


def canvas_of(mask: Path) -> Path:
    """Return the default folder of a mask's canvas."""
    return mask.with_name(mask.name + ".canvas")


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
    **reports: Any,
) -> SynthResult:
    """Sample a synthetic mask and paint its slide.

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
        **reports: ``keep_canvas``, ``on_plan``, ``on_paint`` and ``on_rows`` of `wsigen.render`, for the slide.

    Raises:
        WsigenError: the errors of `sample_mask` and of `render`.
    """
    settings = settings or RenderSettings()
    slide = Path(slide)
    mask = mask_of(slide)
    if slide.exists() and not (overwrite or resume):
        raise SettingsError(f"{slide} exists; replace it with --overwrite, or choose another name with -o")
    for_mask = RenderSettings(
        model=mask_model,
        seed=settings.seed,
        steps=mask_steps,
        batch_size=settings.batch_size,
        device=settings.device,
        dtype=settings.dtype,
        workers=settings.workers,
        dask_scheduler=settings.dask_scheduler,
    )
    if resume and mask.exists() and not canvas_of(mask).exists():
        sampled = MaskResult(mask, layout_beside(mask), 0, 0, {}, 0, 0.0)
    else:
        sampled = sample_mask(
            mask,
            request,
            for_mask,
            overwrite=overwrite,
            resume=resume,
            on_plan=on_mask_plan,
            on_paint=on_mask,
            on_rows=on_mask_rows,
        )
    given = {name: value for name, value in vars(settings).items() if value is not None}
    return SynthResult(sampled, render(mask, slide, overwrite=overwrite, resume=resume, **reports, **given))
