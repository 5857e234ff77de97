"""A mask as a picture of three channels, so that network, noise, kernels and canvas of slides paint masks too.

Channel 0 is the *hill*: inside a nucleus it rises from its border to one summit at its middle, outside it falls with
the distance to the nearest nucleus. Nuclei that touch are two hills with a valley between them. Channels 1 and 2 are
the *class*: a point on a circle, background in its middle. Classes that are easily taken for one another are neighbours
on the circle, so that a network in doubt, which paints their mean, still paints one of them.

The picture is uint8 as the canvas stores it; ``x / 127.5 - 1`` is what the network sees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from wsigen.masks.classes import ClassTable
from wsigen.masks.conditions import instance_edges

LAND = 128  # hill bytes from here on lie inside a nucleus
COAST = 144  # lowest byte inside, so that the border stands in the middle of a step
FOOT = 112  # highest byte outside
FALL = 16  # bytes a pixel away from a nucleus: 0 from 8 px on
MIDDLE = 128  # class bytes of background
RADIUS = 127  # of the circle of classes
BLANK = (0, MIDDLE, MIDDLE)  # far from any nucleus

# Neighbours on the circle: granulocytes, then plasma cells and lymphocytes, then the two large families.
CIRCLE = ("neutrophil", "eosinophil", "plasma", "lymphocyte", "connective", "epithelial")


@dataclass(frozen=True)
class MaskCode:
    """Where each class lies on the circle: ``points`` (classes + 1, 2) int64, background first, within -127..127."""

    points: np.ndarray

    @classmethod
    def of(cls, classes: ClassTable) -> MaskCode:
        """The code of a class table: in the order of CIRCLE where it has these classes, else in its own."""
        order = CIRCLE if set(classes.names) == set(CIRCLE) else classes.names
        angles = [2 * math.pi * order.index(name) / len(order) for name in classes.names]
        points = [(0, 0), *((round(RADIUS * math.cos(a)), round(RADIUS * math.sin(a))) for a in angles)]
        return cls(np.array(points, np.int64))

    def encode(self, classes: np.ndarray, instances: np.ndarray) -> np.ndarray:
        """Draw a mask: classes (H, W) uint8 and instances (H, W), 0 background -> (H, W, 3) uint8."""
        plane = (self.points + MIDDLE).astype(np.uint8)[classes]
        return np.dstack([hills(instances), plane])

    def class_of(self, sums: np.ndarray) -> np.ndarray:
        """The class whose direction is nearest: sums (N, 2) int64 of class bytes minus MIDDLE -> (N,) int64, 1 .. n."""
        return 1 + np.argmax(sums @ self.points[1:].T, axis=1)


def hills(instances: np.ndarray) -> np.ndarray:
    """The hill channel of a mask: (H, W) ids, 0 background -> (H, W) uint8.

    Inside, the mean of two measures that both are 1 at the middle of the nucleus and fall towards its border: the cone
    over the ellipse of its second moments, which keeps a slope along slender nuclei, and the distance to the border
    over that plus the distance to the middle, which makes the valley between nuclei that touch.
    """
    from scipy import ndimage  # to make masks from pictures needs none of it

    inside = instances > 0
    if not inside.any():
        return np.zeros(instances.shape, np.uint8)
    away = ndimage.distance_transform_edt(~inside)
    ground = np.clip(FOOT - FALL * (away - 1), 0, FOOT)
    rows, columns = np.nonzero(inside)
    _, label = np.unique(instances[rows, columns], return_inverse=True)
    ellipse = _Ellipses.fitted(rows, columns, label)
    border = inside & (instance_edges(instances) > 0)
    deep = (ndimage.distance_transform_edt(~border & inside) + 1)[rows, columns]
    dy, dx = rows - ellipse.y[label], columns - ellipse.x[label]
    from_middle = np.hypot(dy, dx)
    height = (ellipse.cone(dy, dx, label) + deep / (deep + from_middle)) / 2
    ground[rows, columns] = COAST + (255 - COAST) * height
    return ground.round().astype(np.uint8)


@dataclass(frozen=True)
class _Ellipses:
    """Middles (N,) of nuclei, within each of them, and the inverses of their second moments."""

    y: np.ndarray
    x: np.ndarray
    yy: np.ndarray
    xy: np.ndarray
    xx: np.ndarray

    @classmethod
    def fitted(cls, rows: np.ndarray, columns: np.ndarray, label: np.ndarray) -> _Ellipses:
        area = np.bincount(label)
        y, x = np.bincount(label, rows) / area, np.bincount(label, columns) / area
        dy, dx = rows - y[label], columns - x[label]
        # A pixel is a square: its own moment of 1/12 also keeps lines of pixels from being flat.
        yy = np.bincount(label, dy * dy) / area + 1 / 12
        xx = np.bincount(label, dx * dx) / area + 1 / 12
        xy = np.bincount(label, dy * dx) / area
        determinant = yy * xx - xy * xy
        # The summit must lie in the nucleus, which a crescent's middle does not: its pixel nearest to it does.
        order = np.lexsort((dy * dy + dx * dx, label))
        first = order[np.concatenate([[0], np.cumsum(area)[:-1]])]
        return cls(rows[first], columns[first], xx / determinant, -xy / determinant, yy / determinant)

    def cone(self, dy: np.ndarray, dx: np.ndarray, label: np.ndarray) -> np.ndarray:
        """1 in the middle, about 0.25 on the ellipse, 0 from a third outside of it on."""
        squared = self.yy[label] * dy * dy + 2 * self.xy[label] * dy * dx + self.xx[label] * dx * dx
        return np.clip(1 - 0.75 * np.sqrt(squared) / 2, 0, 1)
