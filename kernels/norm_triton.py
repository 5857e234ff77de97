"""Triton kernels of the normalisation: moments, their merging, and the modulated result.

A group norm reads its input twice, once for the statistics and once to apply them. Here the statistics are taken a
channel at a time and kept with the tensor: (B, slices, 2, C), mean and sum of squared deviations of every slice of
pixels. Channels are merged to groups only where a norm asks for them. So a tensor that is concatenated with another,
or normalised in two places, is read for its moments once, and a kernel that writes a tensor can take them on the way
(:mod:`wsigen_kernels.merge_triton`). Nothing is added atomically: equal inputs give equal bits.

Merging follows Chan, Golub and LeVeque 1983: ``M2 = sum(M2_i) + sum(n_i (mean_i - mean)²)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from wsigen_kernels.compiling import launch
from wsigen_kernels.launch import Slices, Tile, ceil_div, next_power_of_2
from wsigen_kernels.layout import by_pixel, empty_by_pixel, empty_float32, map_shape

if TYPE_CHECKING:
    from torch import Tensor

SAME, UP, DOWN = 0, 1, 2  # what becomes of the resolution: kept, doubled (nearest), halved (mean of 2 x 2)
ROWS = 6  # coefficients a channel: mean, gain, inner offset, scale of beta, shift, constant part of 1 + gamma
_APPLY_TILES = 4  # tiles a program applies its coefficients to


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


@triton.jit
def _offsets(pixel, width, stride, C: tl.constexpr, PHASED: tl.constexpr):
    """Where pixels of an image begin; PHASED: in the places of wsigen_kernels.upsample, ``stride`` apart."""
    if PHASED:
        row = pixel // width
        column = pixel % width
        place = (row // 2 + row % 2) * (width // 2 + 1) + column // 2 + column % 2
        return place * stride + (row % 2 * 2 + column % 2) * C
    else:
        return pixel * stride


@triton.jit
def _image_elements(height, width, stride, PHASED: tl.constexpr):
    """Elements from an image to the next."""
    return (height // 2 + 1) * (width // 2 + 1) * stride if PHASED else height * width * stride


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
    BLOCKS: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    part = tl.program_id(0) // BLOCKS
    image = (part // slices).to(tl.int64)
    first = (part % slices) * slice_pixels
    count = tl.minimum(slice_pixels, height * width - first)
    channel = tl.program_id(0) % BLOCKS * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = channel < C
    base = x_ptr + image * _image_elements(height, width, x_stride, PHASED) + channel
    lane = tl.arange(0, BLOCK_P)
    mean = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
    m2 = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
    for start in range(0, slice_pixels, BLOCK_P):
        inside = (start + lane < count)[:, None] & in_c[None, :]
        at = base[None, :] + _offsets(first + start + lane, width, x_stride, C, PHASED)[:, None]
        x = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        mean, m2 = add_moments(x, inside, start, count, mean, m2, True, BLOCK_P)
    store_moments(moments_ptr, part, channel, in_c, count, mean, m2, C, True, BLOCK_P)


@triton.jit
def _slice_moments(moments_ptr, image, slices, row, channel, inside, C: tl.constexpr):
    """Load (slices, channels) of a tensor's moments."""
    at = moments_ptr + ((image * slices + row) * 2 * C)[:, None] + channel[None, :]
    return tl.load(at, mask=inside, other=0.0), tl.load(at + C, mask=inside, other=0.0)


