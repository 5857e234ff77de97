"""Triton kernel of a solver's step: from the network's output to the next sample in one pass.

    x_0    = known ? context : clamp(p x + q output, -1, 1)
    x_next = a x + b x_0 + c x_0' + d noise

p and q turn the prediction (noise, velocity or data) into data; a to d are the solver's. Torch's way is ten passes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from wsigen_kernels.launch import ceil_div, on

_BLOCK = 512


@dataclass(frozen=True)
class Update:
    """Coefficients of a step, by the letters of this module's formula."""

    p: float
    q: float
    a: float
    b: float
    c: float = 0.0
    d: float = 0.0


@triton.jit(do_not_specialize=["p", "q", "a", "b", "c", "d"])
def step_kernel(
    output_ptr,  # (B, 3, H, W), strides below: the network's layout
    x_ptr,  # (B, 3, H, W) float32, contiguous, as all below but the context and the known pixels
    context_ptr,  # (B, 3, H, W) float32, channels_last
    known_ptr,  # (B, 1, H, W) int8
    previous_ptr,
    noise_ptr,
    next_ptr,
    data_ptr,
    p,
    q,
    a,
    b,
    c,
    d,
    height,
    width,
    output_batch,
    output_channel,
    output_row,
    output_column,
    HAS_PREVIOUS: tl.constexpr,
    HAS_NOISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Step BLOCK pixels of one image."""
    image = tl.program_id(1).to(tl.int64)
    pixels = height * width
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    known = tl.load(known_ptr + image * pixels + pixel, mask=inside, other=0) != 0
    place = output_ptr + image * output_batch + (pixel // width) * output_row + (pixel % width) * output_column
    for channel in tl.static_range(3):
        at = (image * 3 + channel) * pixels + pixel
        x = tl.load(x_ptr + at, mask=inside, other=0.0)
        output = tl.load(place + channel * output_channel, mask=inside, other=0.0).to(tl.float32)
        data = tl.minimum(tl.maximum(p * x + q * output, -1.0), 1.0)
        context = tl.load(context_ptr + (image * pixels + pixel) * 3 + channel, mask=inside, other=0.0)
        data = tl.where(known, context, data)
        following = a * x + b * data
        if HAS_PREVIOUS:
            following += c * tl.load(previous_ptr + at, mask=inside, other=0.0)
        if HAS_NOISE:
            following += d * tl.load(noise_ptr + at, mask=inside, other=0.0)
        tl.store(next_ptr + at, following, mask=inside)
        tl.store(data_ptr + at, data, mask=inside)


def step(
    output: Tensor,
    x: Tensor,
    context: Tensor,
    known: Tensor,
    update: Update,
    previous: Tensor | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return x_next and x_0, (B, 3, H, W) float32 each.

    ``output`` (B, 3, H, W) of any float type and layout; ``x``, ``previous``, ``noise`` float32, ``context`` float32 in
    [-1, 1]; ``known`` (B, 1, H, W) bool.
    """
    batch, _, height, width = x.shape
    x = x.contiguous()
    previous, noise = (None if part is None else part.contiguous() for part in (previous, noise))
    following, data = torch.empty_like(x), torch.empty_like(x)
    with on(x):
        step_kernel[(ceil_div(height * width, _BLOCK), batch)](
            output, x, context.contiguous(memory_format=torch.channels_last), known.contiguous().view(torch.int8),
            previous if update.c else None, noise if update.d else None, following, data,
            update.p, update.q, update.a, update.b, update.c, update.d, height, width, *output.stride(),
            HAS_PREVIOUS=update.c != 0, HAS_NOISE=update.d != 0, BLOCK=_BLOCK,
        )  # fmt: skip
    return following, data
