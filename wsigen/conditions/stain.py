"""The stain style of the slide: six numbers, see `wsigen.models.stain`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wsigen.conditions.contract import Condition, Draft, Field, Groups, TensorSpec
from wsigen.conditions.settings import DrawSettings
from wsigen.models.stain import STYLE_NUMBERS, StainStyle, measure_style_file


class Stain(Condition):
    """Means and deviations of optical density over the slide's tissue, normalised by the model's range."""

    name = "stain"

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """One vector of six."""
        return (TensorSpec("stain", "vector", len(STYLE_NUMBERS)),)

    def resolve(self, setting: str | StainStyle | None) -> StainStyle:
        """A named style, the style of a picture or slide, one that is measured already; the model's own for None."""
        config = self.config
        if isinstance(setting, StainStyle):
            return setting
        if setting and setting not in {named.name for named in config.styles} and Path(setting).suffix:
            return measure_style_file(Path(setting), config.mpp)
        return config.style(setting)

    def form(self) -> Field:
        """The styles that the model names."""
        names = tuple(style.name for style in self.config.styles)
        return Field("stain", "choice", names, self.config.default_style)

    def of_slide(self, value: StainStyle, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """What the network is told so that it paints the style, (1, 6)."""
        told = torch.from_numpy(self.config.told_stain(np.asarray(value.vector)))
        return {"stain": told.to(device, dtype)[None]}

    def null(self, batch: Any) -> dict[str, Tensor]:
        """The style itself: guidance does not move away from it."""
        return {"stain": batch["stain"]}

    def of_groups(self, groups: Groups) -> Tensor:
        """The measured styles, not normalised: (G, 6) float32."""
        return torch.tensor(np.array([style.vector for style in groups.styles], np.float32), device=groups.device)

    def draw(self, draft: Draft, settings: DrawSettings, groups: Tensor | None) -> None:
        """The style after the jitter (multiplying OD multiplies its mean and deviation), normalised, with noise."""
        assert groups is not None
        limits = self.config.style_range
        mean, deviation = (torch.tensor(part, device=draft.device) for part in (limits.mean, limits.std))
        raw = groups[draft.crops.group] * draft.power.repeat(1, 2)
        normalised = ((raw - mean) / deviation).clamp(-limits.clamp, limits.clamp)
        draft.tensors["stain"] = normalised + draft.randn(*normalised.shape) * settings.augment.style_noise
