"""A BigTIFF of JPEG tiles that is written tile by tile, in any order, over several levels at once.

Tiles are appended as they come; where they lie is kept in memory (16 bytes a tile) and written at the end. Tiles of one
colour are stored once and pointed at as often as they occur, so that glass costs neither encoding nor space. The tables
of the JPEG are the same in all tiles of a quality and stand once a level (TIFF Technical Note 2).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import imagecodecs
import numpy as np

TILE = 256
_SHORT, _LONG, _RATIONAL, _UNDEFINED, _LONG8, _ASCII, _BYTE = 3, 4, 5, 7, 16, 2, 1
_FORMATS = {_SHORT: "H", _LONG: "I", _LONG8: "Q", _RATIONAL: "I", _UNDEFINED: "B", _ASCII: "B", _BYTE: "B"}
_TABLE_MARKERS = (0xDB, 0xC4)  # quantisation and Huffman tables
_START_OF_SCAN = 0xDA


@dataclass(frozen=True)
class TileJpeg:
    """JPEG of a quality from 1 to 100: below 90 YCbCr with half the colour resolution, from 90 on RGB."""

    quality: int

    @property
    def subsampled(self) -> bool:
        """Whether colour is stored at half the resolution."""
        return self.quality < 90

    @cached_property
    def tables(self) -> bytes:
        """The tables of all tiles, as a JPEG stream without picture."""
        return _split(self._whole(np.zeros((TILE, TILE, 3), np.uint8)))[0]

    def encode(self, pixels: np.ndarray) -> bytes:
        """Encode up to TILE x TILE pixels (h, w, 3) uint8 as a tile without tables; the border is repeated outside."""
        h, w = pixels.shape[:2]
        if (h, w) != (TILE, TILE):
            pixels = np.pad(pixels, ((0, TILE - h), (0, TILE - w), (0, 0)), mode="edge")
        return _split(self._whole(np.ascontiguousarray(pixels)))[1]

    def decode(self, tile: bytes) -> np.ndarray:
        """Decode a tile: (TILE, TILE, 3) uint8."""
        kind = "YCBCR" if self.subsampled else "RGB"
        pixels = imagecodecs.jpeg8_decode(tile, tables=self.tables, colorspace=kind, outcolorspace="RGB")
        return np.asarray(pixels)

    def _whole(self, pixels: np.ndarray) -> bytes:
        jpeg = imagecodecs.jpeg8_encode(
            pixels,
            level=self.quality,
            colorspace="RGB",
            outcolorspace="YCBCR" if self.subsampled else "RGB",
            subsampling="420" if self.subsampled else "444",
        )
        return bytes(jpeg)


def _split(jpeg: bytes) -> tuple[bytes, bytes]:
    """Cut a JPEG into its tables and the rest, each a stream of its own."""
    tables, rest, at = [b"\xff\xd8"], [b"\xff\xd8"], 2
    while jpeg[at + 1] != _START_OF_SCAN:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        (tables if jpeg[at + 1] in _TABLE_MARKERS else rest).append(jpeg[at:end])
        at = end
    return b"".join([*tables, b"\xff\xd9"]), b"".join([*rest, jpeg[at:]])


class TiledTiff:
    """The file while it is written. ``levels`` are sizes (width, height), the largest first."""

    def __init__(self, path: Path, levels: Sequence[tuple[int, int]], jpeg: TileJpeg) -> None:
        self.levels, self.jpeg = levels, jpeg
        self._across = [-(-width // TILE) for width, _ in levels]
        counts = [across * -(-height // TILE) for across, (_, height) in zip(self._across, levels)]
        self._offsets = [np.zeros(count, np.uint64) for count in counts]
        self._sizes = [np.zeros(count, np.uint64) for count in counts]
        self._shared: dict[bytes, tuple[int, int]] = {}
        self._file: BinaryIO = path.open("wb", buffering=1 << 20)
        self._end = self._file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))

    def add(self, level: int, column: int, row: int, tile: bytes, shared: bool = False) -> None:
        """Append a tile; one that is ``shared`` is stored once for all places where it occurs."""
        place = self._shared.get(tile) if shared else None
        if place is None:
            place = self._end, self._file.write(tile)
            self._end += len(tile)
            if shared:
                self._shared[tile] = place
        index = row * self._across[level] + column
        self._offsets[level][index], self._sizes[level][index] = place

    def finish(self, descriptions: Sequence[str], mpp: float, xmp: bytes) -> None:
        """Write a directory for each level and close. Level k has mpp * 2^k microns per pixel; XMP goes to level 0."""
        directories = []
        for level, description in enumerate(descriptions):
            tags = self._tags(level, description, mpp * 2**level) | ({700: (_BYTE, xmp)} if level == 0 else {})
            directories.append(self._write_directory(tags))
        self._file.seek(8)
        self._file.write(struct.pack("<Q", directories[0][0]))
        for (_, link), (following, _) in pairwise(directories):
            self._file.seek(link)
            self._file.write(struct.pack("<Q", following))
        self._file.close()

    def close(self) -> None:
        """Give up."""
        self._file.close()

    def _tags(self, level: int, description: str, mpp: float) -> dict[int, tuple[int, Any]]:
        width, height = self.levels[level]
        resolution = (round(10_000_000 / mpp), 1000)
        tags: dict[int, tuple[int, Any]] = {
            254: (_LONG, [0]),
            256: (_LONG, [width]),
            257: (_LONG, [height]),
            258: (_SHORT, [8, 8, 8]),
            259: (_SHORT, [7]),  # JPEG
            262: (_SHORT, [6 if self.jpeg.subsampled else 2]),  # YCbCr or RGB
            270: (_ASCII, description.encode("ascii") + b"\0"),
            277: (_SHORT, [3]),
            282: (_RATIONAL, resolution),
            283: (_RATIONAL, resolution),
            284: (_SHORT, [1]),
            296: (_SHORT, [3]),  # centimetre
            322: (_LONG, [TILE]),
            323: (_LONG, [TILE]),
            324: (_LONG8, self._offsets[level]),
            325: (_LONG8, self._sizes[level]),
            347: (_UNDEFINED, self.jpeg.tables),
        }
        return tags | ({530: (_SHORT, [2, 2])} if self.jpeg.subsampled else {})

    def _write_directory(self, tags: Mapping[int, tuple[int, Any]]) -> tuple[int, int]:
        """Write values that do not fit into their entry, then the entries; returns where they are and their link."""
        entries = []
        for tag, (kind, values) in sorted(tags.items()):
            packed = _packed(kind, values)
            count = len(packed) // struct.calcsize(_FORMATS[kind]) // (2 if kind == _RATIONAL else 1)
            if len(packed) > 8:
                self._align()
                at = self._end
                self._end += self._file.write(packed)
                packed = struct.pack("<Q", at)
            entries.append(struct.pack("<HHQ8s", tag, kind, count, packed))
        self._align()
        start = self._end
        self._end += self._file.write(struct.pack("<Q", len(entries)) + b"".join(entries) + bytes(8))
        return start, self._end - 8

    def _align(self) -> None:
        self._end += self._file.write(bytes(-self._end % 8))


def _packed(kind: int, values: Any) -> bytes:
    if isinstance(values, bytes):
        return values
    if isinstance(values, np.ndarray):
        return values.astype("<u8").tobytes()
    return struct.pack(f"<{len(values)}{_FORMATS[kind]}", *values)
