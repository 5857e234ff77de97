"""The pixels of one fragment of a demo mask: zones of tissue, and nuclei that never overlap."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import label

from wsigen.masks.demo.geometry import polygon_pixels, wavy_ellipse
from wsigen.masks.window import GLASS, TISSUE

# Class indices of the shipped model (the order of the Lizard data set).
NEUTROPHIL, EPITHELIAL, LYMPHOCYTE, PLASMA, EOSINOPHIL, CONNECTIVE = range(1, 7)

# Zones of a fragment; they decide where nuclei of the stroma may lie.
OUTSIDE, PROPRIA, EPITHELIUM, LUMEN, MUSCLE, SUBMUCOSA, VESSEL = range(7)

# A nucleus that loses more than this part of itself to its neighbours is left out.
MOST_CLIPPED = 0.35
_LEAST_AREA = 4  # px
_FOUR_NEIGHBOURS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])


@dataclass(frozen=True)
class Nucleus:
    """A nucleus to draw: an ellipse with a wavy outline."""

    kind: int  # class index
    centre: np.ndarray  # (2,) x, y in µm
    long: float  # half-axis in µm
    short: float  # half-axis in µm
    angle: float  # of the long axis, in radians
    rough: float  # standard deviation of the outline's waves, in half-axes


@dataclass
class Drawing:
    """One fragment in its own pixels; places are in µm from its upper left corner."""

    width: int
    height: int
    mpp: float
    rng: np.random.Generator
    next_id: int
    classes: np.ndarray = field(init=False)
    instances: np.ndarray = field(init=False)
    zones: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        shape = (self.height, self.width)
        self.classes, self.zones = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
        self.instances = np.zeros(shape, np.uint32)
        self.width_um, self.height_um = self.width * self.mpp, self.height * self.mpp

    def tissue(self) -> np.ndarray:
        """Tissue plane: glass outside and in open lumina, but never under a nucleus."""
        glass = ((self.zones == OUTSIDE) | (self.zones == LUMEN) | (self.zones == VESSEL)) & (self.classes == 0)
        return np.where(glass, np.uint8(GLASS), np.uint8(TISSUE))

    def zone(self, point: np.ndarray) -> int:
        """Zone of a point (2,) in µm."""
        column, row = int(point[0] / self.mpp), int(point[1] / self.mpp)
        return int(self.zones[row, column]) if 0 <= row < self.height and 0 <= column < self.width else OUTSIDE

    def fill(self, polygon: np.ndarray, zone: int, only: int | None = None) -> None:
        """Make a polygon (N, 2) in µm a zone where it is tissue, or where it is the zone `only`."""
        rows, columns, inside = polygon_pixels(polygon / self.mpp, self.height, self.width)
        part = self.zones[rows, columns]
        part[inside & ((part != OUTSIDE) if only is None else (part == only))] = zone

    def grid(self, pitch: float, zone: int, jitter: float = 0.42) -> np.ndarray:
        """Jittered points, (N, 2) µm, in random order, that lie in a zone."""
        x, y = np.meshgrid(np.arange(0, self.width_um, pitch), np.arange(0, self.height_um, pitch))
        x[1::2] += pitch / 2
        points = np.stack([x.ravel(), y.ravel()], 1)
        points += self.rng.uniform(-jitter * pitch, jitter * pitch, points.shape)
        column, row = (points / self.mpp).astype(int).T
        inside = (points > 0).all(1) & (column < self.width) & (row < self.height)
        points, column, row = points[inside], column[inside], row[inside]
        return self.rng.permutation(points[self.zones[row, column] == zone])

    def add(self, nucleus: Nucleus) -> None:
        """Draw a nucleus in what its neighbours have left free.

        It must lie within the tissue; it is left out where too little of it would remain.
        """
        amplitudes, phases = self.rng.normal(0, nucleus.rough, 3), self.rng.uniform(0, 2 * math.pi, 3)
        cx, cy = nucleus.centre[0] / self.mpp, nucleus.centre[1] / self.mpp
        long, short = nucleus.long / self.mpp, nucleus.short / self.mpp
        reach = math.ceil(1.3 * long) + 1  # px, with room for the waves of the outline
        x0, y0 = math.floor(cx) - reach, math.floor(cy) - reach
        x1, y1 = x0 + 2 * reach + 1, y0 + 2 * reach + 1
        if x0 < 0 or y0 < 0 or x1 > self.width or y1 > self.height:
            return
        dx, dy = np.arange(x0, x1)[None, :] + 0.5 - cx, np.arange(y0, y1)[:, None] + 0.5 - cy
        u = (dx * math.cos(nucleus.angle) + dy * math.sin(nucleus.angle)) / long
        v = (dy * math.cos(nucleus.angle) - dx * math.sin(nucleus.angle)) / short
        window = (slice(y0, y1), slice(x0, x1))
        free = self._free(wavy_ellipse(u, v, amplitudes, phases), window)
        if free is not None:
            self.classes[window][free] = nucleus.kind
            self.instances[window][free] = self.next_id
            self.next_id += 1

    def _free(self, shape: np.ndarray, window: tuple[slice, slice]) -> np.ndarray | None:
        """The largest free piece of a shape, or None where it is too small a part of it."""
        least = (1 - MOST_CLIPPED) * shape.sum()
        free = shape & (self.instances[window] == 0) & (self.zones[window] != OUTSIDE)
        if free.sum() < least:
            return None
        pieces, count = label(free, _FOUR_NEIGHBOURS)
        if count > 1:
            free = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
        return None if free.sum() < max(_LEAST_AREA, least) else free
