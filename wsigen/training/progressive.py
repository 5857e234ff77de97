"""Progressive distillation: one step of the student goes where several steps of the teacher go.

Salimans and Ho 2022 (arXiv 2202.00512), with two differences. The student takes its few timesteps at once instead of
halving their number again and again, and is trained at those alone. The teacher follows its path with DPM-Solver++(2M),
which needs fewer steps for it than DDIM.

Noise, mask and neighbours decide where the teacher goes, so that nothing is averaged but what the student cannot learn
of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from wsigen.diffusion.gaussian import q_sample
from wsigen.diffusion.plans import StepCoefficients
from wsigen.diffusion.samplers import make_sampler, spaced_timesteps
from wsigen.models.config import ModelConfig
from wsigen.training.data.manifest import Manifest
from wsigen.training.denoising import NoisyBatch
from wsigen.training.distillation import StudentTrainer
from wsigen.training.loop import Trainable
from wsigen.training.patches import PatchBank


class ProgressiveTrainer(StudentTrainer):
    """Tunes ``initial_model``; what it saves samples with "ddim" at the timesteps that it was trained at."""

    def student(self, config: ModelConfig) -> ModelConfig:
        """DDIM, spaced as the teacher is."""
        return replace(self.few_steps(config), sampler="ddim")

    def build(self, manifest: Manifest) -> Trainable:
        """Load the painter twice, and work out the steps of both."""
        student = super().build(manifest)
        settings, schedule = self.settings.distill, self.schedule
        places = spaced_timesteps(schedule, settings.steps, self.config.final_step)
        ddim = make_sampler("ddim", schedule, settings.steps, timesteps=places)
        self.steps = _table([ddim.steps], self.process.device)[0]  # (N, 4)
        paths = []
        for place, after in zip(places, (*places[1:], 0.0), strict=True):
            between = [place + (after - place) * k / settings.teacher_steps for k in range(settings.teacher_steps)]
            # One timestep more makes the last step end there and not at the clean image.
            path = [*between, *([after] if after > 0 else [])]
            solver = make_sampler("dpm++2m", schedule, len(path), timesteps=path)
            paths.append(solver.steps[: settings.teacher_steps])
        self.paths = _table(paths, self.process.device)  # (N, teacher steps, 4)
        return student

    def draw(self, bank: PatchBank, window: int, size: int, generator: torch.Generator) -> NoisyBatch:
        """Draw a batch; every step of the student as often."""
        batch = super().draw(bank, window, size, generator)
        step = torch.arange(size, device=self.process.device) % len(self.steps)
        return replace(batch, t=self.steps[step, 0])

    def losses(self, network: Callable[..., Tensor], batch: NoisyBatch) -> tuple[Tensor, Tensor]:
        """Squared error of v against where the teacher's path leads, for each sample (B,), and its noise level."""
        clean, t = batch.clean, batch.t
        x = q_sample(self.schedule, clean.x0, t, batch.noise)
        with torch.no_grad():
            target = self.target(batch, x)
        squared = (self.data(network, clean, x, t) - target).square().mean(1, keepdim=True)
        return self.pixel_mean(squared, clean) / self.schedule.sigma(t).square(), self.columns_of(t)

    def target(self, batch: NoisyBatch, x: Tensor) -> Tensor:
        """The data prediction whose one step from x_t leads to where the teacher's steps lead."""
        step = (batch.t[:, None] - self.steps[:, 0]).abs().argmin(1)
        now, before = x, torch.zeros_like(x)
        for coefficients in self.paths[step].unbind(1):
            t, along_x, along_data, along_before = coefficients.unbind(1)
            data = self.teacher_data(batch.clean, now, t)
            now = _image(along_x) * now + _image(along_data) * data + _image(along_before) * before
            before = data
        _, along_x, along_data, _ = self.steps[step].unbind(1)
        return (now - _image(along_x) * x) / _image(along_data)


def _table(paths: Sequence[Sequence[StepCoefficients]], device: torch.device) -> Tensor:
    """Timestep and factors of x, x_0 and x_0' of each step of each path: (paths, steps, 4) float32."""
    rows = [[(step.timestep, step.x, step.x0, step.x0_previous) for step in path] for path in paths]
    return torch.tensor(rows, dtype=torch.float64).float().to(device)


def _image(values: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1)."""
    return values[:, None, None, None]
