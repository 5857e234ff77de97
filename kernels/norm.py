"""Group normalisation with everything that follows it in this network, as one formula.

    y = act(((x - mean) / std * (1 + gamma) + beta) * (1 + scale) + shift)

Wu and He 2018 for the normalisation; ``gamma`` and ``beta`` are either per channel (an ordinary affine group norm,
where the weight is ``1 + gamma``) or maps per pixel (SPADE, Park et al. 2019, equation 1); ``scale`` and ``shift``
come from the time embedding (Dhariwal and Nichol 2021).

The torch implementation is the definition. The Triton one keeps channels_last memory, which torch's does not on a GPU,
and makes one pass for the statistics and one for all the rest.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from wsigen_kernels.dispatch import interpreting, norm_choice
from wsigen_kernels.layout import fits

BACKEND = norm_choice().name  # a constant, so that torch.compile traces one branch
FORCED = norm_choice().reason.startswith("set by")
ANY_DEVICE = interpreting()


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
    skip: Tensor | None = None,
) -> Tensor:
    """Normalise a feature map in groups of channels, modulate it, and apply SiLU.

    Statistics are computed in float32; the result has the dtype of ``x``. All tensors have gradients. While gradients
    are enabled, Triton runs only if it was asked for by name: torch.compile fuses forward and backward equally well.

    Args:
        x: feature map (B, C, H, W).
        groups: number of groups; divides the number of channels.
        weight: factor of each channel (C,), or None.
        bias: summand of each channel (C,), or None.
        gamma: SPADE's factor of each pixel (B, C, H, W), or None (Park et al. 2019).
        beta: SPADE's summand of each pixel (B, C, H, W), or None.
        scale: factor of each channel by time (B, C), or None (Dhariwal and Nichol 2021).
        shift: summand of each channel by time (B, C), or None.
        silu: whether to apply SiLU at the end.
        eps: summand of the variance.
        skip: feature map (B, C', H, W) that is concatenated to ``x`` first. C counts the channels of both then.
    """
    if BACKEND == "triton" and served(x) and (FORCED or not torch.is_grad_enabled()):
        from wsigen_kernels import ops

        return ops.group_norm(x, skip, groups, weight, bias, gamma, beta, scale, shift, silu, eps)[0]
    return group_norm_torch(x, groups, weight, bias, gamma, beta, scale, shift, silu, eps, skip)


def served(x: Tensor) -> bool:
    """Whether the kernels take ``x``: on a GPU (or in Triton's interpreter), and not too large to index."""
    return (x.is_cuda or ANY_DEVICE) and fits(x)


def group_norm_torch(
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
    skip: Tensor | None = None,
) -> Tensor:
    """Compute ``group_norm`` with torch's own operations."""
    if skip is not None:
        x = torch.cat([x, skip], dim=1)
    y = F.group_norm(x, groups, weight, bias, eps)
    if gamma is not None and beta is not None:
        y = y * (1 + gamma) + beta
    if scale is not None and shift is not None:
        y = y * (1 + scale)[:, :, None, None] + shift[:, :, None, None]
    return F.silu(y) if silu else y
