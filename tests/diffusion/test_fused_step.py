"""A solver's step as one kernel against the same step in torch."""

import importlib.util

import pytest
import torch

from wsigen.diffusion import fused_step
from wsigen.diffusion.continuity import Continuity
from wsigen.diffusion.gaussian import to_x0
from wsigen.diffusion.plans import FittedStep
from wsigen.diffusion.samplers import make_sampler
from wsigen.diffusion.schedules import NoiseSchedule

FITTED = [FittedStep(0.9, 0.4, 0.0), *[FittedStep(0.6, 1.1, -0.6)] * 3, FittedStep(0.0, 1.4, -0.4)]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@pytest.fixture(autouse=True)
def on_triton(monkeypatch):
    monkeypatch.setattr("wsigen_kernels.norm.BACKEND", "triton")
    monkeypatch.setattr("wsigen_kernels.norm.ANY_DEVICE", True)


def randn(seed, layout=torch.contiguous_format):
    values = torch.randn(2, 3, 12, 20, generator=torch.Generator().manual_seed(seed))
    return values.to(DEVICE).contiguous(memory_format=layout)


SOLVERS = ("dpm++2m", "unipc", "fitted", "ddim", "ddpm")
QUICK = [("unipc", "eps"), ("ddpm", "x0")]  # beside every solver with v


@pytest.mark.parametrize(
    ("name", "prediction_type"),
    [
        pytest.param(solver, kind, marks=() if kind == "v" or (solver, kind) in QUICK else pytest.mark.exhaustive)
        for solver in SOLVERS
        for kind in ("v", "eps", "x0")
    ],
)
def test_whole_runs_agree_with_torch(name, prediction_type):
    """Within 2e-5: a GPU fuses a multiplication with an addition, and float64 coefficients are rounded once."""
    schedule = NoiseSchedule.cosine()
    sampler = make_sampler(name, schedule, 5, fitted=FITTED)
    context = randn(1, torch.channels_last).clamp(-1, 1)
    known = randn(2)[:, :1] > 1.5  # few enough that some pixels lie beyond the last ring
    continuity = Continuity(known)
    assert set(continuity.distance.unique().tolist()) == {0, 1, 2, 3, 255}
    x = y = randn(3)
    states = [sampler.init_state()] * 2
    for index, timestep in enumerate(sampler.timesteps):
        output, noise = randn(10 + index, torch.channels_last), randn(20 + index)
        t = torch.full((2,), timestep, device=DEVICE)
        x0 = continuity.correct(to_x0(prediction_type, output, x, t, schedule).clamp(-1, 1), context)
        x0 = torch.where(known, context, x0.clamp(-1, 1))
        x, states[0] = sampler.step(index, x, x0, noise, states[0])
        assert fused_step.serves(y)
        y, states[1] = fused_step.step(
            sampler, index, prediction_type, schedule, output, y, context, continuity, noise, states[1]
        )
        tolerance = 2e-5 * max(1.0, x.abs().max().item())
        torch.testing.assert_close(y, x, rtol=0, atol=tolerance)
        y = x  # each step from the same place: what a step does to an error is the schedule's doing
    rounding = 1e-6 if name == "fitted" else 0.0  # 1.4 of what is known less 0.4 of it
    torch.testing.assert_close(y[known.expand_as(y)], context[known.expand_as(y)], rtol=0, atol=rounding)


def test_missing_noise_is_refused():
    schedule = NoiseSchedule.cosine()
    sampler = make_sampler("ddpm", schedule, 3)
    x, continuity = randn(0), Continuity(torch.zeros(2, 1, 12, 20, dtype=torch.bool, device=DEVICE))
    with pytest.raises(ValueError, match="step 0 needs noise"):
        fused_step.step(sampler, 0, "v", schedule, x, x, x, continuity, None, sampler.init_state())
