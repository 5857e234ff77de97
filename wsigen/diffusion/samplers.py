"""Samplers: from noise to an image in a few denoising steps.

Every sampler takes *data* predictions, so that the caller may clamp x_0 and copy known pixels into it before the
update. An update is then a sum of images, each with a scalar coefficient. All coefficients are worked out once, in
float64, into one frozen StepCoefficients per step (see `wsigen.diffusion.plans`): the update is elementwise, a pixel's
value does not depend on the batch it is in, and a fused kernel can do the same arithmetic from the same numbers.

The last step goes to sigma = 0 and returns x_0; a fitted one may go on a little beyond it, away from x_0'.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from wsigen.diffusion.gaussian import learned_range_log_variance
from wsigen.diffusion.plans import FITTED, PLANS, SAMPLERS, CorrectorCoefficients, FittedStep, Knot, StepCoefficients
from wsigen.diffusion.schedules import NoiseSchedule
from wsigen.errors import SettingsError


@dataclass(frozen=True)
class SamplerState:
    """Earlier tensors that a multistep solver needs, in the shape of the sample; None before the first step."""

    x0_previous: Tensor | None = None
    x0_older: Tensor | None = None
    x_before: Tensor | None = None


@dataclass(frozen=True)
class Sampler:
    """A sampler with all its coefficients; holds no tensors, and may be shared between threads and processes."""

    name: str
    steps: tuple[StepCoefficients, ...]

    @property
    def timesteps(self) -> tuple[float, ...]:
        """Timesteps at which the model is called: one for each step, falling, in [0, T - 1]."""
        return tuple(step.timestep for step in self.steps)

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
            noise: standard normal noise, same shape and dtype; used by steps that add noise, never by the last.
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
        if not self._remembers_x0:
            return state
        corrects = self._corrects
        return SamplerState(
            x0_previous=x0,
            x0_older=state.x0_previous if corrects else None,
            x_before=x if corrects else None,
        )

    @cached_property
    def _corrects(self) -> bool:
        """Whether some step corrects the sample, from what the two steps before it left."""
        return any(step.corrector is not None for step in self.steps)

    @cached_property
    def _remembers_x0(self) -> bool:
        """Whether some step needs the data prediction of the step before."""
        return self._corrects or any(step.x0_previous != 0 for step in self.steps)


def make_sampler(
    name: str,
    schedule: NoiseSchedule,
    num_inference_steps: int,
    timesteps: Sequence[float] | None = None,
    final_step: float = 1.0,
    fitted: Sequence[FittedStep] = (),
) -> Sampler:
    """Make a sampler: work out the coefficients of all its steps.

    Args:
        name: one of `wsigen.diffusion.plans.SAMPLERS`.
        schedule: the noise schedule, of T timesteps.
        num_inference_steps: number of steps, 1 to T.
        timesteps: strictly falling real numbers in [0, T - 1], one for each step. None: `spaced_timesteps`.
        final_step: length of the last step, see `spaced_timesteps`.
        fitted: coefficients of "fitted", one entry for each step.

    Raises:
        SettingsError: a value is unknown or outside of its range.
    """
    if name not in SAMPLERS:
        raise SettingsError(f"sampler {name!r}: unknown; choose one of {', '.join(SAMPLERS)}")
    if timesteps is None:
        timesteps = spaced_timesteps(schedule, num_inference_steps, final_step)
    chosen = tuple(timesteps)
    falling = all(later < earlier for earlier, later in pairwise(chosen))
    if len(chosen) != num_inference_steps or not falling or not 0 <= chosen[-1] <= chosen[0] <= schedule.T - 1:
        raise SettingsError(f"timesteps: need {num_inference_steps}, strictly falling within [0, {schedule.T - 1}]")
    if name == FITTED:
        if len(fitted) != num_inference_steps:
            raise SettingsError(f"sampler fitted: {len(fitted)} coefficients for {num_inference_steps} steps")
        return Sampler(name, tuple(StepCoefficients(t, *step) for t, step in zip(chosen, fitted, strict=True)))
    knots = [Knot.at(schedule, t) for t in chosen]
    last = StepCoefficients(timestep=chosen[-1], x=0.0, x0=1.0)
    return Sampler(name, (*PLANS[name](knots), last))


def spaced_timesteps(schedule: NoiseSchedule, num_inference_steps: int, final_step: float = 1.0) -> tuple[float, ...]:
    """Timesteps for so many steps: from T - 1 down, evenly; the last is T / steps - 1 ("trailing": Lin et al. 2024).

    ``final_step`` in (0, 1] is the length of the last step, the one to clean data, in lengths of the others. With a
    length of 1 timesteps are whole numbers, with a shorter one they are real numbers. What noise still hides at the
    last timestep is averaged away, so that a few even steps paint too smoothly: the least level of noise is a choice of
    its own, as in Karras et al. 2022, table 1.
    """
    T, n = schedule.T, num_inference_steps
    if not 1 <= n <= T:
        raise SettingsError(f"steps {n}: must lie in [1, {T}]")
    if not 0 < final_step <= 1:
        raise SettingsError(f"final_step {final_step}: must lie in (0, 1]")
    if n == 1:
        return (float(T - 1),)
    if final_step < 1:
        return tuple((T - 1) * (1 - k / (n - 1 + final_step)) for k in range(n))
    return tuple(float(round(T - k * T / n) - 1) for k in range(n))


def _of(state: SamplerState) -> Tensor:
    """The data prediction of the step before, which every step but the first has."""
    assert state.x0_previous is not None
    return state.x0_previous


def _correct(by: CorrectorCoefficients, x0: Tensor, state: SamplerState) -> Tensor:
    assert state.x_before is not None and state.x0_previous is not None
    x = by.x_before * state.x_before + by.x0 * x0 + by.x0_previous * state.x0_previous
    return x if state.x0_older is None else x + by.x0_older * state.x0_older
