"""The Gaussian diffusion process: forward samples, what a network predicts, the posterior, and the training losses.

Images are (B, C, H, W) float32 in [-1, 1]; ``t`` is a (B,) tensor of timesteps in [0, T - 1]. The forward process and
the conversions take any real timestep (int64 or floating); the posterior, and with it the variational bound, belongs
to the discrete chain and takes whole numbers, of either type. All arithmetic is float32, whatever the network's dtype.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from wsigen.diffusion.schedules import NoiseSchedule
from wsigen.errors import SettingsError

PredictionType = Literal["eps", "v", "x0"]


def q_sample(schedule: NoiseSchedule, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """``x_t = alpha_t x_0 + sigma_t eps`` (Ho et al. 2020, eq. 4)."""
    alpha, sigma = _levels(schedule, t, x0)
    return alpha * x0 + sigma * noise


def v_target(schedule: NoiseSchedule, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """``v = alpha_t eps - sigma_t x_0`` (Salimans & Ho 2022, appendix D)."""
    alpha, sigma = _levels(schedule, t, x0)
    return alpha * noise - sigma * x0


def training_target(
    prediction_type: PredictionType, schedule: NoiseSchedule, x0: Tensor, t: Tensor, noise: Tensor
) -> Tensor:
    """What a network of that prediction type should answer at ``q_sample(schedule, x0, t, noise)``."""
    if prediction_type == "eps":
        return noise
    if prediction_type == "x0":
        return x0
    if prediction_type == "v":
        return v_target(schedule, x0, t, noise)
    raise _unknown(prediction_type)


def to_x0(prediction_type: PredictionType, output: Tensor, x: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Data prediction (float32, not clamped) from a network's output at ``x`` = x_t.

    eps: ``x_0 = (x_t - sigma_t eps) / alpha_t`` (Ho et al. 2020, eq. 15);
    v:   ``x_0 = alpha_t x_t - sigma_t v`` (Salimans & Ho 2022, appendix D).
    """
    if prediction_type == "x0":
        return output.float()
    alpha, sigma = _levels(schedule, t, x)
    if prediction_type == "eps":
        return (x.float() - sigma * output.float()) / alpha
    if prediction_type == "v":
        return alpha * x.float() - sigma * output.float()
    raise _unknown(prediction_type)


