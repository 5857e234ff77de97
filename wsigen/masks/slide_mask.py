"""Slide masks: TIFFs of nuclei as large as a slide, which are read window by window.

A mask has a class plane, and may have an instance plane and a tissue plane. Outside the slide it is reflected, so
that windows may reach over the border. `SlideMask` reads a file; `ResampledMask` shows one at another resolution;
`write_slide_mask` writes one.
"""

from __future__ import annotations

import math
import os
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from wsigen.errors import MaskError
from wsigen.masks.summary import MaskSummary, summarise
from wsigen.masks.tiff.mask_file import open_mask_file
from wsigen.masks.tiff.opening import open_stream
from wsigen.masks.tiff.plane import Plane
from wsigen.masks.window import GLASS, TISSUE, UNKNOWN, MaskWindow, reflected
from wsigen.masks.writer import write_slide_mask
from wsigen.system.caching import ArrayCache
from wsigen.system.cores import available_cores

__all__ = ["MaskSource", "MaskWindow", "ResampledMask", "SlideMask", "resampled_to", "write_slide_mask"]

CACHE_BYTES = 128 << 20
BAND_BYTES = 32 << 20
BANDS_AHEAD = 1
DECODERS = 8  # threads at most; decoders release the interpreter
DECODED_TOGETHER = 32  # segments of one read from which threads are started for it: bands of a scan
SLICE_BYTES = 4 << 20
SAME_MPP_TOLERANCE = 0.05
# A component of 1,000 µm² (36 µm across) is larger than any nucleus of the gut; a tissue mask is one such component.
LARGEST_NUCLEUS_UM2 = 1000.0
DEFAULT_CLASS_COUNT = 6


