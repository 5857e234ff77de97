"""A solver's step in Triton, where it serves the device: prediction to data, continuity, known pixels, update.

The arithmetic is that of ``wsigen.diffusion.samplers.Sampler.step`` up to rounding: a GPU fuses multiplications
with additions. Steps with a learned variance take torch's way.
"""

from __future__ import annotations

from torch import Tensor
from wsigen_kernels import norm as kernels

from wsigen.diffusion.continuity import DIAGONAL, Continuity
from wsigen.diffusion.gaussian import PredictionType
from wsigen.diffusion.samplers import Sampler, SamplerState
from wsigen.diffusion.schedules import NoiseSchedule


def serves(x: Tensor) -> bool:
    """Whether ``x`` lies where the kernel runs."""
    return kernels.BACKEND == "triton" and kernels.served(x)


def step(
    sampler: Sampler,
    index: int,
    prediction_type: PredictionType,
    schedule: NoiseSchedule,
    prediction: Tensor,
    x: Tensor,
    context: Tensor,
    continuity: Continuity,
    noise: Tensor | None,
    state: SamplerState,
) -> tuple[Tensor, SamplerState]:
    """From x at ``timesteps[index]`` to the next; arguments as in the loop of wsigen.networks.denoise.

    ``prediction`` (B, 3, H, W) of any float type; the other tensors float32.
    """
    from wsigen_kernels.solver_triton import Update
    from wsigen_kernels.solver_triton import step as kernel

    now, last = sampler.steps[index], index == len(sampler.steps) - 1
    p, q = _to_data(prediction_type, schedule, now.timestep)
    if now.noise > 0 and noise is None and not last:
        raise ValueError(f"sampler {sampler.name}: step {index} needs noise")
    by = now.corrector
    corrector = None if by is None else (by.x_before, by.x0, by.x0_previous, by.x0_older)
    update = Update(p, q, now.x, now.x0, now.x0_previous, now.noise, corrector)
    rings = (continuity.distance, continuity.ring_gains, DIAGONAL)
    following, data, taken = kernel(
        prediction, x, context, rings, update, state.x0_previous, noise, state.x_before, state.x0_older
    )
    return following, state if last else sampler.carry(state, taken, data)


def _to_data(prediction_type: PredictionType, schedule: NoiseSchedule, timestep: float) -> tuple[float, float]:
    """p and q of ``x_0 = p x + q output``: see ``wsigen.diffusion.gaussian.to_x0``."""
    alpha, sigma = schedule.alpha(timestep), schedule.sigma(timestep)
    return {"v": (alpha, -sigma), "eps": (1 / alpha, -sigma / alpha), "x0": (0.0, 1.0)}[prediction_type]
