"""Put a region together from what windows hold: copied where one window holds a pixel, blended in bands.

The value of a pixel is the rounded weighted mean of its windows', in integers: the same on every machine and in every
order. Canvas and live painter both make their pixels here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from wsigen.painting.grid import STAGES, Axis, Rectangle, Window, WindowGrid

ONE = np.ones((1, 1, 1, 1), np.uint32)  # the weights of a single window


class Mosaic:
    """Pixels of a region, as far as they are final.

    rgb: (height, width, 3) uint8, 0 where not known. known: (height, width) bool, all of whose windows were added.
    The region may reach beyond the slide. With ``stages_below`` only those pixels are asked for all of whose windows
    are painted in stages before it.
    """

    def __init__(self, grid: WindowGrid, region: Rectangle, stages_below: int = STAGES) -> None:
        self.rgb = np.zeros((region.height, region.width, 3), np.uint8)
        self.known = np.zeros((region.height, region.width), bool)
        self._grid = grid
        self._pieces: defaultdict[Window, list[_Piece]] = defaultdict(list)
        columns = _runs(grid.x_axis, region.x, region.width, _across)
        for row in _runs(grid.y_axis, region.y, region.height, _down):
            for column in columns:
                if row.stage + column.stage < stages_below:
                    piece = _Piece(row, column)
                    for j in row.windows:
                        for i in column.windows:
                            self._pieces[Window(i, j)].append(piece)

    @property
    def windows(self) -> tuple[Window, ...]:
        """Windows that are still to be added, of those that hold what is asked for."""
        return tuple(self._pieces)

    def add(self, window: Window, held: np.ndarray) -> None:
        """Take in what a window holds, (h, w, 3) uint8; one that holds nothing of the region is passed over."""
        for piece in self._pieces.pop(window, ()):
            final = piece.add(window, held)
            if final is not None:
                place = piece.row.place, piece.column.place
                self.rgb[place], self.known[place] = final, True


@dataclass(frozen=True, slots=True)
class _Run:
    """Pixels of an axis that the same windows hold.

    stage: what it adds to the stage after which it is final. place: in the region. within: in what each of the windows
    holds. weights: uint32 of each window, to be multiplied with (h, w, 3), that sum to ``total``.
    """

    windows: range
    stage: int
    place: slice
    within: tuple[slice, ...]
    weights: np.ndarray
    total: int


@lru_cache(512)
def _runs(axis: Axis, start: int, length: int, ramps: Callable[[int, int, int], np.ndarray]) -> tuple[_Run, ...]:
    """Runs of a stretch of an axis: the same for all regions of a row, or of a column, of windows."""
    runs = []
    for windows, first, stop, into in axis.segments(start, start + length):
        within = tuple(slice(first - axis.held_start(i), stop - axis.held_start(i)) for i in windows)
        in_band, stage = len(windows) > 1, max(i % 2 for i in windows)
        weights, total = (ramps(axis.blend, into, stop - first), 2 * axis.blend) if in_band else (ONE, 1)
        runs.append(_Run(windows, stage, slice(first - start, stop - start), within, weights, total))
    return tuple(runs)


@cache
def _down(blend: int, into: int, length: int) -> np.ndarray:
    """Weights of the left (or upper) and the right window of a band along its pixels: (2, length, 1, 1)."""
    right = 2 * np.arange(into, into + length, dtype=np.uint32) + 1
    return np.stack([2 * blend - right, right])[:, :, None, None]


@cache
def _across(blend: int, into: int, length: int) -> np.ndarray:
    """The same for columns: (2, length, 3), spelt out for each colour, so that numpy goes through rows at once."""
    return _down(blend, into, length)[..., 0].repeat(3, 2)


class _Piece:
    """A run of rows and one of columns: pixels that the same windows hold, in the making."""

    __slots__ = ("_missing", "_sum", "_total", "column", "row")

    def __init__(self, row: _Run, column: _Run) -> None:
        self.row, self.column = row, column
        self._missing = len(row.windows) * len(column.windows)
        self._total = np.uint32(row.total * column.total)
        self._sum: np.ndarray | None = None

    def add(self, window: Window, held: np.ndarray) -> np.ndarray | None:
        """Take in one of the windows; the final pixels (h, w, 3) with the last of them, None before."""
        j, i = self.row.windows.index(window[1]), self.column.windows.index(window[0])
        part = held[self.row.within[j], self.column.within[i]]
        if self._total == 1:
            return part
        weighted = part * (self.row.weights[j] * self.column.weights[i])
        if self._sum is None:
            self._sum = weighted
        else:
            self._sum += weighted
        self._missing -= 1
        return None if self._missing else (self._sum + self._total // 2) // self._total