@triton.jit
def coefficients_kernel(
    moments_ptr,  # (B, S, 2, C1): of the input
    skip_moments_ptr,  # (B, S, 2, C - C1): of the tensor concatenated behind it
    x_bias_ptr,  # (C,): what is to be added to the input before the norm
    weight_ptr,
    bias_ptr,  # (C,)
    scale_ptr,
    shift_ptr,  # (B, C), rows modulation_stride apart
    map_bias_ptr,  # (2 C,): what is to be added to the maps gamma and beta
    coefficients_ptr,  # (B, 6, C) float32
    statistics_ptr,  # (B, groups, 2) float32: mean and 1 / std
    image_pixels,
    slice_pixels,
    slices,
    modulation_stride,
    eps,
    C1: tl.constexpr,
    C: tl.constexpr,
    GROUPS: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    HAS_X_BIAS: tl.constexpr,
    HAS_AFFINE: tl.constexpr,
    HAS_MODULATION: tl.constexpr,
    HAS_MAP_BIAS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Merge the moments of one group of one image, and fold everything that is constant over its pixels.

    With the coefficients, :func:`apply_kernel` computes
    ``((x - mean) * gain + inner) * (one + gamma) + beta * scale + shift``.
    """
    D: tl.constexpr = C // GROUPS
    image = tl.program_id(1).to(tl.int64)
    group = tl.program_id(0)
    lane = tl.arange(0, BLOCK_D)
    channel = group * D + lane
    in_d = lane < D
    row = tl.arange(0, BLOCK_S)
    in_s = row < slices
    inside = in_s[:, None] & in_d[None, :]
    of_x = inside & (channel < C1)[None, :]
    mean, m2 = _slice_moments(moments_ptr, image, slices, row, channel, of_x, C1)
    if HAS_SKIP:
        of_skip = inside & (channel >= C1)[None, :]
        mean2, m22 = _slice_moments(skip_moments_ptr, image, slices, row, channel - C1, of_skip, C - C1)
        mean = tl.where(of_skip, mean2, mean)
        m2 = tl.where(of_skip, m22, m2)
    x_bias = tl.zeros([BLOCK_D], dtype=tl.float32)
    if HAS_X_BIAS:
        x_bias = tl.load(x_bias_ptr + channel, mask=in_d, other=0.0).to(tl.float32)
        mean += x_bias[None, :]

    count = tl.where(in_s, tl.minimum(slice_pixels, image_pixels - row * slice_pixels), 0).to(tl.float32)
    weight_of = tl.where(inside, count[:, None], 0.0)
    population = image_pixels * (D * 1.0)
    # Relative to one of the values, again so that a large mean cancels before it is summed.
    origin = tl.sum(tl.where((row == 0)[:, None] & (lane == 0)[None, :], mean, 0.0))
    group_mean = origin + tl.sum(weight_of * (mean - origin)) / population
    away = tl.where(inside, mean - group_mean, 0.0)
    variance = (tl.sum(tl.where(inside, m2, 0.0)) + tl.sum(weight_of * away * away)) / population
    inverse = 1.0 / tl.sqrt(variance + eps)
    statistics = statistics_ptr + (image * GROUPS + group) * 2
    tl.store(statistics, group_mean)
    tl.store(statistics + 1, inverse)

    gain = tl.zeros([BLOCK_D], dtype=tl.float32) + inverse
    inner = tl.zeros([BLOCK_D], dtype=tl.float32)
    scale = tl.zeros([BLOCK_D], dtype=tl.float32) + 1.0
    shift = tl.zeros([BLOCK_D], dtype=tl.float32)
    if HAS_AFFINE:
        gain *= tl.load(weight_ptr + channel, mask=in_d, other=0.0).to(tl.float32)
        inner = tl.load(bias_ptr + channel, mask=in_d, other=0.0).to(tl.float32)
    if HAS_MODULATION:
        at = image * modulation_stride + channel
        scale += tl.load(scale_ptr + at, mask=in_d, other=0.0).to(tl.float32)
        shift = tl.load(shift_ptr + at, mask=in_d, other=0.0).to(tl.float32)
    one = tl.zeros([BLOCK_D], dtype=tl.float32) + 1.0
    if HAS_MAP_BIAS:
        one += tl.load(map_bias_ptr + channel, mask=in_d, other=0.0).to(tl.float32)
        shift += scale * tl.load(map_bias_ptr + C + channel, mask=in_d, other=0.0).to(tl.float32)
    out = coefficients_ptr + image * 6 * C + channel
    tl.store(out, group_mean - x_bias, mask=in_d)
    tl.store(out + C, gain * scale, mask=in_d)
    tl.store(out + 2 * C, inner * scale, mask=in_d)
    tl.store(out + 3 * C, scale, mask=in_d)
    tl.store(out + 4 * C, shift, mask=in_d)
    tl.store(out + 5 * C, one, mask=in_d)


@triton.jit
def _modulated(
    x_ptr,
    skip_ptr,
    gamma_ptr,
    beta_ptr,
    pixel,
    channel,
    inside,
    mean,
    gain,
    inner,
    scale,
    shift,
    one,
    width,
    x_stride,
    skip_stride,
    map_stride,
    C1: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    HAS_MAPS: tl.constexpr,
    PHASED: tl.constexpr,
    SILU: tl.constexpr,
):
    """Load pixels x channels of the input and compute the formula on them, in float32."""
    if HAS_SKIP:
        of_x = (channel < C1)[None, :]
        x = tl.load(x_ptr + (pixel * x_stride)[:, None] + channel[None, :], mask=inside & of_x, other=0.0)
        behind = tl.load(
            skip_ptr + (pixel * skip_stride)[:, None] + (channel - C1)[None, :],
            mask=inside & (channel >= C1)[None, :],
            other=0.0,
        )
        x = tl.where(of_x, x.to(tl.float32), behind.to(tl.float32))
    else:
        at = _offsets(pixel, width, x_stride, C1, PHASED)
        x = tl.load(x_ptr + at[:, None] + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    y = (x - mean[None, :]) * gain[None, :] + inner[None, :]
    if HAS_MAPS:
        at = (pixel * map_stride)[:, None] + channel[None, :]
        gamma = tl.load(gamma_ptr + at, mask=inside, other=0.0).to(tl.float32)
        beta = tl.load(beta_ptr + at, mask=inside, other=0.0).to(tl.float32)
        y = y * (one[None, :] + gamma) + beta * scale[None, :] + shift[None, :]
    if SILU:
        y = y / (1.0 + tl.exp(-y))
    return y


@triton.jit(do_not_specialize=["parts"])
def apply_kernel(
    x_ptr,  # (B, P, C1)
    skip_ptr,  # (B, P, C - C1)
    gamma_ptr,
    beta_ptr,  # (B, P, C), pixels map_stride apart
    coefficients_ptr,  # (B, 6, C) float32
    y_ptr,  # (B, P', C)
    height,
    width,
    x_stride,
    skip_stride,
    map_stride,
    parts,
    C1: tl.constexpr,
    C: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    HAS_MAPS: tl.constexpr,
    PHASED: tl.constexpr,
    SILU: tl.constexpr,
    RESAMPLE: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Normalise and modulate with ready coefficients; keep, double or halve the resolution while writing."""
    BLOCKS: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    part = tl.program_id(0) // BLOCKS
    image = (part // parts).to(tl.int64)
    first = (part % parts) * (TILES * BLOCK_P)
    channel = tl.program_id(0) % BLOCKS * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = channel < C
    pixels = height * width
    row_of = coefficients_ptr + image * 6 * C + channel
    mean = tl.load(row_of, mask=in_c, other=0.0)
    gain = tl.load(row_of + C, mask=in_c, other=0.0)
    inner = tl.load(row_of + 2 * C, mask=in_c, other=0.0)
    scale = gain
    one = gain
    shift = tl.load(row_of + 4 * C, mask=in_c, other=0.0)
    if HAS_MAPS:
        scale = tl.load(row_of + 3 * C, mask=in_c, other=0.0)
        one = tl.load(row_of + 5 * C, mask=in_c, other=0.0)
    else:
        inner += shift
    x_base = x_ptr + image * _image_elements(height, width, x_stride, PHASED)
    skip_base = x_base
    if HAS_SKIP:
        skip_base = skip_ptr + image * pixels * skip_stride
    gamma_base = x_base
    beta_base = x_base
    if HAS_MAPS:
        gamma_base = gamma_ptr + image * pixels * map_stride
        beta_base = beta_ptr + image * pixels * map_stride
    for tile in range(0, TILES):
        at = first + tile * BLOCK_P + tl.arange(0, BLOCK_P)
        if RESAMPLE == 2:
            half = width // 2
            inside = (at < (height // 2) * half)[:, None] & in_c[None, :]
            corner = (at // half) * 2 * width + (at % half) * 2
            y = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
            for quarter in tl.static_range(4):
                pixel = corner + (quarter // 2) * width + quarter % 2
                y += _modulated(
                    x_base, skip_base, gamma_base, beta_base, pixel, channel, inside, mean, gain, inner, scale, shift,
                    one, width, x_stride, skip_stride, map_stride, C1, HAS_SKIP, HAS_MAPS, PHASED, SILU,
                )  # fmt: skip
            out = y_ptr + image * (height // 2) * half * C + (at * C)[:, None] + channel[None, :]
            tl.store(out, (y * 0.25).to(y_ptr.dtype.element_ty), mask=inside)
        else:
            inside = (at < pixels)[:, None] & in_c[None, :]
            y = _modulated(
                x_base, skip_base, gamma_base, beta_base, at, channel, inside, mean, gain, inner, scale, shift,
                one, width, x_stride, skip_stride, map_stride, C1, HAS_SKIP, HAS_MAPS, PHASED, SILU,
            )  # fmt: skip
            if RESAMPLE == 1:
                corner = (at // width) * 4 * width + (at % width) * 2
                for quarter in tl.static_range(4):
                    pixel = corner + (quarter // 2) * 2 * width + quarter % 2
                    out = y_ptr + image * pixels * 4 * C + (pixel * C)[:, None] + channel[None, :]
                    tl.store(out, y.to(y_ptr.dtype.element_ty), mask=inside)
            else:
                out = y_ptr + image * pixels * C + (at * C)[:, None] + channel[None, :]
                tl.store(out, y.to(y_ptr.dtype.element_ty), mask=inside)


def moments(x: Tensor, phased: bool = False) -> Tensor:
    """Take the moments of ``x`` (B, C, H, W): (B, slices, 2, C) float32.

    ``phased``: x lies in the places that :func:`wsigen_kernels.upsample.upsample_places` returns.
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


def normalise(
    x: Tensor,
    x_moments: Tensor,
    groups: int,
    skip: Tensor | None = None,
    skip_moments: Tensor | None = None,
    x_bias: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    silu: bool = True,
    eps: float = 1e-5,
    resample: int = SAME,
    map_bias: Tensor | None = None,
    phased: bool = False,
) -> tuple[Tensor, Tensor]:
    """Normalise with moments taken before; return the result and (B, groups, 2): mean and 1 / std.

    ``x_bias`` (C,) is what is to be added to x and skip, ``map_bias`` (2 C,) to gamma and to beta; ``phased`` as in
    :func:`moments`, without a skip.
    """
    batch, own, height, width = map_shape(x, phased)
    channels = own + (0 if skip is None else skip.shape[1])
    x, x_stride = by_pixel(x)
    skip, skip_stride = (None, 0) if skip is None else by_pixel(skip)
    gamma, beta, map_stride = _maps(gamma, beta)
    scale, shift, modulation_stride = _modulation(scale, shift)
    slices, tile = Slices.of(height * width), Tile.of(channels)
    depth = channels // groups

    coefficients = empty_float32((batch, ROWS, channels), x)
    statistics = empty_float32((batch, groups, 2), x)
    launch(coefficients_kernel, (groups, batch),
        x_moments, skip_moments, x_bias, weight, bias, scale, shift, map_bias, coefficients, statistics,
        height * width, slices.pixels, slices.count, modulation_stride, eps,
        C1=own, C=channels, GROUPS=groups, HAS_SKIP=skip is not None, HAS_X_BIAS=x_bias is not None,
        HAS_AFFINE=weight is not None, HAS_MODULATION=scale is not None, HAS_MAP_BIAS=map_bias is not None,
        BLOCK_S=next_power_of_2(slices.count), BLOCK_D=next_power_of_2(depth), num_warps=1,
    )  # fmt: skip

    size = {SAME: (height, width), UP: (2 * height, 2 * width), DOWN: (height // 2, width // 2)}[resample]
    y = empty_by_pixel((batch, channels, *size), x)
    visited = size[0] * size[1] if resample == DOWN else height * width
    parts = ceil_div(visited, tile.pixels * _APPLY_TILES)
    launch(apply_kernel, (ceil_div(channels, tile.channels) * batch * parts,),
        x, skip, gamma, beta, coefficients, y, height, width, x_stride, skip_stride, map_stride, parts,
        C1=own, C=channels, HAS_SKIP=skip is not None, HAS_MAPS=gamma is not None, PHASED=phased, SILU=silu,
        RESAMPLE=resample, TILES=_APPLY_TILES, BLOCK_P=tile.pixels, BLOCK_C=tile.channels,
    )  # fmt: skip
    return y, statistics


def _maps(gamma: Tensor | None, beta: Tensor | None) -> tuple[Tensor | None, Tensor | None, int]:
    if gamma is None or beta is None:
        return None, None, 0
    gamma, stride = by_pixel(gamma)
    beta, other = by_pixel(beta)
    if stride != other:
        gamma, beta = (empty_by_pixel(part.shape, part).copy_(part) for part in (gamma, beta))
        stride = gamma.shape[1]
    return gamma, beta, stride


def _modulation(scale: Tensor | None, shift: Tensor | None) -> tuple[Tensor | None, Tensor | None, int]:
    if scale is None or shift is None:
        return None, None, 0
    if scale.stride(1) != 1 or shift.stride() != scale.stride():
        scale, shift = scale.contiguous(), shift.contiguous()
    return scale, shift, scale.stride(0)
