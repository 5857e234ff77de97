"""Group normalisation with everything that follows it in this network, as one formula.

    y = act(((x - mean) / std * (1 + gamma) + beta) * (1 + scale) + shift)

Wu and He 2018 for the normalisation; ``gamma`` and ``beta`` are either per channel (an ordinary affine group norm,
where the weight is ``1 + gamma``) or maps per pixel (SPADE, Park et al. 2019, equation 1); ``scale`` and ``shift``
come from the time embedding (Dhariwal and Nichol 2021).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    silu: bool = True,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise ``x`` (B, C, H, W) in ``groups`` groups, modulate, and apply SiLU where ``silu`` is true.

    ``weight`` and ``bias`` are (C,); ``gamma`` and ``beta`` (B, C, H, W); ``scale`` and ``shift`` (B, C).
    Statistics are taken in float32; the result has the dtype of ``x``.
    """
    y = F.group_norm(x, groups, weight, bias, eps)
    if gamma is not None and beta is not None:
        y = y * (1 + gamma) + beta
    if scale is not None and shift is not None:
        y = y * (1 + scale)[:, :, None, None] + shift[:, :, None, None]
    return F.silu(y) if silu else y
