"""Opening and parsing a TIFF, with errors of one line."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import BinaryIO

import tifffile

from wsigen.errors import MaskError

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# tifffile reports damage to its logger before raising; the one line of our own error is enough.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def open_stream(path: Path) -> BinaryIO:
    """Open the file for reading; a `MaskError` where it is missing, a folder, or may not be read."""
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise MaskError(f"{path}: no such file; check the path of the mask") from None
    except IsADirectoryError:
        raise MaskError(f"{path}: is a directory; give the mask's TIFF file inside it") from None
    except OSError as error:
        raise MaskError(f"{path}: cannot be opened ({error.strerror}); check its permissions") from None


def parse_tiff(path: Path, stream: BinaryIO, size: int) -> tifffile.TiffFile:
    """Parse a TIFF of `size` bytes. Raises `MaskError` for a file that is empty, damaged or no TIFF."""
    magic = stream.read(4)
    stream.seek(0)
    if size == 0:
        raise MaskError(f"{path}: is empty (0 bytes); copy or export the mask again")
    if magic not in _MAGIC:
        raise MaskError(f"{path}: is not a TIFF (it begins with {magic!r}); convert the mask to TIFF")
    try:
        tif = tifffile.TiffFile(stream)
        list(tif.pages)
    except Exception as error:  # tifffile raises many kinds on damaged files; each means the same to the user
        reason = " ".join(str(error).split())
        raise MaskError(f"{path}: the TIFF is truncated or damaged ({reason}); copy or export it again") from None
    return tif
