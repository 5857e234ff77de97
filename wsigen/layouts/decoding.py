"""From the mask model's picture to nuclei: steepest ascent, one class each, shapes as real nuclei have them.

Everything is local and in integers, so that a window decodes to what the whole picture decodes to. A pixel inside the
coast climbs the smoothed hill, at most CLIMB pixels; summits that only a shallow saddle parts from a higher one nearby
are the same nucleus. Between two nuclei the sea runs where the valley is as low as it is where real ones hardly touch:
a network paints no gap of one pixel. A nucleus is known by the place of its summit. What lies further than HALO pixels
from a pixel has no say in its nucleus.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from wsigen.layouts.mask_code import COAST, FOOT, LAND, MIDDLE, MaskCode
from wsigen.masks.limits import NucleusLimits

CLIMB = 32  # pixels; the longest nuclei of the training data reach 36 px from their middle
# The next three were set on sampled masks, so that numbers, areas and touching nuclei are as in the pictures whose
# layouts they were sampled from.
HOP = 6  # pixels between summits of one nucleus
SADDLE = 16 * 24  # of the smoothed hill: that much a saddle may lie below the lower summit; 24 bytes
STRAIT = 16 * 165  # of the smoothed hill: a valley lower than this parts two nuclei
ROUNDS = 2  # of hopping
# A pixel's summit lies within (ROUNDS + 1) climbs and hops, and so do that nucleus's other pixels from there.
REACH = (ROUNDS + 1) * CLIMB + ROUNDS * HOP
HALO = 2 * REACH + HOP + 3


# Where each pixel and its neighbour by a side lie in a plane: to the left, above.
_NEIGHBOURS = ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1]))


@dataclass(frozen=True)
class DecodedNuclei:
    """Nuclei of a region.

    index: (H, W) int32, 0 background, else the number of its nucleus, from 1. y, x: (N,) where the summits are, counted
    from the region's corner, in the order of reading. kind: (N,) classes. lost_y, lost_x: (M,) summits of those that
    are unlike real ones, and dropped.
    """

    index: np.ndarray
    y: np.ndarray
    x: np.ndarray
    kind: np.ndarray
    lost_y: np.ndarray
    lost_x: np.ndarray

    @property
    def classes(self) -> np.ndarray:
        """Class plane (H, W) uint8."""
        return np.concatenate([[0], self.kind]).astype(np.uint8)[self.index]


@dataclass(frozen=True)
class Decoder:
    """Decodes pictures of one code; ``limits`` are those of class 1, 2, ... (none: everything is kept)."""

    code: MaskCode
    limits: tuple[NucleusLimits, ...] = field(default=())

    def __call__(self, picture: np.ndarray) -> DecodedNuclei:
        """Decode (H, W, 3) uint8; nuclei closer than HALO to a border that is not the slide's may be wrong."""
        return self._kept(picture, _summits(picture[..., 0]))

    def _kept(self, picture: np.ndarray, summits: np.ndarray) -> DecodedNuclei:
        """Give classes, and drop what no real nucleus looks like. ``summits``: (H, W) flat index of each one's + 1."""
        shape = summits.shape
        flat = np.flatnonzero(summits)
        keys, label = np.unique(summits.ravel()[flat], return_inverse=True)
        if not len(keys):
            nothing = np.zeros(0, np.int64)
            return DecodedNuclei(np.zeros(shape, np.int32), *[nothing] * 5)
        rows, columns = np.divmod(flat, shape[1])
        bytes_ = picture.reshape(-1, 3)[flat, 1:].astype(np.int64) - MIDDLE
        sums = np.stack([np.bincount(label, bytes_[:, channel]) for channel in range(2)], 1).astype(np.int64)
        kind = self.code.class_of(sums)
        y, x = np.divmod(keys - 1, shape[1])
        like = self._like_real_ones(kind, rows - y[label], columns - x[label], label)
        number = np.where(like, np.cumsum(like), 0).astype(np.int32)
        index = np.zeros(shape, np.int32)
        index.ravel()[flat] = number[label]
        return DecodedNuclei(index, y[like], x[like], kind[like], y[~like], x[~like])

    def _like_real_ones(self, kind: np.ndarray, dy: np.ndarray, dx: np.ndarray, label: np.ndarray) -> np.ndarray:
        """Which nuclei keep the limits: (N,) bool. ``dy`` and ``dx`` count from the summit, so that sums are small."""
        if not self.limits:
            return np.ones(len(kind), bool)
        area, fill, axis = shapes(dy, dx, label)
        table = np.array([(e.least_area, e.most_area, e.least_fill, e.most_axis) for e in self.limits])[kind - 1]
        return (table[:, 0] <= area) & (area <= table[:, 1]) & (table[:, 2] <= fill) & (axis <= table[:, 3])


