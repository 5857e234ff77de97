"""From a slide mask to a slide: the function behind ``wsigen render``.

:func:`plan_render` reads and checks everything and touches nothing; :class:`RenderPlan` then says what would be done.
:func:`render` does it: paints the canvas, keeps a picture of the whole slide beside it up to date, assembles the
pyramid, and writes the record from which the same pixels can be painted again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wsigen import __version__
from wsigen.config import RenderSettings
from wsigen.devices import DeviceChoice, choose_device
from wsigen.errors import SettingsError
from wsigen.masks.exporters import export_mask
from wsigen.masks.slide_mask import MaskSource, MaskWindow, SlideMask, resampled_to, write_slide_mask
from wsigen.masks.summary import MaskSummary
from wsigen.models.config import ModelConfig
from wsigen.models.nasdm import weights_sha256
from wsigen.models.registry import DEFAULT_MODEL, find_model
from wsigen.models.stain import StainStyle, measure_style_file
from wsigen.slides.formats import FORMATS, SlideFormat, check_target, format_of, write_slide
from wsigen.slides.metadata import SlideMetadata
from wsigen.slides.preview import Preview
from wsigen.slides.svs import write_svs
from wsigen.tiling.canvas import Canvas, canvas_rows, write_json
from wsigen.tiling.engine import Progress, paint_canvas, plan_blocks
from wsigen.tiling.grid import WindowGrid
from wsigen.tiling.spec import PaintSpec, run_record

PREVIEW_SECONDS = 2.0  # between refreshes of the picture of the whole slide
BAND_ROWS = 512
# The record of a render is NAME.json, and a slide may be NAME.ome.zarr.
LABEL_ENDINGS = {"geojson": ".geojson", "db": ".db", "coco": ".coco.json", "ome.zarr": ".labels.ome.zarr"}


@dataclass(frozen=True)
class RenderPlan:
    """Everything that a render will do, resolved and checked."""

    mask: Path
    out: Path
    config: ModelConfig
    summary: MaskSummary
    mask_mpp: float | None  # as stored in the mask
    spec: PaintSpec
    grid: WindowGrid
    device: DeviceChoice
    workers: int
    jpeg_quality: int
    model_sha256: str
    resamples: bool
    format: SlideFormat = FORMATS["svs"]
    labels_format: str | None = None
    patient_id: str = ""

    @property
    def stem(self) -> str:
        """Name of the slide without its ending."""
        ending = self.format.ending
        return self.out.name[: -len(ending)] if self.out.name.lower().endswith(ending) else self.out.name

    @property
    def labels(self) -> Path | None:
        """The ground truth beside the slide, if it is asked for."""
        if self.labels_format is None:
            return None
        return self.out.with_name(self.stem + LABEL_ENDINGS[self.labels_format])

    @property
    def canvas(self) -> Path:
        """Folder of the canvas store, beside the slide."""
        return self.out.with_name(self.out.name + ".canvas")

    @property
    def picture(self) -> Path:
        """Picture of the whole slide, beside it."""
        return self.out.with_name(self.stem + ".png")

    @property
    def record(self) -> Path:
        """Record of the render, beside the slide."""
        return self.out.with_name(self.stem + ".json")

    @property
    def resampled_mask(self) -> Path:
        """The mask at the slide's scale, written only where it was resampled."""
        return self.out.with_name(self.stem + "_mask.tif")

    def describe(self) -> list[str]:
        """Two lines for people: the model and its terms; the mask and what it holds."""
        config, summary, spec = self.config, self.summary, self.spec
        model = (
            f"model {config.name} v{config.version} ({config.terms or config.licence or 'own weights'}), style "
            f"{spec.style.name}, {spec.num_inference_steps} steps, seed {spec.seed}, on {self.device.description}"
        )
        counts = ", ".join(f"{count:,} {name}" for name, count in zip(config.classes.names, summary.nuclei))
        stored = f"{self.mask_mpp:g} um/px" if self.mask_mpp else f"no scale stored: taken as {spec.mpp:g} um/px"
        mask = f"mask {self.mask.name}: {summary.width:,} x {summary.height:,} px, {stored}; nuclei: {counts}"
        if self.resamples:
            mask += f"; painted at {spec.mpp:g} um/px, {self.grid.width:,} x {self.grid.height:,} px"
        return [model, mask] + ([f"note: {summary.hint}"] if summary.hint else [])


@dataclass(frozen=True)
class RenderResult:
    """What a render wrote."""

    slide: Path
    picture: Path
    record: Path
    width: int
    height: int
    windows: int
    painted: int
    seconds: float


def open_mask(path: str | Path, class_count: int = 6) -> SlideMask:
    """Open a slide mask for windowed reading; MaskError says what is wrong with a bad one."""
    return SlideMask.open(path, class_count)


