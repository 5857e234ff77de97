"""Draw outlines as labels, band by band: every pixel whose centre lies inside, and nothing else.

Libraries for this either also draw the outline (OpenCV, Pillow: nuclei that touch then eat one another) or take a
polygon at a time (1 M nuclei: minutes). Here all edges of a band are cut with all rows at once: between the first and
second, third and fourth, .. crossing of a row lies the inside (even-odd rule, which also mends outlines that cross
themselves and leaves holes open). Larger objects are drawn first, so that none disappears under a larger one.
"""

from __future__ import annotations

import numpy as np

from wsigen.masks.importers.outlines import OutlineSet

BAND_ROWS = 512
EDGES_AT_ONCE = 1 << 20
PIXELS_AT_ONCE = 1 << 22
LONG_SPAN = 64


class Rasteriser:
    """Draws chosen polygons of an `OutlineSet` into bands of rows.

    chosen: (P,) bool. value: (P,) uint32 label of each polygon. scale: mask pixels per source unit.
    pixel_centres: outlines run through the centres of border pixels, which belong to the object.
    """

    def __init__(
        self,
        outlines: OutlineSet,
        chosen: np.ndarray,
        value: np.ndarray,
        width: int,
        height: int,
        scale: float = 1.0,
        pixel_centres: bool = False,
    ) -> None:
        self._outlines, self._value = outlines, value
        self._width, self._height = width, height
        self._scale, self._centres = scale, pixel_centres
        self._shift = 0.5 * scale if pixel_centres else 0.0
        polygons = np.nonzero(chosen)[0]
        top = outlines.bounds[polygons, 1] * scale + self._shift
        bottom = outlines.bounds[polygons, 3] * scale + self._shift
        inside = (bottom >= 0) & (top <= height)
        polygons, top, bottom = polygons[inside], top[inside], bottom[inside]
        first = np.clip(np.floor(top), 0, height - 1).astype(np.int64) // BAND_ROWS
        last = np.clip(np.floor(bottom), 0, height - 1).astype(np.int64) // BAND_ROWS
        repeats = last - first + 1
        of = np.repeat(np.arange(len(polygons)), repeats)
        band = first[of] + np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        order = np.lexsort((-outlines.area[polygons[of]], band))
        self._polygons = polygons[of[order]]
        self._bands = np.searchsorted(band[order], np.arange(-(-height // BAND_ROWS) + 1))

    def draw(self, y0: int, out: np.ndarray) -> bool:
        """Draw what lies in rows y0 .. y0 + h - 1 into `out` (h, width); False where nothing does.

        y0 must be a multiple of BAND_ROWS and h at most BAND_ROWS.
        """
        first, end = self._bands[y0 // BAND_ROWS], self._bands[y0 // BAND_ROWS + 1]
        at = first
        while at < end:
            sizes = self._vertex_counts(self._polygons[at:end])
            take = max(1, int(np.searchsorted(np.cumsum(sizes), EDGES_AT_ONCE, "right")))
            self._draw_polygons(self._polygons[at : at + take], y0, out)
            at += take
        return bool(first < end)

    def _vertex_counts(self, polygons: np.ndarray) -> np.ndarray:
        rings, vertices = self._outlines.polygon_rings, self._outlines.ring_vertices
        return vertices[rings[polygons + 1]] - vertices[rings[polygons]]

    def _draw_polygons(self, polygons: np.ndarray, y0: int, out: np.ndarray) -> None:
        height = out.shape[0]
        rank, start, end = self._edges(polygons)
        spans = [_inside(rank, start, end, y0, height, self._width)]
        if self._centres:
            spans.append(_along(rank, start, end, y0, height, self._width))
            # Stable: what belongs to one polygon stays together, and smaller ones come last.
            joined = np.concatenate(spans)
            spans = [joined[np.argsort(joined[:, 0], kind="stable")]]
        _fill(out, spans[0], self._value[polygons])

    def _edges(self, polygons: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rank (position in `polygons`) and both ends (E, 2) of every edge, in mask pixels."""
        rings, vertices = self._outlines.polygon_rings, self._outlines.ring_vertices
        ring_counts = rings[polygons + 1] - rings[polygons]
        ring = _ranges(rings[polygons], ring_counts)
        sizes = vertices[ring + 1] - vertices[ring]
        index = _ranges(vertices[ring], sizes)
        following = index + 1
        filled = sizes > 0
        following[np.cumsum(sizes)[filled] - 1] = vertices[ring][filled]
        rank = np.repeat(np.repeat(np.arange(len(polygons)), ring_counts), sizes)
        points = self._outlines.vertices
        start = np.asarray(points[index]) * self._scale + self._shift
        end = np.asarray(points[following]) * self._scale + self._shift
        sound = np.isfinite(start).all(1) & np.isfinite(end).all(1)
        if not sound.all():  # a hole with a coordinate that is no number: leave the hole out
            bad = np.unique(np.repeat(np.arange(len(sizes)), sizes)[~sound])
            sound = ~np.isin(np.repeat(np.arange(len(sizes)), sizes), bad)
            rank, start, end = rank[sound], start[sound], end[sound]
        return rank, start, end


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """start, start + 1, .. of each range, one after the other."""
    total = int(counts.sum())
    return np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(total)


def _inside(rank: np.ndarray, start: np.ndarray, end: np.ndarray, y0: int, height: int, width: int) -> np.ndarray:
    """Spans (rank, row in the band, first column, past the last) of the pixels whose centres lie inside."""
    down = start[:, 1] <= end[:, 1]
    top, bottom = np.where(down[:, None], start, end), np.where(down[:, None], end, start)
    first = np.clip(np.ceil(top[:, 1] - 0.5), y0, y0 + height).astype(np.int64)
    last = np.clip(np.ceil(bottom[:, 1] - 0.5), y0, y0 + height).astype(np.int64)
    rows = last - first
    crossing = rows > 0
    rank, top, bottom, first, rows = (a[crossing] for a in (rank, top, bottom, first, rows))
    row = _ranges(first, rows)
    slope = (bottom[:, 0] - top[:, 0]) / (bottom[:, 1] - top[:, 1])
    x = np.repeat(top[:, 0], rows) + (row + 0.5 - np.repeat(top[:, 1], rows)) * np.repeat(slope, rows)
    key = np.repeat(rank, rows) * height + (row - y0)
    order = np.lexsort((x, key))
    column = np.clip(np.ceil(x[order] - 0.5), 0, width).astype(np.int64)
    key = key[order][::2]
    return _nonempty(key // height, key % height, column[::2], column[1::2])


def _along(rank: np.ndarray, start: np.ndarray, end: np.ndarray, y0: int, height: int, width: int) -> np.ndarray:
    """Spans of one pixel along the edges themselves, as OpenCV's lines between pixel centres."""
    change = end - start
    steps = np.maximum(np.ceil(np.abs(change).max(1, initial=0)), 1)
    first, last = _share_within(start, change, (-1, y0 - 1), (width + 1, y0 + height + 1))
    begin = np.maximum(np.floor(first * steps), 0).astype(np.int64)
    count = np.maximum(np.minimum(np.ceil(last * steps), steps).astype(np.int64) - begin + 1, 0)
    at = np.repeat(np.arange(len(rank)), count)
    points = start[at] + (_ranges(begin, count) / steps[at])[:, None] * change[at]
    column, row = np.floor(points[:, 0]).astype(np.int64), np.floor(points[:, 1]).astype(np.int64) - y0
    kept = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return np.stack([rank[at][kept], row[kept], column[kept], column[kept] + 1], 1)


def _share_within(
    start: np.ndarray, change: np.ndarray, low: tuple[float, float], high: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """The part of each edge, 0..1 to 0..1, that lies in a box; the first above the last where none does."""
    with np.errstate(divide="ignore", invalid="ignore"):
        enter, leave = (np.array(low) - start) / change, (np.array(high) - start) / change
    enter, leave = np.minimum(enter, leave), np.maximum(enter, leave)
    level = change == 0  # an axis along which the edge does not move: all of it or nothing
    inside = (start >= low) & (start <= high)
    enter, leave = np.where(level, np.where(inside, 0, 2), enter), np.where(level, np.where(inside, 1, -2), leave)
    return np.clip(enter.max(1), 0, 2), np.clip(leave.min(1), -2, 1)


def _nonempty(rank: np.ndarray, row: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    filled = right > left
    return np.stack([rank[filled], row[filled], left[filled], right[filled]], 1)


def _fill(out: np.ndarray, spans: np.ndarray, value: np.ndarray) -> None:
    """Write the value of its rank into every span, in order; later spans win."""
    flat, width = out.reshape(-1), out.shape[1]
    lengths = spans[:, 3] - spans[:, 2]
    ends = np.cumsum(lengths)
    at = 0
    while at < len(spans):
        drawn = ends[at] - lengths[at]
        stop = max(at + 1, int(np.searchsorted(ends, drawn + PIXELS_AT_ONCE, "right")))
        part = slice(at, stop)
        starts = spans[part, 1] * width + spans[part, 2]
        values = value[spans[part, 0]].astype(out.dtype, copy=False)
        if lengths[part].mean() > LONG_SPAN:
            for begin, length, label in zip(starts.tolist(), lengths[part].tolist(), values.tolist()):
                flat[begin : begin + length] = label
        else:
            flat[_ranges(starts, lengths[part])] = np.repeat(values, lengths[part])
        at = stop
