"""A small picture of the slide that grows while the slide is painted.

Each pixel of the preview is the mean of those of its pixels that have been painted so far, kept as exact sums and
counts: the final preview depends neither on the order nor on the cut of the regions.
"""

import os
import threading
from itertools import pairwise

import numpy as np
import pyvips

from wsigen.errors import SlideError
from wsigen.system.replacing import replacing

LIGHT_GREY = (236, 236, 238)
SKETCHED = 4  # samples along each axis of a pixel that is only sketched


class Preview:
    """Preview of a slide of width x height level-0 pixels, with sides up to max_side; safe to use from many threads.

    scale: level-0 pixels per preview pixel, a power of two. sampled_every: between samples that suffice for a sketch.
    width, height: of the preview.
    background: RGB of what is not painted yet.
    """

    def __init__(
        self, width: int, height: int, max_side: int = 1024, background: tuple[int, int, int] = LIGHT_GREY
    ) -> None:
        if width < 1 or height < 1 or max_side < 1:
            raise SlideError(f"preview of {width} x {height} in {max_side} pixels: all must be at least 1")
        self.scale = 1
        while max(width, height) > max_side * self.scale:
            self.scale *= 2
        self.slide_width, self.slide_height = width, height
        self.width, self.height = -(-width // self.scale), -(-height // self.scale)
        self.sampled_every = max(1, self.scale // SKETCHED)
        self.background = background
        self._sums = np.zeros((self.height, self.width, 3), np.uint64)
        self._counts = np.zeros((self.height, self.width, 1), np.uint64)
        self._lock = threading.Lock()

    def add(self, x: int, y: int, rgb: np.ndarray, known: np.ndarray | None = None) -> None:
        """Take in painted pixels: rgb (h, w, 3) uint8, its corner at level-0 pixel (x, y), inside the slide.

        known: (h, w) bool, which of them are painted; None = all. Add each pixel once: twice counts double.
        """
        h, w = rgb.shape[:2]
        if x < 0 or y < 0 or x + w > self.slide_width or y + h > self.slide_height:
            raise ValueError(f"region {w} x {h} at ({x}, {y}) is not inside {self.slide_width} x {self.slide_height}")
        if h == 0 or w == 0:
            return
        if known is None:
            counts = np.outer(self._lengths(y, h), self._lengths(x, w))[..., None]
        else:
            rgb = np.where(known[..., None], rgb, 0)
            counts = self._box_sums(x, y, known[..., None])
        one_colour = known is None and rgb.strides[:2] == (0, 0)
        sums = counts * rgb[0, 0].astype(np.uint64) if one_colour else self._box_sums(x, y, rgb)
        at = (
            slice(y // self.scale, y // self.scale + len(sums)),
            slice(x // self.scale, x // self.scale + len(sums[0])),
        )
        with self._lock:
            self._sums[at] += sums
            self._counts[at] += counts

    def sketch(self, columns: np.ndarray, rows: np.ndarray, rgb: np.ndarray) -> None:
        """Take in samples, rgb (m, n, 3) uint8, of level-0 columns (n,) and rows (m,), each in rising order.

        Those of every ``sampled_every``-th column and row show a picture at a glance, many times cheaper than `add`.
        """
        if not rgb.size:
            return
        across, left = np.unique(columns // self.scale, return_index=True)
        down, top = np.unique(rows // self.scale, return_index=True)
        sums = np.add.reduceat(np.add.reduceat(rgb.astype(np.uint64), top, axis=0), left, axis=1)
        counts = np.outer(np.diff(top, append=len(rows)), np.diff(left, append=len(columns)))
        at = np.ix_(down, across)
        with self._lock:
            self._sums[at] += sums
            self._counts[at] += counts.astype(np.uint64)[..., None]

    def image(self) -> np.ndarray:
        """(height, width, 3) uint8: means rounded to nearest, the background where nothing is painted."""
        with self._lock:
            sums, counts = self._sums.copy(), self._counts.copy()
        means = (sums + counts // 2) // np.maximum(counts, 1)
        return np.where(counts > 0, means, np.array(self.background, np.uint64)).astype(np.uint8)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the preview as PNG; a reader sees the old picture or the new one, never a part. Raises SlideError."""
        with replacing(path, overwrite=True) as partial:
            try:
                image = pyvips.Image.new_from_array(self.image(), interpretation="srgb")
                image.pngsave(str(partial))
            except pyvips.Error as error:
                raise SlideError(f"{path}: could not be written; is the disk full?") from error

    def _starts(self, origin: int, size: int) -> np.ndarray:
        """Offsets into a region at `origin` where a preview pixel begins, the first one included."""
        return np.maximum(np.arange(origin // self.scale, -(-(origin + size) // self.scale)) * self.scale - origin, 0)

    def _lengths(self, origin: int, size: int) -> np.ndarray:
        """How many pixels of the region fall on each preview pixel, along one axis."""
        return np.diff(self._starts(origin, size), append=size).astype(np.uint64)

    def _box_sums(self, x: int, y: int, values: np.ndarray) -> np.ndarray:
        """Sums of (h, w, c) over preview pixels, as uint64."""
        h, w = values.shape[:2]
        cuts = self._starts(y, h)
        # reduceat along the rows does the same, but takes 80 times as long where it has to widen the type.
        by_row = np.stack([values[a:b].sum(axis=0, dtype=np.uint32) for a, b in pairwise([*cuts, h])])
        return np.add.reduceat(by_row.astype(np.uint64), self._starts(x, w), axis=1)
