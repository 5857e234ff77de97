"""Which windows may hold more than clear glass, told from the coarse map of a mask that its one scan leaves behind.

The map of occupied windows errs on one side: a window that it leaves out holds nothing but glass, so that a chunk of
such windows is written without reading the mask; one that it names may still turn out to be glass when it is read.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import numpy as np

from wsigen.layouts.layout import Layout, cells_of, first_cell
from wsigen.masks.conditions import GLASS_DEPTH, UNKNOWN_WITHIN_UM
from wsigen.masks.occupancy import Occupancy
from wsigen.masks.summary import MaskSummary
from wsigen.painting.canvas import Chunk
from wsigen.painting.grid import PARITIES, Axis, BlockGrid, Parity, WindowGrid


class MaskShape(NamedTuple):
    """What decides how far around a window its mask matters: the slide's sides in px, and whether it has tissue."""

    width: int
    height: int
    has_tissue: bool


class Shaped(Protocol):
    """A mask at the slide's scale, or its `MaskShape`."""

    @property
    def width(self) -> int:
        """Of the slide, px."""

    @property
    def height(self) -> int:
        """Of the slide, px."""

    @property
    def has_tissue(self) -> bool:
        """Whether the mask has a tissue plane."""


def window_occupancy(grid: WindowGrid, mask: Shaped, summary: MaskSummary, mpp: float) -> np.ndarray:
    """Windows that may need the model: bool (rows, columns) of the grid. ``summary`` is of the mask's own file."""
    if summary.occupancy is None:
        return np.ones((grid.rows, grid.columns), bool)
    halo = GLASS_DEPTH + 1 + (0 if mask.has_tissue else math.ceil(UNKNOWN_WITHIN_UM / mpp))
    columns = _spans(grid.x_axis, halo, summary.width / mask.width)
    rows = _spans(grid.y_axis, halo, summary.height / mask.height)
    return summary.occupancy.touched(columns, rows)


def changed_windows(grid: WindowGrid, mask: Shaped, changed: Occupancy, mpp: float) -> np.ndarray:
    """Windows whose pixels may differ once a mask has changed in some cells: bool (rows, columns) of the grid.

    A window follows from the mask within it and a halo, and from the windows that it sees. ``changed`` is in pixels of
    the mask's own file, which must have kept its size.
    """
    halo = GLASS_DEPTH + 1 + (0 if mask.has_tissue else math.ceil(UNKNOWN_WITHIN_UM / mpp))
    columns = _in_file([_extent(grid.x_axis, i) for i in range(grid.columns)], halo, changed.width / mask.width)
    rows = _in_file([_extent(grid.y_axis, j) for j in range(grid.rows)], halo, changed.height / mask.height)
    own = changed.touched(columns, rows)
    return _seen(_seen(own).T).T


def _seen(own: np.ndarray) -> np.ndarray:
    """Spread along the rows: odd windows see those at both sides, even ones see none."""
    seen = own.copy()
    odd, right = seen[:, 1::2], own[:, 2::2]
    odd |= own[:, 0::2][:, : odd.shape[1]]
    odd[:, : right.shape[1]] |= right
    return seen


def _extent(axis: Axis, i: int) -> tuple[int, int]:
    return axis.origin(i), axis.origin(i) + axis.window


def layout_occupancy(grid: WindowGrid, layout: Layout, halo: int = 0) -> np.ndarray:
    """Windows where a layout has more than glass, within ``halo`` px of them: bool (rows, columns) of the grid."""
    glass = layout.planes[len(layout.classes)] == 255
    sums = np.zeros((glass.shape[0] + 1, glass.shape[1] + 1), np.int64)
    sums[1:, 1:] = (~glass).cumsum(0).cumsum(1)
    (top, bottom), (left, right) = (
        _cell_spans(axis, size, halo) for axis, size in ((grid.y_axis, glass.shape[0]), (grid.x_axis, glass.shape[1]))
    )
    corner = sums[bottom][:, right] - sums[top][:, right] - sums[bottom][:, left] + sums[top][:, left]
    return corner > 0


def _cell_spans(axis: Axis, size: int, halo: int) -> tuple[np.ndarray, np.ndarray]:
    """Cells [first, last) that decide each window of an axis."""
    first = np.array([first_cell(axis.origin(i) - halo) for i in range(axis.count)])
    last = np.clip(first + cells_of(axis.window + 2 * halo) - 1, 0, size - 1) + 1
    return np.clip(first, 0, size - 1), last


def occupied_windows(layout: BlockGrid, chunk: Chunk, occupied: np.ndarray) -> int:
    """How many windows of a chunk may need the model."""
    (p, q), parity = chunk
    side = 2 * layout.b
    rows = slice(side * q + parity.y, side * (q + 1), 2)
    return int(np.count_nonzero(occupied[rows, side * p + parity.x : side * (p + 1) : 2]))


def windows_by_parity(occupied: np.ndarray) -> dict[Parity, tuple[int, int]]:
    """For each parity the number of windows, and of those that may need the model."""
    parts = {parity: occupied[parity.y :: 2, parity.x :: 2] for parity in PARITIES}
    return {parity: (part.size, int(np.count_nonzero(part))) for parity, part in parts.items()}


def _spans(axis: Axis, halo: int, ratio: float) -> np.ndarray:
    """Pixels [start, stop) of the mask's file that decide what each window holds: (count, 2) int64."""
    held = [(axis.held_start(i), axis.held_start(i) + axis.held_length(i % 2)) for i in range(axis.count)]
    return _in_file(held, halo, ratio)


def _in_file(pixels: list[tuple[int, int]], halo: int, ratio: float) -> np.ndarray:
    """Pixels [start, stop) of the slide with a halo around them, in pixels of the mask's file: (count, 2) int64."""
    spans = np.array(pixels, np.float64) + np.array([-halo, halo])
    margin = 0 if ratio == 1 else 2  # of rounding
    return np.stack([np.floor(spans[:, 0] * ratio) - margin, np.ceil(spans[:, 1] * ratio) + margin], 1).astype(np.int64)
