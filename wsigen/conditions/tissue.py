"""The tissue of the mask: a plane of tissue, glass or unknown, and clear glass, whose pixels are known."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wsigen.conditions.contract import Condition, Draft, TensorSpec, WindowBatch
from wsigen.conditions.settings import DrawSettings
from wsigen.masks.conditions import GLASS_DEPTH, HALO
from wsigen.masks.window import GLASS, TISSUE, UNKNOWN


class Tissue(Condition):
    """A plane: 1 tissue, 0 glass, 0.5 unknown. Glass more than 8 px from anything else is given as known pixels."""

    name = "tissue"
    source = "mask"
    guided = True

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """One plane."""
        return (TensorSpec("tissue", "planes", 1),)

    def of_windows(self, windows: WindowBatch) -> dict[str, Tensor]:
        """From "classes" and "tissue" (B, H + 18, W + 18), as `wsigen.masks.conditions.Surroundings` holds them."""
        return {"tissue": tissue_plane(_tissue(windows)[:, HALO:-HALO, HALO:-HALO], windows.dtype)}

    def glass(self, windows: WindowBatch) -> Tensor:
        """Glass that lies more than 8 px from anything else: (B, W, W) bool."""
        return deep_glass(_tissue(windows))[:, HALO:-HALO, HALO:-HALO]

    def draw(self, draft: Draft, settings: DrawSettings, groups: Tensor | None) -> None:
        """The plane is that of the picture, derived from nuclei or unknown; glass is given in some samples."""
        shares, crops = settings.condition, draft.crops
        draft.pin((crops["glass"] > 0)[:, None] & draft.coin(shares.pin_glass))
        draw = draft.rand(len(draft))[:, None, None]
        tissue = torch.where(draw < shares.tissue_derived, crops["near_nuclei"], crops["tissue"])
        unknown = (draw >= shares.tissue_derived) & (draw < shares.tissue_derived + shares.tissue_unknown)
        draft.tensors["tissue"] = tissue_plane(torch.where(unknown, torch.full_like(tissue, UNKNOWN), tissue))


def tissue_plane(tissue: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Map (B, H, W) uint8, 0 glass, 1 tissue, 255 unknown, to (B, 1, H, W)."""
    return torch.where(tissue == UNKNOWN, 0.5, tissue.to(dtype))[:, None]


def _tissue(windows: WindowBatch) -> Tensor:
    """The tissue around windows; a nucleus is tissue, whatever the plane says."""
    return torch.where(windows.arrays["classes"] > 0, TISSUE, windows.arrays["tissue"])


def deep_glass(tissue: Tensor) -> Tensor:
    """Glass that lies more than 8 px from anything else, by runs: `wsigen.masks.conditions.deep_glass` of a batch."""
    solid = tissue != GLASS
    near = _widened(solid, GLASS_DEPTH)
    for dy in range(1, GLASS_DEPTH + 1):
        run = _widened(solid, math.isqrt(GLASS_DEPTH**2 - dy**2))
        near[:, dy:] |= run[:, :-dy]
        near[:, :-dy] |= run[:, dy:]
    return ~near


def _widened(plane: Tensor, radius: int) -> Tensor:
    """Whether a pixel of the row within ``radius`` is set; the reach grows threefold with each step."""
    wider, reach = plane.clone(), 0
    while reach < radius:
        step = min(radius - reach, 2 * reach + 1)
        before = wider.clone()
        wider[:, :, step:] |= before[:, :, :-step]
        wider[:, :, :-step] |= before[:, :, step:]
        reach += step
    return wider
