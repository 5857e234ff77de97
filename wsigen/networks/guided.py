"""A denoiser with a batch's conditions in place, guided: a step needs the noisy image and the timestep alone."""

from __future__ import annotations

import torch
from torch import Tensor

from wsigen.conditions.contract import ConditionBatch
from wsigen.conditions.guidance import null_batch, say_scale
from wsigen.diffusion.guidance import Guidance, guide
from wsigen.networks.denoiser import Denoiser, Prediction


class ConditionedNetwork:
    """Calls a denoiser with conditions that are given once for a batch."""

    def __init__(self, model: Denoiser, conditions: ConditionBatch) -> None:
        self.model, self.prepared = model, model.prepare(conditions)

    def __call__(self, x: Tensor, timestep: float) -> Prediction:
        """Predict from the noisy window ``x`` (B, 3, H, W); the result holds until the next call."""
        return self.model.predict(self.prepared, x, torch.full((len(x),), timestep, device=x.device))


class GuidedNetwork:
    """A denoiser with conditions and classifier-free guidance, which takes a second, null network unless learned.

    ``conditions`` in any dtype; the network runs in that of its own parameters. ``guidance`` None is the model's own.
    """

    def __init__(self, model: Denoiser, conditions: ConditionBatch, guidance: Guidance | None = None) -> None:
        self.dtype = next(model.parameters()).dtype
        self.guidance = guidance or model.config.guidance()
        given = conditions.to(self.dtype)
        self._null = None
        if self.guidance.calls == 2:
            self._null = ConditionedNetwork(model, null_batch(model.conditions, given))
        elif self.guidance.learned:
            given = say_scale(given, self.guidance.scale)
        self._conditional = ConditionedNetwork(model, given)

    def __call__(self, x: Tensor, timestep: float) -> Prediction:
        """Predict from ``x`` (B, 3, H, W), any dtype.

        A guided prediction is float32, another is in the network's dtype.
        """
        noisy = x.to(self.dtype).contiguous(memory_format=torch.channels_last)
        conditional = self._conditional(noisy, timestep)
        if self._null is None:
            return conditional
        null = self._null(noisy, timestep)
        return Prediction(
            guide(conditional.mean.float(), null.mean.float(), self.guidance.scale), conditional.raw_variance
        )
