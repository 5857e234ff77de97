"""Noise schedules: how much signal and how much noise a timestep holds.

A variance-preserving process is ``x_t = alpha_t x_0 + sigma_t eps`` with ``alpha_t² + sigma_t² = 1`` (Ho et al. 2020,
eq. 4, with ``alpha_bar_t = alpha_t²``). The table is kept in float64; between its entries the log signal-to-noise ratio
``log(alpha² / sigma²)`` is interpolated linearly, so that a timestep may be any real number in [0, T - 1]. Tensors of
timesteps are answered in float32 on their own device: alpha and sigma are taken from the log-SNR by two logistic
functions, which keeps full relative precision at both ends, where ``1 - alpha_bar`` would cancel.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import overload

import torch
from torch import Tensor

from wsigen.errors import SettingsError

_MAX_BETA = 0.999  # Nichol & Dhariwal 2021, section 3.2: no singularity at t = T


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """``alpha_bar``: (T,) float64 on the CPU, strictly falling within (0, 1)."""

    name: str
    alpha_bar: Tensor
    _tables: dict[tuple[str, str], Tensor] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a table that is not a schedule."""
        bar = self.alpha_bar
        if bar.dtype != torch.float64 or bar.ndim != 1 or len(bar) < 2:
            raise SettingsError(f"schedule {self.name}: alpha_bar must be a float64 vector of two or more entries")
        if not (bool((bar > 0).all()) and bool((bar < 1).all()) and bool((bar.diff() < 0).all())):
            raise SettingsError(f"schedule {self.name}: alpha_bar must fall strictly within (0, 1)")

    def __reduce__(self) -> tuple:
        """Pickle the definition, not the tables cached on devices."""
        return NoiseSchedule, (self.name, self.alpha_bar)

    @staticmethod
    def linear(T: int = 1000) -> "NoiseSchedule":
        """Betas from 1e-4 to 0.02 (Ho et al. 2020, section 4), times 1000 / T so that the end does not depend on T."""
        scale = 1000 / T
        betas = torch.linspace(1e-4 * scale, 0.02 * scale, T, dtype=torch.float64).clamp(max=_MAX_BETA)
        return NoiseSchedule("linear", torch.cumprod(1 - betas, 0))

    @staticmethod
    def cosine(T: int = 1000) -> "NoiseSchedule":
        """Squared cosine, s = 0.008 (Nichol & Dhariwal 2021, eq. 17): the betas of diffusers' squaredcos_cap_v2."""
        angle = (torch.arange(T + 1, dtype=torch.float64) / T + 0.008) / 1.008 * (math.pi / 2)
        bar = torch.cos(angle) ** 2
        betas = (1 - bar[1:] / bar[:-1]).clamp(max=_MAX_BETA)
        return NoiseSchedule("cosine", torch.cumprod(1 - betas, 0))

    @staticmethod
    def cosine_coarse(T: int = 1000) -> "NoiseSchedule":
        """The cosine schedule for means over 4 x 4 px: its log-SNR less 2 log 4 (Hoogeboom et al. 2023, eq. 11).

        For smooth pictures, whose coarse features the plain schedule hardly hides: means take noise away, not signal.
        """
        bar = NoiseSchedule.cosine(T).alpha_bar
        return NoiseSchedule("cosine-coarse", torch.sigmoid(torch.logit(bar) - 2 * math.log(4)))

    @staticmethod
    def from_name(name: str, T: int = 1000) -> "NoiseSchedule":
        """Schedule of that name; raises SettingsError for a name that is none."""
        if name not in _BY_NAME:
            raise SettingsError(f"schedule {name!r}: unknown; choose one of {', '.join(_BY_NAME)}")
        if T < 2:
            raise SettingsError(f"schedule {name}: {T} steps; take 2 or more")
        return _BY_NAME[name](T)

    @property
    def T(self) -> int:  # noqa: N802 - the name it has in every paper
        """Number of timesteps."""
        return len(self.alpha_bar)

    @overload
    def log_snr(self, t: float) -> float: ...
    @overload
    def log_snr(self, t: Tensor) -> Tensor: ...
    def log_snr(self, t: float | Tensor) -> float | Tensor:
        """``log(alpha_t² / sigma_t²)``, linear between whole timesteps.

        A number is answered in float64, a tensor (any shape, int64 or floating) in float32 on its device.
        t lies in [0, T - 1]; a number outside raises ValueError, a tensor's values are clamped.
        """
        if isinstance(t, Tensor):
            table = self.table("log_snr", t.device)
            t = t.to(torch.float32).clamp(0, self.T - 1)
            low = t.floor().clamp(max=self.T - 2)
            index = low.long()
            return torch.lerp(table[index], table[index + 1], t - low)
        if not 0 <= t <= self.T - 1:
            raise ValueError(f"timestep {t} lies outside [0, {self.T - 1}]")
        low_t = min(int(t), self.T - 2)
        low_snr, high_snr = (_logit(self.alpha_bar[i].item()) for i in (low_t, low_t + 1))
        fraction = t - low_t
        return high_snr if fraction == 1 else low_snr + fraction * (high_snr - low_snr)

    @overload
    def alpha(self, t: float) -> float: ...
    @overload
    def alpha(self, t: Tensor) -> Tensor: ...
    def alpha(self, t: float | Tensor) -> float | Tensor:
        """Signal level ``alpha_t = sqrt(alpha_bar_t)``; see log_snr for types and range."""
        snr = self.log_snr(t)
        return torch.sigmoid(snr).sqrt() if isinstance(snr, Tensor) else 1 / math.sqrt(1 + math.exp(-snr))

    @overload
    def sigma(self, t: float) -> float: ...
    @overload
    def sigma(self, t: Tensor) -> Tensor: ...
    def sigma(self, t: float | Tensor) -> float | Tensor:
        """Noise level ``sigma_t = sqrt(1 - alpha_bar_t)``; see log_snr for types and range."""
        snr = self.log_snr(t)
        return torch.sigmoid(-snr).sqrt() if isinstance(snr, Tensor) else 1 / math.sqrt(1 + math.exp(snr))

    def timestep(self, log_snr: float) -> float:
        """The real timestep in [0, T - 1] whose log-SNR is nearest to the given one: the inverse of log_snr."""
        rising = torch.logit(self.alpha_bar).flip(0)
        value = min(max(log_snr, rising[0].item()), rising[-1].item())
        high = min(max(int(torch.searchsorted(rising, value)), 1), self.T - 1)
        low_snr, high_snr = rising[high - 1].item(), rising[high].item()
        return self.T - 1 - (high - 1 + (value - low_snr) / (high_snr - low_snr))

    def table(self, name: str, device: torch.device | str = "cpu") -> Tensor:
        """One derived quantity for every whole timestep: (T,) float32 on the device, computed in float64, cached.

        Names: log_snr, log_beta, log_posterior_variance, posterior_x0, posterior_xt (see gaussian.py).
        """
        key = (name, str(device))
        if key not in self._tables:
            self._tables[key] = _DERIVED[name](self.alpha_bar).to(torch.float32).to(device)
        return self._tables[key]


