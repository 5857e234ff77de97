"""A noise schedule is the published one, answers any real timestep, and keeps its precision at both ends."""

import pickle

import pytest
import torch
from diffusers import DDPMScheduler

from wsigen.diffusion.schedules import NoiseSchedule
from wsigen.errors import SettingsError

DIFFUSERS_NAMES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


@pytest.fixture(params=["linear", "cosine"])
def schedule(request) -> NoiseSchedule:
    return NoiseSchedule.from_name(request.param)


def test_is_the_published_schedule(schedule):
    published = DDPMScheduler(1000, beta_schedule=DIFFUSERS_NAMES[schedule.name]).alphas_cumprod
    torch.testing.assert_close(schedule.alpha_bar, published.double(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_ends_in_noise_whatever_the_number_of_steps(name):
    assert NoiseSchedule.from_name(name, 100).alpha(99) < 0.01


def test_whole_timesteps_read_the_table_exactly(schedule):
    t = torch.arange(schedule.T)
    for instant in (t, t.float()):
        torch.testing.assert_close(schedule.alpha(instant).double() ** 2, schedule.alpha_bar, rtol=2e-6, atol=0)
        torch.testing.assert_close(schedule.sigma(instant).double() ** 2, 1 - schedule.alpha_bar, rtol=2e-6, atol=0)
    assert schedule.alpha(700) ** 2 == pytest.approx(schedule.alpha_bar[700].item(), rel=1e-12)
    assert schedule.sigma(999) ** 2 == pytest.approx(1 - schedule.alpha_bar[999].item(), rel=1e-12)


def test_between_timesteps_the_log_snr_is_linear(schedule):
    a, b = schedule.log_snr(500), schedule.log_snr(501)
    assert schedule.log_snr(500.25) == pytest.approx(0.75 * a + 0.25 * b, rel=1e-12)
    from_tensor = schedule.log_snr(torch.tensor([500.25, 0.0, 999.0]))
    expected = torch.tensor([schedule.log_snr(500.25), schedule.log_snr(0), schedule.log_snr(999)])
    torch.testing.assert_close(from_tensor, expected, rtol=1e-5, atol=1e-6)


def test_timestep_inverts_log_snr(schedule):
    for t in (0.0, 0.5, 123.4, 998.9, 999.0):
        assert schedule.timestep(schedule.log_snr(t)) == pytest.approx(t, abs=1e-8)
    assert schedule.timestep(1000.0) == 0
    assert schedule.timestep(-1000.0) == schedule.T - 1


def test_a_number_outside_is_refused_and_a_tensor_is_clamped(schedule):
    with pytest.raises(ValueError, match="lies outside"):
        schedule.alpha(999.5)
    assert schedule.alpha(torch.tensor([1e6])) == schedule.alpha(torch.tensor([999]))


def test_pickles_without_its_caches(schedule):
    schedule.log_snr(torch.tensor([3]))
    copy = pickle.loads(pickle.dumps(schedule))
    assert torch.equal(copy.alpha_bar, schedule.alpha_bar) and not copy._tables


@pytest.mark.parametrize(
    "make",
    [
        lambda: NoiseSchedule.from_name("sigmoid"),
        lambda: NoiseSchedule.from_name("linear", 1),
        lambda: NoiseSchedule("rising", torch.tensor([0.1, 0.9], dtype=torch.float64)),
        lambda: NoiseSchedule("float", torch.tensor([0.9, 0.1])),
    ],
)
def test_what_is_no_schedule_is_refused(make):
    with pytest.raises(SettingsError):
        make()


def test_the_coarse_schedule_is_the_cosine_of_means_over_patches():
    """Averaging 4 x 4 px of noise divides its variance by 16 and leaves what is smooth as it is."""
    cosine, coarse = NoiseSchedule.cosine(), NoiseSchedule.from_name("cosine-coarse")
    for t in (0.0, 250.5, 700.0, 999.0):
        ratio = (coarse.alpha(t) / coarse.sigma(t)) ** 2 * 16
        assert ratio == pytest.approx((cosine.alpha(t) / cosine.sigma(t)) ** 2, rel=1e-6)
