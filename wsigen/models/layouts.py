"""From the cells of a layout to the planes that a mask model reads: densities, shares of regions, present."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wsigen.masks.synthesis.layout import CELL, REGIONS


def layout_planes(
    cells: Tensor,
    corners: Tensor,
    size: int,
    dtype: torch.dtype = torch.float32,
    gains: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Planes (B, K + 1, size, size) of windows, and where they are sure to be glass, (B, size, size) bool.

    ``cells`` (B, K, n, n) uint8, as `Layout.read` gives them; ``corners`` (B, 2) int64: x and y of the windows.
    ``gains`` (C,) float32, see `density_gains`, or None for densities as they are.
    """
    place = (2 * corners + 1 - CELL).remainder(2 * CELL)  # of the first pixel in its cell, in 64ths
    fine = upsampled(cells.float(), place[:, 0], place[:, 1], size)
    glass = fine[:, -len(REGIONS)] > 254.5  # bytes and weights are whole numbers: 255 is exact
    if gains is not None:
        densities = (fine[:, : len(gains)] * gains[:, None, None]).clamp(max=255)
        fine = torch.cat([densities, fine[:, len(gains) :]], 1)
    return with_present(fine / 255).to(dtype), glass


def density_gains(response: Sequence[float], device: torch.device) -> Tensor | None:
    """By how much bytes of densities grow so that a model that paints ``response`` for 1 paints 1: (C,) float32."""
    # Bytes grow with the root of the density.
    return torch.tensor(response, device=device).rsqrt() if response else None


def with_present(planes: Tensor) -> Tensor:
    """Add the plane that tells a layout from none: 1; see ``wsigen.models.conditioning.null_planes``."""
    present = torch.ones_like(planes[:, :1])
    return torch.cat([planes, present], 1).contiguous(memory_format=torch.channels_last)


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
