"""Pages of a TIFF that may hold labels of any kind, for the importers."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

from wsigen.errors import MaskError
from wsigen.masks.tiff.metadata import ome_metadata, tag_sizes
from wsigen.masks.tiff.opening import open_stream, parse_tiff
from wsigen.masks.tiff.plane import LABEL, checked_plane, segment_pixels
from wsigen.system.cores import available_cores


@dataclass(frozen=True)
class LabelPage:
    """A page of a TIFF that may hold labels: its index among the pages, its name in OME-XML ("" without), its kind."""

    index: int
    name: str
    width: int
    height: int
    dtype: np.dtype | None  # None: of a kind that cannot be read
    channels: int


def label_pages(path: Path) -> tuple[list[LabelPage], tuple[float, ...]]:
    """The pages of a TIFF at full size, and width and height of a pixel in microns as far as the file gives them.

    OME-XML comes before the resolution tags. Raises `MaskError` for a file that is damaged or no TIFF.
    """
    with open_stream(path) as stream:
        tif = parse_tiff(path, stream, os.fstat(stream.fileno()).st_size)
        pages = [page for page in tif.pages if isinstance(page, tifffile.TiffPage)]
        if not pages:
            raise MaskError(f"{path}: the TIFF holds no image; copy or export it again")
        names, sizes = ome_metadata(pages[0].description)
        found = [
            LabelPage(
                index, names.get(index, ""), page.imagewidth, page.imagelength,
                np.dtype(page.dtype) if page.dtype else None, page.samplesperpixel,
            )
            for index, page in enumerate(pages)
            if not index or not page.is_reduced
        ]  # fmt: skip
        full = [page for page in found if (page.width, page.height) == (found[0].width, found[0].height)]
        return full, sizes or tag_sizes(tif, pages[0])


def page_rows(path: Path, index: int) -> Iterator[np.ndarray]:
    """Rows of one page of labels, (h, width), from the top down, decoded in threads; single bits as 0 and 255."""
    with open_stream(path) as stream, ThreadPoolExecutor(available_cores(8), "wsigen-labels") as pool:
        size = os.fstat(stream.fileno()).st_size
        page = parse_tiff(path, stream, size).pages[index]
        assert isinstance(page, tifffile.TiffPage)
        plane = checked_plane(path, LABEL, page, size)
        for first in range(0, math.ceil(plane.height / plane.segment_height) * plane.across, plane.across):
            decoded = []
            for segment in range(first, first + plane.across):
                stream.seek(int(plane.offsets[segment]))
                data = stream.read(int(plane.byte_counts[segment]))
                decoded.append(pool.submit(segment_pixels, plane, data, segment))
            rows = [future.result() for future in decoded]
            if any(part.shape[0] != len(rows[0]) for part in rows) or sum(p.shape[1] for p in rows) != plane.width:
                raise MaskError(f"{path}: a segment of the labels is damaged; copy or export it again")
            labels = np.concatenate(rows, axis=1)
            yield labels if plane.dtype != np.bool_ else labels * np.uint8(255)