def _logit(p: float) -> float:
    return math.log(p) - math.log1p(-p)


def _previous(bar: Tensor) -> Tensor:
    return torch.cat([bar.new_ones(1), bar[:-1]])


def _beta(bar: Tensor) -> Tensor:
    return 1 - bar / _previous(bar)


def _log_posterior_variance(bar: Tensor) -> Tensor:
    """Ho et al. 2020, eq. 7. It is 0 at t = 0: the value of t = 1 stands in there (Nichol & Dhariwal 2021, code)."""
    variance = _beta(bar) * (1 - _previous(bar)) / (1 - bar)
    return torch.cat([variance[1:2], variance[1:]]).log()


_BY_NAME: dict[str, Callable[[int], NoiseSchedule]] = {
    "linear": NoiseSchedule.linear,
    "cosine": NoiseSchedule.cosine,
    "cosine-coarse": NoiseSchedule.cosine_coarse,
}

_DERIVED: dict[str, Callable[[Tensor], Tensor]] = {
    "log_snr": torch.logit,
    "log_beta": lambda bar: _beta(bar).log(),
    "log_posterior_variance": _log_posterior_variance,
    "posterior_x0": lambda bar: _previous(bar).sqrt() * _beta(bar) / (1 - bar),
    "posterior_xt": lambda bar: (bar / _previous(bar)).sqrt() * (1 - _previous(bar)) / (1 - bar),
}
