"""Triton kernels of a solver's step: from the network's output to the next sample.

    x_0    = clamp(p x + q output, -1, 1)
    x_0    = x_0 + gain * what the error at known pixels is carried to            (see wsigen.diffusion.continuity)
    x_0    = known ? context : clamp(x_0, -1, 1)
    x      = e x_before + f x_0 + g x_0' + h x_0''                                      (where there is a corrector)
    x_next = a x + b x_0 + c x_0' + d noise

p and q turn the prediction (noise, velocity or data) into data; a to h are the solver's. The first line is one pass,
the second a thin one for each ring around known pixels, the rest one more. Torch's way is some thirty passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import triton
import triton.language as tl
from wsigen_kernels.compiling import launch
from wsigen_kernels.launch import ceil_div, on

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = 512
_RING_BLOCK = 64  # small, since a program is idle only if no pixel of its block lies on the ring


@dataclass(frozen=True)
class Update:
    """Coefficients of a step, by the letters of this module's formula."""

    p: float
    q: float
    a: float
    b: float
    c: float = 0.0
    d: float = 0.0
    corrector: tuple[float, float, float, float] | None = None  # e to h


@triton.jit(do_not_specialize=["p", "q"])
def data_kernel(
    output_ptr,  # (B, 3, H, W), strides below: the network's layout
    x_ptr,  # (B, 3, H, W) float32, contiguous
    data_ptr,  # likewise
    p,
    q,
    height,
    width,
    output_batch,
    output_channel,
    output_row,
    output_column,
    BLOCK: tl.constexpr,
):
    """Turn the prediction into data, BLOCK pixels of one image."""
    image = tl.program_id(1).to(tl.int64)
    pixels = height * width
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    place = output_ptr + image * output_batch + (pixel // width) * output_row + (pixel % width) * output_column
    for channel in tl.static_range(3):
        at = (image * 3 + channel) * pixels + pixel
        x = tl.load(x_ptr + at, mask=inside, other=0.0)
        output = tl.load(place + channel * output_channel, mask=inside, other=0.0).to(tl.float32)
        tl.store(data_ptr + at, tl.minimum(tl.maximum(p * x + q * output, -1.0), 1.0), mask=inside)


@triton.jit(do_not_specialize=["gain", "number"])
def ring_kernel(
    data_ptr,  # (B, 3, H, W) float32: added to
    error_ptr,  # (B, 3, H, W) float32: written on the ring
    context_ptr,  # (B, 3, H, W) float32, channels_last
    distance_ptr,  # (B, 1, H, W) uint8
    gain,
    number,  # of the ring
    height,
    width,
    DIAGONAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Carry the error to one ring, from the pixels that lie further in."""
    image = tl.program_id(1).to(tl.int64)
    pixels = height * width
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    distance = tl.load(distance_ptr + image * pixels + pixel, mask=pixel < pixels, other=255)
    mine = distance == number
    if tl.max(mine.to(tl.int32), axis=0) > 0:
        row, column = pixel // width, pixel % width
        weight = tl.zeros([BLOCK], dtype=tl.float32)
        red = tl.zeros([BLOCK], dtype=tl.float32)
        green = tl.zeros([BLOCK], dtype=tl.float32)
        blue = tl.zeros([BLOCK], dtype=tl.float32)
        for down in tl.static_range(-1, 2):
            for right in tl.static_range(-1, 2):
                if down != 0 or right != 0:
                    share = 1.0 if down == 0 or right == 0 else DIAGONAL
                    there = pixel + down * width + right
                    inside = mine & (row + down >= 0) & (row + down < height)
                    inside = inside & (column + right >= 0) & (column + right < width)
                    near = tl.load(distance_ptr + image * pixels + there, mask=inside, other=255)
                    inside = inside & (near < number)
                    known = inside & (near == 0)
                    weight += tl.where(inside, share, 0.0)
                    red += share * _error(data_ptr, error_ptr, context_ptr, image, pixels, there, 0, inside, known)
                    green += share * _error(data_ptr, error_ptr, context_ptr, image, pixels, there, 1, inside, known)
                    blue += share * _error(data_ptr, error_ptr, context_ptr, image, pixels, there, 2, inside, known)
        weight = tl.where(mine, weight, 1.0)
        at = image * 3 * pixels + pixel
        _carry(data_ptr, error_ptr, at, red / weight, gain, mine)
        _carry(data_ptr, error_ptr, at + pixels, green / weight, gain, mine)
        _carry(data_ptr, error_ptr, at + 2 * pixels, blue / weight, gain, mine)


@triton.jit
def _error(data_ptr, error_ptr, context_ptr, image, pixels, pixel, channel, inside, known):
    """What the prediction is short of at known pixels, and what was carried to the others."""
    at = (image * 3 + channel) * pixels + pixel
    context = tl.load(context_ptr + (image * pixels + pixel) * 3 + channel, mask=known, other=0.0)
    short = context - tl.load(data_ptr + at, mask=known, other=0.0)
    return tl.where(known, short, tl.load(error_ptr + at, mask=inside & (known == 0), other=0.0))


@triton.jit
def _carry(data_ptr, error_ptr, at, error, gain, mine):
    tl.store(error_ptr + at, error, mask=mine)
    tl.store(data_ptr + at, tl.load(data_ptr + at, mask=mine, other=0.0) + gain * error, mask=mine)


@triton.jit(do_not_specialize=["a", "b", "c", "d", "e", "f", "g", "h"])
def step_kernel(
    x_ptr,  # (B, 3, H, W) float32, contiguous, as all below but the context; x_before where there is a corrector
    context_ptr,  # (B, 3, H, W) float32, channels_last
    distance_ptr,  # (B, 1, H, W) uint8: 0 where pixels are known
    previous_ptr,
    older_ptr,
    noise_ptr,
    next_ptr,
    corrected_ptr,
    data_ptr,  # read and written
    a,
    b,
    c,
    d,
    e,
    f,
    g,
    h,
    pixels,
    HAS_PREVIOUS: tl.constexpr,
    HAS_OLDER: tl.constexpr,
    HAS_NOISE: tl.constexpr,
    HAS_CORRECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Step BLOCK pixels of one image."""
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    known = tl.load(distance_ptr + image * pixels + pixel, mask=inside, other=255) == 0
    for channel in tl.static_range(3):
        at = (image * 3 + channel) * pixels + pixel
        x = tl.load(x_ptr + at, mask=inside, other=0.0)
        data = tl.minimum(tl.maximum(tl.load(data_ptr + at, mask=inside, other=0.0), -1.0), 1.0)
        context = tl.load(context_ptr + (image * pixels + pixel) * 3 + channel, mask=known, other=0.0)
        data = tl.where(known, context, data)
        if HAS_PREVIOUS:
            previous = tl.load(previous_ptr + at, mask=inside, other=0.0)
        if HAS_CORRECTOR:
            x = e * x + f * data + g * previous
            if HAS_OLDER:
                x += h * tl.load(older_ptr + at, mask=inside, other=0.0)
            tl.store(corrected_ptr + at, x, mask=inside)
        following = a * x + b * data
        if HAS_PREVIOUS:
            following += c * previous
        if HAS_NOISE:
            following += d * tl.load(noise_ptr + at, mask=inside, other=0.0)
        tl.store(next_ptr + at, following, mask=inside)
        tl.store(data_ptr + at, data, mask=inside)


def step(
    output: Tensor,
    x: Tensor,
    context: Tensor,
    rings: tuple[Tensor, tuple[float, ...], float],
    update: Update,
    previous: Tensor | None = None,
    noise: Tensor | None = None,
    before: Tensor | None = None,
    older: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x_next, x_0, and x as the update took it (corrected, if it was), (B, 3, H, W) float32 each.

    ``output`` (B, 3, H, W) of any float type and layout; ``x``, ``previous`` (x_0'), ``older`` (x_0''), ``before``
    (x_before, for a corrector) and ``noise`` float32, ``context`` float32 in [-1, 1]. ``rings``: distance from known
    pixels, (B, 1, H, W) uint8, 0 where known; the gain of each ring; and the weight of a diagonal neighbour.
    """
    batch, _, height, width = x.shape
    distance, gains, diagonal = rings
    x, distance = x.contiguous(), distance.contiguous()
    context = context.permute(0, 2, 3, 1).contiguous()  # (B, H, W, 3)
    correct = update.corrector is not None
    e, f, g, h = update.corrector or (0.0,) * 4
    if correct and (previous is None or before is None):
        raise ValueError("a corrector needs x_before and x_0'")
    optional = (
        previous if update.c or correct else None, older if h else None, noise if update.d else None,
        before if correct else x,
    )  # fmt: skip
    previous, older, noise, start = (None if part is None else part.contiguous() for part in optional)
    following, data, error = (x.new_empty(x.shape) for _ in range(3))
    corrected = x.new_empty(x.shape) if correct else x
    pixels = height * width
    grid, ring_grid = ((ceil_div(pixels, block), batch) for block in (_BLOCK, _RING_BLOCK))
    with on(x):
        launch(data_kernel, grid, output, x, data, update.p, update.q, height, width, *output.stride(), BLOCK=_BLOCK)
        for number, gain in enumerate(gains, start=1):
            launch(ring_kernel, ring_grid,
                data, error, context, distance, gain, number, height, width,
                DIAGONAL=diagonal, BLOCK=_RING_BLOCK, num_warps=2,
            )  # fmt: skip
        launch(step_kernel, grid,
            start, context, distance, previous, older, noise, following, corrected, data,
            update.a, update.b, update.c, update.d, e, f, g, h, pixels,
            HAS_PREVIOUS=previous is not None, HAS_OLDER=older is not None, HAS_NOISE=noise is not None,
            HAS_CORRECTOR=correct, BLOCK=_BLOCK,
        )  # fmt: skip
    return following, data, corrected
