"""Whether this machine keeps rows of a batch equal, for a model at its window and batch: behind ``wsigen doctor``."""

from __future__ import annotations

from pathlib import Path

from wsigen.config import RenderSettings
from wsigen.models.config import ModelConfig
from wsigen.models.registry import DEFAULT_MODEL, find_model
from wsigen.painting.slide_worker import fixed_threads, load_model, make_painter
from wsigen.rendering.stage import machine_of, paint_spec


def check_rows(settings: RenderSettings) -> list[str]:
    """Try every operation of a model with equal rows on the device of the settings: lines for people.

    Raises SettingsError where rows of a batch differ whatever is tried, or the device is not there.
    """
    folder = find_model(settings.model or DEFAULT_MODEL)
    config, machine = ModelConfig.load(folder), machine_of(settings)
    spec = paint_spec(Path(), folder, config, config.style(), config.mpp, settings, machine)
    with fixed_threads():
        painter = make_painter(spec, load_model(spec))
        painter.open(spec.window)
        verdict = painter.check_rows(spec.window)
    others = verdict.describe()
    found = "equal in all" if not others else f"equal in all but {len(others)}, which are computed otherwise"
    batch = f"{spec.batch_size} windows of {spec.window} px on {machine.device.description}"
    return [f"rows of a batch of {batch}: {verdict.calls} operations tried, {found}", *(f"  {line}" for line in others)]
