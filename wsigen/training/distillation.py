"""Consistency tuning: a trained painter learns to reach in one step where it went in many.

A consistency model f maps a noisy image at any level to the same clean one (Song et al. 2023). Tuning starts from the
diffusion model, whose data prediction is f already where noise is low, and asks that f(x_t, t) be f(x_r, r) for r a
little below t, closer and closer (Geng et al. 2024, "Consistency models made easy"). x_r lies on the teacher's path
through x_t, guided if asked for, so that the student paints with guidance in one network call; or, without a teacher,
it is made of the same image and noise.

Levels are told as ``s = sigma / alpha``, the noise of a variance-exploding process: the paper's formulas are in it.
The condition f(x, 0) = x holds by itself: the data prediction of a v network is ``alpha x - sigma v``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from wsigen.diffusion.gaussian import PredictionType, q_sample, to_eps, to_x0
from wsigen.diffusion.guidance import guide, is_guided
from wsigen.errors import SettingsError
from wsigen.models.conditioning import null_planes
from wsigen.models.config import ModelConfig
from wsigen.models.nasdm import NasdmModel
from wsigen.training.corrupt import TrainingBatch
from wsigen.training.denoising import DenoisingTrainer, NoisyBatch
from wsigen.training.loop import Trainable
from wsigen.training.manifest import Manifest
from wsigen.training.patches import PatchBank

DATA_DEVIATION = 0.5  # of pixels in [-1, 1]


class StudentTrainer(DenoisingTrainer):
    """Tunes ``initial_model`` to paint in ``distill.steps`` steps what it paints in many."""

    @abstractmethod
    def student(self, config: ModelConfig) -> ModelConfig:
        """The teacher's configuration with the student's way of sampling."""

    def build(self, manifest: Manifest) -> Trainable:
        """Load the painter twice: the student, and the teacher, which stays as it is."""
        settings = self.settings
        if not settings.initial_model:
            raise SettingsError(f"task {settings.task}: the recipe names no initial_model; name the painter to tune")
        student = cast(NasdmModel, super().build(manifest))
        if student.config.prediction != "v" or student.config.learned_variance:
            raise SettingsError(
                f"initial_model {settings.initial_model}: predicts {student.config.prediction}; tuning needs a v model "
                "without a learned variance"
            )
        self.guidance_scale = self.config.guidance_for(settings.distill.guidance_scale)
        student.config = self.config = replace(
            self.student(self.config), num_inference_steps=settings.distill.steps, guidance_scale=1.0
        )
        teacher = NasdmModel.from_pretrained(settings.initial_model).to(self.process.device)
        teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch types omit it
        compiled = torch.compile(teacher, dynamic=False) if self.compile_model else teacher
        self.teacher = cast(Callable[..., Tensor], compiled)
        return cast(Trainable, student)

    def data(self, network: Callable[..., Tensor], clean: TrainingBatch, x: Tensor, t: Tensor) -> Tensor:
        """Data prediction (B, 3, W, W) float32 of the network at x_t."""
        with self.autocast():
            output = network(x, t, clean.planes, clean.context, clean.known, clean.style)
        return to_x0(cast(PredictionType, self.config.prediction), output, x, t, self.schedule)

    def teacher_data(self, clean: TrainingBatch, x: Tensor, t: Tensor) -> Tensor:
        """What the teacher sees in x_t, guided if asked for, known pixels overwritten as in painting."""
        scale = self.guidance_scale
        with self.autocast():
            output = self.teacher(x, t, clean.planes, clean.context, clean.known, clean.style).float()
            if is_guided(scale):
                nothing = null_planes(clean.planes)
                null = self.teacher(x, t, nothing, clean.context, clean.known, clean.style).float()
                output = guide(output, null, scale)
        return torch.where(clean.known > 0, clean.x0, to_x0("v", output, x, t, self.schedule).clamp(-1, 1))


class ConsistencyTrainer(StudentTrainer):
    """Tunes by consistency; what it saves samples with the "consistency" sampler."""

    def student(self, config: ModelConfig) -> ModelConfig:
        """Consistency sampling, evenly spaced."""
        return replace(config, sampler="consistency", final_step=1.0)

    def draw(self, bank: PatchBank, window: int, size: int, generator: torch.Generator) -> NoisyBatch:
        """Draw a batch; half of its levels evenly over the timesteps, since painting starts at the noisiest."""
        batch = super().draw(bank, window, size, generator)
        settings, device = self.settings.distill, self.process.device
        normal = torch.randn(size, generator=generator, device=device)
        log_level = settings.mean_log_sigma + settings.std_log_sigma * normal
        even = torch.arange(size, device=device) % 2 == 0
        return replace(batch, t=torch.where(even, batch.t, self.timestep(log_level)))

    def timestep(self, log_level: Tensor) -> Tensor:
        """Real timesteps (B,) of the levels nearest to ``log s`` (B,): linear between whole ones."""
        rising = -0.5 * self.schedule.table("log_snr", self.process.device)
        value = log_level.clamp(float(rising[0]), float(rising[-1]))
        high = torch.searchsorted(rising, value).clamp(1, self.schedule.T - 1)
        low_value, high_value = rising[high - 1], rising[high]
        return high - 1 + (value - low_value) / (high_value - low_value)

    def ratio(self) -> float:
        """The paper's q at this step: how near r is to t."""
        settings = self.settings.distill
        stages = max(1, settings.stages)
        stage = min(stages - 1, self.step * stages // max(1, self.settings.total_steps))
        growth = (settings.last_ratio / settings.first_ratio) ** (1 / max(1, stages - 1))
        return settings.first_ratio * growth**stage

    def losses(self, network: Callable[..., Tensor], batch: NoisyBatch) -> tuple[Tensor, Tensor]:
        """Pseudo-Huber distance between f(x_t, t) and f(x_r, r) for each sample (B,), and its noise level's column."""
        clean, t, settings = batch.clean, batch.t, self.settings.distill
        level = torch.exp(-0.5 * self.schedule.log_snr(t))
        below = level * (1 - (1 + 8 * torch.sigmoid(-level)) / self.ratio()).clamp(min=0)
        r = self.timestep(below.clamp(min=1e-8).log())
        x = q_sample(self.schedule, clean.x0, t, batch.noise)
        with torch.no_grad():
            data, noise = clean.x0, batch.noise
            if settings.teacher:
                data = self.teacher_data(clean, x, t)
                noise = to_eps("x0", data, x, t, self.schedule)
            target = self.data(network, clean, q_sample(self.schedule, data, r, noise), r)
            target = torch.where(clean.known > 0, clean.x0, target.clamp(-1, 1))
        squared = (self.data(network, clean, x, t) - target).square().mean(1, keepdim=True)
        distance = (self.pixel_mean(squared, clean) + settings.huber**2).sqrt() - settings.huber
        # As the paper's 1 / (t - r) where noise is low, but not falling for ever where it is high: there is where
        # painting starts.
        return distance * (level**-2 + DATA_DEVIATION**-2).sqrt().clamp(max=50.0), self.columns_of(t)
