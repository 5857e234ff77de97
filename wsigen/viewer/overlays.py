"""What can lie over a slide: nuclei by class, from a mask or from outlines, and what lies under a click."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import ndimage

from wsigen.masks.classes import ClassTable, NucleusClass
from wsigen.masks.conditions import instance_edges
from wsigen.masks.outline import trace_bitmap
from wsigen.masks.resampling import resampled_to
from wsigen.masks.slide_mask import SlideMask
from wsigen.masks.source import MaskSource
from wsigen.masks.summary import MaskSummary
from wsigen.slides.pyramid import level_sizes
from wsigen.viewer.chart import MaskChart
from wsigen.viewer.tiles import tile_box

Drawing = Literal["fill", "outline"]
NEAR = (32, 96, 320)  # px around a click, tried in turn until a nucleus is whole
OUTLINE_VERTICES = 4000
LINE = 2  # pixels of an outline at level 0, inside the nucleus; 1 at coarser levels


@dataclass(frozen=True)
class Found:
    """A nucleus under a click.

    number: id in the mask or number in the file, None where there are no ids. area: in pixels of the overlay. rings:
    its outline in pixels of the overlay. whole: False for an object too large to be followed to its end.
    """

    class_index: int
    number: int | None
    area: float
    rings: list[list[list[float]]] = field(repr=False)
    whole: bool = True


@dataclass(frozen=True)
class Marks:
    """Which classes to draw in a tile, and how opaque: class index and alpha, (h, w) uint8 each."""

    classes: np.ndarray
    alpha: np.ndarray


class Overlay(ABC):
    """Nuclei in the plane of a picture of ``levels[0]`` pixels, which lies over the slide from corner to corner."""

    name: str
    width: int
    height: int
    mpp: float | None
    classes: tuple[NucleusClass, ...]
    counts: tuple[int, ...]
    revision: int = 0

    @property
    def levels(self) -> list[tuple[int, int]]:
        """Sizes of the levels."""
        return level_sizes(self.width, self.height)

    def tile(self, level: int, column: int, row: int, drawing: Drawing, shown: Collection[int]) -> np.ndarray:
        """Colours of a tile, transparent where there is nothing: uint8 (h, w, 4). The tile must exist."""
        box = tile_box(self.levels, level, column, row)
        assert box is not None
        marks = self.marks(level, *box, drawing)
        colours = np.zeros((256, 4), np.uint8)
        for entry in self.classes:
            if entry.index in shown:
                colours[entry.index] = (*entry.rgb, 255)
        rgba = colours[marks.classes]
        rgba[..., 3] = np.minimum(rgba[..., 3], marks.alpha)
        return rgba

    @abstractmethod
    def marks(self, level: int, x: int, y: int, width: int, height: int, drawing: Drawing) -> Marks:
        """What to draw in a region of a level, in its pixels."""

    @abstractmethod
    def find(self, x: int, y: int) -> Found | None:
        """The nucleus at a pixel of level 0."""

    @abstractmethod
    def close(self) -> None:
        """Let go of files."""


class MaskOverlay(Overlay):
    """A slide mask, at the scale of the slide that is painted from it."""

    def __init__(
        self, path: Path, table: ClassTable, summary: MaskSummary, chart: MaskChart, mpp: float | None = None
    ) -> None:
        self.source = SlideMask.open(path, len(table))
        self.mask: MaskSource = resampled_to(self.source, mpp) if mpp else self.source
        self.chart, self.name, self.classes, self.counts = chart, path.name, tuple(table), summary.nuclei
        self.width, self.height, self.mpp = self.mask.width, self.mask.height, mpp or self.mask.mpp
        self.ratio = chart.width / self.width  # pixels of the file to one of the overlay

    def close(self) -> None:
        """Close the mask."""
        self.source.close()

    def near(self, level: int) -> bool:
        """Whether a level is read from the mask itself, not from its chart."""
        return 2**level * self.ratio < self.chart.scale

    def marks(self, level: int, x: int, y: int, width: int, height: int, drawing: Drawing) -> Marks:
        """Pixels near by; from afar the fullest class, as opaque as nuclei are dense."""
        if not self.near(level):
            classes, nuclei, _ = self.charted(level, x, y, width, height)
            return Marks(classes, np.minimum(nuclei.astype(np.uint16) * 2, 255).astype(np.uint8))
        margin = LINE if drawing == "outline" else 0
        classes, labels = self._sampled(level, x - margin, y - margin, width + 2 * margin, height + 2 * margin)
        if drawing == "fill":
            return Marks(classes, np.full(classes.shape, 255, np.uint8))
        edges = instance_edges(labels)
        if level == 0:
            edges = ndimage.binary_dilation(edges)
        inner = np.s_[LINE:-LINE, LINE:-LINE]
        return Marks(classes[inner], edges[inner].astype(np.uint8) * np.uint8(255))

    def charted(self, level: int, x: int, y: int, width: int, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Class, share of nuclei and share of tissue from the chart: uint8 (height, width) each."""
        pixels = 2**level * self.ratio
        chart = self.chart.level_for(pixels)
        rows = self._cells(y, height, pixels, self.chart.height, len(chart.classes))
        columns = self._cells(x, width, pixels, self.chart.width, chart.classes.shape[1])
        at = np.ix_(rows, columns)
        return chart.classes[at], chart.nuclei[at], chart.tissue[at]

    def _cells(self, start: int, count: int, pixels: float, size: int, cells: int) -> np.ndarray:
        """Cells of a chart level at pixels start .. start + count - 1 of a level."""
        scale = self.chart.scale
        while -(-size // scale) > cells:
            scale *= 2
        return np.clip(((np.arange(start, start + count) + 0.5) * pixels // scale).astype(np.int64), 0, cells - 1)

    def _sampled(self, level: int, x: int, y: int, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
        """Classes and labels at the middle of each pixel of a level; reflected outside."""
        step = 1 << level
        read = self.mask.read(x * step, y * step, width * step, height * step)
        middle = slice(step // 2, None, step)
        labels = read.classes if read.instances is None else read.instances
        return np.ascontiguousarray(read.classes[middle, middle]), np.ascontiguousarray(labels[middle, middle])

    def find(self, x: int, y: int) -> Found | None:
        """The nucleus at a pixel: an id where the mask has ids, else what hangs together."""
        for reach in NEAR:
            left, top = max(x - reach, 0), max(y - reach, 0)
            right, bottom = min(x + reach + 1, self.width), min(y + reach + 1, self.height)
            read = self.mask.read(left, top, right - left, bottom - top)
            kind = int(read.classes[y - top, x - left])
            if kind == 0:
                return None
            number = None if read.instances is None else int(read.instances[y - top, x - left])
            if read.instances is not None and number:
                piece = (read.instances == number) & (read.classes > 0)
            else:
                pieces, _ = ndimage.label(read.classes == kind)
                piece, number = pieces == pieces[y - top, x - left], None
            cut = (
                (left > 0 and piece[:, 0].any())
                or (top > 0 and piece[0].any())
                or (right < self.width and piece[:, -1].any())
                or (bottom < self.height and piece[-1].any())
            )
            if not cut:
                break
        rings = [ring.tolist() for polygon in trace_bitmap(piece, left, top) for ring in polygon]
        return Found(kind, number, float(piece.sum()), _bounded(rings), not cut)


def _bounded(rings: list[list[list[float]]]) -> list[list[list[float]]]:
    """Rings of an outline, the longest ones where they have too many vertices."""
    kept, vertices = [], 0
    for ring in sorted(rings, key=len, reverse=True):
        vertices += len(ring)
        if vertices > OUTLINE_VERTICES:
            break
        kept.append(ring)
    return kept
