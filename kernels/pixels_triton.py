"""How the kernels of feature maps find their pixels. A feature map lies pixel by pixel: see wsigen_kernels.layout."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def share_of(image_pixels, slice_pixels, slices, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """What a program works on: a slice of the pixels of an image, and a block of its channels.

    Returns the number of the slice among those of all images, that of the image, the slice's first pixel, the number of
    its pixels, the channels, and which of them there are.
    """
    BLOCKS: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    part = tl.program_id(0) // BLOCKS
    image = (part // slices).to(tl.int64)
    first = (part % slices) * slice_pixels
    count = tl.minimum(slice_pixels, image_pixels - first)
    channel = tl.program_id(0) % BLOCKS * BLOCK_C + tl.arange(0, BLOCK_C)
    return part, image, first, count, channel, channel < C


@triton.jit
def load_tile(base, pixel, stride, channel, inside):
    """Load pixels x channels of an image whose pixels lie ``stride`` apart, in float32; 0 where not ``inside``."""
    return tl.load(base + (pixel * stride)[:, None] + channel[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def corner_of(pixel, width, fine_width):
    """The pixel of a map of twice the resolution that is the upper left quarter of a pixel.

    ``width``, ``fine_width``: of the two maps; the finer one may have one column more than twice as many.
    """
    return (pixel // width) * 2 * fine_width + (pixel % width) * 2


@triton.jit
def quarter_of(corner, fine_width, quarter):
    """The pixel of a quarter, upper left (0) to lower right (3), where ``corner`` is that of the upper left one."""
    return corner + (quarter // 2) * fine_width + quarter % 2


@triton.jit
def offsets(pixel, width, stride, C: tl.constexpr, PHASED: tl.constexpr):
    """Where pixels of an image begin; PHASED: in the places of wsigen_kernels.upsample, ``stride`` apart."""
    if PHASED:
        row = pixel // width
        column = pixel % width
        place = (row // 2 + row % 2) * (width // 2 + 1) + column // 2 + column % 2
        return place * stride + (row % 2 * 2 + column % 2) * C
    else:
        return pixel * stride


@triton.jit
def image_elements(height, width, stride, PHASED: tl.constexpr):
    """Elements from an image to the next."""
    return (height // 2 + 1) * (width // 2 + 1) * stride if PHASED else height * width * stride
