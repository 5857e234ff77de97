"""Write a slide as an Aperio-style .svs: BigTIFF, JPEG, 256 px tiles, every level, label, macro and thumbnail.

Rows are asked for from the top down, in the thread of the caller, and each once; libvips encodes all levels in one
pass in another thread. Level k + 1 has half the size of level k, rounded down; its pixels are the means of 2 x 2
pixels, halves rounded up. The last level fits in one tile (levels stop earlier where a side would be below 1 px).
JPEG is libvips' own choice: below quality 90 YCbCr 4:2:0, from 90 on RGB with no subsampling. libvips fills what of
the last tiles lies outside the slide with black, so the last block of 8 (4:2:0: 16) pixels at the right and lower edge
is a little less exact where a level's size is no multiple of it. The bytes of the file follow from the pixels and the
metadata alone: no time, no host, no file name in it.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyvips
import tifffile

from wsigen.errors import SlideError
from wsigen.slides.associated import add_associated_images
from wsigen.slides.metadata import SlideMetadata, aperio_description, xmp_packet
from wsigen.slides.replacing import replacing
from wsigen.slides.virtual_tiff import RowFeed, VirtualTiff

TILE = 256
MAX_SIDE = 10_000_000
RowReader = Callable[[int, int], np.ndarray]


def write_svs(
    path: str | os.PathLike[str],
    width: int,
    height: int,
    read_rows: RowReader,
    metadata: SlideMetadata,
    jpeg_quality: int = 90,
    progress: Callable[[int], None] | None = None,
    overwrite: bool = False,
    band_rows: int = TILE,
) -> None:
    """Write the slide to `path`; the file appears there when it is whole, and not at all if anything fails.

    width, height: size of level 0 in pixels, 1 to MAX_SIDE.
    read_rows(y0, y1): returns rows y0 to y1 as (y1 - y0, width, 3) uint8. Called in this thread, with consecutive
        bands of `band_rows` rows (the last one shorter); the array is copied and may be used again.
    metadata: scale and provenance, see SlideMetadata.
    jpeg_quality: 1 to 100.
    progress(rows): called in this thread with the number of rows handed to the encoder.
    band_rows: rows asked for at a time; about four bands are held in memory.

    Raises SlideError for a size or quality out of range, an existing target without `overwrite`, rows of another
    shape or type, a folder or disk that takes no file. What `read_rows` or `progress` raises comes out as itself.
    """
    _check_settings(path, width, height, jpeg_quality, band_rows)
    with replacing(path, overwrite) as partial:
        feed = RowFeed()
        pixels = VirtualTiff(width, height, feed, band_rows)
        description = aperio_description(metadata, width, height, TILE, jpeg_quality)
        with ThreadPoolExecutor(1, "wsigen-svs") as pool:
            encoded = pool.submit(_encode_pyramid, pixels, partial, metadata.mpp, description, jpeg_quality)
            # An encoder that fails must not leave this thread waiting to hand over the next band.
            encoded.add_done_callback(lambda _: feed.close())
            try:
                _feed_rows(feed, width, height, band_rows, read_rows, progress)
            finally:
                feed.close()
        try:
            encoded.result()
            add_associated_images(partial, metadata, width, height)
        except (pyvips.Error, tifffile.TiffFileError, OSError) as error:
            raise SlideError(f"{path}: could not be written ({_last_line(error)}); is the disk full?") from error


def _feed_rows(
    feed: RowFeed,
    width: int,
    height: int,
    band_rows: int,
    read_rows: RowReader,
    progress: Callable[[int], None] | None,
) -> None:
    """Ask for all bands in turn and hand them on, until the encoder wants no more."""
    for y0 in range(0, height, band_rows):
        y1 = min(y0 + band_rows, height)
        rows = np.asarray(read_rows(y0, y1))
        if rows.shape != (y1 - y0, width, 3) or rows.dtype != np.uint8:
            expected = (y1 - y0, width, 3)
            raise SlideError(f"rows {y0} to {y1}: got {rows.shape} {rows.dtype}; read_rows must give {expected} uint8")
        if not feed.put(np.array(rows, order="C")):
            return
        if progress is not None:
            progress(y1)


def _encode_pyramid(pixels: VirtualTiff, path: Path, mpp: float, description: str, jpeg_quality: int) -> None:
    """Let libvips read `pixels` and write all levels, in one pass downward. Raises pyvips.Error."""
    source = pyvips.SourceCustom()
    source.on_read(pixels.read)
    source.on_seek(pixels.seek)
    # Without fail_on, libvips would take missing rows for black ones.
    image = pyvips.Image.new_from_source(source, "", access="sequential", fail_on="error").copy()
    image.set_type(pyvips.GValue.gstr_type, "image-description", description)
    image.set_type(pyvips.GValue.blob_type, "xmp-data", xmp_packet())
    image.tiffsave(
        str(path),
        compression="jpeg",
        Q=jpeg_quality,
        tile=True,
        tile_width=TILE,
        tile_height=TILE,
        pyramid=True,
        region_shrink="mean",
        bigtiff=True,
        resunit="cm",
        xres=1000 / mpp,
        yres=1000 / mpp,
    )


def _check_settings(path: str | os.PathLike[str], width: int, height: int, jpeg_quality: int, band_rows: int) -> None:
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise SlideError(f"{path}: size {width} x {height}: both sides must be 1 to {MAX_SIDE} pixels")
    if not 1 <= jpeg_quality <= 100:
        raise SlideError(f"JPEG quality {jpeg_quality}: must be 1 to 100")
    if band_rows < 1:
        raise SlideError(f"band_rows {band_rows}: must be at least 1")


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
