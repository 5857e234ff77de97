"""Paint masks in styles, and measure what was painted: means and deviations of optical density over tissue pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wsigen.conditions.contract import ConditionBatch
from wsigen.errors import DataError
from wsigen.evaluation.asked_stain.styles import Masks
from wsigen.evaluation.material import PaintOptions, paint_windows
from wsigen.models.stain import StainStyle, StyleRange, optical_density, tissue_pixels
from wsigen.models.stain_response import NUMBERS
from wsigen.networks.denoiser import Denoiser
from wsigen.system.devices import DeviceChoice
from wsigen.system.reporting import Reporter
from wsigen.training.corrupt import plain_conditions

GLASS = StainStyle("").glass_rgb


def density_sums(patches: np.ndarray) -> np.ndarray:
    """Tissue of patches (N, H, W, 3) uint8: number of pixels, sums and sums of squares of optical density: (N, 7).

    Sums of several patches add up to those of all; `pooled` makes a style's six numbers of them.
    """
    sums = []
    for patch in patches:
        density = optical_density(patch).reshape(-1, 3)
        tissue = density[tissue_pixels(density)].astype(np.float64)
        sums.append([len(tissue), *tissue.sum(axis=0), *np.square(tissue).sum(axis=0)])
    return np.array(sums, np.float64).reshape(-1, 1 + NUMBERS)


def pooled(sums: np.ndarray) -> np.ndarray:
    """A style's six numbers (..., 6) over all patches of ``sums`` (..., N, 7), as ``measure_style`` has them.

    Raises DataError where they hold no tissue.
    """
    total = sums.sum(axis=-2)
    count = total[..., :1]
    if not count.all():
        raise DataError("no tissue was painted: every window is as pale as glass; is this a trained painter?")
    mean = total[..., 1:4] / count
    variance = np.maximum(total[..., 4:] / count - np.square(mean), 0.0)
    return np.concatenate([mean, np.sqrt(variance)], axis=-1)


@dataclass(frozen=True)
class Bench:
    """Paints the masks in styles and measures them; reports what is done."""

    model: Denoiser
    masks: Masks
    options: PaintOptions
    choice: DeviceChoice
    progress: Reporter

    @property
    def range(self) -> StyleRange:
        """Range of styles of the model."""
        return self.model.config.style_range

    def paint(self, told: np.ndarray, which: np.ndarray, glass: Sequence[int] = GLASS) -> np.ndarray:
        """Paint windows numbered ``which`` with the network told (6,): (n, W, W, 3) uint8."""
        device = self.masks.crops.planes.device
        style = torch.from_numpy(np.asarray(told, np.float32)).to(device)
        white = torch.tensor(glass, dtype=torch.float32, device=device)

        def inputs(part: Tensor) -> ConditionBatch:
            stain, glass = (row.expand(len(part), -1) for row in (style, white))
            crops = self.masks.crops.part(part)
            return plain_conditions(self.model.conditions, crops, glass, {"stain": stain}, self.masks.groups)

        numbers = torch.from_numpy(which).to(device)
        return paint_windows(self.model, inputs, numbers, self.options, self.choice)

    def measure(self, what: str, told: np.ndarray, which: np.ndarray) -> np.ndarray:
        """Sums (K, n, 7) of windows ``which`` painted with each of ``told`` (K, 6)."""
        sums = []
        for number, row in enumerate(told):
            sums.append(density_sums(self.paint(row, which)))
            self.progress(what, number + 1, len(told))
        return np.array(sums)
