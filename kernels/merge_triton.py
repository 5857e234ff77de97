"""Triton kernel of a residual block's end: the sum, what the skip connection does to its share, and the sum's moments.

    out = h + bias + resample(x)                     where the skip connection is the identity
    out = h + bias + weight [x, skip]                where it is a 1 x 1 convolution of a concatenation

The two inputs are read where they lie, so nothing is concatenated; the biases of the convolutions before, which torch
adds in a pass of their own, ride along; and the next group norm needs not read the sum for its statistics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from wsigen_kernels.compiling import launch
from wsigen_kernels.launch import ProjectCut, Slices, Tile, ceil_div
from wsigen_kernels.layout import SAME, by_pixel, empty_by_pixel, empty_float32
from wsigen_kernels.moments_triton import add_moments, store_moments
from wsigen_kernels.pixels_triton import corner_of, load_tile, quarter_of, share_of

if TYPE_CHECKING:
    from torch import Tensor


@triton.jit(do_not_specialize=["slices"])
def add_kernel(
    h_ptr,  # (B, P, C)
    bias_ptr,  # (C,)
    x_ptr,  # (B, P', C)
    out_ptr,  # (B, P, C)
    moments_ptr,  # (B, S, 2, C) float32
    height,
    width,
    slice_pixels,
    slices,
    h_stride,
    x_stride,
    C: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RESAMPLE: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Add and take moments of one slice; x may have half (UP) or twice (DOWN) the resolution of h."""
    pixels = height * width
    part, image, first, count, channel, in_c = share_of(pixels, slice_pixels, slices, C, BLOCK_C)
    h_base = h_ptr + image * pixels * h_stride
    out_base = out_ptr + image * pixels * C
    bias = tl.zeros([BLOCK_C], dtype=tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channel, mask=in_c, other=0.0).to(tl.float32)
    mean = tl.zeros([BLOCK_P if LANES else 1, BLOCK_C], dtype=tl.float32)
    m2 = tl.zeros([BLOCK_P if LANES else 1, BLOCK_C], dtype=tl.float32)
    for start in range(0, slice_pixels, BLOCK_P):
        local = start + tl.arange(0, BLOCK_P)
        at = first + local
        inside = (local < count)[:, None] & in_c[None, :]
        value = load_tile(h_base, at, h_stride, channel, inside)
        if RESAMPLE == 2:
            x_base = x_ptr + image * pixels * 4 * x_stride
            corner = corner_of(at, width, 2 * width)
            total = tl.zeros([BLOCK_P, BLOCK_C], dtype=tl.float32)
            for quarter in tl.static_range(4):
                total += load_tile(x_base, quarter_of(corner, 2 * width, quarter), x_stride, channel, inside)
            value += total * 0.25
        else:
            if RESAMPLE == 1:
                x_base = x_ptr + image * (height // 2) * (width // 2) * x_stride
                pixel = (at // width // 2) * (width // 2) + (at % width) // 2
            else:
                x_base = x_ptr + image * pixels * x_stride
                pixel = at
            value += load_tile(x_base, pixel, x_stride, channel, inside)
        rounded = (value + bias[None, :]).to(out_ptr.dtype.element_ty)
        tl.store(out_base + (at * C)[:, None] + channel[None, :], rounded, mask=inside)
        mean, m2 = add_moments(rounded.to(tl.float32), inside, start, count, mean, m2, LANES, BLOCK_P)
    store_moments(moments_ptr, part, channel, in_c, count, mean, m2, C, LANES, BLOCK_P)


@triton.jit
def _project(x_base, weight_base, total, at, out_channel, in_p, in_n, stride, K: tl.constexpr, W_ROW: tl.constexpr,
             BLOCK_K: tl.constexpr):  # fmt: skip
    """Add x (pixels, K) times weight (K, out channels) to ``total``, in float32."""
    for k in range(0, K, BLOCK_K):
        lane = k + tl.arange(0, BLOCK_K)
        in_k = lane < K
        x = tl.load(x_base + (at * stride)[:, None] + lane[None, :], mask=in_p[:, None] & in_k[None, :], other=0.0)
        w = tl.load(
            weight_base + (out_channel * W_ROW)[None, :] + lane[:, None], mask=in_k[:, None] & in_n[None, :], other=0.0
        )
        total = tl.dot(x, w.to(x.dtype), total, input_precision="ieee")
    return total


@triton.jit(do_not_specialize=["slices"])
def project_kernel(
    h_ptr,  # (B, P, C)
    bias_ptr,  # (C,)
    x_ptr,  # (B, P, K1)
    skip_ptr,  # (B, P, K2)
    weight_ptr,  # (C, K1 + K2)
    out_ptr,  # (B, P, C)
    moments_ptr,  # (B, S, 2, C) float32
    pixels,
    slice_pixels,
    slices,
    h_stride,
    x_stride,
    skip_stride,
    C: tl.constexpr,
    K1: tl.constexpr,
    K2: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Multiply, add and take moments of one slice of pixels and one block of output channels."""
    part, image, first, count, channel, in_c = share_of(pixels, slice_pixels, slices, C, BLOCK_N)
    h_base = h_ptr + image * pixels * h_stride
    x_base = x_ptr + image * pixels * x_stride
    out_base = out_ptr + image * pixels * C
    bias = tl.zeros([BLOCK_N], dtype=tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channel, mask=in_c, other=0.0).to(tl.float32)
    mean = tl.zeros([BLOCK_P if LANES else 1, BLOCK_N], dtype=tl.float32)
    m2 = tl.zeros([BLOCK_P if LANES else 1, BLOCK_N], dtype=tl.float32)
    for start in range(0, slice_pixels, BLOCK_P):
        local = start + tl.arange(0, BLOCK_P)
        at = first + local
        in_p = local < count
        inside = in_p[:, None] & in_c[None, :]
        total = tl.zeros([BLOCK_P, BLOCK_N], dtype=tl.float32)
        total = _project(x_base, weight_ptr, total, at, channel, in_p, in_c, x_stride, K1, K1 + K2, BLOCK_K)
        if K2 > 0:
            skip_base = skip_ptr + image * pixels * skip_stride
            total = _project(
                skip_base, weight_ptr + K1, total, at, channel, in_p, in_c, skip_stride, K2, K1 + K2, BLOCK_K
            )
        h = load_tile(h_base, at, h_stride, channel, inside)
        rounded = (total + h + bias[None, :]).to(out_ptr.dtype.element_ty)
        tl.store(out_base + (at * C)[:, None] + channel[None, :], rounded, mask=inside)
        mean, m2 = add_moments(rounded.to(tl.float32), inside, start, count, mean, m2, LANES, BLOCK_P)
    store_moments(moments_ptr, part, channel, in_c, count, mean, m2, C, LANES, BLOCK_P)


def merge(
    h: Tensor,
    bias: Tensor | None,
    x: Tensor,
    skip: Tensor | None = None,
    weight: Tensor | None = None,
    resample: int = SAME,
) -> tuple[Tensor, Tensor]:
    """Return ``h + bias`` plus the residual, (B, C, H, W), and its moments (B, slices, 2, C).

    The residual is ``x`` (B, C, H', W'), its resolution doubled (UP) or halved (DOWN) to that of ``h``; or, with
    ``weight`` (C, K) and at one resolution, the 1 x 1 convolution of ``x`` and ``skip`` concatenated.
    """
    batch, channels, height, width = h.shape
    h, h_stride = by_pixel(h)
    x, x_stride = by_pixel(x)
    slices = Slices.of(height * width)
    out = empty_by_pixel(h.shape, h)
    moments = empty_float32((batch, slices.count, 2, channels), h)
    if weight is None:
        tile = Tile.of(channels)
        launch(add_kernel, (ceil_div(channels, tile.channels) * batch * slices.count,),
            h, bias, x, out, moments, height, width, slices.pixels, slices.count, h_stride, x_stride,
            C=channels, HAS_BIAS=bias is not None, RESAMPLE=resample,
            LANES=slices.pixels >= 8 * tile.pixels, BLOCK_P=tile.pixels, BLOCK_C=tile.channels,
        )  # fmt: skip
        return out, moments
    skip, skip_stride = (None, 0) if skip is None else by_pixel(skip)
    behind = 0 if skip is None else skip.shape[1]
    weight = weight.reshape(channels, x.shape[1] + behind).contiguous()
    cut = ProjectCut.of(channels, weight.shape[1])
    block_k = 64 if x.shape[1] % 64 == 0 and behind % 64 == 0 else 32
    launch(project_kernel, (ceil_div(channels, cut.channels) * batch * slices.count,),
        h, bias, x, skip, weight, out, moments, height * width, slices.pixels, slices.count,
        h_stride, x_stride, skip_stride,
        C=channels, K1=x.shape[1], K2=behind, HAS_BIAS=bias is not None, LANES=cut.lanes,
        BLOCK_P=cut.pixels, BLOCK_N=cut.channels, BLOCK_K=block_k, num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip
    return out, moments
