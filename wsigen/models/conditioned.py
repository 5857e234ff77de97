"""The network with a batch's conditions in place, so that a step needs the noisy image and the timestep alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wsigen.diffusion.guidance import guide, is_guided
from wsigen.models.conditioning import null_planes, tell_guidance
from wsigen.models.nasdm import NasdmModel
from wsigen.models.unet import SpadeCache


@dataclass(frozen=True)
class WindowInputs:
    """Conditions of a batch of windows, on the network's device; shapes as ``NasdmModel.forward`` takes them."""

    planes: Tensor  # (B, P, H, W)
    context: Tensor  # (B, 3, H, W) in [-1, 1], 0 where unknown
    known: Tensor  # (B, 1, H, W), bool or 0 and 1
    style: Tensor  # (B, 6) normalised

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four, in the order of ``NasdmModel.forward``."""
        return self.planes, self.context, self.known, self.style

    def to(self, dtype: torch.dtype) -> WindowInputs:
        """The same in another number format."""
        return WindowInputs(*(part.to(dtype) for part in self.parts))


class ConditionedNetwork:
    """Calls the model with conditions given once for a batch, whose SPADE maps are computed once."""

    def __init__(self, model: NasdmModel, conditions: WindowInputs) -> None:
        self.model = model
        self.conditions = conditions
        self.maps: SpadeCache = model.spade_cache(conditions.planes)

    def __call__(self, x: Tensor, timestep: float) -> Tensor:
        """Predict from the noisy window ``x`` (B, 3, H, W); the result holds until the next call."""
        t = torch.full((len(x),), timestep, device=x.device)
        return self.model(x, t, *self.conditions.parts, self.maps)


class GuidedNetwork:
    """A conditioned network with classifier-free guidance.

    It takes a second, null network unless the scale is 1 or one that the model learned.
    ``conditions`` in any dtype; the network runs in that of its own parameters. ``guidance_scale`` None is the model's.
    """

    def __init__(self, model: NasdmModel, conditions: WindowInputs, guidance_scale: float | None = None) -> None:
        self.dtype = next(model.parameters()).dtype
        self.guidance_scale = model.config.guidance_for(guidance_scale)
        given = conditions.to(self.dtype)
        self._null = None
        if model.config.calls_a_step(self.guidance_scale) == 2:
            self._null = ConditionedNetwork(model, replace(given, planes=null_planes(given.planes)))
        elif is_guided(self.guidance_scale):
            given = replace(given, planes=tell_guidance(given.planes, self.guidance_scale))
        self._conditional = ConditionedNetwork(model, given)

    def __call__(self, x: Tensor, timestep: float) -> tuple[Tensor, Tensor | None]:
        """Predict from ``x`` (B, 3, H, W), any dtype: the prediction (B, 3, H, W), and the raw variance if any.

        A guided prediction is float32, another is in the network's dtype.
        """
        noisy = x.to(self.dtype).contiguous(memory_format=torch.channels_last)
        prediction, raw_variance = _split_variance(self._conditional(noisy, timestep))
        if self._null is None:
            return prediction, raw_variance
        null, _ = _split_variance(self._null(noisy, timestep))
        return guide(prediction.float(), null.float(), self.guidance_scale), raw_variance


def _split_variance(output: Tensor) -> tuple[Tensor, Tensor | None]:
    """Separate the mean's three channels from the learned variance's, where there are any."""
    return (output[:, :3], output[:, 3:]) if output.shape[1] == 6 else (output, None)
