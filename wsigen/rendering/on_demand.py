"""A slide that is not rendered in advance: an OpenSlide object whose pixels are painted when they are read.

Level 0 has the pixels of a full render before JPEG. Each other level is made of 2 x 2 means of the level below. A tile
of level k needs 4^k tiles of level 0, unless these are in the cache, so that coarse levels of a large slide take long.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Unpack

import numpy as np
import openslide
from PIL import Image

from wsigen.config import RenderKeywords, RenderSettings
from wsigen.errors import MaskError, SettingsError
from wsigen.masks.slide_mask import MOST_CLASSES, SlideMask
from wsigen.networks.denoiser import Denoiser
from wsigen.painting.on_demand import CACHE_BYTES, LivePainter, never
from wsigen.rendering.plan import RenderPlan, plan_render
from wsigen.slides.label import draw_label
from wsigen.slides.pyramid import halve, level_sizes
from wsigen.slides.tiled_tiff import TILE
from wsigen.system.caching import LastUsed

TILE_CACHE_BYTES = 256 << 20


def open_generated(
    mask: str | Path, *, cache_bytes: int = CACHE_BYTES, **settings: Unpack[RenderKeywords]
) -> GeneratedSlide:
    """Open the slide of a mask without rendering it. Close it after use, or use it as a context manager.

    Args:
        mask: the slide mask.
        cache_bytes: most bytes of painted windows that are kept in memory.
        **settings: fields of `RenderSettings` that decide pixels, such as ``model``, ``style``, ``seed`` and ``steps``.

    Raises:
        SettingsError: a setting is unknown or out of its range.
        MaskError: the mask cannot be read.
        ModelError: the model or the style cannot be found.
    """
    return GeneratedSlide(plan_render(mask, None, RenderSettings.from_keywords(settings)), cache_bytes)


class GeneratedSlide(openslide.AbstractSlide):
    """The slide of a plan; regions are painted when they are read. Threads may share it. Close it after use.

    Tiles are squares of ``tile_size`` pixels at every level; those at the right and lower edge are cropped. A viewer
    calls `tile_is_painted` to find the tiles that it can show at once. It calls `paint_tile` with a function
    ``cancelled``, which returns true when the tile is no longer in view. ``batch_size`` windows are painted at a time:
    a small number gives the first pixels sooner, a large number paints more windows per second.
    """

    tile_size = TILE

    def __init__(self, plan: RenderPlan, cache_bytes: int = CACHE_BYTES, model: Denoiser | None = None) -> None:
        """``model`` is the plan's, where it is loaded already."""
        super().__init__()
        self.plan = plan
        self.painter = LivePainter(plan.spec, plan.grid, plan.occupied, cache_bytes, model)
        self._levels = tuple(level_sizes(plan.grid.width, plan.grid.height))
        self._tiles = LastUsed[tuple[int, int, int], np.ndarray](TILE_CACHE_BYTES, lambda tile: tile.nbytes)
        self._lock = threading.Lock()

    @classmethod
    def detect_format(cls, filename: Any) -> str | None:
        """Return "wsigen" for a slide mask, None for anything else."""
        try:
            SlideMask.open(filename, MOST_CLASSES).close()
        except MaskError:
            return None
        return "wsigen"

    def close(self) -> None:
        """Stop painting and free the memory."""
        self.painter.close()
        with self._lock:
            self._tiles.clear()

    @property
    def level_count(self) -> int:
        """Number of levels."""
        return len(self._levels)

    @property
    def level_dimensions(self) -> tuple[tuple[int, int], ...]:
        """Width and height of each level."""
        return self._levels

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        """Downsampling factor of each level: 1, 2, 4, ..."""
        return tuple(float(2**level) for level in range(self.level_count))

    @property
    def properties(self) -> Mapping[str, str]:
        """Scale and levels under OpenSlide's names, and provenance under names that begin with ``wsigen.``."""
        plan = self.plan
        found = {
            openslide.PROPERTY_NAME_VENDOR: "wsigen",
            openslide.PROPERTY_NAME_MPP_X: f"{plan.spec.mpp:.10g}",
            openslide.PROPERTY_NAME_MPP_Y: f"{plan.spec.mpp:.10g}",
            openslide.PROPERTY_NAME_OBJECTIVE_POWER: f"{plan.config.objective_power:.10g}",
            openslide.PROPERTY_NAME_BACKGROUND_COLOR: bytes(plan.spec.style.glass_rgb).hex().upper(),
            "openslide.level-count": str(self.level_count),
        }
        for level, (width, height) in enumerate(self._levels):
            found |= {
                f"openslide.level[{level}].width": str(width),
                f"openslide.level[{level}].height": str(height),
                f"openslide.level[{level}].downsample": str(2**level),
                f"openslide.level[{level}].tile-width": str(TILE),
                f"openslide.level[{level}].tile-height": str(TILE),
            }
        found |= {f"wsigen.{key}": value for key, value in plan.metadata.provenance.items()}
        return MappingProxyType(found)

    @property
    def associated_images(self) -> Mapping[str, Image.Image]:
        """The label alone: thumbnail and macro would need the whole slide."""
        label = draw_label(self.plan.metadata, *self.dimensions)
        return MappingProxyType({"label": Image.fromarray(label).convert("RGBA")})

    def get_best_level_for_downsample(self, downsample: float) -> int:
        """Return the coarsest level whose downsampling factor is at most ``downsample``; at least level 0."""
        return max(level for level in range(self.level_count) if level == 0 or 2**level <= downsample)

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        """Read a region of a level as RGBA, and paint it where needed; transparent outside the slide.

        Args:
            location: x and y of the upper left corner in px of level 0; rounded down to a pixel of the level.
            level: the level.
            size: width and height in px of the level.

        Raises:
            SettingsError: there is no such level, or a size is negative.
        """
        if not 0 <= level < self.level_count or min(size) < 0:
            raise SettingsError(f"level {level}, size {size}: the slide has levels 0 to {self.level_count - 1}")
        (width, height), (x, y) = size, (location[0] >> level, location[1] >> level)
        rgba = np.zeros((height, width, 4), np.uint8)
        left, top = max(x, 0), max(y, 0)
        right, bottom = (min(a + b, c) for a, b, c in zip((x, y), size, self._levels[level]))
        if left < right and top < bottom:
            part = rgba[top - y : bottom - y, left - x : right - x]
            part[..., :3] = self.pixels(level, left, top, right - left, bottom - top)
            part[..., 3] = 255
        return Image.fromarray(rgba)

    def pixels(
        self, level: int, x: int, y: int, width: int, height: int, cancelled: Callable[[], bool] = never
    ) -> np.ndarray:
        """Read a region inside a level: RGB, uint8 (height, width, 3).

        Args:
            level: the level.
            x: left edge in px of the level.
            y: upper edge in px of the level.
            width: width in px of the level.
            height: height in px of the level.
            cancelled: called before each window; painting stops when it returns true.

        Raises:
            InterruptedError: ``cancelled`` returned true.
        """
        if level == 0:
            return self.painter.region(x, y, width, height, cancelled)
        out = np.empty((height, width, 3), np.uint8)
        for row in range(y // TILE, (y + height - 1) // TILE + 1):
            for column in range(x // TILE, (x + width - 1) // TILE + 1):
                tile = self.paint_tile(level, column, row, cancelled)
                left, top = column * TILE, row * TILE
                x0, x1 = max(x, left), min(x + width, left + tile.shape[1])
                y0, y1 = max(y, top), min(y + height, top + tile.shape[0])
                out[y0 - y : y1 - y, x0 - x : x1 - x] = tile[y0 - top : y1 - top, x0 - left : x1 - left]
        return out

    def paint_tile(self, level: int, column: int, row: int, cancelled: Callable[[], bool] = never) -> np.ndarray:
        """Read one tile, painted where needed: uint8 (h, w, 3). InterruptedError when ``cancelled`` returns true."""
        key = level, column, row
        with self._lock:
            kept = self._tiles.get(key)
        if kept is not None:
            return kept
        x, y, width, height = self._tile_box(*key)
        if level == 0:
            return self.painter.region(x, y, width, height, cancelled)
        tile = halve(self.pixels(level - 1, 2 * x, 2 * y, 2 * width, 2 * height, cancelled))
        with self._lock:
            self._tiles.keep(key, tile)
        return tile

    def tile_is_painted(self, level: int, column: int, row: int) -> bool:
        """Whether `paint_tile` would return this tile without painting."""
        with self._lock:
            if self._tiles.get((level, column, row)) is not None:
                return True
        x, y, width, height = self._tile_box(level, column, row)
        return self.painter.is_painted(x << level, y << level, width << level, height << level)

    def _tile_box(self, level: int, column: int, row: int) -> tuple[int, int, int, int]:
        """Corner and size of a tile in its level."""
        (width, height), x, y = self._levels[level], column * TILE, row * TILE
        if not (0 <= x < width and 0 <= y < height):
            raise SettingsError(f"tile ({column}, {row}) of level {level}: outside its {width} x {height} pixels")
        return x, y, min(TILE, width - x), min(TILE, height - y)
