"""All outlines of an import, kept on disk: the vertices in a spool file, a few dozen bytes per object in memory."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from wsigen.errors import MaskError
from wsigen.masks.importers.sources import SourceObject

SPOOLED_VERTICES = 1 << 19
# Outlines whose coordinates are further out cannot belong to a slide.
MAX_COORDINATE = 1e7


@dataclass(frozen=True)
class OutlineSet:
    """Outlines as flat arrays. Polygon p has rings polygon_rings[p] .. polygon_rings[p + 1] - 1, ring r the vertices
    ring_vertices[r] .. ring_vertices[r + 1] - 1 of `vertices`, (V, 2) float64 x and y, open.

    polygon_object: (P,) object of a polygon, -1 where it has no area. object_name: (O,) index into `names`.
    object_kind: (O,) Kind. bounds: (P, 4) float64 left, top, right, bottom. area: (P,) float64 of the outer ring.
    crossing: (P,) bool, the outline crosses or touches itself.
    """

    vertices: np.ndarray
    ring_vertices: np.ndarray
    polygon_rings: np.ndarray
    polygon_object: np.ndarray
    object_name: np.ndarray
    object_kind: np.ndarray
    names: tuple[str, ...]
    bounds: np.ndarray
    area: np.ndarray
    crossing: np.ndarray

    @property
    def object_count(self) -> int:
        """Objects, those without an area included."""
        return len(self.object_name)

    def moved(self, x: float, y: float) -> OutlineSet:
        """The outlines with (x, y) added to all coordinates, in place of these: the vertices are changed on disk."""
        if (x, y) == (0, 0):
            return self
        for start in range(0, len(self.vertices), SPOOLED_VERTICES):
            self.vertices[start : start + SPOOLED_VERTICES] += (x, y)
        return replace(self, bounds=self.bounds + np.array([x, y, x, y]))


class OutlineSpool:
    """Takes objects one by one; `finish` gives them as an `OutlineSet` whose vertices lie in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "vertices"
        self._file = open(self._path, "wb")  # noqa: SIM115 (closed by finish)
        self._waiting: list[np.ndarray] = []
        self._waiting_vertices = 0
        self._ring_sizes = array("q")
        self._ring_counts = array("q")
        self._polygon_object = array("q")
        self._object_name = array("i")
        self._object_kind = array("b")
        self._names: dict[str, int] = {}
        self._open_from = 0  # first polygon of the object that is not complete
        self.unreadable = 0

    def add(self, item: SourceObject | None) -> None:
        """Keep an object; None counts one that could not be read."""
        if item is None:
            self.unreadable += 1
            return
        for rings in item.polygons:
            self._add_polygon(rings)
        if not item.complete:
            return
        name = self._names.setdefault(item.name, len(self._names))
        count = len(self._ring_counts) - self._open_from
        objects = count if item.separate else 1
        first = len(self._object_name)
        self._polygon_object.extend(range(first, first + count) if item.separate else [first] * count)
        self._object_name.extend([name] * objects)
        self._object_kind.extend([int(item.kind)] * objects)
        self._open_from += count

    def _add_polygon(self, rings: list[np.ndarray]) -> None:
        self._ring_counts.append(len(rings))
        for ring in rings:
            if len(ring) > 1 and ring[0, 0] == ring[-1, 0] and ring[0, 1] == ring[-1, 1]:
                ring = ring[:-1]
            self._ring_sizes.append(len(ring))
            self._waiting.append(ring)
            self._waiting_vertices += len(ring)
        if self._waiting_vertices >= SPOOLED_VERTICES:
            self._spool()

    def _spool(self) -> None:
        if self._waiting:
            vertices = np.concatenate(self._waiting).astype("<f8", copy=False)
            try:
                self._file.write(vertices.tobytes())
            except OSError as error:
                raise MaskError(f"{self._path}: cannot be written ({error.strerror}); make room on the disk") from error
        self._waiting, self._waiting_vertices = [], 0

    def finish(self, thin: bool = False) -> OutlineSet:
        """Close the spool and measure every polygon. thin: outlines of one or two points have an area too."""
        self._spool()
        self._file.close()
        size = self._path.stat().st_size // 16
        vertices = np.memmap(self._path, "<f8", "r+", shape=(size, 2)) if size else np.zeros((0, 2), np.float64)
        ring_vertices = np.concatenate([[0], np.cumsum(np.frombuffer(self._ring_sizes, np.int64))])
        polygon_rings = np.concatenate([[0], np.cumsum(np.frombuffer(self._ring_counts, np.int64))])
        measured = _measure(vertices, ring_vertices.astype(np.int64), polygon_rings.astype(np.int64), thin)
        bounds, area, crossing, sound = measured
        polygon_object = np.array(self._polygon_object, np.int64)
        return OutlineSet(
            vertices,
            ring_vertices.astype(np.int64),
            polygon_rings.astype(np.int64),
            np.where(sound, polygon_object, -1),
            np.array(self._object_name, np.int32),
            np.array(self._object_kind, np.int8),
            tuple(self._names),
            bounds,
            area,
            crossing,
        )


