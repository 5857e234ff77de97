"""The layout of a mask model: densities of each class, and shares of glass, stroma, gland and lumen.

In training the layout of a crop is drawn anew each time: its cells begin anywhere, and are smoothed more or less, so
that the model serves layouts that were counted, sampled or painted by hand. Around the crop there may be nothing: a
training picture ends, or a part of it is not available. What a cell holds is therefore divided by how much is known.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wsigen.conditions.contract import Condition, Draft, TensorSpec, WindowBatch
from wsigen.conditions.settings import DrawSettings
from wsigen.layouts.layout import CELL, DENSITY_SCALE, REGIONS
from wsigen.models.config import ModelConfig

MARGIN = 2 * CELL  # px around a crop whose nuclei its layout counts too
UNKNOWN = 255  # region of a pixel that is not available
CUT = 128  # bit of a mark: the pixel belongs to a nucleus that is not whole
SURE_GLASS = 254.5 / 255  # share of glass above which a cell holds nothing else
FAINT = 1e-3  # of a cell: so much of the crop's mean is mixed in, so that cells of which nothing is known have a value


class Density(Condition):
    """A plane of density a class, and one of the share of each region; glass is given as known pixels."""

    name = "density"
    source = "density"
    guided = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self._gains: Tensor | None = None

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """A plane a class, and one a region."""
        return (TensorSpec("density", "planes", len(self.config.classes) + len(REGIONS)),)

    def of_windows(self, windows: WindowBatch) -> dict[str, Tensor]:
        """From "cells" (B, K, n, n) uint8, as `Layout.read` gives them."""
        fine = self._fine(windows)
        if self.config.response:
            if self._gains is None or self._gains.device != fine.device:
                self._gains = density_gains(self.config.response, fine.device)
            fine = with_gains(fine, self._gains)
        return {"density": (fine / 255).to(windows.dtype)}

    def glass(self, windows: WindowBatch) -> Tensor:
        """Where windows are sure to be glass: (B, W, W) bool."""
        return self._fine(windows)[:, -len(REGIONS)] > 254.5  # bytes and weights are whole numbers: 255 is exact

    def _fine(self, windows: WindowBatch) -> Tensor:
        cells = windows.arrays["cells"].float()
        place = (2 * windows.corners + 1 - CELL).remainder(2 * CELL)  # of the first pixel in its cell, in 64ths
        return upsampled(cells, place[:, 0], place[:, 1], windows.size)

    def draw(self, draft: Draft, settings: DrawSettings, groups: Tensor | None) -> None:
        """A layout that was counted more or less exactly, with cells that begin anywhere."""
        blurs = (settings.layout.least_blurs, settings.layout.most_blurs)
        layout = drawn_layout(
            draft.crops["marks"], draft.crops["zones"], len(self.config.classes), blurs, draft.generator
        )
        glass = layout[:, len(self.config.classes), None] > SURE_GLASS
        draft.pin(glass & draft.coin(settings.condition.pin_glass))
        draft.tensors["density"] = layout


def density_gains(response: Sequence[float], device: torch.device) -> Tensor:
    """By how much bytes of densities grow so that a model that paints ``response`` for 1 paints 1: (C,) float32."""
    # Bytes grow with the root of the density.
    return torch.tensor(response, device=device).rsqrt()


def with_gains(fine: Tensor, gains: Tensor) -> Tensor:
    """Planes (B, K, H, W) in bytes with the densities of each class multiplied."""
    densities = (fine[:, : len(gains)] * gains[:, None, None]).clamp(max=255)
    return torch.cat([densities, fine[:, len(gains) :]], 1)


def upsampled(cells: Tensor, x: Tensor, y: Tensor, size: int) -> Tensor:
    """Interpolate between the middles of cells: (B, K, n, n) -> (B, K, size, size) float32.

    ``x``, ``y`` (B,) int64: where the first pixel's middle lies after the first cell's, in 64ths of a cell.
    """
    across, down = (_weights(start, size, cells.shape[-1]) for start in (x, y))
    return torch.einsum("bik,bpkl,bjl->bpij", down, cells, across)


def _weights(start: Tensor, size: int, count: int) -> Tensor:
    """How much each cell counts at each pixel: (B, size, count)."""
    place = start[:, None] + 2 * torch.arange(size, device=start.device)
    middles = 2 * CELL * torch.arange(count, device=start.device)
    return (1 - (place[:, :, None] - middles).abs() / (2 * CELL)).clamp(min=0).float()


def drawn_layout(
    marked: Tensor, zoned: Tensor, class_count: int, blurs: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """Planes (B, K, W, W) of the middles of crops, whose marks and zones are (B, W + 2 MARGIN, W + 2 MARGIN) uint8.

    ``blurs``: least and most passes of a 1 2 1 mean over the densities; shares of regions get one pass or none.
    """
    device, size = marked.device, marked.shape[-1] - 2 * MARGIN
    count = -(-size // CELL) + 3
    start = torch.randint(0, CELL, (2,), generator=generator, device=device)
    passes = torch.randint(blurs[0], blurs[1] + 1, (1,), generator=generator, device=device)
    softer = torch.randint(0, 2, (1,), generator=generator, device=device)
    steps = torch.arange(CELL * count, device=device)
    part = torch.stack([marked, zoned], 1).index_select(2, start[1] + steps).index_select(3, start[0] + steps)
    marks, zones = part[:, 0] & (CUT - 1), part[:, 1]
    held = [marks == index + 1 for index in range(class_count)] + [zones == index for index in range(len(REGIONS))]
    cells = torch.stack([F.avg_pool2d(plane.float(), CELL) for plane in [*held, zones != UNKNOWN]], 1)
    smooth = cells
    for number in range(blurs[1]):
        smooth = torch.where(passes > number, _blurred(smooth), smooth)
    cells = torch.where(softer > 0, _blurred(cells), cells)
    density = _of_known(smooth)[:, :class_count] * CELL * CELL
    bytes_ = (DENSITY_SCALE * density.sqrt()).clamp(max=255)
    shares = 255 * _of_known(cells)[:, class_count:]
    place = (2 * (MARGIN - start) + 1 - CELL).expand(len(marked), 2)
    return upsampled(torch.cat([bytes_, shares], 1), place[:, 0], place[:, 1], size) / 255


def _of_known(cells: Tensor) -> Tensor:
    """Divide by the last plane, how much is known."""
    known = cells[:, -1:]
    mean = cells[:, :-1].mean((2, 3), keepdim=True) / known.mean((2, 3), keepdim=True).clamp(min=1e-6)
    return (cells[:, :-1] + FAINT * mean) / (known + FAINT)


def _blurred(cells: Tensor) -> Tensor:
    weights = torch.tensor([1.0, 2.0, 1.0], device=cells.device) / 4
    kernel = (weights[:, None] * weights).expand(cells.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(cells, (1, 1, 1, 1), mode="replicate"), kernel, groups=cells.shape[1])
