"""What a render will do, resolved and checked before anything is touched.

``plan_render`` reads and checks all inputs and writes nothing; ``RenderPlan`` then says what a render would do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from wsigen.config import RenderSettings
from wsigen.errors import SettingsError
from wsigen.masks.slide_mask import MaskSource, MaskWindow, SlideMask, resampled_to
from wsigen.masks.summary import MaskSummary
from wsigen.models.config import ModelConfig
from wsigen.models.nasdm import weights_sha256
from wsigen.models.registry import DEFAULT_MODEL, find_model
from wsigen.models.stain import StainStyle, measure_style_file
from wsigen.painting.cluster import Machine
from wsigen.painting.estimate import Projection, project
from wsigen.painting.grid import BlockGrid, Rectangle, WindowGrid, usual_blend
from wsigen.painting.occupancy import window_occupancy
from wsigen.painting.painter import compiles_first
from wsigen.painting.scheduler import plan_blocks
from wsigen.painting.spec import PaintSpec, run_record
from wsigen.rendering.records import record_of
from wsigen.slides.formats import FORMATS, SlideFormat, format_of, stem_of
from wsigen.slides.metadata import SlideMetadata
from wsigen.version import __version__

# The record of a render is NAME.json, and a slide may be NAME.ome.zarr.
LABEL_ENDINGS = {"geojson": ".geojson", "db": ".db", "coco": ".coco.json", "ome.zarr": ".labels.ome.zarr"}


def canvas_beside(slide: Path) -> Path:
    """Where the canvas store of a slide lies unless another folder is chosen."""
    return slide.with_name(slide.name + ".canvas")


@dataclass(frozen=True)
class RenderPlan:
    """What a render will do, resolved and checked.

    Attributes:
        mask: the slide mask.
        out: the slide to write.
        config: configuration of the model.
        summary: what the mask holds: size, nuclei by class, hash.
        mask_mpp: µm per pixel as stored in the mask, or None.
        spec: all settings that decide pixels.
        grid: the windows of the slide.
        machine: devices and versions of what will paint.
        workers: processes.
        jpeg_quality: quality of the slide's tiles, 1 to 100.
        model_sha256: hash of the model's configuration and weights.
        resamples: whether the mask is resampled to the model's scale.
        occupied: windows that may hold more than glass, bool (rows, columns).
        scheduler: address or client of a Dask cluster, or None.
        canvas_folder: folder of the canvas, or None for the one beside the slide.
        rect: the part that is painted, in px of level 0; None: the whole slide.
        format: format of the slide.
        labels_format: format of the nuclei that are written beside the slide, or None.
        patient_id: identifier of the patient in DICOM.
    """

    mask: Path
    out: Path
    config: ModelConfig
    summary: MaskSummary
    mask_mpp: float | None
    spec: PaintSpec
    grid: WindowGrid
    machine: Machine
    workers: int
    jpeg_quality: int
    model_sha256: str
    resamples: bool
    occupied: np.ndarray = field(compare=False)
    scheduler: Any = None
    canvas_folder: Path | None = None
    rect: Rectangle | None = None
    format: SlideFormat = FORMATS["svs"]
    labels_format: str | None = None
    patient_id: str = ""

    def beside(self, ending: str) -> Path:
        """Path beside the slide: its name with another ending."""
        return self.out.with_name(stem_of(self.out) + ending)

    @property
    def labels(self) -> Path | None:
        """File of the nuclei beside the slide; None if no labels are asked for."""
        if self.labels_format is None:
            return None
        return self.beside(LABEL_ENDINGS[self.labels_format])

    @property
    def canvas(self) -> Path:
        """Folder of the canvas store: beside the slide unless another one is chosen."""
        return self.canvas_folder or canvas_beside(self.out)

    @property
    def width(self) -> int:
        """Width of the slide in pixels."""
        return self.rect.width if self.rect else self.grid.width

    @property
    def height(self) -> int:
        """Height of the slide in pixels."""
        return self.rect.height if self.rect else self.grid.height

    @cached_property
    def layout(self) -> BlockGrid:
        """Blocks of the canvas. With ``rect`` each block is one window, so that no other window is painted."""
        return BlockGrid(self.grid, 1) if self.rect else plan_blocks(self.grid, self.spec, self.workers)

    @property
    def metadata(self) -> SlideMetadata:
        """Scale, objective power and provenance that are written into the slide."""
        spec = self.spec
        provenance = {
            "version": __version__,
            "model": f"{self.config.name} v{self.config.version}",
            "model_sha256": self.model_sha256,
            "seed": str(spec.seed),
            "style": spec.style.name,
            "steps": str(spec.num_inference_steps),
            **({"guidance_scale": f"{spec.guidance_scale:g}"} if spec.guided else {}),
            "mask_sha256": self.summary.sha256,
        }
        if self.rect:
            provenance["rect"] = " ".join(map(str, self.rect))
        return SlideMetadata(spec.mpp, self.config.objective_power, provenance)

    @cached_property
    def projection(self) -> Projection:
        """Memory, disk and time that the render will need."""
        needed = self.occupied
        if self.rect:
            needed = np.zeros_like(needed)
            for i, j in self.grid.closure(self.rect):
                needed[j, i] = self.occupied[j, i]
        remote = self.scheduler is not None
        return project(self.spec, self.config, self.layout, needed, self.workers, remote=remote)

    @property
    def picture(self) -> Path:
        """Picture of the whole slide, beside it."""
        return self.beside(".png")

    @property
    def record(self) -> Path:
        """Record of the render, beside the slide."""
        return record_of(self.out)

    @property
    def resampled_mask(self) -> Path:
        """The mask at the slide's scale; it is written only if the mask is resampled."""
        return self.beside("_mask.tif")

    @property
    def run(self) -> dict[str, Any]:
        """The run record: everything that decides the pixels."""
        extra = {"back_ends": self.machine.back_ends}
        return run_record(self.spec, self.summary.sha256, self.model_sha256, extra, self.machine.environment)

    @property
    def companions(self) -> list[Path]:
        """Files that are written beside the slide."""
        labels = [self.labels] if self.labels is not None else []
        return [self.picture, self.record, *labels] + [self.resampled_mask] * self.resamples

    def describe(self) -> list[str]:
        """Lines to print: the model and its terms, the mask and its nuclei, and warnings."""
        config, summary, spec = self.config, self.summary, self.spec
        model = (
            f"model {config.name} v{config.version} ({config.terms or config.licence or 'own weights'}), style "
            f"{spec.style.name}, {spec.sampling}, on {self.machine.device.description}"
        )
        counts = ", ".join(f"{count:,} {name}" for name, count in zip(config.classes.names, summary.nuclei))
        stored = f"{self.mask_mpp:g} um/px" if self.mask_mpp else f"no scale stored: taken as {spec.mpp:g} um/px"
        mask = f"mask {self.mask.name}: {summary.width:,} x {summary.height:,} px, {stored}; nuclei: {counts}"
        if self.resamples:
            mask += f"; painted at {spec.mpp:g} um/px, {self.grid.width:,} x {self.grid.height:,} px"
        if self.rect:
            mask += f"; painted: {self.rect.width:,} x {self.rect.height:,} px at ({self.rect.x}, {self.rect.y})"
        compiles = "kernels are compiled for this GPU first, once a machine: some seconds"
        waits = self.scheduler is None and compiles_first(spec.device)
        notes = (summary.hint, config.stain_note(spec.style), compiles if waits else "")
        return [model, mask] + [f"note: {note}" for note in notes if note]