def shapes(dy: np.ndarray, dx: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Area, fill and longest half-axis of nuclei (N,) each, from the integer places of their pixels; see NucleusLimits.

    Places count from anywhere within the nucleus. The sums are of integers: equal in whatever order pixels come.
    """
    area = np.bincount(label).astype(np.float64)
    sy, sx = np.bincount(label, dy), np.bincount(label, dx)
    yy = np.bincount(label, dy * dy) / area - (sy / area) ** 2 + 1 / 12
    xx = np.bincount(label, dx * dx) / area - (sx / area) ** 2 + 1 / 12
    xy = np.bincount(label, dy * dx) / area - sy * sx / area**2
    determinant = yy * xx - xy * xy
    longest = (yy + xx) / 2 + np.sqrt(((yy - xx) / 2) ** 2 + xy**2)
    return area, area / (4 * np.pi * np.sqrt(determinant)), 2 * np.sqrt(longest)


def _summits(hill: np.ndarray) -> np.ndarray:
    """The summit of each pixel's nucleus: its flat index plus 1, or 0 for background; (H, W) int64."""
    # The step at the coast is as high inside as outside: smoothing it mends ragged borders and moves no straight one.
    land = _smoothed(np.clip(hill, FOOT, COAST)) >= 16 * LAND
    if not land.any():
        return np.zeros(hill.shape, np.int64)
    smooth = np.where(land, _smoothed(hill), -1)
    uphill: np.ndarray = _uphill(smooth, land)
    top: np.ndarray = uphill
    for _ in range(CLIMB.bit_length() - 1):  # paths of 1, 2, 4 .. CLIMB steps
        top = top[top]
    climbed, peaks = top, np.flatnonzero((uphill == np.arange(len(uphill))) & land.ravel())
    for _ in range(ROUNDS):
        over: np.ndarray = np.arange(len(uphill))
        over[peaks] = _hopped(smooth, peaks)
        top = np.asarray(climbed[over[top]])
    is_peak = np.zeros(len(uphill), bool)
    is_peak[peaks] = True
    # Whoever has not arrived after so many steps belongs to nothing that looks like a nucleus.
    summits = np.where(land.ravel() & is_peak[top], top + 1, 0).reshape(hill.shape)
    return _in_one_piece(_parted(summits, smooth))


def _parted(summits: np.ndarray, smooth: np.ndarray) -> np.ndarray:
    """Give low pixels that touch another nucleus by a side to the background; no summit is lost."""
    meets = np.zeros(summits.shape, bool)
    for a, b in _NEIGHBOURS:
        meet = (summits[a] != summits[b]) & (summits[a] > 0) & (summits[b] > 0)
        meets[a] |= meet
        meets[b] |= meet
    own = summits.ravel() == np.arange(1, summits.size + 1)
    return np.where(meets & (smooth < STRAIT) & ~own.reshape(summits.shape), 0, summits)


def _smoothed(hill: np.ndarray) -> np.ndarray:
    """Binomial 3 x 3 mean times 16, in integers; borders repeated."""
    padded = np.pad(hill.astype(np.int32), 1, mode="edge")
    across = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return across[:-2] + 2 * across[1:-1] + across[2:]


def _shifted(plane: np.ndarray, dy: int, dx: int, outside: int) -> np.ndarray:
    """``plane`` as seen from each pixel's neighbour (dy, dx)."""
    height, width = plane.shape
    out = np.full(plane.shape, outside, plane.dtype)
    out[max(0, -dy) : height - max(0, dy), max(0, -dx) : width - max(0, dx)] = plane[
        max(0, dy) : height - max(0, -dy), max(0, dx) : width - max(0, -dx)
    ]
    return out


def _uphill(smooth: np.ndarray, land: np.ndarray) -> np.ndarray:
    """Flat index of the highest of the nine pixels around each: (H W,) int64; itself on a summit and outside.

    Of equally high ones the first in reading order is taken, which also leaves a plateau one summit alone.
    """
    height, width = smooth.shape
    best = np.full(smooth.shape, -1, smooth.dtype)
    step = np.zeros(smooth.shape, np.int64)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            neighbour = _shifted(smooth, dy, dx, -1)
            higher = neighbour > best
            best[higher] = neighbour[higher]
            step[higher] = dy * width + dx
    step[~land] = 0
    return (np.arange(height * width).reshape(smooth.shape) + step).ravel()


def _hopped(smooth: np.ndarray, peaks: np.ndarray) -> np.ndarray:
    """Where each summit's climb goes on: a higher pixel within HOP beyond a shallow saddle, or the summit itself."""
    height, width = smooth.shape
    y, x = np.divmod(peaks, width)
    own = smooth[y, x]
    best, goal = np.array(own), np.array(peaks)
    for dy in range(-HOP, HOP + 1):
        for dx in range(-HOP, HOP + 1):
            steps = max(abs(dy), abs(dx))
            if steps < 2 or dy * dy + dx * dx > HOP * HOP:
                continue
            ty, tx = y + dy, x + dx
            inside = (ty >= 0) & (ty < height) & (tx >= 0) & (tx < width)
            ty, tx = np.where(inside, ty, y), np.where(inside, tx, x)
            higher = inside & (smooth[ty, tx] > best)
            for k in range(1, steps):
                between = smooth[y + (ty - y) * k // steps, x + (tx - x) * k // steps]
                higher &= between >= own - SADDLE
            best = np.where(higher, smooth[ty, tx], best)
            goal = np.where(higher, ty * width + tx, goal)
    return goal


def _in_one_piece(summits: np.ndarray) -> np.ndarray:
    """Keep of each nucleus the pixels that hang together, by sides, with its summit."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    flat = np.flatnonzero(summits)
    place: np.ndarray = np.zeros(summits.size, np.int64)
    place[flat] = np.arange(len(flat))
    place = place.reshape(summits.shape)
    pairs = []
    for a, b in _NEIGHBOURS:
        same = (summits[a] == summits[b]) & (summits[a] > 0)
        pairs.append(np.stack([place[a][same], place[b][same]]))
    i, j = np.concatenate(pairs, axis=1)
    graph = coo_matrix((np.ones(len(i), bool), (i, j)), shape=(len(flat), len(flat)))
    _, piece = connected_components(graph, directed=False)
    keys = summits.ravel()[flat]
    mine = piece == piece[place.ravel()[keys - 1]]
    return np.where(mine, keys, 0)[place] * (summits > 0)
