"""From compact condition bytes to the planes that the network reads.

NASDM's condition is one-hot nuclei classes and an instance-edge plane. Two planes are added: *tissue* (1, 0, or 0.5
for unknown) and *present* (1; 0 for the null condition of classifier-free guidance). Without *present* an empty
mask on unknown tissue equals the null condition, and guidance would do nothing there. To a network that has learned
guidance, *present* says its scale.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wsigen.masks.conditions import GLASS_DEPTH, HALO
from wsigen.masks.window import GLASS, TISSUE
from wsigen.masks.window import UNKNOWN as UNKNOWN_TISSUE


def condition_planes(
    classes: Tensor, edges: Tensor, tissue: Tensor, class_count: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Expand (B, H, W) uint8 bytes to (B, class_count + 3, H, W): one-hot classes, edges, tissue, present.

    ``classes`` holds 0 (background) to ``class_count``, ``edges`` 0 or 1, ``tissue`` 0 glass, 1 tissue, 255 unknown.
    """
    batch, height, width = classes.shape
    planes = torch.empty((batch, class_count + 3, height, width), dtype=dtype, device=classes.device)
    for index in range(class_count):
        planes[:, index] = classes == index + 1
    planes[:, class_count] = edges
    planes[:, class_count + 1] = torch.where(tissue == UNKNOWN_TISSUE, 0.5, tissue.to(dtype))
    planes[:, class_count + 2] = 1
    return planes.contiguous(memory_format=torch.channels_last)


def derive_conditions(classes: Tensor, labels: Tensor, tissue: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Classes, edges, tissue (uint8) and glass (bool), (B, H, W) each, of windows with the mask around them.

    The arguments are the planes of `wsigen.masks.conditions.Surroundings`, (B, H + 18, W + 18); the values those of
    `wsigen.masks.conditions.derive_conditions`, computed where the tensors lie.
    """
    tissue = torch.where(classes > 0, TISSUE, tissue)
    inner = (slice(None), slice(HALO, -HALO), slice(HALO, -HALO))
    rows, columns = labels[:, HALO - 1 : 1 - HALO, HALO:-HALO], labels[:, HALO:-HALO, HALO - 1 : 1 - HALO]
    along, across = rows[:, 1:] != rows[:, :-1], columns[:, :, 1:] != columns[:, :, :-1]
    edges = along[:, 1:] | along[:, :-1] | across[:, :, 1:] | across[:, :, :-1]
    return classes[inner], edges.to(torch.uint8), tissue[inner], _deep_glass(tissue)[inner]


def _deep_glass(tissue: Tensor) -> Tensor:
    """Glass that lies more than 8 px from anything else, by runs: see `wsigen.masks.conditions.deep_glass`."""
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


def tell_guidance(planes: Tensor, guidance_scale: float | Tensor) -> Tensor:
    """Planes (B, P, H, W) whose *present* plane says the guidance scale, to a network that learned it.

    The scale is a number, or one for each sample (B,). 0 stays the null condition, which is guidance with a scale of 0,
    as 1 is the condition itself.
    """
    told = planes.clone()
    # A number stays one: a graph of the GPU's work can hold no copy from the host.
    told[:, -1] *= guidance_scale.to(planes)[:, None, None] if torch.is_tensor(guidance_scale) else guidance_scale
    return told


def null_planes(planes: Tensor, drop: Tensor | None = None) -> Tensor:
    """Return the null condition (all planes 0, *present* too) for the samples of ``drop`` (B,) bool; for all if None.

    Context, known pixels and stain style are not part of the condition and stay (Ho and Salimans 2022).
    """
    if drop is None:
        return torch.zeros_like(planes)
    return planes * (~drop).to(planes.dtype)[:, None, None, None]
