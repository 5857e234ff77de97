"""Training of the denoiser: the network sees a noisy crop with its conditions and predicts what the crop holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wsigen.conditions.contract import Condition, ConditionBatch
from wsigen.diffusion.gaussian import PredictionType, hybrid_loss, q_sample, training_target
from wsigen.diffusion.schedules import NoiseSchedule
from wsigen.errors import SettingsError
from wsigen.masks.classes import ClassTable
from wsigen.models.config import ModelConfig
from wsigen.models.stain import StyleRange
from wsigen.networks.denoiser import Denoiser
from wsigen.training.corrupt import Corruptor, TrainingBatch, slide_corruptor
from wsigen.training.data.manifest import Manifest
from wsigen.training.loop import Trainable, Trainer
from wsigen.training.patches import PatchBank
from wsigen.training.settings import TrainSettings
from wsigen.training.sheet import write_sample_sheet

NOISE_BINS = 10
BORDER = 8
RIM = 24


@dataclass(frozen=True)
class NoisyBatch:
    """Crops with their conditions, their timesteps (B,) as real numbers, and their noise (B, 3, W, W)."""

    clean: TrainingBatch
    t: Tensor
    noise: Tensor


class DenoisingTrainer(Trainer):
    """Trains a `Denoiser`; the log tells losses by noise level."""

    columns = tuple(f"t{index}" for index in range(NOISE_BINS))

    def build(self, manifest: Manifest) -> Trainable:
        """Make the network of the recipe's architecture, or load the model to start from."""
        settings = self.settings
        if settings.initial_model:
            model = Denoiser.from_pretrained(settings.initial_model).requires_grad_(True)
            # Measured of weights that training changes: `wsigen evaluate stain` measures the trained model again.
            model.config = replace(model.config, stain_response=None)
        else:
            model = Denoiser.from_config(self.configure(manifest))
        self.config = model.config
        self.schedule = NoiseSchedule.from_name(self.config.schedule, self.config.schedule_steps)
        self._corruptors = {
            bank.split: self.corruptor(bank, model.conditions, settings) for bank in (self.bank, self.held_out)
        }
        return cast(Trainable, model)

    def configure(self, manifest: Manifest) -> ModelConfig:
        """Fill the preset of the recipe with what the data says."""
        return _configure(self.settings, manifest, self.bank)

    def corruptor(self, bank: PatchBank, conditions: Sequence[Condition], settings: TrainSettings) -> Corruptor:
        """What makes training batches of a bank's crops."""
        return slide_corruptor(conditions, bank, settings)

    def draw(self, bank: PatchBank, window: int, size: int, generator: torch.Generator) -> NoisyBatch:
        """Draw a batch, its timesteps (stratified over the batch) and its noise."""
        batch = self._corruptors[bank.split](bank.sample(window, size, generator), generator)
        device = self.process.device
        place = (torch.arange(size, device=device) + torch.rand(size, generator=generator, device=device)) / size
        t = place * (self.schedule.T - 1)
        noise = torch.randn(batch.x0.shape, generator=generator, device=device)
        return NoisyBatch(batch, t, noise)

    def losses(self, network: Callable[..., Tensor], batch: NoisyBatch) -> tuple[Tensor, Tensor]:
        """Per-sample loss (B,), see ``pixel_mean``, and its noise level's column."""
        clean, t, noise, config = batch.clean, batch.t, batch.noise, self.config
        if config.learned_variance:  # the variational bound belongs to the discrete chain
            t = t.round()
        columns = self.columns_of(t)
        with self.autocast():
            x = q_sample(self.schedule, clean.x0, t, noise)
            output = network(x, t, *self.given(clean.conditions))
        if config.learned_variance:
            mean, raw = output.float().chunk(2, dim=1)
            return hybrid_loss(self.schedule, config.prediction, mean, raw, clean.x0, t, noise), columns
        target = training_target(config.prediction, self.schedule, clean.x0, t, noise)
        return self.pixel_mean((output.float() - target).square().mean(dim=1, keepdim=True), clean), columns

    def given(self, conditions: ConditionBatch) -> tuple[Tensor, ...]:
        """The conditions as arguments of the network."""
        return conditions.in_order(cast(Denoiser, self.averaged).specs)

    def columns_of(self, t: Tensor) -> Tensor:
        """Columns of the noise levels at timesteps (B,)."""
        return (t / self.schedule.T * NOISE_BINS).long().clamp(0, NOISE_BINS - 1)

    def pixel_mean(self, error: Tensor, clean: TrainingBatch) -> Tensor:
        """Mean over each sample's pixels (B,) of (B, 1, W, W), weighted as ``pixel_weights`` says."""
        settings = self.settings
        weight = pixel_weights(clean.known, settings.known_weight, settings.border_weight, settings.rim_weight)
        if clean.ignored is not None:
            weight = weight.masked_fill(clean.ignored, 0.0)
        return (error * weight).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3)).clamp(min=1)

    def show(self, window: int) -> None:
        """Write a sample sheet of held-out crops."""
        path = self.out / "samples" / f"step-{self.step:06d}.png"
        steps = self.config.num_inference_steps
        write_sample_sheet(cast(Denoiser, self.averaged), self.held_out, window, path, min(steps, 8))


