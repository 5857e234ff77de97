"""A mask at another resolution than its own."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

from wsigen.errors import MaskError
from wsigen.masks.source import BAND_BYTES, MaskSource
from wsigen.masks.window import MaskWindow

SAME_MPP_TOLERANCE = 0.05


class ResampledMask(MaskSource):
    """A mask that is resampled to another resolution, by nearest neighbour.

    Pixel x shows the source pixel floor((x + 1/2) * ratio), ratio = mpp / source.mpp taken as an exact fraction, from
    global coordinates: a window equals that part of the whole. Reflection is about the border of this plane.
    Microns per pixel are rounded to 1e-6 for the fraction.
    """

    def __init__(self, source: MaskSource, mpp: float) -> None:
        if source.mpp is None:
            raise MaskError(f"{source.path}: gives no microns per pixel, so it cannot be resampled; set its resolution")
        self.source = source
        self.path, self.class_count, self.planes, self.mpp = source.path, source.class_count, source.planes, mpp
        ratio = Fraction(round(mpp * 1_000_000), round(source.mpp * 1_000_000))
        self._p, self._q = ratio.numerator, ratio.denominator
        self.width, self.height = self._resampled_size(source.width), self._resampled_size(source.height)

    def close(self) -> None:
        """Close the source."""
        close = getattr(self.source, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> ResampledMask:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return (ResampledMask, (self.source, self.mpp))

    def _resampled_size(self, size: int) -> int:
        """How many x have floor((2x + 1) p / 2q) < size; at least one."""
        return max(1, -((self._p - 2 * self._q * size) // (2 * self._p)))

    def _source_of(self, x: np.ndarray, size: int) -> np.ndarray:
        return np.minimum((2 * x + 1) * self._p // (2 * self._q), size - 1)

    def _band_rows(self) -> int:
        bytes_per_pixel = 1 + 4 * self.has_instances + self.has_tissue
        source_pixels = self.width * max(1.0, self._p / self._q) ** 2
        return min(self.height, max(1, math.floor(BAND_BYTES / (source_pixels * bytes_per_pixel))))

    def _read_inside(self, x: int, y: int, w: int, h: int) -> MaskWindow:
        columns = self._source_of(np.arange(x, x + w, dtype=np.int64), self.source.width)
        rows = self._source_of(np.arange(y, y + h, dtype=np.int64), self.source.height)
        left, top = int(columns[0]), int(rows[0])
        inside = self.source.read(left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1)
        return inside.take(rows - top, columns - left)


def resampled_to(mask: MaskSource, mpp: float) -> MaskSource:
    """The mask at `mpp` microns per pixel.

    Within 5 % of its own resolution, or where it gives none, that is the mask itself, so that labels stay pixel-exact.
    """
    if mask.mpp is None or abs(mask.mpp / mpp - 1) <= SAME_MPP_TOLERANCE:
        return mask
    return ResampledMask(mask, mpp)
