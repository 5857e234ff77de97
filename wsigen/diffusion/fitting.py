"""A solver fitted to a painter: the few numbers of a few steps, chosen so that they lead where many steps lead.

A solver of few steps assumes that the data prediction changes between them as a polynomial does. It does not: a few
steps of UniPC paint with too little contrast. But how it changes for *this* network can be measured. Noise and
training masks are followed in many steps, and each of the few steps

    x_next = a x + b x_0 + c x_0'

takes the a, b and c that lead nearest to where the many are by then: a least-squares problem of three unknowns, solved
step by step along the fitted solver's own way, so that each step mends what those before it did. The last one gives
``x_0 + w (x_0 - x_0')``. It is the idea of bespoke solvers (Shaul et al. 2024, arXiv 2403.01329) with the simplest of
all ways to find one: minutes on a CPU, and the network stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wsigen.diffusion.plans import FittedStep
from wsigen.diffusion.samplers import Sampler, make_sampler
from wsigen.diffusion.schedules import NoiseSchedule

REFERENCE_STEPS = 24  # at least; their number is a multiple of the fitted ones'
Data = Callable[[Tensor, float], Tensor]  # the data prediction of (x, timestep), (B, 3, H, W) float32


@torch.inference_mode()
def fit(
    predict: Data, schedule: NoiseSchedule, timesteps: Sequence[float], noise: Tensor, known: Tensor
) -> tuple[list[FittedStep], float, float]:
    """Coefficients at falling ``timesteps``, and the squared errors of UniPC and of the fit at what many steps paint.

    ``noise`` (B, 3, H, W) float32 is where painting starts; ``known`` (B, 1, H, W) bool are pixels that do not count.
    Errors are means over the others, in [-1, 1].
    """
    counts = ~known.expand_as(noise)
    between = -(-REFERENCE_STEPS // len(timesteps))
    path = [
        start + (end - start) * k / between
        for start, end in zip(timesteps, (*timesteps[1:], 0.0), strict=True)
        for k in range(between)
    ]
    way = follow(make_sampler("unipc", schedule, len(path), timesteps=path), predict, noise)
    targets = way[between::between]
    x, before = noise, torch.zeros_like(noise)
    plan = []
    for index, (timestep, target) in enumerate(zip(timesteps, targets, strict=True)):
        now = predict(x, timestep)
        if index == len(timesteps) - 1:
            share = float(_nearest([now - before], target - before, counts)[0])
            plan.append(FittedStep(0.0, share, 1 - share))
        else:
            terms = [x, now] if index == 0 else [x, now, before]
            plan.append(FittedStep(*(*_nearest(terms, target, counts).tolist(), 0.0)[:3]))
        step = plan[-1]
        x, before = step.x * x + step.x0 * now + step.x0_previous * before, now
    usual = follow(make_sampler("unipc", schedule, len(timesteps), timesteps=timesteps), predict, noise)[-1]
    errors = [float((found - targets[-1])[counts].square().mean()) for found in (usual, x)]
    return plan, errors[0], errors[1]


def follow(sampler: Sampler, predict: Data, x: Tensor) -> list[Tensor]:
    """``x`` before every step of a sampler, and what it paints."""
    state, way = sampler.init_state(), [x]
    for index, timestep in enumerate(sampler.timesteps):
        x, state = sampler.step(index, x, predict(x, timestep), None, state)
        way.append(x)
    return way


def _nearest(terms: list[Tensor], target: Tensor, counts: Tensor) -> Tensor:
    """Factors of ``terms`` whose sum is nearest to ``target`` where ``counts``, float64."""
    columns = torch.stack([term[counts].double() for term in terms], 1)
    return torch.linalg.lstsq(columns.T @ columns, columns.T @ target[counts].double()[:, None]).solution[:, 0]
