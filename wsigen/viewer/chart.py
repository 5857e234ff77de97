"""A mask at a glance, made during its one scan: what is seen of it from afar, and by what a change is told.

From afar a mask cannot be read pixel by pixel in the time of a request. The chart keeps, for cells of a power of two of
pixels, the class that fills most of a cell, how much of it is nuclei, and how much is tissue, and the same for cells
twice as large and so on. Beside it stands a hash of the content for each cell of 32 pixels: of what the painter sees
(classes, borders between nuclei, tissue), not of ids, which another import numbers anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt

from wsigen.masks.conditions import TISSUE_WITHIN_UM, UNKNOWN_WITHIN_UM
from wsigen.masks.occupancy import CELL, Occupancy
from wsigen.masks.window import TISSUE, UNKNOWN, MaskWindow

LARGEST_SIDE = 8192  # cells; the finest level of the largest charts takes 200 MB
SMALLEST_SCALE = 8  # finer than that the mask itself is read


@dataclass(frozen=True)
class ChartLevel:
    """One resolution of a chart, (h, w) uint8 each: class of the most nucleus pixels of a cell, its share of nuclei and
    its share of tissue, both 0 to 255.
    """

    classes: np.ndarray
    nuclei: np.ndarray
    tissue: np.ndarray

    def halved(self) -> ChartLevel:
        """The level of cells twice as large; the class is that of the fullest of the four."""
        classes, nuclei, tissue = (_quarters(plane) for plane in (self.classes, self.nuclei, self.tissue))
        fullest = nuclei.argmax(0)[None]
        return ChartLevel(
            np.take_along_axis(classes, fullest, 0)[0],
            nuclei.mean(0).round().astype(np.uint8),
            tissue.mean(0).round().astype(np.uint8),
        )


@dataclass(frozen=True)
class MaskChart:
    """Charts of a mask of width x height pixels. ``levels[0]`` has cells of ``scale`` pixels, the next ones of 2 scale.

    digests: uint64 (ceil(height / 32), ceil(width / 32)); equal digests, equal content.
    """

    width: int
    height: int
    scale: int
    levels: tuple[ChartLevel, ...]
    digests: np.ndarray

    def changed(self, other: MaskChart) -> Occupancy | None:
        """Cells in which two masks differ; None if their sizes do."""
        if (self.width, self.height) != (other.width, other.height):
            return None
        return Occupancy(self.digests != other.digests, self.width, self.height)

    def level_for(self, pixels: float) -> ChartLevel:
        """The finest level whose cells are not smaller than so many pixels, or the coarsest one."""
        wanted = max(0, math.ceil(math.log2(max(pixels, 1) / self.scale) - 1e-9))
        return self.levels[min(wanted, len(self.levels) - 1)]


class ChartMaker:
    """Makes a MaskChart from bands of whole rows, from the top down.

    mpp: microns per pixel of the mask, for guessing tissue where it has no such plane.
    """

    def __init__(self, width: int, height: int, class_count: int, has_tissue: bool, mpp: float) -> None:
        self.width, self.height, self.class_count = width, height, class_count
        self.has_tissue, self.mpp = has_tissue, mpp
        self.scale = SMALLEST_SCALE
        while max(width, height) > LARGEST_SIDE * self.scale:
            self.scale *= 2
        self._strip_rows = max(self.scale, CELL)
        self._waiting: list[MaskWindow] = []
        self._waiting_rows = 0
        self._above: np.ndarray | None = None  # labels of the row above the next strip
        self._rows: list[ChartLevel] = []
        self._digests: list[np.ndarray] = []
        self.rows_seen = 0

    def add(self, band: MaskWindow) -> None:
        """Take the next band."""
        start = 0
        self.rows_seen += len(band.classes)
        while start < len(band.classes):
            stop = min(len(band.classes), start + self._strip_rows - self._waiting_rows)
            self._waiting.append(band.take(slice(start, stop), slice(None)))
            self._waiting_rows += stop - start
            start = stop
            if self._waiting_rows == self._strip_rows:
                self._finish_strip()

    def result(self) -> MaskChart:
        """The chart of all bands."""
        if self._waiting:
            self._finish_strip()
        planes = ("classes", "nuclei", "tissue")
        level = ChartLevel(*(np.concatenate([getattr(row, plane) for row in self._rows]) for plane in planes))
        if not self.has_tissue:
            level = ChartLevel(level.classes, level.nuclei, _guessed_tissue(level.nuclei, self.scale * self.mpp))
        levels = [level]
        while max(levels[-1].classes.shape) > 1:
            levels.append(levels[-1].halved())
        return MaskChart(self.width, self.height, self.scale, tuple(levels), np.concatenate(self._digests))

    def _finish_strip(self) -> None:
        parts, self._waiting, self._waiting_rows = self._waiting, [], 0
        classes = np.concatenate([part.classes for part in parts])
        tissue = np.concatenate([part.tissue for part in parts if part.tissue is not None]) if self.has_tissue else None
        ids = [part.instances for part in parts if part.instances is not None]
        labels = np.concatenate(ids) if ids else classes
        self._rows.append(self._charted(classes, tissue))
        self._digests.append(_digests(_content(classes, labels, tissue, self._above)))
        self._above = labels[-1].copy()

    def _charted(self, classes: np.ndarray, tissue: np.ndarray | None) -> ChartLevel:
        scale, rows, columns = self.scale, -(-len(classes) // self.scale), -(-self.width // self.scale)
        y, x = np.nonzero(classes)
        kinds = self.class_count + 1
        cell = (y // scale * columns + x // scale) * kinds + classes[y, x]
        counts = np.bincount(cell, minlength=rows * columns * kinds).reshape(rows, columns, kinds)
        whole = scale * scale
        nuclei = np.minimum(counts.sum(2) * 255 // whole, 255).astype(np.uint8)
        if tissue is None:
            share = np.zeros((rows, columns), np.uint8)
        else:
            worth = (tissue == TISSUE).astype(np.uint16) * 2 + (tissue == UNKNOWN)
            strips = np.split(worth, range(scale, len(worth), scale))
            sums = np.stack([strip.sum(axis=0, dtype=np.uint32) for strip in strips])  # reduceat: several times slower
            sums = np.add.reduceat(sums, range(0, self.width, scale), axis=1)
            share = np.minimum(sums * 255 // (2 * whole), 255).astype(np.uint8)
        return ChartLevel(counts.argmax(2).astype(np.uint8), nuclei, share)


def _content(
    classes: np.ndarray, labels: np.ndarray, tissue: np.ndarray | None, above: np.ndarray | None
) -> np.ndarray:
    """All that the painter sees of a strip, one uint16 a pixel: class, borders to the left and above, tissue."""
    content = classes.astype(np.uint16)
    content[:, 1:] |= (labels[:, 1:] != labels[:, :-1]).astype(np.uint16) << 8
    content[1:] |= (labels[1:] != labels[:-1]).astype(np.uint16) << 9
    if above is not None:
        content[0] |= (labels[0] != above).astype(np.uint16) << 9
    if tissue is not None:
        content |= (tissue == TISSUE).astype(np.uint16) << 10 | (tissue == UNKNOWN).astype(np.uint16) << 11
    return content


# Multilinear hashing: random factors, sums modulo 2^64 (Lemire and Kaser 2014).
_FACTORS = np.random.default_rng(20230).integers(1, 1 << 64, (CELL, CELL), np.uint64)


def _digests(content: np.ndarray) -> np.ndarray:
    """Hashes of the cells of a strip: uint64 (rows, columns); 0 where there is nothing."""
    height, width = content.shape
    rows, columns = -(-height // CELL), -(-width // CELL)
    padded = np.zeros((rows * CELL, columns * CELL), np.uint16)
    padded[:height, :width] = content
    cells = padded.reshape(rows, CELL, columns, CELL).transpose(0, 2, 1, 3)
    digests = np.zeros((rows, columns), np.uint64)
    marked = cells.any(axis=(2, 3))
    digests[marked] = (cells[marked].astype(np.uint64) * _FACTORS).sum(axis=(1, 2), dtype=np.uint64)
    return digests


def _guessed_tissue(nuclei: np.ndarray, um_per_cell: float) -> np.ndarray:
    """Share of tissue from the distance to nuclei, as the painter guesses it: sure nearby, then less and less."""
    if not nuclei.any():
        return np.zeros(nuclei.shape, np.uint8)
    distance = distance_transform_edt(nuclei == 0) * um_per_cell
    share = (UNKNOWN_WITHIN_UM - distance) / (UNKNOWN_WITHIN_UM - TISSUE_WITHIN_UM)
    return (np.clip(share, 0, 1) * 255).astype(np.uint8)


def _quarters(plane: np.ndarray) -> np.ndarray:
    """The four cells that make one of the next level, the border repeated: (4, ceil(h / 2), ceil(w / 2))."""
    height, width = plane.shape
    padded = np.pad(plane, ((0, height % 2), (0, width % 2)), "edge")
    return np.stack([padded[0::2, 0::2], padded[0::2, 1::2], padded[1::2, 0::2], padded[1::2, 1::2]])