def _configure(settings: TrainSettings, manifest: Manifest, bank: PatchBank) -> ModelConfig:
    """Fill a preset with what the data says: classes, scale, range of stain styles, named styles."""
    preset = ModelConfig.preset(settings.architecture).changed(settings.model)
    if preset.paints != "slide":
        raise SettingsError(f'architecture {preset.name!r} paints masks; its task is "mask"')
    if settings.prediction:
        if settings.prediction not in get_args(PredictionType):
            raise SettingsError(f"prediction {settings.prediction!r}: unknown; choose eps, v or x0")
        preset = replace(preset, prediction=cast(PredictionType, settings.prediction))
    if len(preset.classes) != len(manifest.classes):
        preset = replace(preset, classes=ClassTable.from_config(manifest.classes))
    vectors = np.array([style.vector for style in bank.styles])
    style_range = preset.style_range
    if len(vectors) >= 4:
        spread = np.maximum(vectors.std(axis=0), 0.01)
        style_range = StyleRange(
            tuple(round(float(v), 5) for v in vectors.mean(axis=0)), tuple(round(float(v), 5) for v in spread)
        )
    by_group = dict(zip(bank.groups, bank.styles))
    if missing := [group for group in settings.styles.values() if group not in by_group]:
        raise SettingsError(f"styles: the training split has no group {missing[0]!r}; it has {', '.join(by_group)}")
    styles = tuple(replace(by_group[group], name=name) for name, group in settings.styles.items())
    return replace(
        preset,
        mpp=manifest.mpp,
        style_range=style_range,
        styles=styles or preset.styles,
        default_style=settings.default_style or (next(iter(settings.styles)) if styles else preset.default_style),
    )


def pixel_weights(known: Tensor, known_weight: float, border_weight: float, rim_weight: float = 0.0) -> Tensor:
    """Weights of the loss (B, 1, H, W): 1 on unknown pixels, ``known_weight`` on known ones (``known`` is 0 or 1).

    Known pixels are overwritten when sampling, but a network that need not reproduce them carries nothing of them to
    its last layers, and paints on as if they were not there: its error one pixel away from them was larger than that of
    repeating them. Unknown pixels within BORDER px of known ones get ``border_weight`` more, since that is where an
    eye finds a seam. Those within RIM px of the window's edges get ``rim_weight`` more: a network sees least of what is
    around them, and there two windows are blended.
    """
    near = F.max_pool2d(known, 2 * BORDER + 1, stride=1, padding=BORDER)
    rim = torch.ones_like(known)
    rim[..., RIM:-RIM, RIM:-RIM] = 0
    return torch.where(known > 0, known_weight, 1 + border_weight * near + rim_weight * rim)
