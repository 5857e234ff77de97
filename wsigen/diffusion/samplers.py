"""Samplers: from noise to an image in a few denoising steps.

Every sampler takes *data* predictions, so that the caller may clamp x_0 and copy known pixels into it before the
update. An update is then a sum of images, each with a scalar coefficient:

    x_next = a x + b x_0 + c x_0' + d noise          (x_0' = the data prediction of the step before)

UniPC first replaces x by a sum of the same kind; the coefficients of "fitted" are not worked out but measured, see
``wsigen.diffusion.fitting``. All coefficients are worked out once, in float64, into one frozen
StepCoefficients per step: the update is elementwise, a pixel's value does not depend on the batch it is in, and a fused
kernel can do the same arithmetic from the same numbers.

With lambda = log(alpha / sigma), half the log-SNR. The last step goes to sigma = 0 and returns x_0; a fitted one may go
on a little beyond it, away from x_0'.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from wsigen.choices import SAMPLERS, SamplerName
from wsigen.diffusion.gaussian import learned_range_log_variance
from wsigen.diffusion.schedules import NoiseSchedule
from wsigen.errors import SettingsError

Spacing = Literal["trailing", "leading", "linspace", "log_snr"]


@dataclass(frozen=True)
class CorrectorCoefficients:
    """The corrector of UniPC: ``x = x_before x' + x0 x_0 + x0_previous x_0' + x0_older x_0''``.

    Attributes:
        x_before: coefficient of x', the corrected sample of the step before.
        x0: coefficient of the data prediction of this step.
        x0_previous: coefficient of the data prediction one step before.
        x0_older: coefficient of the data prediction two steps before.
    """

    x_before: float
    x0: float
    x0_previous: float
    x0_older: float = 0.0


@dataclass(frozen=True)
class StepCoefficients:
    """The coefficients of one solver step, in float64.

    Attributes:
        timestep: where the model is called, in [0, T - 1].
        x: coefficient of the current sample, after the corrector if there is one.
        x0: coefficient of this step's data prediction.
        x0_previous: coefficient of the data prediction one step before.
        noise: standard deviation of fresh noise.
        corrector: coefficients of the corrector, or None.
        log_variance_range: for "ddpm": log of the smallest and of the largest variance of the step, else None.
    """

    timestep: float
    x: float
    x0: float
    x0_previous: float = 0.0
    noise: float = 0.0
    corrector: CorrectorCoefficients | None = None
    log_variance_range: tuple[float, float] | None = None


class FittedStep(NamedTuple):
    """Measured coefficients of a step: see StepCoefficients. In the last step x is 0, and the others sum up to 1."""

    x: float
    x0: float
    x0_previous: float


@dataclass(frozen=True)
class SamplerState:
    """Earlier tensors that a multistep solver needs, in the shape of the sample; None before the first step."""

    x0_previous: Tensor | None = None
    x0_older: Tensor | None = None
    x_before: Tensor | None = None


@dataclass(frozen=True)
class Sampler:
    """A sampler with all its coefficients; holds no tensors, and may be shared between threads and processes."""

    name: SamplerName
    steps: tuple[StepCoefficients, ...]

    @property
    def timesteps(self) -> tuple[float, ...]:
        """Timesteps at which the model is called: one for each step, falling, in [0, T - 1]."""
        return tuple(step.timestep for step in self.steps)

    @property
    def needs_noise(self) -> bool:
        """Whether any step, except the last, draws fresh noise."""
        return any(step.noise > 0 for step in self.steps)

    def init_state(self) -> SamplerState:
        """State before the first step."""
        return SamplerState()

    def log_variance(self, i: int, raw: Tensor) -> Tensor | None:
        """Log variance of step i, (B, C, H, W), from the network's learned-range channels (Nichol & Dhariwal eq. 15).

        None in the last step, and for every sampler other than "ddpm".
        """
        bounds = self.steps[i].log_variance_range
        return None if bounds is None else learned_range_log_variance(raw, *bounds)

    def step(
        self,
        i: int,
        x: Tensor,
        x0: Tensor,
        noise: Tensor | None,
        state: SamplerState,
        log_variance: Tensor | None = None,
    ) -> tuple[Tensor, SamplerState]:
        """Go from ``timesteps[i]`` to the next timestep. Return the new sample and the new state.

        The last step returns ``x0``, or for "fitted" a point a little beyond it.

        Args:
            i: index of the step.
            x: the sample, (B, C, H, W) float32.
            x0: the data prediction at ``x``, same shape and dtype.
            noise: standard normal noise, same shape and dtype; used if ``needs_noise``, not in the last step.
            state: the state after the step before, at first `init_state`.
            log_variance: in place of the fixed small variance of "ddpm", same shape.

        Raises:
            ValueError: the step needs noise and there is none.
        """
        now = self.steps[i]
        if i == len(self.steps) - 1:
            return (x0 if now.x0_previous == 0 else now.x0 * x0 + now.x0_previous * _of(state)), state
        if now.corrector is not None:
            x = _correct(now.corrector, x0, state)
        x_next = now.x * x + now.x0 * x0
        if now.x0_previous != 0:
            x_next = x_next + now.x0_previous * _of(state)
        if now.noise > 0:
            if noise is None:
                raise ValueError(f"sampler {self.name}: step {i} needs noise")
            x_next = x_next + (now.noise if log_variance is None else torch.exp(0.5 * log_variance)) * noise
        return x_next, self.carry(state, x, x0)

    def carry(self, state: SamplerState, x: Tensor, x0: Tensor) -> SamplerState:
        """State after a step from ``x`` (corrected, where there is a corrector) with the data prediction ``x0``."""
        if self.name in ("dpm++2m", "fitted"):
            return SamplerState(x0_previous=x0)
        if self.name == "unipc":
            return SamplerState(x0_previous=x0, x0_older=state.x0_previous, x_before=x)
        return state


def make_sampler(
    name: SamplerName,
    schedule: NoiseSchedule,
    num_inference_steps: int,
    eta: float = 0.0,
    spacing: Spacing = "trailing",
    timesteps: Sequence[float] | None = None,
    final_step: float = 1.0,
    fitted: Sequence[FittedStep] = (),
) -> Sampler:
    """Make a sampler: work out the coefficients of all its steps.

    Args:
        name: one of `wsigen.choices.SAMPLERS`.
        schedule: the noise schedule, of T timesteps.
        num_inference_steps: number of steps, 1 to T.
        eta: share of fresh noise of "ddim" (Song et al. 2021): 0 is deterministic, 1 adds as much as "ddpm".
        spacing: how timesteps are spaced, see `spaced_timesteps`.
        timesteps: strictly falling real numbers in [0, T - 1], one for each step, in place of ``spacing``.
        final_step: length of the last step, see `spaced_timesteps`.
        fitted: coefficients of "fitted", one entry for each step.

    Raises:
        SettingsError: a value is unknown or outside of its range.
    """
    if name not in SAMPLERS:
        raise SettingsError(f"sampler {name!r}: unknown; choose one of {', '.join(SAMPLERS)}")
    if not 0 <= eta <= 1 or (eta > 0 and name != "ddim"):
        raise SettingsError(f"eta {eta}: must lie in [0, 1], and be 0 for every sampler but ddim (here: {name})")
    if timesteps is None:
        timesteps = spaced_timesteps(schedule, num_inference_steps, spacing, final_step)
    chosen = tuple(timesteps)
    falling = all(later < earlier for earlier, later in pairwise(chosen))
    if len(chosen) != num_inference_steps or not falling or not 0 <= chosen[-1] <= chosen[0] <= schedule.T - 1:
        raise SettingsError(f"timesteps: need {num_inference_steps}, strictly falling within [0, {schedule.T - 1}]")
    if name == "fitted":
        if len(fitted) != num_inference_steps:
            raise SettingsError(f"sampler fitted: {len(fitted)} coefficients for {num_inference_steps} steps")
        return Sampler(name, tuple(StepCoefficients(t, *step) for t, step in zip(chosen, fitted, strict=True)))
    knots = [_Knot.at(schedule, t) for t in chosen]
    last = StepCoefficients(timestep=chosen[-1], x=0.0, x0=1.0)
    return Sampler(name, (*_PLANS[name](knots, eta), last))


def spaced_timesteps(
    schedule: NoiseSchedule, num_inference_steps: int, spacing: Spacing, final_step: float = 1.0
) -> tuple[float, ...]:
    """Timesteps for so many steps, falling. The first three are whole numbers (Lin et al. 2024, table 2).

    trailing: from T - 1 down, evenly; the last is T / steps - 1. linspace: T - 1 to 0, both included.
    leading: from 0 up, evenly; T - 1 is not among them. log_snr: T - 1 to 0, evenly in log-SNR (Lu et al. 2022).

    ``final_step`` in (0, 1] is the length of the last step, the one to clean data, in lengths of the others. Trailing
    timesteps alone can have a shorter one, and are real numbers then. What noise still hides at the last timestep is
    averaged away, so that a few even steps paint too smoothly: the least level of noise is a choice of its own, as in
    Karras et al. 2022, table 1.
    """
    T, n = schedule.T, num_inference_steps
    if not 1 <= n <= T:
        raise SettingsError(f"steps {n}: must lie in [1, {T}]")
    if not 0 < final_step <= 1 or (final_step < 1 and spacing != "trailing"):
        raise SettingsError(f"final_step {final_step}: must lie in (0, 1], and be 1 unless the spacing is trailing")
    if n == 1 and spacing != "leading":
        return (float(T - 1),)
    if final_step < 1:
        return tuple((T - 1) * (1 - k / (n - 1 + final_step)) for k in range(n))
    if spacing == "trailing":
        return tuple(float(round(T - k * T / n) - 1) for k in range(n))
    if spacing == "leading":
        return tuple(float((n - 1 - k) * (T // n)) for k in range(n))
    if spacing == "linspace":
        return tuple(float(round((T - 1) * (n - 1 - k) / (n - 1))) for k in range(n))
    if spacing == "log_snr":
        low, high = schedule.log_snr(T - 1), schedule.log_snr(0)
        inner = tuple(schedule.timestep(low + (high - low) * k / (n - 1)) for k in range(1, n - 1))
        return (float(T - 1), *inner, 0.0)
    raise SettingsError(f"spacing {spacing!r}: unknown; choose trailing, leading, linspace or log_snr")


@dataclass(frozen=True)
class _Knot:
    """One timestep of the respaced chain."""

    t: float
    alpha: float
    sigma: float
    half_log_snr: float

    @staticmethod
    def at(schedule: NoiseSchedule, t: float) -> "_Knot":
        return _Knot(float(t), schedule.alpha(t), schedule.sigma(t), 0.5 * schedule.log_snr(t))


def _ddpm_plan(knots: list[_Knot], _eta: float) -> list[StepCoefficients]:
    """Ancestral sampling on the respaced chain: Ho et al. 2020, eq. 7, betas as in Nichol & Dhariwal 2021, eq. 19.

    ``beta = 1 - alpha_bar_t / alpha_bar_s``; variance ``beta~ = beta sigma_s² / sigma_t²``.
    """
    plan = []
    for now, after in pairwise(knots):
        beta = 1 - (now.alpha / after.alpha) ** 2
        variance = beta * (after.sigma / now.sigma) ** 2
        plan.append(
            StepCoefficients(
                timestep=now.t,
                x=(now.alpha / after.alpha) * (after.sigma / now.sigma) ** 2,
                x0=after.alpha * beta / now.sigma**2,
                noise=math.sqrt(variance),
                log_variance_range=(math.log(variance), math.log(beta)),
            )
        )
    return plan


def _ddim_plan(knots: list[_Knot], eta: float) -> list[StepCoefficients]:
    """Song et al. 2021, eqs. 12 and 16: ``alpha_s x_0 + sqrt(sigma_s² - n²) eps + n z``, eps from x and x_0."""
    plan = []
    for now, after in pairwise(knots):
        noise = eta * (after.sigma / now.sigma) * math.sqrt(1 - (now.alpha / after.alpha) ** 2)
        along_eps = math.sqrt(after.sigma**2 - noise**2) / now.sigma
        plan.append(
            StepCoefficients(
                timestep=now.t,
                x=along_eps,
                x0=after.alpha - along_eps * now.alpha,
                noise=noise,
            )
        )
    return plan


def _multistep_plan(knots: list[_Knot], _eta: float) -> list[StepCoefficients]:
    """DPM-Solver++(2M), Lu et al. 2022 (arXiv 2211.01095), algorithm 2; its first step is of order 1 (DDIM).

    ``x_s = (sigma_s / sigma_t) x - alpha_s (e^{-h} - 1) ((1 + 1/2r) x_0 - (1/2r) x_0')``, r = h' / h.
    """
    plan: list[StepCoefficients] = []
    for k, (now, after) in enumerate(pairwise(knots)):
        h = after.half_log_snr - now.half_log_snr
        along_x0 = -after.alpha * math.expm1(-h)
        extrapolation = 0.0 if k == 0 else 0.5 * h / (now.half_log_snr - knots[k - 1].half_log_snr)
        plan.append(
            StepCoefficients(
                timestep=now.t,
                x=after.sigma / now.sigma,
                x0=along_x0 * (1 + extrapolation),
                x0_previous=-along_x0 * extrapolation,
            )
        )
    return plan


def _consistency_plan(knots: list[_Knot], _eta: float) -> list[StepCoefficients]:
    """Multistep consistency sampling, Song et al. 2023 (arXiv 2303.01469), algorithm 1: ``alpha_s x_0 + sigma_s z``.

    Of a model that was tuned for it; of any other it gives what its first data predictions are, which is blurred.
    """
    return [StepCoefficients(now.t, x=0.0, x0=after.alpha, noise=after.sigma) for now, after in pairwise(knots)]


def _unipc_plan(knots: list[_Knot], eta: float) -> list[StepCoefficients]:
    """UniPC-2 with B(h) = e^h - 1 and data prediction, Zhao et al. 2023 (arXiv 2302.04867).

    Its predictor of order 2 is DPM-Solver++(2M)'s; every step but the first then corrects x with the new prediction.
    """
    plan = _multistep_plan(knots, eta)
    for k in range(1, len(plan)):
        older = knots[k - 2] if k > 1 else None
        corrector = _unipc_corrector(older, knots[k - 1], knots[k])
        plan[k] = StepCoefficients(**{**vars(plan[k]), "corrector": corrector})
    return plan


def _unipc_corrector(older: _Knot | None, before: _Knot, now: _Knot) -> CorrectorCoefficients:
    """UniC-1 (without an older point) or UniC-2, Zhao et al. 2023, section 3.1, in its data-prediction form.

    ``x = (sigma / sigma') x' - alpha (e^{-h} - 1) (x_0' + rho_1 (x_0'' - x_0') / r + rho_2 (x_0 - x_0'))``.
    """
    h = now.half_log_snr - before.half_log_snr
    scale = -now.alpha * math.expm1(-h)
    if older is None:
        return CorrectorCoefficients(x_before=now.sigma / before.sigma, x0=0.5 * scale, x0_previous=0.5 * scale)
    r = (older.half_log_snr - before.half_log_snr) / h
    phi_1 = math.expm1(-h)
    phi_2 = phi_1 / -h - 1
    phi_3 = phi_2 / -h - 0.5
    b1, b2 = phi_2 / phi_1, 2 * phi_3 / phi_1
    rho_1 = (b1 - b2) / (1 - r)
    rho_2 = b1 - rho_1
    return CorrectorCoefficients(
        x_before=now.sigma / before.sigma,
        x0=scale * rho_2,
        x0_previous=scale * (1 - rho_1 / r - rho_2),
        x0_older=scale * rho_1 / r,
    )


def _of(state: SamplerState) -> Tensor:
    """The data prediction of the step before, which every step but the first has."""
    assert state.x0_previous is not None
    return state.x0_previous


def _correct(by: CorrectorCoefficients, x0: Tensor, state: SamplerState) -> Tensor:
    assert state.x_before is not None and state.x0_previous is not None
    x = by.x_before * state.x_before + by.x0 * x0 + by.x0_previous * state.x0_previous
    return x if state.x0_older is None else x + by.x0_older * state.x0_older


_PLANS: dict[str, Callable[[list[_Knot], float], list[StepCoefficients]]] = {
    "ddpm": _ddpm_plan,
    "ddim": _ddim_plan,
    "dpm++2m": _multistep_plan,
    "unipc": _unipc_plan,
    "consistency": _consistency_plan,
}