def open_mask(path: str | Path, class_count: int = 6) -> SlideMask:
    """Open a slide mask, to read it window by window. Close it after use, or use it as a context manager.

    Args:
        path: the mask, a TIFF.
        class_count: largest class number that the mask may hold.

    Raises:
        MaskError: the file cannot be read as a slide mask.
    """
    return SlideMask.open(path, class_count)


@dataclass(frozen=True)
class MaskFacts:
    """Facts of a mask that a render needs: read in one pass, the same for every seed and style."""

    summary: MaskSummary
    stored_mpp: float | None
    mpp: float  # that the slide is painted at
    width: int  # of the slide
    height: int
    halo_source: MaskSource = field(compare=False)  # closed: for its planes and sizes

    @classmethod
    def read(
        cls, mask: str | Path, config: ModelConfig, watch: Callable[[MaskWindow], None] = lambda band: None
    ) -> MaskFacts:
        """Read a whole mask once; ``watch`` is called with its bands, from the top down."""
        with SlideMask.open(mask, len(config.classes)) as source:
            target = _target_mpp(source.mpp, config.mpp)
            scaled = resampled_to(source, target)
            return cls(source.scan(watch), source.mpp, target, scaled.width, scaled.height, scaled)


def plan_render(
    mask: str | Path,
    out: str | Path | None = None,
    settings: RenderSettings | None = None,
    facts: MaskFacts | None = None,
) -> RenderPlan:
    """Resolve and check a render without writing anything.

    Args:
        mask: the slide mask.
        out: the slide to write. None: beside the mask, with the ending of the format.
        settings: settings of the render. None: the defaults.
        facts: facts of this mask, if it has been read already.

    Raises:
        SettingsError: a setting is out of its range, or the folder of the slide does not exist.
        MaskError: the mask cannot be read, or does not fit the model.
        ModelError: the model or the style cannot be found.
    """
    settings = settings or RenderSettings()
    folder = find_model(settings.model or DEFAULT_MODEL)
    config = ModelConfig.load(folder)
    if config.paints != "slide":
        raise SettingsError(f"--model {folder}: paints masks, not slides; use it with `wsigen mask sample --model`")
    machine = machine_of(settings)
    path = _slide_path(mask, out, settings.format)
    if settings.labels is not None and settings.labels not in LABEL_ENDINGS:
        raise SettingsError(f"labels {settings.labels!r}: must be one of {', '.join(LABEL_ENDINGS)}")
    if settings.labels is not None and settings.rect is not None:
        raise SettingsError("--labels: of whole slides; leave it out with --rect")
    facts = facts or MaskFacts.read(mask, config)
    spec = paint_spec(Path(mask), folder, config, _style(settings.style, config), facts.mpp, settings, machine)
    grid = spec.grid(facts.width, facts.height)
    summary = facts.summary
    return RenderPlan(
        mask=Path(mask),
        out=path,
        config=config,
        summary=summary,
        mask_mpp=facts.stored_mpp,
        spec=spec,
        grid=grid,
        machine=machine,
        workers=settings.default("workers"),
        jpeg_quality=settings.default("jpeg_quality"),
        model_sha256=weights_sha256(folder),
        resamples=(facts.width, facts.height) != (summary.width, summary.height),
        occupied=window_occupancy(grid, facts.halo_source, summary, spec.mpp),
        scheduler=settings.dask_scheduler,
        canvas_folder=Path(settings.canvas) if settings.canvas else None,
        rect=rect_of(settings.rect, grid),
        format=format_of(path, settings.format),
        labels_format=settings.labels,
        patient_id=settings.patient_id,
    )


