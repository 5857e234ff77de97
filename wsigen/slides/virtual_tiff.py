"""Row bands as a TIFF file that exists nowhere: how libvips reads a slide that is made from the top down.

libvips has no loader for raw pixels from a callback, but it reads TIFF from one. So we synthesise the header of an
uncompressed striped BigTIFF, place the pixels right behind it, and answer libvips' reads from the band at hand. One
band is being encoded and one waits: memory does not grow with the height of the slide.
"""

import os
import struct
import threading

import numpy as np

STRIP_ROWS = 16
_SHORT, _LONG, _LONG8 = 3, 4, 16
_FORMATS = {_SHORT: "H", _LONG: "I", _LONG8: "Q"}


class RowFeed:
    """Hands row bands from the thread that makes them to the one that encodes them; at most one band waits."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: np.ndarray | None = None
        self._closed = False

    def put(self, rows: np.ndarray) -> bool:
        """Wait for the place to be free and leave `rows` there; False if nobody wants rows any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is None or self._closed)
            if self._closed:
                return False
            self._waiting = rows
            self._changed.notify_all()
            return True

    def get(self) -> np.ndarray | None:
        """Wait for the next band and take it; None if no more will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None or self._closed)
            rows, self._waiting = self._waiting, None
            self._changed.notify_all()
            return rows

    def close(self) -> None:
        """No more bands: wakes both sides. A band that waits can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class VirtualTiff:
    """`read` and `seek` of an RGB uint8 TIFF of width x height whose pixels come from `feed`.

    feed: bands of (band_rows, width, 3) uint8, the last one shorter. The header may be read at will, the pixels only
    downward: bands that were left are gone.
    """

    def __init__(self, width: int, height: int, feed: RowFeed, band_rows: int) -> None:
        self._header = tiff_header(width, height)
        self._size = len(self._header) + width * height * 3
        self._band_bytes = band_rows * width * 3
        self._feed = feed
        self._band: memoryview | None = None
        self._band_index = -1
        self._position = 0

    def seek(self, offset: int, whence: int) -> int:
        """Move as `io.seek` does."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int) -> bytes | None:
        """Up to `size` bytes, fewer only at the end (libtiff takes a short read as an error); None: no more."""
        out = bytearray()
        while len(out) < size and self._position < self._size:
            piece = self._piece(size - len(out))
            if piece is None:
                break
            out += piece
            self._position += len(piece)
        return bytes(out) if out else None

    def _piece(self, size: int) -> memoryview | None:
        """Bytes from the position on, up to the end of the header or of the band it lies in."""
        if self._position < len(self._header):
            return memoryview(self._header)[self._position : self._position + size]
        index, start = divmod(self._position - len(self._header), self._band_bytes)
        while self._band_index < index:
            self._band = None  # lets the band go before waiting for the next one
            rows = self._feed.get()
            if rows is None:
                return None
            self._band = rows.data.cast("B")
            self._band_index += 1
        if self._band is None or index < self._band_index:
            return None
        return self._band[start : start + size]


def tiff_header(width: int, height: int) -> bytes:
    """BigTIFF header, IFD and strip tables of an uncompressed (height, width, 3) uint8 image; the pixels follow it."""
    strips = -(-height // STRIP_ROWS)
    strip_bytes = STRIP_ROWS * width * 3
    counts = [strip_bytes] * (strips - 1) + [width * height * 3 - strip_bytes * (strips - 1)]
    entries: list[tuple[int, int, list[int]]] = [
        (256, _LONG, [width]),
        (257, _LONG, [height]),
        (258, _SHORT, [8, 8, 8]),
        (259, _SHORT, [1]),  # no compression
        (262, _SHORT, [2]),  # RGB
        (273, _LONG8, [0] * strips),
        (277, _SHORT, [3]),
        (278, _LONG, [STRIP_ROWS]),
        (279, _LONG8, counts),
        (284, _SHORT, [1]),  # interleaved
    ]
    ifd_bytes = 8 + 20 * len(entries) + 8
    length = 16 + ifd_bytes + (2 * 8 * strips if strips > 1 else 0)
    entries[5] = (273, _LONG8, [length + strip_bytes * i for i in range(strips)])

    ifd, tables = bytearray(struct.pack("<Q", len(entries))), bytearray()
    for tag, kind, values in entries:
        packed = struct.pack(f"<{len(values)}{_FORMATS[kind]}", *values)
        if len(packed) > 8:
            tables_at = 16 + ifd_bytes + len(tables)
            tables += packed
            packed = struct.pack("<Q", tables_at)
        ifd += struct.pack("<HHQ8s", tag, kind, len(values), packed)
    ifd += struct.pack("<Q", 0)
    return struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) + bytes(ifd) + bytes(tables)
