"""Rows from the top down as one libvips image, for encoders that read an image once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyvips

from wsigen.errors import SlideError
from wsigen.slides.virtual_tiff import RowFeed, VirtualTiff

RowReader = Callable[[int, int], np.ndarray]
RowsDone = Callable[[int], None]  # rows from the top that are done


def encode_rows(
    width: int,
    height: int,
    read_rows: RowReader,
    encode: Callable[[pyvips.Image], None],
    progress: RowsDone | None = None,
    band_rows: int = 256,
) -> None:
    """Run `encode(image)` in a thread of its own while this one asks for rows, each once, from the top down.

    read_rows(y0, y1) returns (y1 - y0, width, 3) uint8; see `write_svs`. Raises SlideError for rows of another shape,
    pyvips.Error where encoding fails; what `read_rows` or `progress` raises comes out as itself.
    """
    feed = RowFeed()
    pixels = VirtualTiff(width, height, feed, band_rows)
    with ThreadPoolExecutor(1, "wsigen-encode") as pool:
        encoded = pool.submit(lambda: encode(_image(pixels)))
        # An encoder that fails must not leave this thread waiting to hand over the next band.
        encoded.add_done_callback(lambda _: feed.close())
        try:
            for y0 in range(0, height, band_rows):
                y1 = min(y0 + band_rows, height)
                if not feed.put(np.array(checked_rows(read_rows, y0, y1, width), order="C")):
                    break
                if progress is not None:
                    progress(y1)
        finally:
            feed.close()
    encoded.result()


def checked_rows(read_rows: RowReader, y0: int, y1: int, width: int) -> np.ndarray:
    """Rows y0 .. y1 - 1; SlideError where they are not (y1 - y0, width, 3) uint8."""
    rows = np.asarray(read_rows(y0, y1))
    if rows.shape != (y1 - y0, width, 3) or rows.dtype != np.uint8:
        expected = (y1 - y0, width, 3)
        raise SlideError(f"rows {y0} to {y1}: got {rows.shape} {rows.dtype}; read_rows must give {expected} uint8")
    return rows


def _image(pixels: VirtualTiff) -> pyvips.Image:
    source = pyvips.SourceCustom()
    source.on_read(pixels.read)
    source.on_seek(pixels.seek)
    # Without fail_on, libvips would take missing rows for black ones.
    return pyvips.Image.new_from_source(source, "", access="sequential", fail_on="error").copy()
