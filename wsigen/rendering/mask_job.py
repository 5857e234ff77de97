"""Synthetic masks: the function behind ``wsigen mask sample``.

A layout says where each region lies. The mask model paints a picture of the mask on a canvas, as slides are
painted. The picture is decoded into a slide mask.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from wsigen.config import RenderSettings
from wsigen.errors import ModelError, SettingsError
from wsigen.layouts.decoded import Place, around
from wsigen.layouts.decoding import Decoder
from wsigen.layouts.layout import Layout
from wsigen.layouts.mask_code import BLANK, MaskCode
from wsigen.models.config import ModelConfig
from wsigen.models.registry import (
    MASK_MODEL,
    find_model,
    shipped_models,
    weights_sha256,
)
from wsigen.models.stain import StainStyle
from wsigen.painting.grid import Rectangle
from wsigen.painting.occupancy import layout_occupancy
from wsigen.painting.scheduler import Progress
from wsigen.rendering.layout_request import LayoutRequest
from wsigen.rendering.mask_file import MaskWriter
from wsigen.rendering.plan import rect_of
from wsigen.rendering.stage import StagePlan, canvas_beside, machine_of, paint_spec
from wsigen.rendering.stage_job import StageJob, paint_stages


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
