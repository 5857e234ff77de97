"""Tiles of finished slides, and how tiles are encoded.

Every picture of the viewer has the same levels: level k has one pixel for 2^k x 2^k pixels of level 0, sizes are halved
and rounded down, tiles are squares of 256 pixels, cropped at the right and lower edge. The levels of a slide that
OpenSlide opens are others, often further apart: a tile is read from the nearest finer one and averaged.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import openslide
from PIL import Image

from wsigen.errors import SlideError
from wsigen.slides.info import SlideInfo, openslide_path, read_slide_info
from wsigen.slides.pyramid import level_sizes
from wsigen.slides.tiled_tiff import TILE

READ_AT_ONCE = 8  # pixels of a slide's level to one of a tile, along a side; beyond, a tile is made of four others
CACHE_BYTES = 256 << 20
JPEG_QUALITY = 90


def tile_box(levels: list[tuple[int, int]], level: int, column: int, row: int) -> tuple[int, int, int, int] | None:
    """Corner and size (x, y, w, h) of a tile in its level, None where there is no such tile."""
    if not 0 <= level < len(levels):
        return None
    (width, height), x, y = levels[level], column * TILE, row * TILE
    if not (0 <= x < width and 0 <= y < height):
        return None
    return x, y, min(TILE, width - x), min(TILE, height - y)


def encode(pixels: np.ndarray, kind: str) -> bytes:
    """JPEG ("jpg") or PNG ("png", lossless) of uint8 (h, w, 3) or, as PNG, (h, w, 4)."""
    stream = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if kind == "png":
        image.save(stream, "PNG", compress_level=1)
    else:
        image.save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


class SlideTiles:
    """A slide that OpenSlide opens. Threads may share it. Raises SlideError for what is none."""

    def __init__(self, path: Path) -> None:
        self.info: SlideInfo = read_slide_info(path)
        self._slide = openslide.OpenSlide(openslide_path(path))
        self._slide.set_cache(openslide.OpenSlideCache(CACHE_BYTES))
        self.levels = level_sizes(self.info.width, self.info.height)
        colour = self._slide.properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF")
        self._background = tuple(bytes.fromhex(colour))

    def tile(self, level: int, column: int, row: int) -> tuple[np.ndarray, bool]:
        """Pixels of a tile: uint8 (h, w, 3), True. It must exist."""
        box = tile_box(self.levels, level, column, row)
        assert box is not None
        try:
            return self._read(level, *box), True
        except openslide.OpenSlideError as error:
            raise SlideError(f"{self.info.path}: damaged ({error}); write or copy it again") from error

    def close(self) -> None:
        """Close the slide."""
        self._slide.close()

    def _read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        stored = self._slide.get_best_level_for_downsample(2**level * 1.001)
        scale = 2**level / self._slide.level_downsamples[stored]
        if scale > READ_AT_ONCE:
            return self._from_quarters(level, x, y, width, height)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        rgba = self._slide.read_region((x << level, y << level), stored, size)
        rgb = Image.new("RGB", size, self._background)
        rgb.paste(rgba, mask=rgba.getchannel("A"))
        if size != (width, height):
            rgb = rgb.resize((width, height), Image.Resampling.BOX)
        return np.asarray(rgb)

    def _from_quarters(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """A tile of a slide without a near level, from four of the level below, so that little is held at a time."""
        out = np.empty((height, width, 3), np.uint8)
        half = TILE // 2
        for top in range(0, height, half):
            for left in range(0, width, half):
                w, h = min(half, width - left), min(half, height - top)
                finer = self._read(level - 1, 2 * (x + left), 2 * (y + top), 2 * w, 2 * h)
                out[top : top + h, left : left + w] = np.asarray(Image.fromarray(finer).reduce(2))
        return out
