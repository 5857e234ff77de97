"""Triton kernels of the normalisation: channels merged to groups, and the modulated result.

A group norm reads its input twice, once for the statistics and once to apply them. Here the statistics come from the
moments of the channels (`wsigen_kernels.moments_triton`), which are merged to those of groups only where a norm
asks for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from wsigen_kernels.compiling import launch
from wsigen_kernels.launch import Slices, Tile, ceil_div, next_power_of_2
from wsigen_kernels.layout import DOWN, SAME, UP, by_pixel, empty_by_pixel, empty_float32, map_shape
from wsigen_kernels.moments_triton import load_moments
from wsigen_kernels.pixels_triton import corner_of, image_elements, load_tile, offsets, quarter_of, share_of

if TYPE_CHECKING:
    from torch import Tensor

ROWS = 6  # coefficients a channel: mean, gain, inner offset, scale of beta, shift, constant part of 1 + gamma
_APPLY_TILES = 4  # tiles a program applies its coefficients to


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

    With the coefficients, ``apply_kernel`` computes
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
    mean, m2 = load_moments(moments_ptr, image, slices, row, channel, of_x, C1)
    if HAS_SKIP:
        of_skip = inside & (channel >= C1)[None, :]
        mean2, m22 = load_moments(skip_moments_ptr, image, slices, row, channel - C1, of_skip, C - C1)
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
        x = load_tile(x_ptr, pixel, x_stride, channel, inside & of_x)
        behind = load_tile(skip_ptr, pixel, skip_stride, channel - C1, inside & (channel >= C1)[None, :])
        x = tl.where(of_x, x, behind)
    else:
        x = load_tile(x_ptr, offsets(pixel, width, x_stride, C1, PHASED), 1, channel, inside)
    y = (x - mean[None, :]) * gain[None, :] + inner[None, :]
    if HAS_MAPS:
        at = (pixel * map_stride)[:, None] + channel[None, :]  # once, for both maps
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
    pixels = height * width
    _, image, first, _, channel, in_c = share_of(pixels, TILES * BLOCK_P, parts, C, BLOCK_C)
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
    x_base = x_ptr + image * image_elements(height, width, x_stride, PHASED)
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
            corner = corner_of(at, half, width)
            y = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
            for quarter in tl.static_range(4):
                pixel = quarter_of(corner, width, quarter)
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
                corner = corner_of(at, width, 2 * width)
                for quarter in tl.static_range(4):
                    pixel = quarter_of(corner, 2 * width, quarter)
                    out = y_ptr + image * pixels * 4 * C + (pixel * C)[:, None] + channel[None, :]
                    tl.store(out, y.to(y_ptr.dtype.element_ty), mask=inside)
            else:
                out = y_ptr + image * pixels * C + (at * C)[:, None] + channel[None, :]
                tl.store(out, y.to(y_ptr.dtype.element_ty), mask=inside)


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
    `wsigen_kernels.moments_triton.moments`, without a skip.
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
