"""The file of a slide mask: a TIFF of nuclei as large as a slide, read window by window.

`wsigen.masks.writer` writes one.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from wsigen.errors import MaskError
from wsigen.masks.source import BAND_BYTES, MaskSource
from wsigen.masks.tiff.mask_file import open_mask_file
from wsigen.masks.tiff.opening import open_stream
from wsigen.masks.tiff.plane import Plane
from wsigen.masks.window import GLASS, TISSUE, UNKNOWN, MaskWindow
from wsigen.system.caching import ArrayCache
from wsigen.system.cores import available_cores

CACHE_BYTES = 128 << 20
DECODERS = 8  # threads at most; decoders release the interpreter
DECODED_TOGETHER = 32  # segments of one read from which threads are started for it: bands of a scan
MOST_CLASSES = 255  # that a class plane can hold


class SlideMask(MaskSource):
    """A mask file, open for reading: a context manager, safe to read from several threads, picklable (by path).

    Decoded segments are kept in a cache of ``cache_bytes``, or of one segment per plane where those are larger.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        class_count: int,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.path = Path(path)
        self.class_count = class_count
        self._cache_bytes = cache_bytes
        self._stream = open_stream(self.path)
        try:
            found = open_mask_file(self.path, self._stream)
        except BaseException:
            self._stream.close()
            raise
        self._planes = found.planes
        self.planes = tuple(name for name in ("class", "instance", "tissue") if name in found.planes)
        self.width, self.height = found.planes["class"].width, found.planes["class"].height
        self.mpp = found.mpp
        largest = sum(plane.segment_bytes for plane in found.planes.values())
        self._cache = ArrayCache(max(cache_bytes, largest))
        self._read_lock = threading.Lock()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        class_count: int,
        cache_bytes: int = CACHE_BYTES,
    ) -> SlideMask:
        """Open a mask of classes 1..class_count; raises `MaskError` for a file that is no mask."""
        return cls(path, class_count, cache_bytes)

    def close(self) -> None:
        """Close the file and empty the cache."""
        self._stream.close()
        self._cache.clear()

    def __enter__(self) -> SlideMask:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        stream = getattr(self, "_stream", None)
        if stream is not None:
            stream.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return (SlideMask, (str(self.path), self.class_count, self._cache_bytes))

    def _band_rows(self) -> int:
        """Whole rows of segments where they are not too tall, so that none is decoded twice."""
        planes = self._planes.values()
        affordable = max(1, BAND_BYTES // (self.width * sum(plane.dtype.itemsize for plane in planes)))
        tallest = max(plane.segment_height for plane in planes)
        if tallest <= max(affordable, 1024):
            return tallest * max(1, affordable // tallest)
        return affordable

    def _read_band(self, y: int, rows: int) -> MaskWindow:
        """Rows for the scan; segments that lie in one band are seen once and need no cache."""
        once = all(self._band_rows() % plane.segment_height == 0 for plane in self._planes.values())
        return self._read_inside(0, y, self.width, rows, keep=not once)

    def _read_inside(self, x: int, y: int, w: int, h: int, keep: bool = True) -> MaskWindow:
        pixels = {name: self._read_plane(plane, x, y, w, h, keep) for name, plane in self._planes.items()}
        self._check_classes(pixels["class"], x, y)
        if "tissue" in pixels:
            self._check_tissue(pixels["tissue"], x, y)
        tissue, instances = pixels.get("tissue"), pixels.get("instance")
        return MaskWindow(
            pixels["class"].astype(np.uint8, copy=False),
            None if instances is None else instances.astype(np.uint32, copy=False),
            None if tissue is None else tissue.astype(np.uint8, copy=False),
        )

    def _read_plane(self, plane: Plane, x: int, y: int, w: int, h: int, keep: bool) -> np.ndarray:
        out = np.empty((h, w), plane.dtype)
        rows = range(y // plane.segment_height, (y + h - 1) // plane.segment_height + 1)
        columns = range(x // plane.segment_width, (x + w - 1) // plane.segment_width + 1)

        def paste(place: tuple[int, int]) -> None:
            row, column = place
            left, top = column * plane.segment_width, row * plane.segment_height
            segment = self._segment(plane, row * plane.across + column, keep)
            y0, y1 = max(y, top), min(y + h, top + segment.shape[0])
            x0, x1 = max(x, left), min(x + w, left + segment.shape[1])
            out[y0 - y : y1 - y, x0 - x : x1 - x] = segment[y0 - top : y1 - top, x0 - left : x1 - left]

        if len(rows) * len(columns) < DECODED_TOGETHER:
            deque(map(paste, product(rows, columns)), maxlen=0)
        else:
            with ThreadPoolExecutor(available_cores(DECODERS), "wsigen-decode") as pool:
                deque(pool.map(paste, product(rows, columns)), maxlen=0)
        return out

    def _segment(self, plane: Plane, index: int, keep: bool) -> np.ndarray:
        if not keep:
            return self._decoded(plane, index)
        segment = self._cache.get((plane.name, index), lambda: self._decoded(plane, index))
        assert segment is not None
        return segment

    def _decoded(self, plane: Plane, index: int) -> np.ndarray:
        height, width = plane.segment_shape(index)
        offset, count = int(plane.offsets[index]), int(plane.byte_counts[index])
        if count == 0:
            return np.broadcast_to(np.zeros((), plane.dtype), (height, width))
        decoded = plane.decode(self._read_bytes(offset, count), index)
        pixels = decoded[:height, :width]
        if pixels.shape != (height, width):
            raise MaskError(
                f"{self.path}: segment {index} of the {plane.name} plane is damaged; copy or export it again"
            )
        # A view of a cropped segment would keep all of it in memory.
        return pixels if pixels.shape == decoded.shape else pixels.copy()

    def _read_bytes(self, offset: int, count: int) -> bytes:
        if hasattr(os, "pread"):  # no shared file position: threads and forked workers do not disturb one another
            data = os.pread(self._stream.fileno(), count, offset)
        else:
            with self._read_lock:
                self._stream.seek(offset)
                data = self._stream.read(count)
        if len(data) < count:
            raise MaskError(f"{self.path}: ends within byte {offset + count}: truncated; copy or export it again")
        return data

    def _check_classes(self, classes: np.ndarray, x: int, y: int) -> None:
        if int(classes.max()) <= self.class_count:
            return
        row, column = np.argwhere(classes > self.class_count)[0]
        value = int(classes[row, column])
        kinds = np.unique(classes)
        if value == 255 and len(np.setdiff1d(kinds, (0, 255))) == 0:
            mend = (
                "it looks like a tissue mask: write it as the plane 'tissue' (0 glass, 1 tissue) beside a class plane"
            )
        elif classes.dtype.itemsize > 1:
            mend = "it looks like an instance plane: write it as the plane 'instance' beside a class plane"
        else:
            mend = "map its classes to those of the model"
        raise MaskError(
            f"{self.path}: the class plane holds {value} at pixel ({x + column}, {y + row}), the model has classes 1 "
            f"to {self.class_count}; {mend}"
        )

    def _check_tissue(self, tissue: np.ndarray, x: int, y: int) -> None:
        wrong = (tissue != GLASS) & (tissue != TISSUE) & (tissue != UNKNOWN)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise MaskError(
                f"{self.path}: the tissue plane holds {tissue[row, column]} at pixel ({x + column}, {y + row}); write "
                "0 for glass, 1 for tissue, 255 for unknown"
            )
