"""Many slides on one set of workers: the next one fills the workers that the end of one leaves idle.

Every mask is painted with every seed and every style. ``manifest.csv`` in the output folder says what became of each
slide; it is written anew whenever one ends, so that a series can be resumed.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from contextlib import ExitStack
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
from wsigen.rendering.plan import MaskFacts, RenderPlan, canvas_beside, plan_render
from wsigen.slides.formats import FORMATS
from wsigen.system.caching import FileStamp, file_stamp

MANIFEST = "manifest.csv"
SLIDES_AT_A_TIME = 3  # one that ends, one that is painted, one that fills the gaps


@dataclass(frozen=True)
class SlideEntry:
    """A line of the manifest. ``status``: waiting, done, skipped (it was there) or failed, with the error."""

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
    """One entry for every mask, seed and style; ``styles`` may be ("all",). Raises SettingsError for equal names."""
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
    """Paint every mask with every seed and style into the folder ``out``, and write its manifest.csv.

    Further keywords are those of :class:`wsigen.config.RenderSettings`. Slides that are there already are skipped with
    ``resume`` and replaced with ``overwrite``. A slide that fails is noted and the others go on. ``on_plan``,
    ``on_slide`` (its entry, slides ended, of how many) and ``on_windows`` (painted so far, of all) report.
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
    series = _Series(out, entries, base, config, overwrite, resume, keep_canvas, on_plan, on_slide, on_windows)
    with ExitStack() as stack:
        stack.callback(series.stop)
        series.paint(stack)
    return series.entries


class _Series:
    """The slides that wait, and those that are under way."""

    def __init__(
        self,
        out: Path,
        entries: list[SlideEntry],
        settings: RenderSettings,
        config: ModelConfig,
        overwrite: bool,
        resume: bool,
        keep_canvas: bool,
        on_plan: Callable[[RenderPlan], None],
        on_slide: Callable[[SlideEntry, int, int], None],
        on_windows: Callable[[int], None],
    ) -> None:
        self.out, self.entries, self.settings, self.config = out, entries, settings, config
        self.overwrite, self.resume, self.keep_canvas = overwrite, resume, keep_canvas
        self.on_plan, self.on_slide, self.on_windows = on_plan, on_slide, on_windows
        self._waiting = list(range(len(entries)))
        self._active: dict[int, RenderJob] = {}
        self._facts: dict[tuple[str, FileStamp | None], MaskFacts] = {}  # of the mask that was read last
        self._windows = 0
        write_manifest(out / MANIFEST, entries)

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

    def _noting(self, index: int) -> _Noting:
        return _Noting(self, index)

    def failed(self, index: int, error: WsigenError) -> None:
        """Note a slide that cannot be painted."""
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


class _Noting:
    """Turns an error that concerns one slide into a line of the manifest."""

    def __init__(self, series: _Series, index: int) -> None:
        self.series, self.index = series, index

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, WsigenError) and not isinstance(error, ClusterError):
            self.series.failed(self.index, error)
            return True
        return False


def write_manifest(path: Path, entries: Sequence[SlideEntry]) -> None:
    """Write entries as CSV with a header, atomically."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(SlideEntry))
    writer.writerows([getattr(entry, field.name) for field in fields(SlideEntry)] for entry in entries)
    partial = path.with_suffix(".partial")
    partial.write_text(text.getvalue(), encoding="utf-8")
    partial.replace(path)
