"""The denoising loop: one batch of windows from noise to pixels.

At every step the network's output becomes a prediction of the clean image, which is clamped and overwritten where
pixels are known, and only then does the solver move. What is known therefore stays exactly as it is, and the rest
grows around it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from wsigen.diffusion import fused_step
from wsigen.diffusion.continuity import Continuity
from wsigen.diffusion.gaussian import PredictionType, to_x0
from wsigen.diffusion.guidance import guide, is_guided
from wsigen.diffusion.samplers import FittedStep, Sampler, SamplerName, make_sampler
from wsigen.diffusion.schedules import NoiseSchedule
from wsigen.models.conditioned import ConditionedNetwork, Conditions
from wsigen.models.conditioning import null_planes
from wsigen.models.config import ModelConfig
from wsigen.models.nasdm import NasdmModel


def model_sampler(
    config: ModelConfig, schedule: NoiseSchedule, num_inference_steps: int, name: str = "", eta: float = 0.0
) -> Sampler:
    """The sampler of :meth:`ModelConfig.sampler_for`, at the model's own spacing of steps."""
    chosen = cast(SamplerName, config.sampler_for(num_inference_steps, name))
    fitted = [FittedStep(*row) for row in config.fitted_solver(num_inference_steps)] if chosen == "fitted" else ()
    return make_sampler(chosen, schedule, num_inference_steps, eta, final_step=config.final_step, fitted=fitted)


@dataclass(frozen=True)
class WindowInputs:
    """Conditions of a batch of windows, on the network's device; shapes as :meth:`NasdmModel.forward` takes them."""

    planes: Tensor  # (B, P, H, W)
    context: Tensor  # (B, 3, H, W) in [-1, 1], 0 where unknown
    known: Tensor  # (B, 1, H, W), bool or 0 and 1
    style: Tensor  # (B, 6) normalised


@torch.inference_mode()
def denoise(
    model: NasdmModel,
    schedule: NoiseSchedule,
    sampler: Sampler,
    inputs: WindowInputs,
    initial_noise: Tensor,
    step_noise: Callable[[int], Tensor] | None = None,
    guidance_scale: float = 1.0,
    before_step: Callable[[int], None] = lambda index: None,
) -> Tensor:
    """Paint a batch: return (B, 3, H, W) float32 in [-1, 1].

    ``initial_noise`` is (B, 3, H, W) float32; ``step_noise(i)`` gives the fresh noise of solver step i, for samplers
    that need it; ``before_step(i)`` may raise to end early. The network runs in the dtype of its own parameters,
    everything else in float32.
    """
    dtype = next(model.parameters()).dtype
    given = Conditions(*(part.to(dtype) for part in (inputs.planes, inputs.context, inputs.known, inputs.style)))
    is_known = inputs.known.bool()
    guided = is_guided(guidance_scale)
    branches = [ConditionedNetwork(model) for _ in range(1 + guided)]
    branches[0].begin(given)
    if guided:
        branches[1].begin(replace(given, planes=null_planes(given.planes)))

    prediction_type = cast(PredictionType, model.config.prediction)
    continuity = Continuity(is_known)
    x, state = initial_noise, sampler.init_state()
    for index, timestep in enumerate(sampler.timesteps):
        before_step(index)
        noisy = x.to(dtype).contiguous(memory_format=torch.channels_last)
        outputs = [branch(noisy, timestep) for branch in branches]
        prediction, raw_variance = _split_variance(outputs[0])
        if guided:
            null = _split_variance(outputs[1])[0]
            prediction = guide(prediction.float(), null.float(), guidance_scale)
        noise = step_noise(index) if step_noise is not None and sampler.steps[index].noise > 0 else None
        if raw_variance is None and fused_step.serves(x):
            x, state = fused_step.step(
                sampler, index, prediction_type, schedule, prediction, x, inputs.context, continuity, noise, state
            )
            continue
        t = torch.full((len(x),), timestep, device=x.device)
        x0 = to_x0(prediction_type, prediction.float(), x, t, schedule).clamp(-1, 1)
        x0 = continuity.correct(x0, inputs.context)
        x0 = torch.where(is_known, inputs.context, x0.clamp(-1, 1))
        log_variance = None if raw_variance is None else sampler.log_variance(index, raw_variance.float())
        x, state = sampler.step(index, x, x0, noise, state, log_variance)
    return x


def _split_variance(output: Tensor) -> tuple[Tensor, Tensor | None]:
    """Separate the mean's three channels from the learned variance's, where there are any."""
    return (output[:, :3], output[:, 3:]) if output.shape[1] == 6 else (output, None)
