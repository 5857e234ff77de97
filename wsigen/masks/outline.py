"""Trace labelled pixels as polygons along the pixels' edges, thousands of nuclei at once and exactly.

Pixel (x, y) is the square from (x, y) to (x + 1, y + 1), so outlines have whole coordinates, and drawing them again at
pixel centres gives the same pixels. Nuclei come as runs (spans of a row). Where runs of a row and of the row below
differ, there are horizontal edges; their ends, sorted by columns and taken in pairs, give the vertical ones: following
them in turn walks every outline. Pieces that meet only at a corner are separate rings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rings:
    """Closed outlines of many objects, as flat arrays.

    vertices: (V, 2) int64 x and y, first one not repeated. starts: (R + 1,) of each ring in `vertices`. owner: (R,)
    object of a ring, sorted. area: (R,) int64 in pixels, below 0 for the outline of a hole.
    """

    vertices: np.ndarray
    starts: np.ndarray
    owner: np.ndarray
    area: np.ndarray

    def polygons(self) -> Iterator[tuple[int, list[list[np.ndarray]]]]:
        """Each object with its polygons; a polygon is its outer ring, (n, 2), followed by its holes."""
        first = np.concatenate([[0], np.nonzero(np.diff(self.owner))[0] + 1, [len(self.owner)]])
        for begin, end in zip(first[:-1].tolist(), first[1:].tolist()):
            if begin < end:
                yield int(self.owner[begin]), self._nested(begin, end)

    def _nested(self, begin: int, end: int) -> list[list[np.ndarray]]:
        rings = [self.vertices[self.starts[i] : self.starts[i + 1]] for i in range(begin, end)]
        areas = self.area[begin:end]
        if end - begin == 1:
            return [[rings[0]]]
        outer = [i for i in range(len(rings)) if areas[i] > 0]
        polygons = {i: [rings[i]] for i in outer}
        for i in range(len(rings)):
            if areas[i] < 0:
                around = [o for o in outer if areas[o] > -areas[i] and _holds(rings[o], rings[i])]
                polygons[min(around, key=lambda o: areas[o])].append(rings[i])
        return list(polygons.values())


def _holds(ring: np.ndarray, hole: np.ndarray) -> bool:
    """Whether the pixel below and right of the hole's upper left corner lies inside a ring."""
    corner = hole[np.lexsort((hole[:, 0], hole[:, 1]))[0]] + 0.5
    following = np.roll(ring, -1, 0)
    level = (ring[:, 1] <= corner[1]) != (following[:, 1] <= corner[1])
    return bool(np.count_nonzero(ring[level, 0] > corner[0]) % 2)


