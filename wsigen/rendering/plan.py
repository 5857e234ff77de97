"""What a render will do, resolved and checked before anything is touched.

``plan_render`` reads and checks all inputs and writes nothing; ``RenderPlan`` then says what a render would do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsigen.conditions.registry import conditions_of
from wsigen.config import RenderSettings
from wsigen.errors import SettingsError
from wsigen.masks.resampling import resampled_to
from wsigen.masks.slide_mask import SlideMask
from wsigen.masks.summary import MaskSummary
from wsigen.masks.window import MaskWindow
from wsigen.models.config import ModelConfig
from wsigen.models.registry import DEFAULT_MODEL, find_model, load_config, weights_sha256
from wsigen.painting.compiled import compiles_first
from wsigen.painting.grid import Rectangle, WindowGrid
from wsigen.painting.occupancy import MaskShape, window_occupancy
from wsigen.rendering.records import record_of
from wsigen.rendering.stage import StagePlan, machine_of, paint_spec
from wsigen.slides.formats import FORMATS, SlideFormat, format_of, stem_of
from wsigen.slides.metadata import SlideMetadata
from wsigen.version import __version__

# The record of a render is NAME.json, and a slide may be NAME.ome.zarr.
LABEL_ENDINGS = {"geojson": ".geojson", "db": ".db", "coco": ".coco.json", "ome.zarr": ".labels.ome.zarr"}


@dataclass(frozen=True, kw_only=True)
class RenderPlan(StagePlan):
    """What a render will do, resolved and checked. `StagePlan` has the other attributes.

    Attributes:
        mask: the slide mask.
        summary: what the mask holds: size, nuclei by class, hash.
        mask_mpp: µm per pixel as stored in the mask, or None.
        jpeg_quality: quality of the slide's tiles, 1 to 100.
        resamples: whether the mask is resampled to the model's scale.
        format: format of the slide.
        labels_format: format of the nuclei that are written beside the slide, or None.
        patient_id: identifier of the patient in DICOM.
    """

    mask: Path
    summary: MaskSummary
    mask_mpp: float | None
    jpeg_quality: int
    resamples: bool
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
            "mask_sha256": self.source_sha256,
        }
        if self.rect:
            provenance["rect"] = " ".join(map(str, self.rect))
        return SlideMetadata(spec.mpp, self.config.objective_power, provenance)

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


def open_mask(path: str | Path, class_count: int | None = None) -> SlideMask:
    """Open a slide mask, to read it window by window. Close it after use, or use it as a context manager.

    Args:
        path: the mask, a TIFF.
        class_count: largest class number that the mask may hold. None: that of the shipped painter.

    Raises:
        MaskError: the file cannot be read as a slide mask.
    """
    return SlideMask.open(path, len(load_config(DEFAULT_MODEL).classes) if class_count is None else class_count)


@dataclass(frozen=True)
class MaskFacts:
    """Facts of a mask that a render needs: read in one pass, the same for every seed and style."""

    summary: MaskSummary
    stored_mpp: float | None
    mpp: float  # that the slide is painted at
    shape: MaskShape  # of the slide

    @classmethod
    def read(
        cls, mask: str | Path, config: ModelConfig, watch: Callable[[MaskWindow], None] = lambda band: None
    ) -> MaskFacts:
        """Read a whole mask once; ``watch`` is called with its bands, from the top down."""
        with SlideMask.open(mask, len(config.classes)) as source:
            target = target_mpp(source.mpp, config.mpp)
            scaled = resampled_to(source, target)
            shape = MaskShape(scaled.width, scaled.height, scaled.has_tissue)
            return cls(source.scan(watch), source.mpp, target, shape)


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
    values = conditions_set(config, settings)
    style = values.pop("stain", None) or config.style()
    others = tuple((name, value) for name, value in values.items() if value is not None)
    spec = paint_spec(Path(mask), folder, config, style, facts.mpp, settings, machine, others)
    grid = spec.grid(facts.shape.width, facts.shape.height)
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
        source_sha256=summary.sha256,
        resamples=(facts.shape.width, facts.shape.height) != (summary.width, summary.height),
        occupied=window_occupancy(grid, facts.shape, summary, spec.mpp),
        scheduler=settings.dask_scheduler,
        canvas_folder=Path(settings.canvas) if settings.canvas else None,
        rect=rect_of(settings.rect, grid),
        format=format_of(path, settings.format),
        labels_format=settings.labels,
        patient_id=settings.patient_id,
    )


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
    format_of(path, format).require()
    if not path.parent.is_dir():
        raise SettingsError(f"-o {path}: the folder {path.parent} does not exist; make it first")
    return path


def target_mpp(mask_mpp: float | None, model_mpp: float) -> float:
    """Within 5 % of the model's scale the slide keeps the mask's, so that labels stay pixel-exact."""
    return mask_mpp if mask_mpp and abs(mask_mpp / model_mpp - 1) <= 0.05 else model_mpp


def conditions_set(config: ModelConfig, settings: RenderSettings) -> dict[str, Any]:
    """Values of the slide by the name of the condition, as the settings have them, else the model's own.

    Raises SettingsError for a value that is not allowed, and for a condition that the model does not take.
    """
    given = {"stain": settings.style, **settings.conditions}
    taken = {condition.name: condition for condition in conditions_of(config)}
    for name in settings.conditions:
        if name not in taken:
            raise SettingsError(
                f"condition {name}: model {config.name!r} does not take it; it takes {', '.join(taken) or 'none'}"
            )
    return {name: condition.resolve(given.get(name)) for name, condition in taken.items()}
