"""Nearest upsampling by two, then a 3 x 3 convolution, without the upsampled map.

Every output pixel sees at most 2 x 2 different input pixels. The four phases (even and odd rows and columns) are four
2 x 2 convolutions of the small map, whose weights are sums of the 3 x 3 ones: 4 products an output pixel and pair of
channels instead of 9 (the sub-pixel view is that of Shi et al. 2016).

    even row i of the output: rows i - 1 and i of the input, with weights w0 and w1 + w2
    odd row i:                rows i and i + 1,              with weights w0 + w1 and w2
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def phase_weights(weight: Tensor) -> Tensor:
    """Sum (O, I, 3, 3) to (4 O, I, 2, 2), phases (row, column) outermost, in float32 before rounding."""
    w = weight.float()

    def halves(w: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        first, middle, last = w.unbind(dim)
        return torch.stack([first, middle + last], dim), torch.stack([first + middle, last], dim)

    phases = [phase for rows in halves(w, 2) for phase in halves(rows, 3)]
    return torch.cat(phases).to(weight.dtype).contiguous(memory_format=torch.channels_last)


def upsample_places(x: Tensor, phases: Tensor) -> Tensor:
    """Return ``conv2d(upsample(x), weight, padding=1)``, (B, O, 2 H, 2 W), in places: (B, 4 O, H + 1, W + 1).

    ``x`` is (B, I, H, W), ``phases`` what ``phase_weights`` made of the weight. One convolution makes all phases at
    the places between and around pixels. Output pixel (2 i + r, 2 j + c) is phase (r, c) at place (i + r, j + c); other
    values are not used. The kernels of moments_triton and norm_triton read it where it lies, ``phased``.
    """
    return F.conv2d(x, phases, padding=1)