def trace_runs(owner: np.ndarray, row: np.ndarray, left: np.ndarray, right: np.ndarray) -> Rings:
    """Outlines of objects given as runs: pixels left .. right - 1 of a row belong to an object (a number >= 0).

    Runs of one object in one row must not touch or overlap. All arrays (N,) int64.
    """
    if not len(owner):
        none = np.zeros(0, np.int64)
        return Rings(np.zeros((0, 2), np.int64), np.zeros(1, np.int64), none, none)
    who, y, x, above = _horizontal_ends(owner, row, left, right)
    # Ends 2k and 2k + 1 are the left and right end of horizontal edge k. Seen from inside, upper borders run to the
    # right and lower ones (the object is above them) to the left: outer rings run clockwise on the screen.
    edges = np.arange(len(who) // 2)
    begin = np.where(above[0::2], 2 * edges + 1, 2 * edges)
    end = np.where(above[0::2], 2 * edges, 2 * edges + 1)
    # At a corner where two pixels meet, the object above goes with the vertical edge above: they stay apart.
    order = np.lexsort((~above, y, x, who))
    partner = np.empty(len(order), np.int64)
    partner[order[0::2]], partner[order[1::2]] = order[1::2], order[0::2]
    following = partner[end] // 2
    ring, place = _walk(following)
    sequence = np.lexsort((place, ring))
    # Each edge gives two vertices: where it begins and where it ends.
    vertex = np.stack([begin[sequence], end[sequence]], 1).reshape(-1)
    vertices = np.stack([x[vertex], y[vertex]], 1)
    leaders = np.nonzero(np.diff(ring[sequence], prepend=-1))[0]
    starts = np.append(2 * leaders, len(vertices))
    owners = who[2 * sequence[leaders]]
    area = np.add.reduceat(vertices[0::2, 1] * (vertices[0::2, 0] - vertices[1::2, 0]), leaders)
    vertices, starts, owners, area = _split_where_touching(vertices, starts, owners, area)
    return _reordered(vertices, starts, owners, area, np.argsort(owners, kind="stable"))


def _horizontal_ends(
    owner: np.ndarray, row: np.ndarray, left: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ends of the horizontal edges in pairs (left, right): object, y, x, and whether the object lies above."""
    who = np.tile(owner, 4)
    y = np.concatenate([row, row, row + 1, row + 1])
    x = np.concatenate([left, right, left, right])
    # +1 / -1: a run above the line begins / ends here.
    step = np.repeat(np.array([0, 0, 1, -1], np.int8), len(owner))
    order = np.lexsort((x, y, who))
    who, y, x, step = who[order], y[order], x[order], step[order]
    above = np.cumsum(step, dtype=np.int64)[0::2] > 0
    real = x[0::2] != x[1::2]
    kept = np.repeat(real, 2)
    return who[kept], y[kept], x[kept], np.repeat(above[real], 2)


def _walk(following: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ring of each edge (its smallest edge number) and place in it, by doubling the length of a step."""
    count = len(following)
    ring, step = np.arange(count), following
    while True:
        smaller = np.minimum(ring, ring[step])
        if np.array_equal(smaller, ring) and np.array_equal(ring[following], ring):
            break
        ring, step = smaller, step[step]
    # Distance to the ring's first edge, where the walk stops.
    stop = following == ring
    step = np.where(stop, np.arange(count), following)
    distance = (~stop).astype(np.int64)
    while True:
        further = distance[step]
        if not further.any():
            break
        distance = distance + further
        step = step[step]
    return ring, np.where(ring == np.arange(count), 0, distance[ring] + 1 - distance)


def _split_where_touching(
    vertices: np.ndarray, starts: np.ndarray, owners: np.ndarray, area: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cut rings that come twice to one corner into rings that do not: a hole that reaches the rim at a corner."""
    ring = np.repeat(np.arange(len(owners)), np.diff(starts))
    order = np.lexsort((vertices[:, 0], vertices[:, 1], ring))
    same = (np.diff(vertices[order], axis=0) == 0).all(1) & (np.diff(ring[order]) == 0)
    touching = np.unique(ring[order][:-1][same])
    if not len(touching):
        return vertices, starts, owners, area
    pieces, of = [], []
    for index in touching.tolist():
        for piece in _simple_rings(vertices[starts[index] : starts[index + 1]]):
            pieces.append(piece)
            of.append(index)
    kept = np.setdiff1d(np.arange(len(owners)), touching)
    rings = [vertices[starts[i] : starts[i + 1]] for i in kept.tolist()] + pieces
    owner = owners[np.concatenate([kept, of]).astype(np.int64)]
    areas = np.concatenate([area[kept], [_area(piece) for piece in pieces]]).astype(np.int64)
    sizes = [len(item) for item in rings]
    return np.concatenate(rings), np.concatenate([[0], np.cumsum(sizes)]), owner, areas


def _simple_rings(ring: np.ndarray) -> list[np.ndarray]:
    path: list[tuple[int, int]] = []
    place: dict[tuple[int, int], int] = {}
    loops = []
    for x, y in ring.tolist():
        corner = (x, y)
        if corner in place:
            begin = place[corner]
            loops.append(np.array(path[begin:], np.int64))
            for gone in path[begin + 1 :]:
                del place[gone]
            del path[begin + 1 :]
        else:
            place[corner] = len(path)
            path.append(corner)
    return [*loops, np.array(path, np.int64)]


def _area(ring: np.ndarray) -> int:
    """Area in pixels; below 0 where the ring runs counter-clockwise on the screen."""
    following = np.roll(ring, -1, 0)
    return int((ring[:, 0] * following[:, 1] - following[:, 0] * ring[:, 1]).sum() // 2)


def _reordered(
    vertices: np.ndarray, starts: np.ndarray, owners: np.ndarray, area: np.ndarray, order: np.ndarray
) -> Rings:
    sizes = np.diff(starts)[order]
    new_starts = np.concatenate([[0], np.cumsum(sizes)])
    index = np.repeat(starts[:-1][order] - new_starts[:-1], sizes) + np.arange(new_starts[-1])
    return Rings(vertices[index], new_starts, owners[order], area[order])


def trace_bitmap(bitmap: np.ndarray, left: int = 0, top: int = 0) -> list[list[np.ndarray]]:
    """Polygons of the non-zero pixels of (h, w), shifted by (left, top); rings (n, 2) float64."""
    padded = np.pad(bitmap != 0, ((0, 0), (1, 1))).astype(np.int8)
    change = np.diff(padded, axis=1)
    row, begin = np.nonzero(change == 1)
    _, end = np.nonzero(change == -1)
    rings = trace_runs(np.zeros(len(row), np.int64), row + top, begin + left, end + left)
    for _, polygons in rings.polygons():
        return [[ring.astype(np.float64) for ring in polygon] for polygon in polygons]
    return []