class MaskSource(ABC):
    """A mask that can be read: a file, or a file that is resampled to another resolution.

    Attributes:
        path: the file.
        width: width in px.
        height: height in px.
        mpp: µm per pixel (mean of x and y); None if the file states no scale.
        class_count: largest value allowed in the class plane.
        planes: names among "class", "instance", "tissue".
    """

    path: Path
    width: int
    height: int
    mpp: float | None
    class_count: int
    planes: tuple[str, ...]
    _summary: MaskSummary | None = None

    @property
    def has_instances(self) -> bool:
        """Whether there is an instance plane."""
        return "instance" in self.planes

    @property
    def has_tissue(self) -> bool:
        """Whether there is a tissue plane."""
        return "tissue" in self.planes

    def read(self, x: int, y: int, w: int, h: int) -> MaskWindow:
        """Read a window; outside of the slide the mask is reflected, at any distance.

        Args:
            x: left edge in px.
            y: upper edge in px.
            w: width in px.
            h: height in px.

        Raises:
            MaskError: a value is outside of its range; the message gives its first position in the window.
        """
        if x >= 0 and y >= 0 and x + w <= self.width and y + h <= self.height:
            return self._read_inside(x, y, w, h)
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, self.width), min(y + h, self.height)
        beyond = (top - y, y + h - bottom), (left - x, x + w - right)
        if max(beyond[0]) <= bottom - top and max(beyond[1]) <= right - left:  # what is reflected is read anyway
            return self._read_inside(left, top, right - left, bottom - top).padded(*beyond)
        columns, rows = reflected(x, w, self.width), reflected(y, h, self.height)
        left, top = int(columns.min()), int(rows.min())
        inside = self._read_inside(left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1)
        return inside.take(rows - top, columns - left)

    def scan(self, watch: Callable[[MaskWindow], None] = lambda band: None) -> MaskSummary:
        """Read the whole mask once: check every pixel, and count. The result is kept for later calls.

        Args:
            watch: called with the bands of the mask, from the top down, at the first call alone.

        Raises:
            MaskError: a value is outside of its range, the mask has neither nuclei nor tissue, or the class plane looks
                like a tissue mask.
        """
        summary = self._summarised(watch)
        self._check_content(summary)
        return summary

    def sha256(self) -> str:
        """Hash of the content: size, plane names and pixels. Equal for equal masks, however they are stored."""
        return self._summarised().sha256

    def count_nuclei(self, class_count: int | None = None) -> list[int]:
        """Count the nuclei of class 1..class_count (default: all): ids of the instance plane, else components.

        Raises `MaskError` for a class above `class_count`.
        """
        count = self.class_count if class_count is None else class_count
        nuclei, pixels = self._summarised().nuclei, self._summarised().class_pixels
        beyond = [index + 1 for index in range(count, len(pixels)) if pixels[index]]
        if beyond:
            raise MaskError(
                f"{self.path}: the class plane holds class {beyond[0]}, the model has {count}; map its classes to "
                "those of the model"
            )
        return (list(nuclei) + [0] * count)[:count]

    def _summarised(self, watch: Callable[[MaskWindow], None] = lambda band: None) -> MaskSummary:
        if self._summary is None:
            self._summary = summarise(_watched(self.bands(), watch), self.width, self.height, self.class_count)
        return self._summary

    def bands(self) -> Iterator[MaskWindow]:
        """Read the mask in bands of whole rows from top to bottom; their height suits the segments of the file."""
        rows = self._band_rows()
        # Bands are decoded as tall as their segments, and counted in slices: counting takes several times their memory.
        sliced = max(1, SLICE_BYTES // (self.width * (1 + 4 * self.has_instances + self.has_tissue)))
        reading: deque[Future[MaskWindow]] = deque()
        with ThreadPoolExecutor(BANDS_AHEAD, "wsigen-bands") as pool:
            for y in range(0, self.height, rows):
                reading.append(pool.submit(self._read_band, y, min(rows, self.height - y)))
                if len(reading) > BANDS_AHEAD:
                    yield from _slices(reading.popleft().result(), sliced)
            while reading:
                yield from _slices(reading.popleft().result(), sliced)

    def _read_band(self, y: int, rows: int) -> MaskWindow:
        return self._read_inside(0, y, self.width, rows)

    def _check_content(self, summary: MaskSummary) -> None:
        nuclei, tissue = sum(summary.class_pixels), summary.tissue_share or 0.0
        if nuclei == 0 and tissue == 0.0:
            hint = f": {summary.hint}" if summary.hint else "; check that it is the mask that you meant"
            raise MaskError(f"{self.path}: the mask holds neither nuclei nor tissue{hint}")
        area = summary.class_pixels[0] / max(summary.nuclei[0], 1) * (self.mpp or 0.5) ** 2
        only_ones = self.class_count > 1 and summary.class_pixels[0] == nuclei > 0
        if only_ones and not self.has_instances and area > LARGEST_NUCLEUS_UM2:
            raise MaskError(
                f"{self.path}: the class plane holds only 0 and 1, in pieces of {area:.0f} µm² on average; it looks "
                "like a tissue mask: write it as the plane 'tissue' beside a class plane"
            )

    @abstractmethod
    def _read_inside(self, x: int, y: int, w: int, h: int) -> MaskWindow: ...

    @abstractmethod
    def _band_rows(self) -> int: ...


class SlideMask(MaskSource):
    """A mask file, open for reading: a context manager, safe to read from several threads, picklable (by path).

    Decoded segments are kept in a cache of ``cache_bytes``, or of one segment per plane where those are larger.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        class_count: int = DEFAULT_CLASS_COUNT,
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
        class_count: int = DEFAULT_CLASS_COUNT,
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


def _watched(bands: Iterator[MaskWindow], watch: Callable[[MaskWindow], None]) -> Iterator[MaskWindow]:
    for band in bands:
        watch(band)
        yield band


def _slices(band: MaskWindow, rows: int) -> Iterator[MaskWindow]:
    """The band in slices of so many rows; views, not copies."""
    for top in range(0, band.shape[0], rows):
        yield band.take(slice(top, top + rows), slice(None))


class ResampledMask(MaskSource):
    """A mask that is resampled to another resolution, by nearest neighbour.

    Pixel x shows the source pixel floor((x + 1/2) * ratio), ratio = mpp / source.mpp taken as an exact fraction, from
    global coordinates: a window equals that part of the whole. Reflection is about the border of this plane.
    Microns per pixel are rounded to 1e-6 for the fraction.
    """

    def __init__(self, source: MaskSource, mpp: float) -> None:
        if source.mpp is None:
            raise MaskError(f"{source.path}: gives no microns per pixel, so it cannot be resampled; set its resolution")
        self.source = source
        self.path, self.class_count, self.planes, self.mpp = source.path, source.class_count, source.planes, mpp
        ratio = Fraction(round(mpp * 1_000_000), round(source.mpp * 1_000_000))
        self._p, self._q = ratio.numerator, ratio.denominator
        self.width, self.height = self._resampled_size(source.width), self._resampled_size(source.height)

    def close(self) -> None:
        """Close the source."""
        close = getattr(self.source, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> ResampledMask:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return (ResampledMask, (self.source, self.mpp))

    def _resampled_size(self, size: int) -> int:
        """How many x have floor((2x + 1) p / 2q) < size; at least one."""
        return max(1, -((self._p - 2 * self._q * size) // (2 * self._p)))

    def _source_of(self, x: np.ndarray, size: int) -> np.ndarray:
        return np.minimum((2 * x + 1) * self._p // (2 * self._q), size - 1)

    def _band_rows(self) -> int:
        bytes_per_pixel = 1 + 4 * self.has_instances + self.has_tissue
        source_pixels = self.width * max(1.0, self._p / self._q) ** 2
        return min(self.height, max(1, math.floor(BAND_BYTES / (source_pixels * bytes_per_pixel))))

    def _read_inside(self, x: int, y: int, w: int, h: int) -> MaskWindow:
        columns = self._source_of(np.arange(x, x + w, dtype=np.int64), self.source.width)
        rows = self._source_of(np.arange(y, y + h, dtype=np.int64), self.source.height)
        left, top = int(columns[0]), int(rows[0])
        inside = self.source.read(left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1)
        return inside.take(rows - top, columns - left)


def resampled_to(mask: MaskSource, mpp: float) -> MaskSource:
    """The mask at `mpp` microns per pixel.

    Within 5 % of its own resolution, or where it gives none, that is the mask itself, so that labels stay pixel-exact.
    """
    if mask.mpp is None or abs(mask.mpp / mpp - 1) <= SAME_MPP_TOLERANCE:
        return mask
    return ResampledMask(mask, mpp)
