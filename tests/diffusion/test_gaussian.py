"""Conversions undo the forward process; the posterior and the losses are those of the papers."""

import math

import pytest
import torch
from scipy.stats import norm

from wsigen.diffusion import gaussian
from wsigen.diffusion.schedules import NoiseSchedule
from wsigen.errors import SettingsError

SHAPE = (5, 3, 4, 4)
COSINE = NoiseSchedule.cosine()


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randint(0, 256, SHAPE, generator=generator) / 127.5 - 1
    return x0, torch.randn(SHAPE, generator=generator)


@pytest.mark.parametrize("t", [torch.tensor([0, 1, 300, 700, 900]), torch.tensor([0.0, 0.5, 300.25, 700.5, 900.0])])
@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_conversions_undo_the_forward_process(batch, kind, t):
    x0, noise = batch
    x = gaussian.q_sample(COSINE, x0, t, noise)
    perfect = gaussian.training_target(kind, COSINE, x0, t, noise)
    torch.testing.assert_close(gaussian.to_x0(kind, perfect, x, t, COSINE), x0, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gaussian.to_eps(kind, perfect, x, t, COSINE), noise, rtol=1e-4, atol=1e-4)


def test_half_precision_outputs_are_converted_in_float32(batch):
    x0, noise = batch
    t = torch.full((5,), 999)
    x = gaussian.q_sample(COSINE, x0, t, noise)
    answer = gaussian.to_x0("v", gaussian.v_target(COSINE, x0, t, noise).bfloat16(), x, t, COSINE)
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer, x0, rtol=0, atol=0.01)


def test_an_unknown_prediction_is_refused(batch):
    x0, noise = batch
    t = torch.zeros(5)
    with pytest.raises(SettingsError, match="choose eps, v or x0"):
        gaussian.to_x0("score", x0, noise, t, COSINE)


@pytest.mark.parametrize("schedule", [NoiseSchedule.linear(), COSINE], ids=lambda s: s.name)
def test_posterior_is_bayes_rule(batch, schedule):
    """q(x_{t-1} | x_t, x_0) is the product of N(x_{t-1}; alpha x_0, sigma²) and N(x_t; a x_{t-1}, beta)."""
    x0, x = batch
    t = torch.tensor([1, 2, 300, 700, 999])
    bar = schedule.alpha_bar[t][:, None, None, None]
    before = schedule.alpha_bar[t - 1][:, None, None, None]
    beta = 1 - bar / before
    precision = 1 / (1 - before) + (bar / before) / beta
    mean = (before.sqrt() * x0 / (1 - before) + (bar / before).sqrt() * x / beta) / precision
    torch.testing.assert_close(gaussian.posterior_mean(schedule, x0, x, t).double(), mean, rtol=1e-4, atol=1e-5)
    log_small = gaussian.fixed_small_log_variance(schedule, t).double()
    torch.testing.assert_close(log_small, -precision.flatten().log(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        gaussian.fixed_large_log_variance(schedule, t).exp().double(), beta.flatten(), rtol=1e-4, atol=0
    )


def test_learned_range_spans_small_to_large():
    raw = torch.tensor([-1.0, 0.0, 1.0])
    torch.testing.assert_close(gaussian.learned_range_log_variance(raw, -4.0, -2.0), torch.tensor([-4.0, -3.0, -2.0]))


def test_l_simple_is_per_sample(batch):
    x0, noise = batch
    loss = gaussian.l_simple(x0, noise)
    assert loss.shape == (5,)
    assert loss[3].item() == pytest.approx((x0[3] - noise[3]).square().mean().item(), rel=1e-6)


def test_normal_kl_agrees_with_torch():
    m1, m2, v1, v2 = torch.randn(4, 100, generator=torch.Generator().manual_seed(1))
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(m1, (v1 / 2).exp()), normal(m2, (v2 / 2).exp()))
    torch.testing.assert_close(gaussian.normal_kl(m1, v1, m2, v2), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mean, log_std", [(0.0, -1.0), (-1.0, -3.0), (0.995, -4.0), (0.3, -4.5)])
def test_the_256_bins_hold_all_mass_and_each_holds_its_own(mean, log_std):
    bins = torch.arange(256) / 127.5 - 1
    mass = gaussian.discretised_log_likelihood(bins, torch.tensor(mean), torch.tensor(log_std)).exp()
    edges = norm.cdf([(2 * k - 256) / 255 for k in range(1, 256)], mean, math.exp(log_std))
    expected = torch.tensor([edges[0], *(edges[1:] - edges[:-1]), 1 - edges[-1]])
    assert mass.sum().item() == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(mass.double(), expected, rtol=0, atol=1e-5)


def test_likelihood_far_from_the_mean_keeps_its_precision():
    low = gaussian.discretised_log_likelihood(torch.tensor(-0.6), torch.tensor(0.0), torch.tensor(math.log(0.1)))
    high = gaussian.discretised_log_likelihood(torch.tensor(0.6), torch.tensor(0.0), torch.tensor(math.log(0.1)))
    expected = math.log(norm.cdf(0.6 + 1 / 255, 0, 0.1) - norm.cdf(0.6 - 1 / 255, 0, 0.1))
    assert low.item() == pytest.approx(high.item(), rel=1e-5)
    assert high.item() == pytest.approx(expected, rel=1e-3)


def test_a_perfect_prediction_with_the_true_variance_has_no_divergence(batch):
    x0, noise = batch
    t = torch.tensor([1, 10, 300, 700, 999])
    x = gaussian.q_sample(COSINE, x0, t, noise)
    log_variance = gaussian.fixed_small_log_variance(COSINE, t)[:, None, None, None].expand(SHAPE)
    assert gaussian.variational_term(COSINE, x0, x, t, x0, log_variance).abs().max() < 1e-5


def test_hybrid_loss_trains_the_mean_by_l_simple_alone(batch):
    """The gradient to the output is that of L_simple; the variance channels get theirs from the bound."""
    x0, noise = batch
    t = torch.tensor([0, 1, 300, 700, 999])
    output, alone = (torch.zeros(SHAPE, requires_grad=True) for _ in range(2))
    raw = torch.zeros(SHAPE, requires_grad=True)
    loss = gaussian.hybrid_loss(COSINE, "v", output, raw, x0, t, noise)
    assert loss.shape == (5,) and torch.isfinite(loss).all()
    loss.sum().backward()
    gaussian.l_simple(alone, gaussian.v_target(COSINE, x0, t, noise)).sum().backward()
    assert torch.equal(output.grad, alone.grad)
    assert torch.isfinite(raw.grad).all() and (raw.grad.flatten(1).abs().sum(1) > 0).all()


def test_the_bound_takes_the_decoder_term_at_timestep_zero(batch):
    x0, noise = batch
    t = torch.zeros(5, dtype=torch.long)
    x = gaussian.q_sample(COSINE, x0, t, noise)
    log_variance = torch.full(SHAPE, -6.0)
    expected = -gaussian.discretised_log_likelihood(x0, x0, log_variance / 2).flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(gaussian.variational_term(COSINE, x0, x, t, x0, log_variance), expected)
