"""Triton kernels at the two ends of the network: pixels to patches, and patches to pixels.

The network works on patches of p x p pixels, whose values are channels (pixel unshuffle, Shi et al. 2016, backwards).
Going in, several images are concatenated and unshuffled to one map, whose channels are filled up as matrix units want:
with zeros, and in front of them, if asked for, with ones, so that the convolution that follows can keep its bias among
its weights. Coming out, the bias is added on the way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from wsigen_kernels.compiling import launch
from wsigen_kernels.launch import ceil_div, next_power_of_2, padded_channels
from wsigen_kernels.layout import by_pixel, empty_by_pixel

if TYPE_CHECKING:
    from torch import Tensor

INPUTS = 4  # images that gather_kernel concatenates, at most
_BLOCK = 64
_VALUES = 8192  # of a program, so that they fit into registers


@triton.jit
def _load(ptr, image, pixels, at, channel, inside, C: tl.constexpr):
    """Load ``channel`` of pixel ``at`` of an image (pixels, C)."""
    mask = inside & (channel >= 0) & (channel < C)
    return tl.load(ptr + image * pixels * C + at * C + channel, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def gather_kernel(
    a_ptr,  # (B, H, W, A), and so on: what is concatenated
    b_ptr,
    c_ptr,
    d_ptr,
    out_ptr,  # (B, H / PATCH, W / PATCH, K)
    height,
    width,
    A: tl.constexpr,
    B: tl.constexpr,
    C: tl.constexpr,
    D: tl.constexpr,
    K: tl.constexpr,
    PATCH: tl.constexpr,
    ONES: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write BLOCK_P patches of one image."""
    image = tl.program_id(1).to(tl.int64)
    columns = width // PATCH
    patches = (height // PATCH) * columns
    patch = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    k = tl.arange(0, BLOCK_K)
    within = k % (PATCH * PATCH)
    row = (patch // columns * PATCH)[:, None] + (within // PATCH)[None, :]
    at = row * width + (patch % columns * PATCH)[:, None] + (within % PATCH)[None, :]
    channel = (k // (PATCH * PATCH))[None, :]
    inside = (patch < patches)[:, None] & (k < K)[None, :]
    pixels = height * width
    value = _load(a_ptr, image, pixels, at, channel, inside, A)
    if B > 0:
        value += _load(b_ptr, image, pixels, at, channel - A, inside, B)
    if C > 0:
        value += _load(c_ptr, image, pixels, at, channel - (A + B), inside, C)
    if D > 0:
        value += _load(d_ptr, image, pixels, at, channel - (A + B + C), inside, D)
    if ONES:
        value = tl.where((k == (A + B + C + D) * PATCH * PATCH)[None, :], 1.0, value)
    to = out_ptr + image * patches * K + (patch * K)[:, None] + k[None, :]
    tl.store(to, value.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def scatter_kernel(
    x_ptr,  # (B, H / PATCH, W / PATCH, K), patches x_stride apart
    bias_ptr,  # (C * PATCH * PATCH,)
    out_ptr,  # (B, H, W, C)
    height,
    width,
    x_stride,
    C: tl.constexpr,
    PATCH: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write BLOCK_P pixels of one image."""
    image = tl.program_id(1).to(tl.int64)
    columns = width // PATCH
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    row, column = pixel // width, pixel % width
    channel = tl.arange(0, BLOCK_C)
    inside = (pixel < height * width)[:, None] & (channel < C)[None, :]
    patch = row // PATCH * columns + column // PATCH
    k = (row % PATCH * PATCH + column % PATCH)[:, None] + (channel * PATCH * PATCH)[None, :]
    from_ptr = x_ptr + image * (height // PATCH) * columns * x_stride
    value = tl.load(from_ptr + (patch * x_stride)[:, None] + k, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias_ptr + k, mask=inside, other=0.0).to(tl.float32)
    to = out_ptr + image * height * width * C + (pixel * C)[:, None] + channel[None, :]
    tl.store(to, value.to(out_ptr.dtype.element_ty), mask=inside)


def gather(images: list[Tensor], patch: int, ones: bool = False) -> Tensor:
    """Concatenate 1 to 4 images (B, C_i, H, W) as patches: (B, padded_channels(n), H / p, W / p), channels_last.

    H and W are multiples of ``patch``. n is ``patch² * sum(C_i)``, and one more with ``ones``, a channel of which.
    """
    if not 1 <= len(images) <= INPUTS:
        raise ValueError(f"{len(images)} images; from 1 to {INPUTS} can be gathered")
    batch, _, height, width = images[0].shape
    parts: list[Tensor | None] = [_dense(image) for image in images]
    channels = [image.shape[1] for image in images]
    parts += [None] * (INPUTS - len(parts))
    channels += [0] * (INPUTS - len(channels))
    padded = padded_channels(sum(channels) * patch * patch + ones)
    out = empty_by_pixel((batch, padded, height // patch, width // patch), images[0])
    patches = (height // patch) * (width // patch)
    block_k = next_power_of_2(padded)
    block_p = max(8, min(_BLOCK, _VALUES // block_k))  # patches of 4 px have hundreds of channels
    launch(gather_kernel, (ceil_div(patches, block_p), batch),
        *parts, out, height, width, *channels,
        K=padded, PATCH=patch, ONES=ones, BLOCK_P=block_p, BLOCK_K=block_k,
    )  # fmt: skip
    return out


def scatter(x: Tensor, bias: Tensor, patch: int) -> Tensor:
    """Add ``bias`` (C p²,) to the first channels of ``x`` (B, K, h, w) and shuffle: (B, C, h p, w p), channels_last."""
    x, stride = by_pixel(x)
    batch, _, rows, columns = x.shape
    channels = len(bias) // patch**2
    out = empty_by_pixel((batch, channels, rows * patch, columns * patch), x)
    pixels = rows * columns * patch * patch
    launch(scatter_kernel, (ceil_div(pixels, 4 * _BLOCK), batch),
        x, bias, out, rows * patch, columns * patch, stride,
        C=channels, PATCH=patch, BLOCK_P=4 * _BLOCK, BLOCK_C=next_power_of_2(channels),
    )  # fmt: skip
    return out


def _dense(image: Tensor) -> Tensor:
    """Return ``image`` in channels_last memory without gaps."""
    image, stride = by_pixel(image)
    return image if stride == image.shape[1] else empty_by_pixel(image.shape, image).copy_(image)