def plan_render(mask: str | Path, out: str | Path | None = None, settings: RenderSettings | None = None) -> RenderPlan:
    """Resolve and check a render without writing anything. Raises a WsigenError that names what to mend."""
    settings = settings or RenderSettings()
    folder = find_model(settings.model or DEFAULT_MODEL)
    config = ModelConfig.load(folder)
    device = choose_device(settings.device, settings.dtype)
    batch_size = settings.batch_size
    path = _slide_path(mask, out, settings.format)
    if settings.labels is not None and settings.labels not in LABEL_ENDINGS:
        raise SettingsError(f"labels {settings.labels!r}: must be one of {', '.join(LABEL_ENDINGS)}")
    with SlideMask.open(mask, len(config.classes)) as source:
        summary = source.scan()
        target = _target_mpp(source.mpp, config.mpp)
        scaled = resampled_to(source, target)
        width, height, mask_mpp = scaled.width, scaled.height, source.mpp
    spec = PaintSpec(
        mask=str(Path(mask).resolve()),
        model=str(folder),
        style=_style(settings.style, config),
        mpp=target,
        seed=settings.default("seed"),
        sampler=settings.sampler or config.sampler,
        num_inference_steps=settings.steps or config.num_inference_steps,
        guidance_scale=settings.default("guidance_scale"),
        window=settings.window or config.window,
        overlap=config.overlap if settings.overlap is None else settings.overlap,
        batch_size=settings.default("batch_size")[device.device] if batch_size is None else batch_size,
        device=device.device,
        dtype=device.dtype,
    )
    return RenderPlan(
        mask=Path(mask),
        out=path,
        config=config,
        summary=summary,
        mask_mpp=mask_mpp,
        spec=spec,
        grid=WindowGrid(width, height, spec.window, spec.overlap),
        device=device,
        workers=settings.default("workers"),
        jpeg_quality=settings.default("jpeg_quality"),
        model_sha256=weights_sha256(folder),
        resamples=(width, height) != (summary.width, summary.height),
        format=format_of(path, settings.format),
        labels_format=settings.labels,
        patient_id=settings.patient_id,
    )


def _slide_path(mask: str | Path, out: str | Path | None, format: str | None) -> Path:
    """Where the slide goes: beside the mask unless it is said. Its format must be known and fit its name."""
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
    **settings: Any,
) -> RenderResult:
    """Paint the slide of ``mask`` to ``out`` (default: beside the mask), and a picture and a record beside it.

    Further keywords are those of :class:`wsigen.config.RenderSettings`: ``model``, ``style``, ``seed``, ``steps`` and
    so on. An existing slide is replaced only with ``overwrite``; a canvas that an interrupted render left is continued
    with ``resume`` and discarded with ``overwrite``. ``on_plan``, ``on_paint`` and ``on_rows`` report the plan, windows
    painted, and pixel rows encoded. With more than one worker call it under ``if __name__ == "__main__"``.
    """
    started = time.monotonic()
    plan = plan_render(mask, out, RenderSettings(**settings))
    on_plan(plan)
    _make_way(plan, overwrite, resume)
    if plan.resamples:
        _write_resampled(plan)
    canvas = Canvas.resume(plan.canvas, plan_blocks(plan.grid, plan.spec, plan.workers), _run_record(plan))
    watch = _PictureWatch(canvas, plan.picture, on_paint)
    final = paint_canvas(canvas, plan.spec, workers=plan.workers, on_progress=watch)
    watch.finish()
    _assemble(plan, canvas, on_rows)
    if plan.labels is not None:
        export_mask(
            plan.resampled_mask if plan.resamples else plan.mask,
            plan.labels,
            plan.config.classes,
            plan.labels_format,
            True,
        )
    write_json(plan.record, _slide_record(plan))
    if not keep_canvas:
        canvas.remove()
    return RenderResult(
        plan.out,
        plan.picture,
        plan.record,
        plan.grid.width,
        plan.grid.height,
        final.total,
        final.painted,
        time.monotonic() - started,
    )


def _make_way(plan: RenderPlan, overwrite: bool, resume: bool) -> None:
    """Refuse to touch what exists unless told to; discard an old canvas only to overwrite."""
    if plan.out.exists() and not (overwrite or resume):
        raise SettingsError(f"{plan.out} exists; replace it with --overwrite, or choose another name with -o")
    if plan.out.exists() and resume and not overwrite and not plan.canvas.exists():
        raise SettingsError(f"{plan.out} is finished, nothing is left to resume; paint it anew with --overwrite")
    if plan.out.exists() and plan.format.name != "svs":
        check_target(plan.out, plan.format, overwrite=True)
    if plan.labels is not None and plan.labels.exists() and not (overwrite or resume):
        raise SettingsError(f"{plan.labels} exists; replace it with --overwrite, or choose another name with -o")
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