def _measure(
    vertices: np.ndarray, ring_vertices: np.ndarray, polygon_rings: np.ndarray, thin: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Bounds, area, whether it crosses itself, and whether it can be drawn at all, of every polygon."""
    count = len(polygon_rings) - 1
    bounds, area = np.zeros((count, 4)), np.zeros(count)
    crossing, sound = np.zeros(count, bool), np.zeros(count, bool)
    first_vertex = ring_vertices[polygon_rings]
    start = 0
    while start < count:
        end = int(np.searchsorted(first_vertex, first_vertex[start] + SPOOLED_VERTICES, "right")) - 1
        end = min(count, max(end, start + 1))
        part = slice(start, end)
        _measure_part(
            vertices, ring_vertices, polygon_rings[start : end + 1], thin,
            bounds[part], area[part], crossing[part], sound[part],
        )  # fmt: skip
        start = end
    return bounds, area, crossing, sound


def _measure_part(
    vertices: np.ndarray,
    ring_vertices: np.ndarray,
    polygon_rings: np.ndarray,
    thin: bool,
    bounds: np.ndarray,
    area: np.ndarray,
    crossing: np.ndarray,
    sound: np.ndarray,
) -> None:
    outer = polygon_rings[:-1]
    has_ring = np.diff(polygon_rings) > 0
    if not has_ring.any():
        return
    first, last = int(ring_vertices[polygon_rings[0]]), int(ring_vertices[polygon_rings[-1]])
    xy = np.asarray(vertices[first:last])
    rings = ring_vertices[polygon_rings[0] : polygon_rings[-1] + 1] - first
    sizes = np.diff(rings)
    good_vertex = (np.abs(xy) <= MAX_COORDINATE).all(1)  # False for what is not a number
    xy = np.where(good_vertex[:, None], xy, 0)
    good_ring = sizes >= (1 if thin else 3)
    good_ring[np.repeat(np.arange(len(sizes)), sizes)[~good_vertex]] = False
    good = has_ring.copy()
    # The outer ring must be sound; holes that are not are drawn as nothing.
    good[has_ring] = good_ring[outer[has_ring] - polygon_rings[0]]
    if not good.any():
        return
    ring = outer[good] - polygon_rings[0]
    starts, lengths = rings[ring], sizes[ring]
    index = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
    following = index + 1
    following[np.cumsum(lengths) - 1] = starts
    edges = np.cumsum(lengths) - lengths
    x, y = xy[index, 0], xy[index, 1]
    cross = x * xy[following, 1] - xy[following, 0] * y
    extent = np.stack(
        [np.minimum.reduceat(x, edges), np.minimum.reduceat(y, edges), np.maximum.reduceat(x, edges),
         np.maximum.reduceat(y, edges)], 1,
    )  # fmt: skip
    bounds[good] = extent
    area[good] = np.abs(np.add.reduceat(cross, edges)) / 2
    flat = (extent[:, 0] == extent[:, 2]) | (extent[:, 1] == extent[:, 3])
    sound[good] = True if thin else ~flat
    crossing[good] = _crosses_itself(xy, starts, lengths)


def _crosses_itself(xy: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Whether each ring, (starts, lengths) into xy, is no simple closed line; a bool each, False below four points."""
    import shapely

    answer = np.zeros(len(starts), bool)
    testable = lengths >= 4
    starts, lengths = starts[testable], lengths[testable]
    if len(starts):
        index = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
        rings = shapely.linearrings(xy[index], indices=np.repeat(np.arange(len(starts)), lengths))
        answer[testable] = ~shapely.is_valid(shapely.polygons(rings))
    return answer
