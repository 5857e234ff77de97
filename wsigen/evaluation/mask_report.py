"""Sampled masks against real ones: a report of counts, sizes, arrangement, and borders of windows."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsigen.config import RenderSettings
from wsigen.errors import SettingsError
from wsigen.evaluation.mask_statistics import RADII_UM, Field, Measured, border_profile, collected, fields_of, sums_of
from wsigen.evaluation.report import Report, Row, Section
from wsigen.layouts.regions import layout_of_picture
from wsigen.masks.classes import ClassTable
from wsigen.masks.slide_mask import SlideMask
from wsigen.models.registry import DEFAULT_MODEL, load_config
from wsigen.system.reporting import Reporter, silent
from wsigen.training.data import manifest as manifests

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST_PAIRS = 200  # of both sides, for a pair correlation to be drawn
SPLITS = 200  # of the real fields in halves, for the floor


@dataclass(frozen=True)
class MaskEvaluation:
    """What to compare. real: a training folder (its held-out side) or a mask. sampled: a mask, or None.

    model: a mask model that samples from the layout of each real field, where there is no sampled mask.
    """

    real: Path
    out: Path
    sampled: Path | None = None
    model: str = ""
    seeds: int = 1
    window: int = 256
    overlap: int = 32
    guidance_scale: float | None = None
    steps: int | None = None
    device: str = "auto"
    overwrite: bool = False


def evaluate_masks(settings: MaskEvaluation, progress: Reporter = silent) -> Report:
    """Measure and write the report; return it."""
    if (settings.sampled is None) == (not settings.model):
        raise SettingsError("evaluate masks: give a SAMPLED mask, or --model, and not both")
    classes = _classes(settings.real)
    real_fields = list(fields_of(settings.real, len(classes)))
    report = Report(settings.out, "Sampled masks against real ones", _command(settings), settings.overwrite)
    real = collected([sums_of(field, classes.names) for field in real_fields])
    if settings.sampled is not None:
        sampled_fields: Iterator[Field] = fields_of(settings.sampled, len(classes))
    else:
        sampled_fields = sampled_like(real_fields, classes, settings, progress)
    sampled = collected([sums_of(field, classes.names) for field in sampled_fields])
    floors = floor_of(real)
    report.add(_scalars(real, sampled, floors, classes.names, report))
    report.add(_arrangement(real, sampled, report))
    if settings.sampled is not None and settings.sampled.is_file():
        report.add(_borders(settings, len(classes)))
    return report


def _classes(real: Path) -> ClassTable:
    if real.is_dir():
        return ClassTable.from_config(manifests.load(real).classes)
    return load_config(DEFAULT_MODEL).classes


def sampled_like(
    fields: list[Field], classes: ClassTable, settings: MaskEvaluation, progress: Reporter
) -> Iterator[Field]:
    """A field for each real one and seed, sampled from its layout and measured where the real one is known."""
    from wsigen.rendering.layout_request import LayoutRequest
    from wsigen.rendering.mask_job import sample_mask

    with tempfile.TemporaryDirectory(prefix="wsigen-masks-") as folder:
        path, layout = Path(folder) / "sampled.tif", Path(folder) / "layout.tif"
        for number, field in enumerate(fields):
            layout_of_picture(field.classes, field.instances, field.tissue, field.known, classes, field.mpp).save(
                layout
            )
            for seed in range(settings.seeds):
                options = RenderSettings(
                    model=settings.model,
                    seed=seed * 1000 + number,
                    device=settings.device,
                    steps=settings.steps,
                    guidance_scale=settings.guidance_scale,
                    window=settings.window,
                    overlap=settings.overlap,
                )
                sample_mask(path, LayoutRequest(str(layout)), options, overwrite=True)
                with SlideMask.open(path, len(classes)) as mask:
                    read = mask.read(0, 0, mask.width, mask.height)
                assert read.instances is not None
                inside = np.where(field.known, read.instances, 0).astype(np.int64)
                yield replace(field, classes=np.where(field.known, read.classes, 0), instances=inside)
            progress("sampling", number + 1, len(fields))


def floor_of(real: Measured, seed: int = 0) -> dict[str, np.ndarray]:
    """How far halves of the real fields lie apart, as the 95th percentile of the ratio of the larger to the smaller."""
    rng = np.random.default_rng(seed)
    halves = np.zeros((SPLITS, real.fields))
    for row in halves:
        row[rng.permutation(real.fields)[: real.fields // 2]] = 1
    floors = {}
    for name, (numerator, denominator) in real.sums.items():
        with np.errstate(invalid="ignore", divide="ignore"):
            one, other = ((part @ numerator) / (part @ denominator) for part in (halves, 1 - halves))
            ratio = np.abs(np.log(one / other))
        floors[name] = np.array(
            [
                np.exp(np.percentile(column[np.isfinite(column)], 95)) if np.isfinite(column).any() else np.nan
                for column in ratio.T
            ]
        )
    return floors


def _scalars(
    real: Measured, sampled: Measured, floors: dict[str, np.ndarray], classes: tuple[str, ...], report: Report
) -> Section:
    rows: list[Row] = []
    pictures: list[str] = []
    for name, value in real.values.items():
        if name.startswith("g(r)") or name.endswith("mean square"):
            continue
        if len(value) == len(classes):
            picture = "nuclei-" + "-".join(re.findall(r"[a-z0-9]+", name))
            pictures += report.plot(picture, partial(_draw_by_class, name=name, both=(real, sampled), classes=classes))
        for index in range(len(value)):
            if np.isfinite(value[index]):
                ours = sampled.values[name][index]
                rows.append(
                    {
                        "measure": name,
                        "class": classes[index] if len(value) == len(classes) else "epithelial",
                        "real": value[index],
                        "real band": _interval(real.bands[name][:, index]),
                        "sampled": ours,
                        "sampled band": _interval(sampled.bands[name][:, index]),
                        "ratio": ours / value[index] if value[index] else None,
                        "floor": floors[name][index],
                    }
                )
    says = (
        "Bands are 95 % from drawing fields anew. Floor: the ratio that halves of the real fields reach in 1 of 20 "
        f"splits. {real.fields} real and {sampled.fields} sampled fields."
    )
    return Section("nuclei", "Numbers, sizes, neighbours", says, rows, pictures=pictures)


def _draw_by_class(axes: Axes, name: str, both: tuple[Measured, Measured], classes: tuple[str, ...]) -> None:
    """A measure of both sides with its band, class by class."""
    places = np.arange(len(classes))
    for shift, measured, label in zip((-0.1, 0.1), both, ("real", "sampled"), strict=True):
        middle, (low, high) = measured.values[name], measured.bands[name]
        spread = np.clip([middle - low, high - middle], 0, None)
        axes.errorbar(places + shift, middle, spread, fmt="o", capsize=3, label=label)
    axes.set_xticks(places, classes, rotation=20)
    axes.set(ylabel=name, ylim=(0, None))
    axes.legend()


def _interval(band: np.ndarray) -> str:
    return f"{band[0]:.3g} to {band[1]:.3g}"


def _arrangement(real: Measured, sampled: Measured, report: Report) -> Section:
    rows: list[Row] = []
    pictures: list[str] = []
    middles = (RADII_UM[1:] + RADII_UM[:-1]) / 2
    for name in (name for name in real.values if name.startswith("g(r)")):
        if real.sums[name][0].sum() < LEAST_PAIRS or sampled.sums[name][0].sum() < LEAST_PAIRS:
            continue
        here, there = real.values[name], sampled.values[name]
        inside = (real.bands[name][0] <= there) & (there <= real.bands[name][1])
        rows.append(
            {
                "pair": name.removeprefix("g(r): "),
                "share of distances within the real band": float(inside.mean()),
                "mean difference": float(np.nanmean(np.abs(there - here))),
                "real at 10 um": here[5],
                "sampled at 10 um": there[5],
            }
        )

        def draw(axes: Axes, name: str = name) -> None:
            for measured, label in ((real, "real"), (sampled, "sampled")):
                line = axes.plot(middles, measured.values[name], label=label)[0]
                axes.fill_between(middles, *measured.bands[name], color=line.get_color(), alpha=0.25, linewidth=0)
            axes.axhline(1, color="grey", linewidth=0.5)
            axes.set(xlabel="distance, um", ylabel="g", title=name)
            axes.legend()

        pictures += report.plot("pairs-" + name.removeprefix("g(r): ").replace(" ", ""), draw)
    says = (
        "The pair-correlation function: 1 is no order, below 1 nuclei keep apart, above 1 they crowd. Bands are 95 %."
    )
    return Section("arrangement", "How nuclei lie to one another", says, rows, pictures=pictures)


def _borders(settings: MaskEvaluation, class_count: int) -> Section:
    assert settings.sampled is not None
    profile = border_profile(settings.sampled, class_count, settings.window, settings.overlap)
    rows: list[Row] = [
        {"measure": name, "ratio": value, "band": f"{low:.3g} to {high:.3g}"}
        for name, (value, low, high) in asdict(profile).items()
    ]
    says = (
        "Nuclei whose middle lies near a border of windows, over those elsewhere: their number, their mean area, and, "
        "as a control, their number near lines midway between borders. 1 is a border that does not show."
    )
    return Section("borders", "Borders of windows", says, rows)


def _command(settings: MaskEvaluation) -> dict[str, object]:
    return {
        k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items() if k not in ("out", "overwrite")
    }