class _PictureWatch:
    """Passes progress on, and refreshes the picture of the whole slide as blocks are finished."""

    def __init__(self, canvas: Canvas, path: Path, on_paint: Callable[[Progress], None]) -> None:
        self.canvas, self.path, self.on_paint = canvas, path, on_paint
        self.preview = Preview(canvas.grid.width, canvas.grid.height)
        self.written = 0.0
        self.partial = False  # a resumed canvas holds pixels that no task will report

    def __call__(self, progress: Progress) -> None:
        if progress.resumed:
            self.partial = True
        if progress.region is not None and progress.stage is not None:
            x, y, width, height = progress.region
            rgb, known = self.canvas.read_region(x, y, width, height, stages_below=progress.stage + 1)
            _, before = self.canvas.read_region(x, y, width, height, stages_below=progress.stage)
            self.preview.add(x, y, rgb, known & ~before)
            if time.monotonic() - self.written > PREVIEW_SECONDS:
                self.preview.write(self.path)
                self.written = time.monotonic()
        self.on_paint(progress)

    def finish(self) -> None:
        """Write the picture of the finished slide."""
        if self.partial:
            self.preview = Preview(self.canvas.grid.width, self.canvas.grid.height)
            rows = canvas_rows(self.canvas)
            for y in range(0, self.canvas.grid.height, BAND_ROWS):
                self.preview.add(0, y, rows(y, min(y + BAND_ROWS, self.canvas.grid.height)))
        self.preview.write(self.path)


def _assemble(plan: RenderPlan, canvas: Canvas, on_rows: Callable[[int], None]) -> None:
    """Encode the pyramid."""
    spec = plan.spec
    provenance = {
        "version": __version__,
        "model": f"{plan.config.name} v{plan.config.version}",
        "model_sha256": plan.model_sha256,
        "seed": str(spec.seed),
        "style": spec.style.name,
        "steps": str(spec.num_inference_steps),
        "mask_sha256": plan.summary.sha256,
    }
    metadata = SlideMetadata(spec.mpp, plan.config.objective_power, provenance)
    if plan.format.name != "svs":
        write_slide(
            plan.out,
            plan.grid.width,
            plan.grid.height,
            canvas_rows(canvas),
            metadata,
            plan.format,
            plan.jpeg_quality,
            on_rows,
            overwrite=True,
            patient_id=plan.patient_id,
        )
        return
    write_svs(
        plan.out,
        plan.grid.width,
        plan.grid.height,
        canvas_rows(canvas),
        metadata,
        jpeg_quality=plan.jpeg_quality,
        progress=on_rows,
        overwrite=True,
        band_rows=BAND_ROWS,
    )


def _run_record(plan: RenderPlan) -> dict[str, Any]:
    from wsigen_kernels.dispatch import attention_choice, norm_choice

    back_ends = {"attention": attention_choice().name, "norm": norm_choice().name}
    return run_record(plan.spec, plan.summary.sha256, plan.model_sha256, {"back_ends": back_ends})


def _slide_record(plan: RenderPlan) -> dict[str, Any]:
    """What ``wsigen render --from`` needs for the same pixels."""
    return {
        "format": "wsigen slide record 1",
        "mask": plan.spec.mask,
        "slide": str(plan.out.name),
        "jpeg_quality": plan.jpeg_quality,
        "model_name": plan.config.name,
        "paint": asdict(plan.spec),
        "run": _run_record(plan),
    }


def settings_of_record(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """Read a slide's record: its mask and the settings that paint it again, as keywords of :func:`render`.

    Raises SettingsError if the file is not such a record.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        paint = record["paint"]
        same = ("seed", "sampler", "guidance_scale", "window", "overlap", "batch_size", "device", "dtype")
        settings = {name: paint[name] for name in same} | {
            "model": record["model_name"],
            "style": StainStyle.from_config(paint["style"]),
            "steps": paint["num_inference_steps"],
            "jpeg_quality": record["jpeg_quality"],
        }
        return Path(record["mask"]), settings
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{path} is not the .json record of a slide ({error!r})") from error


def check_record(path: str | Path, plan: RenderPlan) -> None:
    """Refuse a plan that would paint other pixels than the record's slide; SettingsError names what differs."""
    recorded = json.loads(Path(path).read_text(encoding="utf-8"))["run"]
    planned = _run_record(plan)
    for key in sorted(recorded.keys() | planned.keys()):
        if recorded.get(key) != planned.get(key):
            raise SettingsError(
                f"{path}: {key} was {recorded.get(key)!r} and is {planned.get(key)!r} here; the pixels would differ"
            )
