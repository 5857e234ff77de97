"""Thumbnail, label and macro: the three small pictures of a slide, and where Aperio's format has them in the file.

libvips writes the levels L0, L1, .. as a chain of directories and marks all but the first as reduced images; OpenSlide
takes every tiled directory for a level, but tifffile takes the second directory for the thumbnail and ends the levels
at the first mark. So the pictures are appended and the chain is relinked to Aperio's order, in which both agree:
L0 -> thumbnail -> L1 -> .. -> label -> macro, with no mark on the levels.
"""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile

from wsigen.slides.label import draw_label, draw_macro
from wsigen.slides.metadata import SlideMetadata, aperio_header
from wsigen.system.pictures import load_picture

THUMBNAIL_SIDE = 1024
_NEW_SUBFILE_TYPE = 254
_LABEL_TYPE, _MACRO_TYPE = 1, 9


def add_associated_images(path: Path, metadata: SlideMetadata, width: int, height: int) -> None:
    """Add the three pictures to a pyramid in BigTIFF that libvips wrote; level 0 has width x height pixels.

    Raises TiffFileError, OSError or pyvips.Error where the file is not whole or takes no more.
    """
    levels = _level_sizes(path)
    thumbnail = _thumbnail(path, levels)
    label = draw_label(metadata, width, height)
    macro = draw_macro(label, thumbnail)
    header = aperio_header(metadata)
    jpeg = {"compression": "jpeg", "compressionargs": {"level": 90}}
    with tifffile.TiffWriter(path, append=True) as tiff:
        for picture, title, kind, compression in (
            (thumbnail, f"{width}x{height} ->", 0, jpeg),
            (label, "label", _LABEL_TYPE, {"compression": "zlib"}),
            (macro, "macro", _MACRO_TYPE, jpeg),
        ):
            size = f"{picture.shape[1]}x{picture.shape[0]}"
            tiff.write(
                picture,
                photometric="rgb",
                subfiletype=kind,
                description=f"{header}\r\n{title} {size}",
                metadata=None,
                software=False,
                **compression,
            )
    _relink(path, len(levels))


def _level_sizes(path: Path) -> list[tuple[int, int]]:
    """Sizes (width, height) of the levels; refuses a file that misses a tile, as after a full disk."""
    end = path.stat().st_size
    sizes = []
    with tifffile.TiffFile(path) as tiff:
        for page in (page.aspage() for page in tiff.pages):
            if any(n == 0 or at + n > end for at, n in zip(page.dataoffsets, page.databytecounts)):
                raise tifffile.TiffFileError("a tile is missing")
            sizes.append((page.imagewidth, page.imagelength))
    return sizes


def _thumbnail(path: Path, levels: Sequence[tuple[int, int]]) -> np.ndarray:
    """(h, w, 3) uint8 picture of the slide with sides up to THUMBNAIL_SIDE, from the smallest level that is enough."""
    enough = [index for index, size in enumerate(levels) if max(size) >= THUMBNAIL_SIDE]
    image = load_picture(path, page=enough[-1] if enough else 0)
    return image.thumbnail_image(THUMBNAIL_SIDE, height=THUMBNAIL_SIDE, size="down").numpy()


def _relink(path: Path, level_count: int) -> None:
    """Put the directories of L0, L1, .., thumbnail, label, macro into Aperio's order and unmark the levels."""
    with tifffile.TiffFile(path) as tiff:
        directories = [page.offset for page in tiff.pages]
        tags = [page.aspage().tags for page in tiff.pages[:level_count]]
        marks = [tag.valueoffset for level in tags if (tag := level.get(_NEW_SUBFILE_TYPE)) is not None]
    levels, (thumbnail, label, macro) = directories[:level_count], directories[level_count:]
    chain = [levels[0], thumbnail, *levels[1:], label, macro]
    with path.open("r+b") as file:
        for mark in marks:
            file.seek(mark)
            file.write(struct.pack("<I", 0))
        for directory, following in zip(chain, [*chain[1:], 0]):
            file.seek(directory)
            (entries,) = struct.unpack("<Q", file.read(8))
            file.seek(directory + 8 + 20 * entries)
            file.write(struct.pack("<Q", following))
