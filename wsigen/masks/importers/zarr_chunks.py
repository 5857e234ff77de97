"""Packed Zarr chunks that unpack to more than their array says are refused, before zarr unpacks them whole.

A chunk's size is known from the metadata: its shape and its type. Blosc and LZ4 state what they unpack to; the others
are unpacked up to that size here, which costs little beside reading them.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import math
import zlib
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np

from wsigen.errors import MaskError

CHECKSUM_BYTES = 4
COMPRESSORS = ("blosc", "zstd", "gzip", "zlib", "lz4", "bz2", "lzma")
_OPENERS: dict[str, Callable[[Any], Any]] = {
    "gzip": lambda file: gzip.GzipFile(fileobj=file),
    "bz2": bz2.BZ2File,
    "lzma": lzma.LZMAFile,
}
_MISSING = 2**64 - 1  # offset of a chunk that a shard does not hold


class ChunkCheck:
    """Looks at the chunk files of an array in `folder`.

    modern: the array's zarr.json, or old: its .zarray. Raises ValueError for an array that is packed so that sizes
    cannot be told beforehand: twice, or with filters, or its shards as a whole.
    """

    def __init__(self, folder: Path, array: Any, modern: dict[str, Any], old: dict[str, Any]) -> None:
        self._folder, self._array = folder, array
        self._grid = array.shards or array.chunks
        self._expected = math.prod(array.chunks) * array.dtype.itemsize
        outer = [(old["compressor"] or {}).get("id")] if old else [codec["name"] for codec in modern["codecs"]]
        self._shard = None
        if "sharding_indexed" in outer:
            if len(outer) > 1:
                raise ValueError("its shards are packed as a whole")
            self._shard = modern["codecs"][0]["configuration"]
            outer = [codec["name"] for codec in self._shard["codecs"]]
        if old.get("filters"):
            raise ValueError("its chunks are filtered")
        self._packing = [name for name in outer if name in COMPRESSORS or name == "crc32c"]
        if sum(name in COMPRESSORS for name in self._packing) > 1:
            raise ValueError("its chunks are packed twice")

    def rows(self, y0: int, y1: int) -> None:
        """Check what lies in rows y0 .. y1 - 1; MaskError for a chunk that is larger than the array says."""
        height, width = self._grid[-2:]
        rows, columns = range(y0 // height, -(-y1 // height)), range(-(-self._array.shape[-1] // width))
        for place in product(*([0] for _ in self._array.shape[:-2]), rows, columns):
            file = self._folder / self._array.metadata.encode_chunk_key(place)
            if file.is_file():
                for packed in self._chunks(file):
                    if not self._fits(packed):
                        size = f"{self._expected:,} bytes that a chunk of {self._array.chunks} takes"
                        raise MaskError(f"{file}: unpacks to more than the {size}; write the labels again")

    def _chunks(self, file: Path) -> Iterator[bytes]:
        if self._shard is None:
            if self._packing:
                yield file.read_bytes()
            return
        count = math.prod(outer // inner for outer, inner in zip(self._grid, self._array.chunks))
        size = 16 * count + CHECKSUM_BYTES * ("crc32c" in [codec["name"] for codec in self._shard["index_codecs"]])
        end = file.stat().st_size
        if end < size:
            raise ValueError(f"{file.name} is cut off")
        with open(file, "rb") as shard:
            shard.seek(0 if self._shard.get("index_location") == "start" else end - size)
            order = self._shard["index_codecs"][0].get("configuration", {}).get("endian", "little")
            index = np.frombuffer(shard.read(16 * count), ">u8" if order == "big" else "<u8").reshape(-1, 2)
            for offset, length in index.tolist():
                if offset != _MISSING and self._packing:
                    shard.seek(min(offset, end))
                    yield shard.read(min(length, end))

    def _fits(self, packed: bytes) -> bool:
        """Whether a chunk unpacks to what it should at most; what is damaged is left to zarr's own messages."""
        compressor = next((name for name in self._packing if name in COMPRESSORS), None)
        if self._packing[-1] == "crc32c":
            packed = packed[:-CHECKSUM_BYTES]
        most = self._expected + CHECKSUM_BYTES * len(self._packing)  # a checksum may be packed along
        return compressor is None or _unpacks_within(compressor, packed, most)


def _unpacks_within(compressor: str, packed: bytes, most: int) -> bool:
    """Whether packed data are no more than `most` bytes, or damaged."""
    try:
        if compressor == "blosc":
            return int.from_bytes(packed[4:8], "little") <= most
        if compressor == "lz4":
            return int.from_bytes(packed[:4], "little") <= most
        if compressor == "zstd":
            return _zstd_unpacks_within(packed, most)
        file = _OPENERS[compressor](io.BytesIO(packed)) if compressor in _OPENERS else None
        unpacked = file.read(most + 1) if file else zlib.decompressobj().decompress(packed, most + 1)
        return len(unpacked) <= most
    except (OSError, EOFError, lzma.LZMAError, zlib.error):
        return True


def _zstd_unpacks_within(packed: bytes, most: int) -> bool:
    try:
        imagecodecs.zstd_decode(packed, out=most)
    except imagecodecs.ZstdError as error:
        return "too small" not in str(error)
    return True
