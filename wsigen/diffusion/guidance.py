"""Classifier-free guidance: away from what the model paints without a condition, towards what it paints with one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a model's configuration asks, and is read without torch
    from torch import Tensor


@dataclass(frozen=True)
class Guidance:
    """How a model is guided: the scale, and whether the network has learned to paint with it in one call."""

    scale: float = 1.0
    learned: bool = False

    @property
    def calls(self) -> int:
        """How often a step calls the network: twice with guidance that it has not learned."""
        return 2 if is_guided(self.scale) and not self.learned else 1


def is_guided(guidance_scale: float) -> bool:
    """Whether the null prediction is needed at all: a scale of 1 is no guidance."""
    return guidance_scale != 1.0


def guide(conditional: Tensor, null: Tensor, guidance_scale: float) -> Tensor:
    """``null + s (conditional - null)`` (Ho & Salimans 2022, eq. 6, with s = 1 + w).

    Both are predictions of one type at the same x_t, of equal shape: eps, v and x_0 are affine in each other, so the
    result does not depend on which. s = 1 returns ``conditional`` itself, s = 0 the null prediction.
    """
    if not is_guided(guidance_scale):
        return conditional
    return null + guidance_scale * (conditional - null)
