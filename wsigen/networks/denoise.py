"""The denoising loop: one batch of windows from noise to pixels.

At every step the network's output becomes a prediction of the clean image, which is clamped and overwritten where
pixels are known, and only then does the solver move. What is known therefore stays exactly as it is, and the rest
grows around it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from wsigen.conditions.contract import ConditionBatch
from wsigen.diffusion import fused_step
from wsigen.diffusion.continuity import Continuity
from wsigen.diffusion.gaussian import PredictionType, to_x0
from wsigen.diffusion.guidance import Guidance
from wsigen.diffusion.plans import FITTED, FittedStep
from wsigen.diffusion.samplers import Sampler, make_sampler
from wsigen.diffusion.schedules import NoiseSchedule
from wsigen.models.config import ModelConfig
from wsigen.networks.denoiser import Denoiser
from wsigen.networks.guided import GuidedNetwork


def model_sampler(config: ModelConfig, schedule: NoiseSchedule, num_inference_steps: int, name: str = "") -> Sampler:
    """The sampler of ``ModelConfig.sampler_for``, at the model's own spacing of steps."""
    chosen = config.sampler_for(num_inference_steps, name)
    fitted = [FittedStep(*row) for row in config.fitted_solver(num_inference_steps)] if chosen == FITTED else ()
    return make_sampler(chosen, schedule, num_inference_steps, final_step=config.final_step, fitted=fitted)


@torch.inference_mode()
def denoise(
    model: Denoiser,
    schedule: NoiseSchedule,
    sampler: Sampler,
    conditions: ConditionBatch,
    initial_noise: Tensor,
    step_noise: Callable[[int], Tensor] | None = None,
    guidance: Guidance | None = None,
    before_step: Callable[[int], None] = lambda index: None,
) -> Tensor:
    """Paint a batch: return (B, 3, H, W) float32 in [-1, 1].

    ``initial_noise`` is (B, 3, H, W) float32; ``step_noise(i)`` gives the fresh noise of solver step i, for samplers
    that need it; ``before_step(i)`` may raise to end early. The network runs in the dtype of its own parameters,
    everything else in float32. ``guidance`` None is the model's own.
    """
    is_known = conditions.known.bool()
    network = GuidedNetwork(model, conditions, guidance)
    prediction_type = cast(PredictionType, model.config.prediction)
    continuity = Continuity(is_known)
    x, state = initial_noise, sampler.init_state()
    for index, timestep in enumerate(sampler.timesteps):
        before_step(index)
        prediction, raw_variance = network(x, timestep)
        noise = step_noise(index) if step_noise is not None and sampler.steps[index].noise > 0 else None
        if raw_variance is None and fused_step.serves(x):
            x, state = fused_step.step(
                sampler, index, prediction_type, schedule, prediction, x, conditions.context, continuity, noise, state
            )
            continue
        t = torch.full((len(x),), timestep, device=x.device)
        x0 = to_x0(prediction_type, prediction.float(), x, t, schedule).clamp(-1, 1)
        x0 = continuity.correct(x0, conditions.context)
        x0 = torch.where(is_known, conditions.context, x0.clamp(-1, 1))
        log_variance = None if raw_variance is None else sampler.log_variance(index, raw_variance.float())
        x, state = sampler.step(index, x, x0, noise, state, log_variance)
    return x
