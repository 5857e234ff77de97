"""Triton kernels of moments: mean and sum of squared deviations of the channels of a feature map.

They are taken a channel at a time and kept with the tensor: (B, slices, 2, C), of every slice of pixels. So a tensor
that is concatenated with another, or normalised in two places, is read for its moments once, and a kernel that writes a
tensor can take them on the way (`wsigen_kernels.merge_triton`). Nothing is added atomically: equal inputs give
equal bits.

Merging follows Chan, Golub and LeVeque 1983: ``M2 = sum(M2_i) + sum(n_i (mean_i - mean)²)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from wsigen_kernels.compiling import launch
from wsigen_kernels.launch import Slices, Tile, ceil_div
from wsigen_kernels.layout import by_pixel, empty_float32, map_shape
from wsigen_kernels.pixels_triton import image_elements, offsets, share_of

if TYPE_CHECKING:
    from torch import Tensor


@triton.jit
def add_moments(value, inside, start, count, mean, m2, LANES: tl.constexpr, BLOCK_P: tl.constexpr):
    """Add a tile (BLOCK_P, channels), which begins ``start`` pixels into a slice of ``count``, to the slice's moments.

    LANES: every lane keeps the moments of its own pixels (Welford 1962), so that the loop waits for no other lane; they
    are merged once, at the end, which pays from some eight tiles on. Otherwise each tile is summed and merged (Chan,
    Golub and LeVeque 1983), with (1, channels) to keep.
    """
    if LANES:
        away = tl.where(inside, value - mean, 0.0)
        mean += away * (1.0 / (start // BLOCK_P + 1))
        m2 += away * tl.where(inside, value - mean, 0.0)
    else:
        here = tl.maximum(tl.minimum(count - start, BLOCK_P), 0)
        tile_mean = (tl.sum(tl.where(inside, value, 0.0), axis=0) / tl.maximum(here, 1).to(tl.float32))[None, :]
        away = tl.where(inside, value - tile_mean, 0.0)
        before = tl.minimum(count, start).to(tl.float32)
        share = here.to(tl.float32) / tl.maximum(before + here, 1)
        delta = tile_mean - mean
        mean += delta * share
        m2 += tl.sum(away * away, axis=0)[None, :] + delta * delta * before * share
    return mean, m2


@triton.jit
def store_moments(
    moments_ptr, part, channel, in_c, count, mean, m2, C: tl.constexpr, LANES: tl.constexpr, BLOCK_P: tl.constexpr
):
    """Write the moments of a slice of ``count`` pixels."""
    out = moments_ptr + part.to(tl.int64) * 2 * C + channel
    if LANES:
        lane = tl.arange(0, BLOCK_P)
        seen = tl.maximum((count - lane + BLOCK_P - 1) // BLOCK_P, 0).to(tl.float32)[:, None]
        origin = tl.sum(tl.where((lane == 0)[:, None], mean, 0.0), axis=0)  # a constant then comes out exactly
        whole = origin + tl.sum((mean - origin[None, :]) * (seen / count), axis=0)
        apart = mean - whole[None, :]
        m2 += apart * apart * seen
        tl.store(out, whole, mask=in_c)
    else:
        tl.store(out, tl.sum(mean, axis=0), mask=in_c)
    tl.store(out + C, tl.sum(m2, axis=0), mask=in_c)


@triton.jit(do_not_specialize=["slices"])
def moments_kernel(
    x_ptr,  # (B, P, C), pixels x_stride apart
    moments_ptr,  # (B, S, 2, C) float32
    height,
    width,
    slice_pixels,
    slices,
    x_stride,
    C: tl.constexpr,
    PHASED: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Mean and sum of squared deviations of a slice, a channel at a time, in one pass."""
    part, image, first, count, channel, in_c = share_of(height * width, slice_pixels, slices, C, BLOCK_C)
    base = x_ptr + image * image_elements(height, width, x_stride, PHASED) + channel
    lane = tl.arange(0, BLOCK_P)
    mean = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
    m2 = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
    for start in range(0, slice_pixels, BLOCK_P):
        inside = (start + lane < count)[:, None] & in_c[None, :]
        at = base[None, :] + offsets(first + start + lane, width, x_stride, C, PHASED)[:, None]
        x = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        mean, m2 = add_moments(x, inside, start, count, mean, m2, True, BLOCK_P)
    store_moments(moments_ptr, part, channel, in_c, count, mean, m2, C, True, BLOCK_P)


@triton.jit
def load_moments(moments_ptr, image, slices, row, channel, inside, C: tl.constexpr):
    """Load the moments of some channels of an image: means and sums of squared deviations, (slices, channels) both."""
    at = moments_ptr + ((image * slices + row) * 2 * C)[:, None] + channel[None, :]
    return tl.load(at, mask=inside, other=0.0), tl.load(at + C, mask=inside, other=0.0)


def moments(x: Tensor, phased: bool = False) -> Tensor:
    """Take the moments of ``x`` (B, C, H, W): (B, slices, 2, C) float32.

    ``phased``: x lies in the places that `wsigen_kernels.upsample.upsample_places` returns.
    """
    x, stride = by_pixel(x)
    batch, channels, height, width = map_shape(x, phased)
    slices, tile = Slices.of(height * width), Tile.of(channels)
    out = empty_float32((batch, slices.count, 2, channels), x)
    launch(moments_kernel, (ceil_div(channels, tile.channels) * batch * slices.count,),
        x, out, height, width, slices.pixels, slices.count, stride,
        C=channels, PHASED=phased, BLOCK_P=tile.pixels, BLOCK_C=tile.channels,
    )  # fmt: skip
    return out
