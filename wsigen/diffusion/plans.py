"""Plans of samplers: the coefficients of every step, worked out from the noise schedule. Needs no torch.

An update of `wsigen.diffusion.samplers` is a sum of images, each with a scalar coefficient:

    x_next = a x + b x_0 + c x_0' + d noise          (x_0' = the data prediction of the step before)

UniPC first replaces x by a sum of the same kind; the coefficients of "fitted" are not worked out but measured, see
``wsigen.diffusion.fitting``. With lambda = log(alpha / sigma), half the log-SNR. The names of all samplers stand in
`PLANS` alone: the command line and the checks of settings take them from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # the command line reads the names, and starts without torch
    from wsigen.diffusion.schedules import NoiseSchedule


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
class Knot:
    """One timestep of the respaced chain."""

    t: float
    alpha: float
    sigma: float
    half_log_snr: float

    @staticmethod
    def at(schedule: NoiseSchedule, t: float) -> Knot:
        """The respaced chain at timestep ``t``."""
        return Knot(float(t), schedule.alpha(t), schedule.sigma(t), 0.5 * schedule.log_snr(t))


def _ddpm_plan(knots: list[Knot]) -> list[StepCoefficients]:
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


def _ddim_plan(knots: list[Knot]) -> list[StepCoefficients]:
    """Song et al. 2021, eq. 12 without fresh noise: ``alpha_s x_0 + sigma_s eps``, eps from x and x_0."""
    plan = []
    for now, after in pairwise(knots):
        along_eps = after.sigma / now.sigma
        plan.append(StepCoefficients(timestep=now.t, x=along_eps, x0=after.alpha - along_eps * now.alpha))
    return plan


def _multistep_plan(knots: list[Knot]) -> list[StepCoefficients]:
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


def _consistency_plan(knots: list[Knot]) -> list[StepCoefficients]:
    """Multistep consistency sampling, Song et al. 2023 (arXiv 2303.01469), algorithm 1: ``alpha_s x_0 + sigma_s z``.

    Of a model that was tuned for it; of any other it gives what its first data predictions are, which is blurred.
    """
    return [StepCoefficients(now.t, x=0.0, x0=after.alpha, noise=after.sigma) for now, after in pairwise(knots)]


def _unipc_plan(knots: list[Knot]) -> list[StepCoefficients]:
    """UniPC-2 with B(h) = e^h - 1 and data prediction, Zhao et al. 2023 (arXiv 2302.04867).

    Its predictor of order 2 is DPM-Solver++(2M)'s; every step but the first then corrects x with the new prediction.
    """
    plan = _multistep_plan(knots)
    for k in range(1, len(plan)):
        older = knots[k - 2] if k > 1 else None
        corrector = _unipc_corrector(older, knots[k - 1], knots[k])
        plan[k] = StepCoefficients(**{**vars(plan[k]), "corrector": corrector})
    return plan


def _unipc_corrector(older: Knot | None, before: Knot, now: Knot) -> CorrectorCoefficients:
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


PLANS: dict[str, Callable[[list[Knot]], list[StepCoefficients]]] = {
    "ddpm": _ddpm_plan,
    "ddim": _ddim_plan,
    "dpm++2m": _multistep_plan,
    "unipc": _unipc_plan,
    "consistency": _consistency_plan,
}
FITTED = "fitted"  # its coefficients are given, not worked out
SAMPLERS = (*PLANS, FITTED)
