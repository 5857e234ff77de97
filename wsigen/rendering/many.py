"""Many slides on one set of workers: while one slide ends, idle workers begin with the next one.

Every mask is painted with every seed and every style. ``manifest.csv`` in the output folder holds the state of each
slide. It is written again whenever a slide ends, so that a series can be resumed.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Unpack

from wsigen.config import RenderKeywords, RenderSettings
from wsigen.errors import ClusterError, SettingsError, WsigenError
from wsigen.models.config import ModelConfig
from wsigen.models.registry import DEFAULT_MODEL, find_model
from wsigen.painting.cluster import open_executor
from wsigen.painting.scheduler import TaskScheduler
from wsigen.rendering.job import RenderJob
from wsigen.rendering.plan import MaskFacts, RenderPlan, plan_render
from wsigen.rendering.stage import canvas_beside
from wsigen.slides.formats import FORMATS
from wsigen.system.caching import FileStamp, file_stamp
from wsigen.system.replacing import written_whole

MANIFEST = "manifest.csv"
SLIDES_AT_A_TIME = 3  # one that ends, one that is painted, one that fills the gaps


@dataclass(frozen=True)
class SlideEntry:
    """A line of the manifest.

    Attributes:
        slide: file name of the slide.
        mask: path of the mask.
        seed: seed of the noise.
        style: name of the stain style.
        status: "waiting", "done", "skipped" (the slide existed already) or "failed".
        width: width of the slide in px.
        height: height of the slide in px.
        windows: windows of the slide.
        painted: windows that this run painted.
        seconds: time from the beginning of this slide to its end.
        mask_sha256: hash of the mask's content.
        model_sha256: hash of the model's configuration and weights.
        error: reason of a failure, in one line.
    """

    slide: str
    mask: str
    seed: int
    style: str
    status: str = "waiting"
    width: int = 0
    height: int = 0
    windows: int = 0
    painted: int = 0
    seconds: float = 0.0
    mask_sha256: str = ""
    model_sha256: str = ""
    error: str = ""


def list_slides(
    masks: Sequence[str | Path], seeds: Sequence[int], styles: Sequence[str], config: ModelConfig, ending: str = ".svs"
) -> list[SlideEntry]:
    """One entry for every mask, seed and style; ``styles`` may be ("all",). SettingsError for equal names."""
    chosen = [style.name for style in config.styles] if list(styles) == ["all"] else list(styles)
    chosen = [config.style(name).name for name in chosen] or [config.style().name]
    entries = [
        SlideEntry(f"{Path(mask).stem}_seed{seed}_{style}{ending}", str(mask), seed, style)
        for mask in masks
        for seed in seeds
        for style in chosen
    ]
    names = [entry.slide for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"{name} would be written twice; give masks different names, and seeds and styles once")
    return entries


def render_many(
    masks: Sequence[str | Path],
    out: str | Path,
    *,
    seeds: Sequence[int] = (0,),
    styles: Sequence[str] = (),
    overwrite: bool = False,
    resume: bool = False,
    keep_canvas: bool = False,
    on_plan: Callable[[RenderPlan], None] = lambda plan: None,
    on_slide: Callable[[SlideEntry, int, int], None] = lambda entry, ended, total: None,
    on_windows: Callable[[int], None] = lambda windows: None,
    **settings: Unpack[RenderKeywords],
) -> list[SlideEntry]:
    """Paint every mask with every seed and every style into a folder, and write its ``manifest.csv``.

    If a slide fails, its entry holds the reason, and the other slides are painted all the same.

    Args:
        masks: the slide masks.
        out: folder of the slides; it is made if it does not exist.
        seeds: seeds of the noise.
        styles: names of stain styles, or ("all",) for all styles of the model. Empty: the model's default style.
        overwrite: replace existing slides.
        resume: skip slides that exist, and continue unfinished ones.
        keep_canvas: keep the stores of painted pixels.
        on_plan: called with the plan of each slide before it is painted.
        on_slide: called when a slide ends, with its entry, the number of slides ended, and the number of all slides.
        on_windows: called with the number of windows that are done so far, of all slides together.
        **settings: fields of `RenderSettings`, but for ``canvas`` and ``rect``.

    Returns:
        One entry for each slide, in the order of masks, seeds and styles.

    Raises:
        SettingsError: a setting is unknown or out of its range, or slides exist already.
        ModelError: the model or a style cannot be found.
        ClusterError: the workers or the Dask cluster failed.
    """
    out = Path(out)
    base = RenderSettings.from_keywords(settings)
    if base.canvas or base.rect:
        raise SettingsError("--canvas and --rect are for one slide; leave them out with many")
    config = ModelConfig.load(find_model(base.model or DEFAULT_MODEL))
    if base.format is not None and base.format not in FORMATS:
        raise SettingsError(f"format {base.format!r}: must be one of {', '.join(FORMATS)}")
    entries = list_slides(masks, seeds, styles, config, FORMATS[base.format or "svs"].ending)
    existing = [entry.slide for entry in entries if (out / entry.slide).exists()]
    if existing and not (overwrite or resume):
        raise SettingsError(f"{out / existing[0]} exists; skip finished slides with --resume, or --overwrite them")
    out.mkdir(parents=True, exist_ok=True)
    write_manifest(out / MANIFEST, entries)
    series = _Series(
        out=out,
        entries=entries,
        settings=base,
        config=config,
        overwrite=overwrite,
        resume=resume,
        keep_canvas=keep_canvas,
        on_plan=on_plan,
        on_slide=on_slide,
        on_windows=on_windows,
    )
    with ExitStack() as stack:
        stack.callback(series.stop)
        series.paint(stack)
    return series.entries


@dataclass(kw_only=True, eq=False)
class _Series:
    """The slides that wait, and those that are being rendered. `render_many` says what the fields mean."""

    out: Path
    entries: list[SlideEntry]
    settings: RenderSettings
    config: ModelConfig
    overwrite: bool
    resume: bool
    keep_canvas: bool
    on_plan: Callable[[RenderPlan], None]
    on_slide: Callable[[SlideEntry, int, int], None]
    on_windows: Callable[[int], None]

    def __post_init__(self) -> None:
        self._waiting = list(range(len(self.entries)))
        self._active: dict[int, RenderJob] = {}
        self._facts: dict[tuple[str, FileStamp | None], MaskFacts] = {}  # of the mask that was read last
        self._windows = 0

    def paint(self, stack: ExitStack) -> None:
        """Paint all slides; workers are opened by the first that needs them."""
        engine: TaskScheduler | None = None
        while self._waiting or self._active:
            while self._waiting and (engine is None or (engine.has_capacity and len(self._active) < SLIDES_AT_A_TIME)):
                index = self._waiting.pop(0)
                slide = self._begin(index)
                if slide is not None and engine is None:
                    plan = slide.plan
                    opened = open_executor(plan.spec.device, plan.workers, plan.scheduler)
                    engine = TaskScheduler(stack.enter_context(opened))
                if slide is not None and engine is not None and not slide.run.finished:
                    with self._noting(index):
                        engine.add(slide.run)
            if engine is not None:
                engine.step()
            self._end_finished()

    def stop(self) -> None:
        """Leave no half file of slides that are under way."""
        for slide in self._active.values():
            slide.stop()

    def _begin(self, index: int) -> RenderJob | None:
        """Start a slide unless it is there already."""
        entry, slide = self.entries[index], None
        target = self.out / entry.slide
        if target.exists() and self.resume and not self.overwrite and not canvas_beside(target).exists():
            self._ended(index, replace(entry, status="skipped"))
            return None
        with self._noting(index):
            settings = replace(self.settings, seed=entry.seed, style=entry.style)
            read = (entry.mask, file_stamp(entry.mask))
            if read not in self._facts:
                self._facts = {read: MaskFacts.read(entry.mask, self.config)}
            plan = plan_render(entry.mask, target, settings, self._facts[read])
            self.on_plan(plan)
            slide = RenderJob(plan, self.overwrite, self.resume, self.keep_canvas, on_paint=lambda _: self._count())
            self._active[index] = slide
            slide.start()
        return slide

    def _end_finished(self) -> None:
        for index, slide in list(self._active.items()):
            with self._noting(index):
                if slide.run.error is not None:
                    raise slide.run.error
                if slide.run.finished and slide.encoded():
                    result, plan = slide.finish(), slide.plan
                    del self._active[index]
                    self._windows += result.windows
                    done = replace(
                        self.entries[index],
                        status="done",
                        width=result.width,
                        height=result.height,
                        windows=result.windows,
                        painted=result.painted,
                        seconds=round(result.seconds, 2),
                        mask_sha256=plan.summary.sha256,
                        model_sha256=plan.model_sha256,
                    )
                    self._ended(index, done)

    @contextmanager
    def _noting(self, index: int) -> Iterator[None]:
        """Turn an error that concerns one slide into its line of the manifest."""
        try:
            yield
        except ClusterError:
            raise
        except WsigenError as error:
            slide = self._active.pop(index, None)
            if slide is not None:
                slide.stop()
            self._ended(index, replace(self.entries[index], status="failed", error=str(error)))

    def _ended(self, index: int, entry: SlideEntry) -> None:
        self.entries[index] = entry
        write_manifest(self.out / MANIFEST, self.entries)
        ended = sum(other.status != "waiting" for other in self.entries)
        self.on_slide(entry, ended, len(self.entries))

    def _count(self) -> None:
        self.on_windows(self._windows + sum(slide.run.progress.done for slide in self._active.values()))


def write_manifest(path: Path, entries: Sequence[SlideEntry]) -> None:
    """Write entries as CSV with a header, atomically."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(SlideEntry))
    writer.writerows([getattr(entry, field.name) for field in fields(SlideEntry)] for entry in entries)
    with written_whole(path) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8")