def to_eps(prediction_type: PredictionType, output: Tensor, x: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Noise prediction (float32) from a network's output at ``x`` = x_t.

    x0: ``eps = (x_t - alpha_t x_0) / sigma_t`` (Ho et al. 2020, eq. 4 solved for eps);
    v:  ``eps = sigma_t x_t + alpha_t v`` (Salimans & Ho 2022, appendix D).
    """
    if prediction_type == "eps":
        return output.float()
    alpha, sigma = _levels(schedule, t, x)
    if prediction_type == "x0":
        return (x.float() - alpha * output.float()) / sigma
    if prediction_type == "v":
        return sigma * x.float() + alpha * output.float()
    raise _unknown(prediction_type)


def posterior_mean(schedule: NoiseSchedule, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Mean of ``q(x_{t-1} | x_t, x_0)`` (Ho et al. 2020, eq. 7); whole t; at t = 0 it is x_0."""
    return _at("posterior_x0", schedule, t, x) * x0 + _at("posterior_xt", schedule, t, x) * x


def fixed_small_log_variance(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """Log of ``beta~_t``, the posterior's variance (Ho et al. 2020, eq. 7): (B,). At t = 0 the value of t = 1."""
    return schedule.table("log_posterior_variance", t.device)[t.round().long()]


def fixed_large_log_variance(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """Log of ``beta_t``, the forward variance (Ho et al. 2020, section 3.2): (B,)."""
    return schedule.table("log_beta", t.device)[t.round().long()]


def learned_range_log_variance(raw: Tensor, log_small: Tensor | float, log_large: Tensor | float) -> Tensor:
    """``log Sigma = v log beta + (1 - v) log beta~`` with ``v = (raw + 1) / 2`` (Nichol & Dhariwal 2021, eq. 15).

    ``raw`` are the network's variance channels, (B, C, H, W), nominally in [-1, 1].
    """
    v = (raw.float() + 1) / 2
    return v * log_large + (1 - v) * log_small


def l_simple(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample: (B,) (Ho et al. 2020, eq. 14; the target may be eps, v or x_0)."""
    return (output.float() - target.float()).square().flatten(1).mean(1)


def variational_term(
    schedule: NoiseSchedule, x0: Tensor, x: Tensor, t: Tensor, predicted_x0: Tensor, log_variance: Tensor
) -> Tensor:
    """One term of the variational bound for each sample, in bits per dimension: (B,).

    ``L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))`` and, at t = 0, ``L_0 = -log p(x_0 | x_1)`` (Nichol &
    Dhariwal 2021, eqs. 4-6, which count the timesteps from 1).
    """
    mean = posterior_mean(schedule, predicted_x0, x, t)
    true_mean = posterior_mean(schedule, x0, x, t)
    true_log_variance = _broadcast(fixed_small_log_variance(schedule, t), x)
    divergence = normal_kl(true_mean, true_log_variance, mean, log_variance).flatten(1).mean(1)
    decoder_nll = -discretised_log_likelihood(x0, mean, 0.5 * log_variance).flatten(1).mean(1)
    return torch.where(t.round() == 0, decoder_nll, divergence) / math.log(2)


def hybrid_loss(
    schedule: NoiseSchedule,
    prediction_type: PredictionType,
    output: Tensor,
    raw_variance: Tensor,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
) -> Tensor:
    """``L_simple + 0.001 L_vlb`` for each sample: (B,) (Nichol & Dhariwal 2021, eq. 16).

    ``L_vlb`` sums T terms, of which one was drawn: the weight of that one is T / 1000. The bound trains the variance
    alone: the mean enters it detached (section 3.1). ``output`` and ``raw_variance`` are the two halves of the
    network's channels at ``q_sample(schedule, x0, t, noise)``; t holds whole numbers.
    """
    x = q_sample(schedule, x0, t, noise)
    log_small = _broadcast(fixed_small_log_variance(schedule, t), x)
    log_large = _broadcast(fixed_large_log_variance(schedule, t), x)
    log_variance = learned_range_log_variance(raw_variance, log_small, log_large)
    predicted_x0 = to_x0(prediction_type, output.detach(), x, t, schedule)
    bound = variational_term(schedule, x0, x, t, predicted_x0, log_variance)
    simple = l_simple(output, training_target(prediction_type, schedule, x0, t, noise))
    return simple + schedule.T / 1000 * bound


def normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """``KL(N(mean1, exp(log_variance1)) || N(mean2, exp(log_variance2)))`` in nats, elementwise."""
    ratio = log_variance1 - log_variance2
    return 0.5 * (ratio.exp() - 1 - ratio + (mean1 - mean2).square() * torch.exp(-log_variance2))


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log mass that ``N(mean, exp(log_std)²)`` puts on the 8-bit value of x (Ho et al. 2020, eq. 13), elementwise.

    ``x`` is 8-bit data scaled to [-1, 1]: bins are 2 / 255 wide; the first and the last reach to infinity. The mass is
    taken on the side of the mean where the two cumulative values are small, so that it does not cancel in the tail,
    and is held above 1e-12.
    """
    half_bin = 1 / 255
    precision = torch.exp(-log_std)
    centred = x - mean
    sign = torch.where(centred > 0, -1.0, 1.0)
    inner, outer = sign * centred + half_bin, sign * centred - half_bin
    low_tail, high_tail = x < -0.999, x > 0.999
    upper_open = torch.where(sign > 0, high_tail, low_tail)
    lower_open = torch.where(sign > 0, low_tail, high_tail)
    upper = _normal_cdf(inner * precision).masked_fill(upper_open, 1.0)
    lower = _normal_cdf(outer * precision).masked_fill(lower_open, 0.0)
    return (upper - lower).clamp(min=1e-12).log()


def _normal_cdf(z: Tensor) -> Tensor:
    return 0.5 * torch.special.erfc(z * -math.sqrt(0.5))  # torch.special.ndtr cancels in the lower tail


def _levels(schedule: NoiseSchedule, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    snr = schedule.log_snr(t)
    return _broadcast(torch.sigmoid(snr).sqrt(), like), _broadcast(torch.sigmoid(-snr).sqrt(), like)


def _at(name: str, schedule: NoiseSchedule, t: Tensor, like: Tensor) -> Tensor:
    return _broadcast(schedule.table(name, t.device)[t.round().long()], like)


def _broadcast(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _unknown(prediction_type: str) -> SettingsError:
    return SettingsError(f"prediction type {prediction_type!r}: unknown; choose eps, v or x0")
