"""A solver fitted to a distribution whose exact denoiser is known paints it in fewer steps than one that is not."""

import pytest
import torch

from wsigen.diffusion.fitting import fit, follow
from wsigen.diffusion.plans import FittedStep
from wsigen.diffusion.samplers import make_sampler, spaced_timesteps
from wsigen.diffusion.schedules import NoiseSchedule
from wsigen.errors import SettingsError

SCHEDULE = NoiseSchedule.cosine()
NONE_KNOWN = torch.zeros(64, 1, 4, 4, dtype=torch.bool)


def exact(x, t):
    """The mean of x_0 given x where x_0 is -0.5 or 0.5, each as often."""
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    return 0.5 * torch.tanh(0.5 * alpha * x / sigma**2)


def noise(seed=0):
    return torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("steps", [2, 3, 4])
def test_the_fit_holds_for_other_noise(steps):
    timesteps = spaced_timesteps(SCHEDULE, steps, 0.4)
    plan, usual, fitted = fit(exact, SCHEDULE, timesteps, noise(), NONE_KNOWN)
    assert fitted < 0.75 * usual
    truth = follow(make_sampler("unipc", SCHEDULE, 100), exact, noise(1))[-1]
    errors = [
        float((follow(sampler, exact, noise(1))[-1] - truth).square().mean())
        for sampler in (
            make_sampler("unipc", SCHEDULE, steps, timesteps=timesteps),
            make_sampler("fitted", SCHEDULE, steps, timesteps=timesteps, fitted=plan),
        )
    ]
    assert errors[1] < 0.8 * errors[0]


def test_known_pixels_do_not_count_and_stay_as_they_are():
    known = NONE_KNOWN.clone()
    known[:, :, :2] = True

    def predict(x, t):
        return torch.where(known, 0.25, exact(x, t))

    timesteps = spaced_timesteps(SCHEDULE, 3, 0.4)
    plan, _, _ = fit(predict, SCHEDULE, timesteps, noise(), known)
    assert plan[-1].x == 0 and plan[-1].x0 + plan[-1].x0_previous == pytest.approx(1, abs=1e-12)
    painted = follow(make_sampler("fitted", SCHEDULE, 3, timesteps=timesteps, fitted=plan), predict, noise())[-1]
    assert painted[known.expand_as(painted)].sub(0.25).abs().max() < 1e-6
    elsewhere, _, _ = fit(exact, SCHEDULE, timesteps, noise()[:, :, 2:], known[:, :, 2:])
    assert torch.tensor(plan).sub(torch.tensor(elsewhere)).abs().max() < 1e-9


def test_coefficients_of_another_number_of_steps_are_refused():
    with pytest.raises(SettingsError, match="sampler fitted: 1 coefficients for 2 steps"):
        make_sampler("fitted", SCHEDULE, 2, fitted=[FittedStep(0.0, 1.0, 0.0)])
