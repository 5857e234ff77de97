"""Where a mask holds anything but glass, in cells of 32 pixels. Windows of glass need no painting.

A window that is empty in this map holds only clear glass. A window that is not empty may be glass too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from wsigen.masks.window import MaskWindow

CELL = 32


@dataclass(frozen=True)
class Occupancy:
    """Cells of a mask of width x height pixels: bool (ceil(height / 32), ceil(width / 32))."""

    cells: np.ndarray
    width: int
    height: int

    @cached_property
    def _integral(self) -> np.ndarray:
        sums = np.zeros((self.cells.shape[0] + 1, self.cells.shape[1] + 1), np.int64)
        np.cumsum(np.cumsum(self.cells, 0, np.int64), 1, out=sums[1:, 1:])
        return sums

    def touched(self, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Whether rectangles hold an occupied cell: each span of ``columns`` (m, 2) by each of ``rows`` (n, 2).

        Spans are [start, stop) in pixels; what lies outside the mask is seen reflected, up to one size of the mask
        away. Returns bool (n, m).
        """
        left, right = _cells(columns, self.width)
        top, bottom = _cells(rows, self.height)
        sums = self._integral
        found = sums[np.ix_(bottom, right)] - sums[np.ix_(top, right)] - sums[np.ix_(bottom, left)]
        return np.asarray(found + sums[np.ix_(top, left)] > 0)


def _cells(spans: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """First and past-the-last cell of each [start, stop), with what is reflected into it."""
    start, stop = spans[:, 0], spans[:, 1]
    first = np.minimum(start, np.where(stop > size, 2 * size - stop, start))
    last = np.maximum(stop, np.where(start < 0, -start, stop))
    first, last = np.clip(first, 0, size - 1), np.clip(last, 1, size)
    return first // CELL, -(-last // CELL)


class OccupancyCount:
    """Fills an Occupancy from bands of whole rows, from the top down."""

    def __init__(self, width: int, height: int) -> None:
        self._cells = np.zeros((math.ceil(height / CELL), math.ceil(width / CELL)), bool)
        self._size = width, height
        self._row = 0

    def add(self, band: MaskWindow) -> None:
        """Add the next band."""
        solid = band.classes if band.tissue is None else np.bitwise_or(band.classes, band.tissue)  # glass is 0
        ends = range(CELL - self._row % CELL, len(solid), CELL)
        rows = np.stack([part.max(axis=0) for part in np.split(solid, ends)])  # reduceat: a hundred times slower
        cells = np.maximum.reduceat(rows, range(0, rows.shape[1], CELL), axis=1) > 0
        first = self._row // CELL
        self._cells[first : first + len(cells)] |= cells
        self._row += len(solid)

    def result(self) -> Occupancy:
        """The map of all bands."""
        return Occupancy(self._cells, *self._size)
