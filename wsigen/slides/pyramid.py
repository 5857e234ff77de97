"""All levels of a slide from one pass over its pixels, with every core.

The slide comes in panels, row by row. A panel is cut into cells of 512 rows; each is one job: encode its tiles of level
0, halve, encode those of level 1, halve again. What is left, a sixteenth of the pixels, is gathered for a row of
panels, and the remaining levels follow from it from the top down. Results are stored in the order of the cells, so the
file does not depend on the number of threads. Memory: the panels at hand, and a row of panels at level 2.

Level k + 1 has half the size of level k, rounded down; its pixels are means of 2 x 2 pixels, halves rounded up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from wsigen.slides.tiled_tiff import TILE, TiledTiff, TileJpeg

CELL = 2 * TILE  # rows of a cell: two rows of tiles at level 0, one at level 1
CELL_WIDTH = 14 * TILE  # columns of a cell at most

Tile = tuple[int, int, int, bytes, bool]  # level, column, row, JPEG, shared


def level_sizes(width: int, height: int) -> list[tuple[int, int]]:
    """Sizes of all levels: halved until one tile holds the slide, or a side would vanish."""
    sizes = [(width, height)]
    while max(sizes[-1]) > TILE and min(sizes[-1]) > 1:
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    return sizes


def halve(pixels: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels, halves rounded up: (h, w, 3) uint8 -> (h // 2, w // 2, 3); an odd last line is dropped."""
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    if not height or not width or _is_constant(pixels):
        return np.broadcast_to(pixels[:1, :1], (height, width, 3))
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels[: 2 * height, : 2 * width])).reduce(2))


def constant(colour: Sequence[int], height: int, width: int) -> np.ndarray:
    """A panel of one colour, (height, width, 3) uint8: takes no memory, and no time to encode."""
    return np.broadcast_to(np.array(colour, np.uint8), (height, width, 3))


class PyramidEncoder:
    """Fills a TiledTiff from panels, which come from left to right and from the top down.

    All panels but the last of a row or column measure a multiple of CELL along that side. At most ``depth`` cells wait.
    """

    def __init__(self, file: TiledTiff, pool: ThreadPoolExecutor, depth: int) -> None:
        self.file, self.pool, self.depth = file, pool, depth
        self._tile = _TileCutter(file.jpeg)
        self._pending: deque[tuple[int, int, Future[_Cell]]] = deque()
        self._rest = _Cascade(self._tile, pool, file, 2) if len(file.levels) > 2 else None
        self._band: np.ndarray | None = None  # level 2 of the row of panels at hand
        self._band_top = 0

    def add(self, x: int, y: int, pixels: np.ndarray) -> None:
        """Take the panel (h, w, 3) uint8 whose corner is (x, y) at level 0."""
        width, height = self.file.levels[0]
        if self._rest is not None and self._band is None:
            self._band_top = y // 4
            rows = min(y + len(pixels), height) // 4 - self._band_top
            self._band = np.empty((rows, self.file.levels[2][0], 3), np.uint8)
        for top in range(0, len(pixels), CELL):
            for left in range(0, pixels.shape[1], CELL_WIDTH):
                part = pixels[top : top + CELL, left : left + CELL_WIDTH]
                job = self.pool.submit(self._encode_cell, x + left, y + top, part)
                self._pending.append((x + left, y + top, job))
        self._store(self.depth)
        if x + pixels.shape[1] >= width:
            self._end_row()

    def finish(self) -> None:
        """Encode what is left."""
        self._store(0)
        if self._rest is not None:
            self._rest.finish()

    def _end_row(self) -> None:
        if self._rest is not None:
            self._store(0)  # the band is complete
            assert self._band is not None
            self._rest.push(self._band)
            self._band = None

    def _store(self, most: int) -> None:
        while len(self._pending) > most:
            x, y, job = self._pending.popleft()
            cell = job.result()
            for tile in cell.tiles:
                self.file.add(*tile)
            if self._band is not None and cell.rest is not None and cell.rest.size:
                top, left = y // 4 - self._band_top, x // 4
                self._band[top : top + len(cell.rest), left : left + cell.rest.shape[1]] = cell.rest

    def _encode_cell(self, x: int, y: int, pixels: np.ndarray) -> _Cell:
        tiles, levels = [], len(self.file.levels)
        for level in range(min(2, levels)):
            if level:
                pixels = halve(pixels)
            tiles += list(self._tile.cut(level, x >> level, y >> level, pixels))
        return _Cell(tiles, halve(pixels) if levels > 2 else None)


