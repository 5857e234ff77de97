"""The network with a batch's conditions in place, so that a step needs the noisy image and the timestep alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wsigen.models.nasdm import NasdmModel
from wsigen.models.unet import SpadeCache


@dataclass(frozen=True)
class Conditions:
    """What conditions a batch beside its noise, in the network's dtype: see :meth:`NasdmModel.forward`."""

    planes: Tensor  # (B, P, H, W)
    context: Tensor  # (B, 3, H, W)
    known: Tensor  # (B, 1, H, W)
    style: Tensor  # (B, 6)

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter((self.planes, self.context, self.known, self.style))


class ConditionedNetwork:
    """Calls the model with conditions given once for a batch, whose SPADE maps are computed once."""

    def __init__(self, model: NasdmModel) -> None:
        self.model = model

    def begin(self, conditions: Conditions) -> None:
        """Take the conditions of the next steps."""
        self.conditions = conditions
        self.maps: SpadeCache = self.model.spade_cache(conditions.planes)

    def __call__(self, x: Tensor, timestep: float) -> Tensor:
        """Predict from the noisy window ``x`` (B, 3, H, W); the result holds until the next call."""
        t = torch.full((len(x),), timestep, device=x.device)
        planes, context, known, style = self.conditions
        return self.model(x, t, planes, context, known, style, self.maps)
