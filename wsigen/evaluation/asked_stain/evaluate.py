"""``wsigen evaluate stain``: the stain that is asked for against the stain that is painted, and a response to mend it.

Windows of many source images are painted in many styles: those of the source images, designed ones around them, and
what a first fit would tell the network to get the sources' styles, so that the response is known best where it is used.
Both sides are measured alike: means and deviations of optical density over tissue pixels, without JPEG. From this the
network's response is fitted (`wsigen.models.stain_response`). Held-out source images then say what it is worth: in
turn each is left out of the fit, with its style and its masks, and its style is asked for, without the response and
with it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from wsigen.errors import ModelError, SettingsError
from wsigen.evaluation.asked_stain import sections
from wsigen.evaluation.asked_stain.fitting import (
    Measured,
    ask,
    choose_degree,
    choose_ridges,
    inverse_styles,
    ridge_errors,
)
from wsigen.evaluation.asked_stain.painting import Bench
from wsigen.evaluation.asked_stain.styles import Source, choose_styles, read_masks, with_named
from wsigen.evaluation.material import PaintOptions, check_window, load_painter
from wsigen.evaluation.report import Report, Section
from wsigen.models.config import CONFIG_FILE, ModelConfig
from wsigen.models.registry import DEFAULT_MODEL, find_model
from wsigen.models.stain_response import StainResponse
from wsigen.system.devices import choose_device
from wsigen.system.replacing import written_whole
from wsigen.system.reporting import Reporter, silent

LEAST_STYLES = 12  # fewer say nothing of coefficients


@dataclass(frozen=True)
class StainEvaluation:
    """What to evaluate and how; see the options of the command."""

    data: Path
    out: Path
    model: str = ""
    windows: int = 64
    styles: int = 64  # that the response is fitted to
    window: int | None = None
    paint: PaintOptions = field(default_factory=PaintOptions)
    write: Path | None = None  # folder of the model with the response
    device: str = "auto"
    overwrite: bool = False


def evaluate_stain(settings: StainEvaluation, progress: Reporter = silent) -> Report:
    """Measure, write the report and, where it is asked for, the model with its response; return the report.

    Raises a WsigenError before anything is written where it can.
    """
    folder = find_model(settings.model or DEFAULT_MODEL)
    config = ModelConfig.load(folder)
    _check(settings, folder, config)
    choice = choose_device(settings.device)
    model, window = load_painter(str(folder), choice), settings.window or config.window
    check_window(model, window)
    masks, sources = read_masks(settings.data, settings.windows, window, torch.device(choice.device))
    report = Report(settings.out, "Stains asked for and painted", _command(settings), settings.overwrite)
    bench = Bench(model, masks, settings.paint, choice, progress)
    sources = with_named(config, sources)
    report.add(sections.setup(masks, sources, settings.styles))
    measured = _measured(bench, config, sources, settings.styles)
    response = _fitted(bench, measured, [source for source in sources if source.held_out], report)
    mended = replace(config, stain_response=response)
    report.add(sections.named(bench, mended))
    if settings.write is not None:
        write_config(folder, mended, settings.write)
        report.add(Section("written", "Written", f"The response is in {settings.write / CONFIG_FILE}."))
    return report


def _measured(bench: Bench, config: ModelConfig, sources: Sequence[Source], styles: int) -> Measured:
    """Paint all masks in two rounds of styles: chosen ones, then what a first fit tells to get the sources' styles."""
    everything = np.arange(len(bench.masks.sources))
    chosen = choose_styles(config, sources, styles)
    told, names = np.array([row for row, _ in chosen], np.float32), np.array([name for _, name in chosen])
    sums = bench.measure("painting to fit", told, everything)
    measured = Measured(told, names, sums, bench.masks, bench.range)
    inverse = inverse_styles(measured, sources)
    return measured.with_more(inverse, bench.measure("painting to fit, second round", inverse, everything))


def _fitted(bench: Bench, measured: Measured, held_out: Sequence[Source], report: Report) -> StainResponse:
    """Choose ridge and degree, and report what the response is worth on held-out source images."""
    errors = ridge_errors(measured)
    ridges = choose_ridges(errors)
    report.add(sections.fit(errors, ridges))
    report.add(sections.content(measured))
    tried = {degree: ask(bench, held_out, degree, ridge, measured) for degree, ridge in ridges.items()}
    degree = choose_degree(tried, bench.range)
    report.add(sections.degrees(tried, ridges, degree, bench.range))
    found = tried[degree]
    report.add(sections.asked_and_painted(found, bench.masks.held_out))
    report.add(sections.own_masks(found, bench.masks))
    report.add(sections.one_by_one(bench, held_out, found, report))
    return measured.fit(degree, ridges[degree])


def _check(settings: StainEvaluation, folder: Path, config: ModelConfig) -> None:
    """Refuse at once what would be refused after the painting."""
    if "stain" not in config.conditions:
        raise SettingsError(f"--model {folder}: is told no stain style; name a painter of slides")
    if settings.styles < LEAST_STYLES:
        raise SettingsError(f"--styles {settings.styles}: a response needs {LEAST_STYLES} or more")
    target = settings.write
    if target is None:
        return
    if target.resolve() == folder:
        if not os.access(folder, os.W_OK):
            raise SettingsError(f"--write {target}: cannot be written to; name a new folder, which gets a copy")
    elif target.exists():
        raise SettingsError(f"--write {target}: exists and is not the model's folder; name that or a new one")
    elif not target.resolve().parent.is_dir():
        raise SettingsError(f"--write {target}: the folder {target.resolve().parent} does not exist; make it first")


def write_config(folder: Path, config: ModelConfig, target: Path) -> None:
    """Write ``config`` to the model in ``folder`` itself, or to a new copy of it; no reader finds half of either."""
    same = target.resolve() == folder
    try:
        with written_whole(target / CONFIG_FILE if same else target) as partial:
            if not same:
                shutil.copytree(folder, partial)
            (partial if same else partial / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
    except OSError as error:
        raise ModelError(f"--write {target}: cannot be written ({error.strerror}); name another folder") from error


def _command(settings: StainEvaluation) -> dict[str, object]:
    values = asdict(settings)
    paint = values.pop("paint")
    kept = {key: str(value) if isinstance(value, Path) else value for key, value in values.items() if key != "out"}
    return kept | paint
