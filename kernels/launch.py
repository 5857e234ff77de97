"""How the kernels are cut into programs: plain arithmetic on shapes, apart from the kernels and testable anywhere.

The cuts depend on the shape of one image alone, never on the batch or on the device, so that the sums, and with them
the pixels of an image, are the same bits whatever it is batched with.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_TILE = 4096  # elements a program holds at a time: 32 a thread, four 16-byte loads, without spilling
_SLICES = 16  # at most so many partial sums an image: enough programs from 64 images on, and short to merge


def next_power_of_2(n: int) -> int:
    """Smallest power of two that is not below ``n``."""
    return 1 << max(0, n - 1).bit_length()


def ceil_div(a: int, b: int) -> int:
    """Divide, rounding up."""
    return -(-a // b)


def padded_channels(channels: int) -> int:
    """Channels to fill a convolution's input up to: a multiple of eight to 32, of 64 beyond, as matrix units want."""
    return ceil_div(channels, 8) * 8 if channels <= 32 else ceil_div(channels, 64) * 64


def on(x: Tensor) -> AbstractContextManager:
    """Make the device of ``x`` the current one: Triton starts kernels there and nowhere else."""
    if not x.is_cuda:
        return nullcontext()
    import torch

    return torch.cuda.device(x.device)


@dataclass(frozen=True)
class Slices:
    """Runs of pixels of an image whose statistics are taken apart and merged later."""

    pixels: int  # of every slice but the last
    count: int

    @classmethod
    def of(cls, image_pixels: int) -> Slices:
        """Cut an image of so many pixels: at most 16 slices of at least 256 pixels."""
        pixels = max(256, next_power_of_2(ceil_div(image_pixels, _SLICES)))
        return cls(pixels, ceil_div(image_pixels, pixels))


@dataclass(frozen=True)
class Tile:
    """What a program of a memory-bound kernel holds: ``pixels`` x ``channels``, both powers of two."""

    pixels: int
    channels: int

    @classmethod
    def of(cls, channels: int) -> Tile:
        """Choose for so many channels: rows of 64 bytes or more in 16 bits, with the fewest idle lanes."""
        narrow = min(next_power_of_2(channels), 32)
        widths = [width for width in (128, 64, 32, 16, 8, 4, 2, 1) if narrow <= width <= max(narrow, 128)]
        width = min(widths, key=lambda w: (ceil_div(channels, w) * w, -w))
        return cls(max(1, _TILE // width), width)


@dataclass(frozen=True)
class AttentionCut:
    """A program of attention: how many queries it answers, how many keys it holds at a time."""

    queries: int
    keys: int
    depth: int  # channels of a head, padded: 16 or more, as matrix units want
    warps: int
    stages: int  # blocks of keys and values on their way at a time

    @classmethod
    def of(cls, tokens: int, depth: int) -> AttentionCut:
        """Choose for so many tokens and channels of a head.

        Up to 256 tokens all keys are held: 64 queries x 256 keys of float32 are 128 registers a thread of four warps.
        """
        padded, all_tokens = max(16, next_power_of_2(depth)), max(16, next_power_of_2(tokens))
        if tokens <= 256 and padded <= 64:
            return cls(min(64, all_tokens), all_tokens, padded, 4, 2)
        return cls(min(128, all_tokens), 64, padded, 8 if padded > 64 else 4, 3)


@dataclass(frozen=True)
class ProjectCut:
    """A program of a 1 x 1 convolution that is added to something: ``pixels`` x ``channels`` of the sum at a time."""

    pixels: int
    channels: int
    warps: int
    stages: int
    lanes: bool  # how it takes moments: see moments_triton.add_moments

    @classmethod
    def of(cls, channels: int, depth: int) -> ProjectCut:
        """Choose for so many channels of the result and of the input (measured on an H200, at the network's shapes)."""
        width = min(64, max(16, next_power_of_2(channels)))
        return cls(64, width, 4, 3, True) if channels <= 64 and depth <= 128 else cls(128, width, 4, 3, False)