def paint_spec(
    source: Path,
    model: Path,
    config: ModelConfig,
    style: StainStyle,
    mpp: float,
    settings: RenderSettings,
    machine: Machine,
) -> PaintSpec:
    """Settings that paint ``source`` (a mask or a layout): those given, else the model's, else the defaults."""
    device, batch_size = machine.device, settings.batch_size
    overlap = config.overlap if settings.overlap is None else settings.overlap
    blend = usual_blend(overlap) if settings.blend is None else settings.blend
    steps = settings.steps or config.num_inference_steps
    return PaintSpec(
        mask=str(source.resolve()),
        model=str(model),
        style=style,
        mpp=mpp,
        seed=settings.default("seed"),
        sampler=config.sampler_for(steps, settings.sampler),
        num_inference_steps=steps,
        guidance_scale=config.guidance_for(settings.guidance_scale),
        window=settings.window or config.window,
        overlap=overlap,
        blend=blend if config.paints == "slide" else 0,  # colours of masks stand for classes: a mean is of none
        batch_size=settings.default("batch_size")[device.device] if batch_size is None else batch_size,
        device=device.device,
        dtype=device.dtype,
    )


def machine_of(settings: RenderSettings) -> Machine:
    """Devices and versions of this machine, or of the workers of a cluster."""
    if settings.dask_scheduler is None:
        return Machine.here(settings.device, settings.dtype)
    return Machine.of_cluster(settings.dask_scheduler, settings.device, settings.dtype)


def rect_of(rect: tuple[int, int, int, int] | None, grid: WindowGrid) -> Rectangle | None:
    """Check the part to paint; SettingsError if it is not inside the slide."""
    if rect is None:
        return None
    x, y, width, height = rect
    if min(x, y) < 0 or min(width, height) < 1 or x + width > grid.width or y + height > grid.height:
        raise SettingsError(
            f"--rect {x} {y} {width} {height}: not inside the slide of {grid.width} x {grid.height} pixels"
        )
    return Rectangle(x, y, width, height)


def _slide_path(mask: str | Path, out: str | Path | None, format: str | None) -> Path:
    """Path of the slide, by default beside the mask. Its format must be known and fit its name."""
    ending = FORMATS[format].ending if format in FORMATS else ".svs"
    path = Path(out) if out else Path(mask).with_suffix(ending)
    if format_of(path, format).name == "dicom":
        from wsigen.slides.dicom import require_wsidicomizer

        require_wsidicomizer()
    if not path.parent.is_dir():
        raise SettingsError(f"-o {path}: the folder {path.parent} does not exist; make it first")
    return path


def _target_mpp(mask_mpp: float | None, model_mpp: float) -> float:
    """Within 5 % of the model's scale the slide keeps the mask's, so that labels stay pixel-exact."""
    return mask_mpp if mask_mpp and abs(mask_mpp / model_mpp - 1) <= 0.05 else model_mpp


def _style(style: str | StainStyle | None, config: ModelConfig) -> StainStyle:
    """A named style, the style of a picture or slide, or one that is measured already."""
    if isinstance(style, StainStyle):
        return style
    if style and style not in {named.name for named in config.styles} and Path(style).suffix:
        return measure_style_file(Path(style), config.mpp)
    return config.style(style)
