"""Distillation: a painter learns from itself to do in fewer calls of the network what took it many.

A student starts from the painter's weights; the painter, which stays as it is, is its teacher. Here are what all ways
have in common, and two of them: consistency tuning for few steps, and guidance in one call. The third is in
`wsigen.training.progressive`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from wsigen.conditions.contract import ConditionBatch
from wsigen.conditions.guidance import null_batch, say_scale
from wsigen.diffusion.gaussian import PredictionType, q_sample, to_eps, to_x0, training_target
from wsigen.diffusion.guidance import guide
from wsigen.errors import SettingsError
from wsigen.models.config import ModelConfig
from wsigen.networks.denoise import model_sampler
from wsigen.networks.denoiser import Denoiser
from wsigen.training.corrupt import TrainingBatch
from wsigen.training.data.manifest import Manifest
from wsigen.training.denoising import DenoisingTrainer, NoisyBatch
from wsigen.training.loop import Trainable
from wsigen.training.patches import PatchBank

DATA_DEVIATION = 0.5  # of pixels in [-1, 1]


@dataclass(frozen=True)
class GuidedBatch(NoisyBatch):
    """The same, with the guidance scale that each sample is to be painted with, (B,)."""

    scale: Tensor


class StudentTrainer(DenoisingTrainer):
    """Tunes ``initial_model`` to paint with fewer calls of the network."""

    @abstractmethod
    def student(self, config: ModelConfig) -> ModelConfig:
        """The student's configuration, made of the teacher's."""

    def build(self, manifest: Manifest) -> Trainable:
        """Load the painter twice: the student, and the teacher, which stays as it is.

        The teacher runs as a painter does, in 16 bits and through its kernels, where training has mixed precision: it
        need not be compiled.
        """
        settings = self.settings
        if not settings.initial_model:
            raise SettingsError(f"task {settings.task}: the recipe names no initial_model; name the painter to tune")
        student = cast(Denoiser, super().build(manifest))
        if student.config.prediction != "v" or student.config.learned_variance:
            raise SettingsError(
                f"initial_model {settings.initial_model}: predicts {student.config.prediction}; tuning needs a v model "
                "without a learned variance"
            )
        self.guidance = self.config.guidance(settings.distill.guidance_scale)
        student.config = self.config = self.student(self.config)
        teacher = Denoiser.from_pretrained(settings.initial_model).to(self.process.device)
        self.teacher_dtype = torch.bfloat16 if self.mixed_precision else torch.float32
        self.teacher = teacher.to(self.teacher_dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cast(Trainable, student)

    def few_steps(self, config: ModelConfig) -> ModelConfig:
        """``config`` for as many steps as the recipe says, with guidance in the weights if there is any."""
        return replace(config, num_inference_steps=self.settings.distill.steps, guidance_scale=1.0, guided_scales=())

    def data(self, network: Callable[..., Tensor], clean: TrainingBatch, x: Tensor, t: Tensor) -> Tensor:
        """Data prediction (B, 3, W, W) float32 of the network at x_t."""
        with self.autocast():
            output = network(x, t, *self.given(clean.conditions))
        return to_x0(cast(PredictionType, self.config.prediction), output, x, t, self.schedule)

    @torch.no_grad()
    def teach(self, conditions: ConditionBatch, x: Tensor, t: Tensor) -> Tensor:
        """The teacher's v at x_t with these conditions, (B, 3, W, W) float32."""
        noisy = x.to(self.teacher_dtype).contiguous(memory_format=torch.channels_last)
        prepared = self.teacher.prepare(conditions.to(self.teacher_dtype))
        return self.teacher.predict(prepared, noisy, t).mean.float()

    def null(self, conditions: ConditionBatch) -> ConditionBatch:
        """The conditions without those that are guided."""
        return null_batch(self.teacher.conditions, conditions)

    def teacher_data(self, clean: TrainingBatch, x: Tensor, t: Tensor) -> Tensor:
        """What the teacher sees in x_t, guided if asked for, known pixels overwritten as in painting."""
        guidance = self.guidance
        conditions = say_scale(clean.conditions, guidance.scale) if guidance.learned else clean.conditions
        output = self.teach(conditions, x, t)
        if guidance.calls == 2:
            output = guide(output, self.teach(self.null(clean.conditions), x, t), guidance.scale)
        return torch.where(clean.known > 0, clean.x0, to_x0("v", output, x, t, self.schedule).clamp(-1, 1))


