"""One plane of a TIFF: where its segments (strips or tiles) lie in the file, and how one is decoded.

Uncompressed strips are cut into short ones, so that even a file that is one huge raw strip is read by window.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

from wsigen.errors import MaskError

LABEL = "label"  # stands for the name of a plane that is read as labels of any kind
MAX_SEGMENT_BYTES = 1 << 30
RAW_STRIP_BYTES = 1 << 20
_JPEG_COMPRESSIONS = (6, 7, 34892, 33007)
_RETILE = "rewrite it tiled, for example with `vips tiffsave IN OUT --tile --compression deflate --bigtiff`"


@dataclass(frozen=True)
class Plane:
    """Where the segments of one plane lie in the file, and how to decode one.

    Segments are numbered row by row, `across` in a row, each `segment_height` x `segment_width` pixels, those at
    the right and lower border cropped. `offsets` and `byte_counts` are in bytes; a byte count of 0 is a segment of
    zeros. `decode(data, index)` returns the cropped (h, w) pixels.
    """

    name: str
    width: int
    height: int
    dtype: np.dtype
    segment_width: int
    segment_height: int
    offsets: np.ndarray
    byte_counts: np.ndarray
    decode: Callable[[bytes, int], np.ndarray]

    @property
    def across(self) -> int:
        """Segments side by side."""
        return math.ceil(self.width / self.segment_width)

    @property
    def segment_bytes(self) -> int:
        """Decoded bytes of a whole segment."""
        return self.segment_width * self.segment_height * self.dtype.itemsize

    def segment_shape(self, index: int) -> tuple[int, int]:
        """Height and width of a segment, cropped at the border of the plane."""
        row, column = divmod(index, self.across)
        return (
            min(self.segment_height, self.height - row * self.segment_height),
            min(self.segment_width, self.width - column * self.segment_width),
        )


def checked_plane(path: Path, name: str, page: tifffile.TiffPage, file_size: int) -> Plane:
    """Where the segments of a page lie and how to decode one. Raises `MaskError` for what cannot be a plane."""
    _check_kind(path, name, page)
    dtype = np.dtype(page.dtype)
    width, height = page.imagewidth, page.imagelength
    tiled = page.is_tiled
    segment_width = page.tilewidth if tiled else width
    segment_height = page.tilelength if tiled else page.rowsperstrip
    if not all(isinstance(size, int) and size > 0 for size in (segment_width, segment_height)):
        raise MaskError(f"{path}: the TIFF is damaged (segments of the {name} plane have no size); export it again")
    segment_height = segment_height if tiled else min(segment_height, height)
    count = math.ceil(width / segment_width) * math.ceil(height / segment_height)
    offsets = np.asarray(page.dataoffsets[:count], np.int64)
    byte_counts = np.asarray(page.databytecounts[:count], np.int64)
    if len(offsets) < count or len(byte_counts) < count:
        raise MaskError(
            f"{path}: the TIFF is truncated or damaged ({min(len(offsets), len(byte_counts))} of {count} segments of "
            f"the {name} plane are listed); copy or export it again"
        )
    end = int((offsets + byte_counts).max())
    if end > file_size:
        raise MaskError(
            f"{path}: the TIFF is truncated (the {name} plane reaches to byte {end}, the file ends at {file_size}); "
            "copy or export it again"
        )
    if not tiled and page.compression == 1 and page.predictor == 1 and page.fillorder == 1 and page.bitspersample >= 8:
        return _raw_strips(path, name, page, segment_height, offsets, byte_counts)
    plane = Plane(
        name, width, height, dtype, segment_width, segment_height, offsets, byte_counts, _decoder(path, name, page)
    )
    if plane.segment_bytes > MAX_SEGMENT_BYTES:
        raise MaskError(
            f"{path}: a {'tile' if tiled else 'strip'} of the {name} plane is {segment_width} x {segment_height} "
            f"pixels ({plane.segment_bytes / 1e9:.1f} GB decoded), too large to read by window; {_RETILE}"
        )
    return plane


def segment_pixels(plane: Plane, data: bytes, segment: int) -> np.ndarray:
    """Pixels (h, w) of a segment from its bytes as stored; no bytes are a segment of zeros."""
    height, width = plane.segment_shape(segment)
    return plane.decode(data, segment)[:height, :width] if data else np.zeros((height, width), plane.dtype)


def _check_kind(path: Path, name: str, page: tifffile.TiffPage) -> None:
    if page.imagewidth < 1 or page.imagelength < 1:
        raise MaskError(f"{path}: the {name} plane is {page.imagewidth} x {page.imagelength} pixels; export it again")
    if page.samplesperpixel != 1:
        kind = "RGB" if page.photometric == 2 else "several values per pixel"
        raise MaskError(
            f"{path}: the {name} plane is an image of {page.samplesperpixel} channels ({kind}); a mask has one value "
            "per pixel: export the labels, not their colours"
        )
    if page.dtype == np.bool_ and name == "class":
        raise MaskError(
            f"{path}: the class plane has 1 bit per pixel; it looks like a tissue mask: write it as the plane "
            "'tissue' beside a class plane of uint8"
        )
    kinds = "bui" if name == LABEL else ""  # a label may be any whole number; its range is checked as it is read
    if page.dtype not in (np.bool_, np.uint8, np.uint16, np.uint32) and np.dtype(page.dtype or "V").kind not in kinds:
        given = page.dtype or f"{page.bitspersample} bits of an unknown kind"
        wanted = "uint16 or uint32" if name == "instance" else "uint8"
        raise MaskError(f"{path}: the {name} plane is {given}; convert it to {wanted}")
    if page.compression in _JPEG_COMPRESSIONS:
        raise MaskError(
            f"{path}: the {name} plane is JPEG-compressed, which changes labels; export it again with deflate or LZW"
        )


def _decoder(path: Path, name: str, page: tifffile.TiffPage) -> Callable[[bytes, int], np.ndarray]:
    try:
        decode_segment = page.decode
    except (ValueError, NotImplementedError, ImportError) as error:
        raise MaskError(f"{path}: the {name} plane cannot be decoded ({error}); export it with deflate") from None

    def decode(data: bytes, index: int) -> np.ndarray:
        try:
            pixels = decode_segment(data, index)[0]
        except Exception as error:  # every codec has errors of its own
            reason = " ".join(str(error).split())
            raise MaskError(
                f"{path}: segment {index} of the {name} plane cannot be decoded ({reason}); copy or export it again, "
                "compressed with deflate"
            ) from None
        return np.asarray(pixels)[0, :, :, 0]

    return decode


def _raw_strips(
    path: Path, name: str, page: tifffile.TiffPage, strip_height: int, offsets: np.ndarray, byte_counts: np.ndarray
) -> Plane:
    """Cut uncompressed strips into short ones: the bytes of a row lie where arithmetic says."""
    width, height = page.imagewidth, page.imagelength
    stored = np.dtype(page.dtype).newbyteorder(page.parent.byteorder)
    row_bytes = width * stored.itemsize
    whole = np.minimum(strip_height, height - np.arange(len(offsets)) * strip_height) * row_bytes
    if ((byte_counts > 0) & (byte_counts < whole)).any():
        raise MaskError(
            f"{path}: the TIFF is truncated (a strip of the {name} plane is short); copy or export it again"
        )
    rows = max(1, RAW_STRIP_BYTES // row_bytes)
    if strip_height > rows and strip_height < height:
        rows = max(d for d in range(1, rows + 1) if strip_height % d == 0)  # so that no short strip spans two strips
    rows = min(rows, strip_height)
    starts = np.arange(0, height, rows, dtype=np.int64)
    strip, inside = starts // strip_height, starts % strip_height
    counts = np.minimum(rows, height - starts) * row_bytes
    present = byte_counts[strip] > 0

    def decode(data: bytes, index: int) -> np.ndarray:
        return np.frombuffer(data, stored).reshape(-1, width).astype(stored.newbyteorder("="), copy=False)

    return Plane(
        name,
        width,
        height,
        stored.newbyteorder("="),
        width,
        rows,
        offsets[strip] + inside * row_bytes,
        np.where(present, counts, 0),
        decode,
    )
