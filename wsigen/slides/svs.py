"""Write a slide as an Aperio-style .svs: BigTIFF, JPEG, 256 px tiles, every level, label, macro and thumbnail.

Pixels are asked for once, either as bands of rows in the thread of the caller (`write_svs`) or as panels that other
threads read ahead (`write_svs_panels`, for large slides). All cores encode. Level k + 1 has half the size of level k,
rounded down; its pixels are the means of 2 x 2 pixels, halves rounded up. The last level fits in one tile (levels stop
earlier where a side would be below 1 px). Below quality 90 the JPEG is YCbCr 4:2:0, from 90 on RGB without subsampling.
The bytes of the file follow from the pixels, the metadata and the size of the panels: no time, no host, no file name
in it.
"""

import os
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import numpy as np
import pyvips
import tifffile

from wsigen.errors import SlideError
from wsigen.slides.associated import add_associated_images
from wsigen.slides.metadata import SlideMetadata, aperio_description, aperio_header, xmp_packet
from wsigen.slides.pyramid import CELL, PyramidEncoder, level_sizes, read_ahead
from wsigen.slides.row_stream import RowReader, RowsDone, checked_rows
from wsigen.slides.tiled_tiff import TILE, TiledTiff, TileJpeg
from wsigen.system.cores import available_cores
from wsigen.system.replacing import replacing

MAX_SIDE = 10_000_000
READERS = (2, 4)  # panels that are read at a time, at least and at most, each of 40 MB or so
CORES_PER_READER = 4  # the others encode
PanelReader = Callable[[int, int, int, int], np.ndarray]
Panels = Generator[tuple[int, int, np.ndarray], None, None]  # x, y, pixels


def write_svs(
    path: str | os.PathLike[str],
    width: int,
    height: int,
    read_rows: RowReader,
    metadata: SlideMetadata,
    jpeg_quality: int = 90,
    progress: RowsDone | None = None,
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
    band_rows: rows asked for at a time; a few bands, and a few of CELL rows, are held in memory.

    Raises SlideError for a size or quality out of range, an existing target without `overwrite`, rows of another
    shape or type, a folder or disk that takes no file. What `read_rows` or `progress` raises comes out as itself.
    """
    if band_rows < 1:
        raise SlideError(f"band_rows {band_rows}: must be at least 1")
    panels = _row_panels(width, height, read_rows, band_rows, progress)
    _write(path, width, height, panels, metadata, jpeg_quality, overwrite)


def write_svs_panels(
    path: str | os.PathLike[str],
    width: int,
    height: int,
    read_panel: PanelReader,
    metadata: SlideMetadata,
    *,
    panel: int,
    jpeg_quality: int = 90,
    progress: RowsDone | None = None,
    overwrite: bool = False,
) -> None:
    """Write the slide to `path` as `write_svs` does, from square panels.

    read_panel(x, y, w, h): returns that part of level 0 as (h, w, 3) uint8, such as `pyramid.constant` where it is of
        one colour. Called in READERS other threads, row by row; it may wait until the pixels are there.
    panel: side of a panel in pixels, a multiple of CELL (512).
    progress(rows): called in this thread with the number of rows encoded, after each row of panels.
    """
    if panel < CELL or panel % CELL:
        raise SlideError(f"panel {panel}: must be a multiple of {CELL}")
    check_settings(path, width, height, jpeg_quality)
    least, most = READERS
    readers = min(max(available_cores() // CORES_PER_READER, least), most)
    panels = read_ahead(width, height, panel, read_panel, readers)
    _write(path, width, height, _with_progress(panels, width, progress), metadata, jpeg_quality, overwrite)


def _write(
    path: str | os.PathLike[str],
    width: int,
    height: int,
    panels: Panels,
    metadata: SlideMetadata,
    jpeg_quality: int,
    overwrite: bool,
) -> None:
    """Encode panels as they come, add the pictures, and move the file to its place."""
    check_settings(path, width, height, jpeg_quality)
    levels = level_sizes(width, height)
    with replacing(path, overwrite) as partial:
        cores = available_cores()
        file = TiledTiff(partial, levels, TileJpeg(jpeg_quality))
        pool = ThreadPoolExecutor(cores, "wsigen-encode")
        try:
            encoder = PyramidEncoder(file, pool, depth=2 * cores)
            for x, y, pixels in panels:
                with _disk_errors(path):
                    encoder.add(x, y, pixels)
            with _disk_errors(path):
                encoder.finish()
                file.finish(_descriptions(metadata, levels, jpeg_quality), metadata.mpp, xmp_packet())
                add_associated_images(partial, metadata, width, height)
        finally:
            pool.shutdown(cancel_futures=True)
            panels.close()
            with suppress(OSError):  # a full disk was reported already
                file.close()


def _row_panels(width: int, height: int, read_rows: RowReader, band_rows: int, progress: RowsDone | None) -> Panels:
    """Panels of CELL rows, as wide as the slide, from bands of rows."""
    panel = np.empty((0, width, 3), np.uint8)
    top = 0  # of the panel
    for y0 in range(0, height, band_rows):
        y1 = min(y0 + band_rows, height)
        panel = np.concatenate([panel, checked_rows(read_rows, y0, y1, width)])
        while len(panel) >= CELL or (len(panel) and y1 == height):
            yield 0, top, panel[:CELL]
            panel, top = panel[CELL:], top + CELL
        if progress is not None:
            progress(y1)


def _with_progress(panels: Panels, width: int, progress: RowsDone | None) -> Panels:
    for x, y, pixels in panels:
        yield x, y, pixels
        if progress is not None and x + pixels.shape[1] == width:
            progress(y + len(pixels))


def _descriptions(metadata: SlideMetadata, levels: list[tuple[int, int]], jpeg_quality: int) -> list[str]:
    width, height = levels[0]
    size = f"{width}x{height} [0,0 {width}x{height}] ({TILE}x{TILE})"
    reduced = [f"{aperio_header(metadata)}\r\n{size} -> {w}x{h} JPEG/RGB Q={jpeg_quality}" for w, h in levels[1:]]
    return [aperio_description(metadata, width, height, TILE, jpeg_quality), *reduced]


@contextmanager
def _disk_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except (pyvips.Error, tifffile.TiffFileError, OSError) as error:
        raise SlideError(f"{path}: could not be written ({last_line(error)}); is the disk full?") from error


def check_settings(path: str | os.PathLike[str], width: int, height: int, jpeg_quality: int) -> None:
    """Raise SlideError for a size or a JPEG quality that no slide has."""
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise SlideError(f"{path}: size {width} x {height}: both sides must be 1 to {MAX_SIDE} pixels")
    if not 1 <= jpeg_quality <= 100:
        raise SlideError(f"JPEG quality {jpeg_quality}: must be 1 to 100")


def last_line(error: Exception) -> str:
    """What a library's error says in its last line that says anything."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
