"""From compact condition bytes to the planes that the network reads.

NASDM's condition is one-hot nuclei classes and an instance-edge plane. Two planes are added: *tissue* (1, 0, or 0.5
for unknown) and *present* (1; 0 for the null condition of classifier-free guidance). Without *present* an empty
mask on unknown tissue equals the null condition, and guidance would do nothing there.
"""

from __future__ import annotations

import torch
from torch import Tensor

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


def null_planes(planes: Tensor, drop: Tensor | None = None) -> Tensor:
    """Return the null condition (all planes 0, *present* too) for the samples of ``drop`` (B,) bool; for all if None.

    Context, known pixels and stain style are not part of the condition and stay (Ho and Salimans 2022).
    """
    if drop is None:
        return torch.zeros_like(planes)
    return planes * (~drop).to(planes.dtype)[:, None, None, None]
