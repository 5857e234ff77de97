"""Feature maps as the kernels see them: pixels one after another, channels innermost (NHWC, torch's channels_last)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

INDEX_LIMIT = 2**31  # within one image the kernels count elements in 32 bits; images are counted in 64
SAME, UP, DOWN = 0, 1, 2  # what becomes of the resolution: kept, doubled (nearest), halved (mean of 2 x 2)


def pixel_stride(x: Tensor) -> int | None:
    """Elements from a pixel of ``x`` (B, C, H, W) to the next; None if its memory is not laid out pixel by pixel.

    A slice of channels of a channels_last tensor is laid out so too: its stride is that of the whole tensor.
    """
    _, channels, height, width = x.shape
    if channels > 1 and x.stride(1) != 1:
        return None
    stride = x.stride(3) if width > 1 else x.stride(2) if height > 1 else x.stride(0) if len(x) > 1 else channels
    expected = (height * width * stride, None, width * stride, stride)
    matches = all(
        size == 1 or want is None or have == want
        for size, have, want in zip(x.shape, x.stride(), expected, strict=True)
    )
    return stride if matches and stride >= channels else None


def by_pixel(x: Tensor) -> tuple[Tensor, int]:
    """Return ``x`` and its pixel stride, copied to channels_last only if it is not laid out by pixel already."""
    stride = pixel_stride(x)
    if stride is not None:
        return x, stride
    return empty_by_pixel(x.shape, x).copy_(x), x.shape[1]


def empty_by_pixel(shape: tuple[int, ...] | torch.Size, like: Tensor) -> Tensor:
    """Allocate (B, C, H, W) in channels_last, with dtype and device of ``like``."""
    batch, channels, height, width = shape
    return like.new_empty((batch, height, width, channels)).permute(0, 3, 1, 2)


def empty_float32(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Allocate float32 of a shape on the device of ``like``."""
    import torch

    return like.new_empty(shape, dtype=torch.float32)


def map_shape(x: Tensor, phased: bool = False) -> tuple[int, int, int, int]:
    """Shape (B, C, H, W) of a feature map that may lie in places (see wsigen_kernels.upsample)."""
    batch, channels, height, width = x.shape
    return (batch, channels // 4, 2 * (height - 1), 2 * (width - 1)) if phased else (batch, channels, height, width)


def fits(*maps: Tensor) -> bool:
    """Whether the kernels can index every image of ``maps``."""
    return all(x.shape[2] * x.shape[3] * (pixel_stride(x) or x.shape[1]) < INDEX_LIMIT for x in maps)
