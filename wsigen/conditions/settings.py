"""How a recipe draws conditions in training: shares, drop-out and corruption. The comments say what a value does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar


@dataclass(frozen=True)
class ContextSettings:
    """Shares of the neighbour contexts, and how known pixels are corrupted.

    The first four are the contexts of the painting order: see `wsigen.painting.grid`.
    """

    none: float = 0.28
    horizontal: float = 0.17  # left and right neighbours are painted
    vertical: float = 0.17  # upper and lower neighbours are painted
    ring: float = 0.22  # all around
    strips: float = 0.16  # any sides, any widths: slide borders and regions
    usual_overlap: int = 32  # every second context has this overlap, the others any legal one
    noise: float = 0.04  # largest standard deviation of noise on context pixels, of a range of 2
    tint: float = 0.02  # standard deviation of a colour offset of the whole context
    blur: float = 0.2  # share of contexts that are blurred a little


@dataclass(frozen=True)
class ConditionSettings:
    """Drop-out of conditions."""

    drop: float = 0.1  # null condition, for classifier-free guidance
    tissue_unknown: float = 0.15  # tissue plane unknown everywhere
    tissue_derived: float = 0.15  # tissue plane derived from nuclei, as for masks that have none
    merge_edges: float = 0.3  # edges between touching nuclei of one class dropped, as for masks without instances
    pin_glass: float = 0.7  # glass given as known pixels, as the painter gives it


@dataclass(frozen=True)
class AugmentSettings:
    """Stain jitter: optical density is multiplied by exp(N(0, overall) + N(0, channel))."""

    overall: float = 0.10
    channel: float = 0.05
    style_noise: float = 0.15  # standard deviation of noise on the normalised style vector


@dataclass(frozen=True)
class LayoutSettings:
    """How layouts of a mask model's crops are drawn."""

    least_blurs: int = 1  # passes of a 1 2 1 mean over densities: from counts that nearly place each nucleus ...
    most_blurs: int = 5  # ... to what a hand paints


class DrawSettings(Protocol):
    """The parts of a recipe that conditions read. ``conditions`` has a section for each that is not named above."""

    @property
    def context(self) -> ContextSettings:
        """Contexts, and how they are spoilt."""

    @property
    def condition(self) -> ConditionSettings:
        """Drop-out."""

    @property
    def augment(self) -> AugmentSettings:
        """Stain jitter."""

    @property
    def layout(self) -> LayoutSettings:
        """Layouts of a mask model."""

    @property
    def conditions(self) -> Mapping[str, Mapping[str, Any]]:
        """Settings of other conditions, by name."""


Settings = TypeVar("Settings", bound=Any)


def unspoilt(settings: Settings) -> Settings:
    """A recipe without drop-out, corruption, context and jitter: conditions as a painter gives them."""
    return replace(
        settings,
        context=ContextSettings(1.0, 0.0, 0.0, 0.0, 0.0, noise=0.0, tint=0.0, blur=0.0),
        condition=ConditionSettings(0.0, 0.0, 0.0, 0.0, pin_glass=1.0),
        augment=AugmentSettings(0.0, 0.0, 0.0),
    )
