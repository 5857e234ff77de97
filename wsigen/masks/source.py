"""A slide mask that can be read window by window, whatever it is read from.

A mask has a class plane, and may have an instance plane and a tissue plane. Outside the slide it is reflected, so
that windows may reach over the border. `wsigen.masks.slide_mask` reads a file; `wsigen.masks.resampling` shows a mask
at another resolution.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from wsigen.errors import MaskError
from wsigen.masks.summary import MaskSummary, summarise
from wsigen.masks.window import MaskWindow, reflected

BAND_BYTES = 32 << 20  # of a band of rows, at most
BANDS_AHEAD = 1
SLICE_BYTES = 4 << 20
# A component of 1,000 µm² (36 µm across) is larger than any nucleus of the gut; a tissue mask is one such component.
LARGEST_NUCLEUS_UM2 = 1000.0


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


def _watched(bands: Iterator[MaskWindow], watch: Callable[[MaskWindow], None]) -> Iterator[MaskWindow]:
    for band in bands:
        watch(band)
        yield band


def _slices(band: MaskWindow, rows: int) -> Iterator[MaskWindow]:
    """The band in slices of so many rows; views, not copies."""
    for top in range(0, band.shape[0], rows):
        yield band.take(slice(top, top + rows), slice(None))