@dataclass(frozen=True)
class _Cell:
    """Tiles of levels 0 and 1 of a cell, and its pixels at level 2."""

    tiles: list[Tile]
    rest: np.ndarray | None


class _TileCutter:
    """Cuts pixels into tiles and encodes them; tiles of one colour once for all."""

    def __init__(self, jpeg: TileJpeg) -> None:
        self.jpeg = jpeg
        self._of_colour = lru_cache(256)(self._encode_colour)

    def cut(self, level: int, x: int, y: int, pixels: np.ndarray) -> Iterator[Tile]:
        """Tiles of a piece of a level whose corner, (x, y), is a tile's."""
        for top in range(0, pixels.shape[0], TILE):
            for left in range(0, pixels.shape[1], TILE):
                tile, shared = self.encode(pixels[top : top + TILE, left : left + TILE])
                yield level, (x + left) // TILE, (y + top) // TILE, tile, shared

    def encode(self, pixels: np.ndarray) -> tuple[bytes, bool]:
        """JPEG of a tile, and whether it is of one colour."""
        if _is_constant(pixels):
            return self._of_colour(pixels[0, 0].tobytes()), True
        return self.jpeg.encode(pixels), False

    def _encode_colour(self, rgb: bytes) -> bytes:
        return self.jpeg.encode(np.broadcast_to(np.frombuffer(rgb, np.uint8), (TILE, TILE, 3)))


class _Cascade:
    """One level and those above it, from rows that come from the top down."""

    def __init__(self, cutter: _TileCutter, pool: ThreadPoolExecutor, file: TiledTiff, level: int) -> None:
        self.cutter, self.pool, self.file, self.level = cutter, pool, file, level
        self.next = _Cascade(cutter, pool, file, level + 1) if level + 1 < len(file.levels) else None
        self._rows = np.empty((0, file.levels[level][0], 3), np.uint8)
        self._tile_row = 0

    def push(self, rows: np.ndarray) -> None:
        """Take rows; encode those that fill a row of tiles."""
        self._rows = np.concatenate([self._rows, rows]) if len(self._rows) else rows
        start = 0
        while len(self._rows) - start >= TILE:
            self._encode(self._rows[start : start + TILE])
            start += TILE
        self._rows = self._rows[start:].copy()

    def finish(self) -> None:
        """Encode the last rows."""
        if len(self._rows):
            self._encode(self._rows)
        if self.next is not None:
            self.next.finish()

    def _encode(self, rows: np.ndarray) -> None:
        parts = [rows[:, left : left + TILE] for left in range(0, rows.shape[1], TILE)]
        for column, (tile, shared) in enumerate(self.pool.map(self.cutter.encode, parts)):
            self.file.add(self.level, column, self._tile_row, tile, shared)
        self._tile_row += 1
        if self.next is not None:
            self.next.push(halve(rows))


def _is_constant(pixels: np.ndarray) -> bool:
    """Whether all pixels are equal; told by the strides of `constant`, else by looking."""
    if pixels.strides[0] == pixels.strides[1] == 0:
        return True
    return bool((pixels[0] == pixels[0, 0]).all()) and bool((pixels == pixels[0, 0]).all())


def read_ahead(
    width: int, height: int, panel: int, read: Callable[[int, int, int, int], np.ndarray], readers: int
) -> Generator[tuple[int, int, np.ndarray], None, None]:
    """Panels (x, y, pixels) of a slide in order, with so many of them being read: ``read(x, y, width, height)``."""
    corners = ((x, y) for y in range(0, height, panel) for x in range(0, width, panel))
    with ThreadPoolExecutor(readers, "wsigen-panel") as pool:
        waiting: deque[tuple[int, int, Future]] = deque()
        try:
            for x, y in corners:
                job = pool.submit(read, x, y, min(panel, width - x), min(panel, height - y))
                waiting.append((x, y, job))
                if len(waiting) >= readers:
                    first = waiting.popleft()
                    yield first[0], first[1], first[2].result()
            while waiting:
                first = waiting.popleft()
                yield first[0], first[1], first[2].result()
        finally:
            pool.shutdown(cancel_futures=True)
