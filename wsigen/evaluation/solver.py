"""``wsigen distill --method solver``: fit solvers of a few steps to a painter: see ``wsigen.diffusion.fitting``."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from wsigen.conditions.contract import ConditionBatch
from wsigen.diffusion.fitting import Data, fit
from wsigen.diffusion.gaussian import PredictionType, to_x0
from wsigen.diffusion.noise import coordinate_normals
from wsigen.diffusion.samplers import spaced_timesteps
from wsigen.diffusion.schedules import NoiseSchedule
from wsigen.errors import SettingsError
from wsigen.evaluation.material import PAINT_BATCH, load_painter, material_inputs, real_patches
from wsigen.models.config import CONFIG_FILE
from wsigen.models.registry import find_model
from wsigen.networks.denoiser import Denoiser
from wsigen.networks.guided import GuidedNetwork
from wsigen.system.devices import DeviceChoice
from wsigen.system.replacing import written_whole


def fit_painter(
    model: str,
    data: Path,
    out: Path,
    steps: Sequence[int],
    choice: DeviceChoice,
    guidance_scale: float | None = None,
    patches: int = 32,
    window: int = 128,
    seed: int = 0,
    report: Callable[[str], None] = print,
) -> None:
    """Fit solvers of 2 and more ``steps`` to a painter, and write it with them to the new folder ``out``.

    They are fitted to painting with ``guidance_scale``, which becomes the painter's own; None leaves the one it has.
    ``patches`` masks of ``window`` px of the training side are painted. ``report`` is told the error of each solver.
    Raises SettingsError if ``out`` exists, DataError and ModelError for data and models that cannot be used.
    """
    if out.exists():
        raise SettingsError(f"{out}: exists; choose another folder with -o")
    painter = load_painter(model, choice)
    if painter.config.paints != "slide" or painter.config.learned_variance:
        raise SettingsError(f"--model {model}: solvers are fitted to painters of slides without a learned variance")
    material = real_patches(data, "train", window, patches, torch.device(choice.device), seed)
    conditions = material_inputs(painter, material)
    numbers = torch.arange(len(material.patches), device=conditions.known.device)
    noise = coordinate_normals(
        seed, numbers * window, torch.zeros_like(numbers), window, window, 0, device=numbers.device
    )
    fitted = {len(plan): plan for plan in painter.config.fitted}
    painter.config = replace(painter.config, guidance_scale=painter.config.guidance(guidance_scale).scale)
    predict = data_prediction(painter, conditions, PAINT_BATCH[choice.device])
    schedule = NoiseSchedule.from_name(painter.config.schedule, painter.config.schedule_steps)
    for count in steps:
        timesteps = spaced_timesteps(schedule, count, painter.config.final_step)
        plan, before, after = fit(predict, schedule, timesteps, noise, conditions.known.bool())
        fitted[count] = tuple((step.x, step.x0, step.x0_previous) for step in plan)
        report(f"{count} steps: mean squared error {before:.5f} with UniPC, {after:.5f} fitted")
    plans = tuple(fitted[count] for count in sorted(fitted))
    # The stain response was measured with another solver: `wsigen evaluate stain` measures it again.
    config = replace(painter.config, sampler="fitted", fitted=plans, stain_response=None)
    with written_whole(out) as partial:
        shutil.copytree(find_model(model), partial)
        (partial / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")


def data_prediction(model: Denoiser, conditions: ConditionBatch, batch: int) -> Data:
    """The data prediction (B, 3, H, W) float32 at (x, timestep), clamped, known pixels overwritten, as in painting."""
    schedule = NoiseSchedule.from_name(model.config.schedule, model.config.schedule_steps)
    kind = cast(PredictionType, model.config.prediction)
    with torch.inference_mode():
        networks = [GuidedNetwork(model, part) for part in conditions.split(batch)]

    def predict(x: Tensor, timestep: float) -> Tensor:
        noisy = x.split(batch)
        output = torch.cat(
            [network(part, timestep).mean.float() for network, part in zip(networks, noisy, strict=True)]
        )
        x0 = to_x0(kind, output, x, torch.full((len(x),), timestep, device=x.device), schedule).clamp(-1, 1)
        return torch.where(conditions.known.bool(), conditions.context, x0)

    return predict