class GuidanceTrainer(StudentTrainer):
    """Teaches a painter to guide itself: one call of the network where classifier-free guidance takes two.

    The student is told the scale s by its *present* plane and learns ``v_c + (s - 1) (v_c - v_0)``, v_c and v_0 being
    the teacher's with and without the condition (Meng et al. 2023, arXiv 2210.03142, section 3.1, tell it by an
    embedding). ``distill.data_share`` of v_c may be replaced by what the pictures say: its mean is what v_c estimates,
    so that the student goes on learning from them (as in Tang et al. 2025, arXiv 2502.12154).
    """

    def student(self, config: ModelConfig) -> ModelConfig:
        """The painter's own way to sample, with scales that take one call."""
        scales = self.settings.distill.guided_scales
        try:
            return replace(config, guidance_scale=self.guidance.scale, guided_scales=scales)
        except ValueError as error:
            raise SettingsError(f"distill.{error}") from error

    def build(self, manifest: Manifest) -> Trainable:
        """Load student and teacher, and look up the timesteps that the painter samples at."""
        student = super().build(manifest)
        sampler = model_sampler(self.config, self.schedule, self.config.num_inference_steps)
        self.own_timesteps = torch.tensor(sampler.timesteps, dtype=torch.float32, device=self.process.device)
        return student

    def draw(self, bank: PatchBank, window: int, size: int, generator: torch.Generator) -> GuidedBatch:
        """Draw a batch.

        ``distill.own_levels`` of its timesteps are those that the painter samples at; every second sample has the
        painter's own scale, the others are spread over all that are to be learned.
        """
        batch = super().draw(bank, window, size, generator)
        device, settings = batch.t.device, self.settings.distill
        chance, place = torch.rand((2, size), generator=generator, device=device)
        which = torch.randint(len(self.own_timesteps), (size,), generator=generator, device=device)
        t = torch.where(chance < settings.own_levels, self.own_timesteps[which], batch.t)
        lowest, highest = settings.guided_scales
        own = torch.rand(size, generator=generator, device=device) < 0.5
        scale = torch.where(own, self.guidance.scale, lowest + (highest - lowest) * place)
        return GuidedBatch(batch.clean, t, batch.noise, scale)

    def losses(self, network: Callable[..., Tensor], batch: NoisyBatch) -> tuple[Tensor, Tensor]:
        """Squared error of v under guidance for each sample (B,), and its noise level's column."""
        assert isinstance(batch, GuidedBatch)
        clean, t = batch.clean, batch.t
        x = q_sample(self.schedule, clean.x0, t, batch.noise)
        with self.autocast():
            output = network(x, t, *self.given(say_scale(clean.conditions, batch.scale)))
        squared = (output.float() - self.target(batch, x)).square().mean(dim=1, keepdim=True)
        return self.pixel_mean(squared, clean), self.columns_of(t)

    def target(self, batch: GuidedBatch, x: Tensor) -> Tensor:
        """v (B, 3, W, W) that the student is to say at x_t; on known pixels what the picture says."""
        clean, t = batch.clean, batch.t
        seen = training_target("v", self.schedule, clean.x0, t, batch.noise)
        given = self.teach(clean.conditions, x, t)
        change = given - self.teach(self.null(clean.conditions), x, t)
        further = (batch.scale - 1)[:, None, None, None] * change
        wanted = torch.lerp(given, seen, self.settings.distill.data_share) + further
        return torch.where(clean.known > 0, seen, wanted)


class ConsistencyTrainer(StudentTrainer):
    """Tunes by consistency; what it saves samples with the "consistency" sampler.

    A consistency model f maps a noisy image at any level to the same clean one (Song et al. 2023). Tuning starts from
    the diffusion model, whose data prediction is f already where noise is low, and asks that f(x_t, t) be f(x_r, r) for
    r a little below t, closer and closer (Geng et al. 2024, "Consistency models made easy"). x_r lies on the teacher's
    path through x_t, guided if asked for, so that the student paints with guidance in one network call; or, without a
    teacher, it is made of the same image and noise.

    Levels are told as ``s = sigma / alpha``, the noise of a variance-exploding process: the paper's formulas are in it.
    The condition f(x, 0) = x holds by itself: the data prediction of a v network is ``alpha x - sigma v``.
    """

    def student(self, config: ModelConfig) -> ModelConfig:
        """Consistency sampling, evenly spaced."""
        return replace(self.few_steps(config), sampler="consistency", final_step=1.0)

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
