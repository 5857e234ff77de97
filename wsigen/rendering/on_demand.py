"""A slide that need not exist: everything that takes an OpenSlide object can read it, and pixels are painted on demand.

Level 0 has the pixels of a full render before JPEG; the other levels are its fixed 2 x 2 means, made from tiles of the
level below. A tile of level k costs 4^k tiles of level 0 unless they are at hand, so the coarse levels of a large slide
are dear.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Unpack

import numpy as np
import openslide
from PIL import Image

from wsigen.config import RenderKeywords, RenderSettings
from wsigen.errors import MaskError, SettingsError
from wsigen.masks.slide_mask import SlideMask
from wsigen.networks.denoiser import Denoiser
from wsigen.painting.on_demand import CACHE_BYTES, LivePainter, never
from wsigen.rendering.plan import RenderPlan, plan_render
from wsigen.slides.label import draw_label
from wsigen.slides.pyramid import halve, level_sizes
from wsigen.slides.tiled_tiff import TILE

TILE_CACHE_BYTES = 256 << 20


def open_generated(
    mask: str | Path, *, cache_bytes: int = CACHE_BYTES, **settings: Unpack[RenderKeywords]
) -> GeneratedSlide:
    """Open the slide of a mask without rendering it; see :class:`GeneratedSlide`.

    Keywords are those of :class:`wsigen.config.RenderSettings` that decide pixels (``model``, ``style``, ``seed``,
    ``steps``, ``batch_size``...). ``cache_bytes`` bounds the painted windows that are kept.
    """
    return GeneratedSlide(plan_render(mask, None, RenderSettings.from_keywords(settings)), cache_bytes)


class GeneratedSlide(openslide.AbstractSlide):
    """The slide of a plan, painted where it is looked at. Threads may share it; close it when done.

    Tiles are squares of ``tile_size`` pixels at every level, those at the right and lower edge cropped. A viewer asks
    `tile_is_painted` for what it can show at once, and calls `paint_tile` with a ``cancelled`` that answers yes when
    the tile is no longer looked at. ``batch_size`` windows are painted at a time: few answer soon, many paint fast.
    """

    tile_size = TILE

    def __init__(self, plan: RenderPlan, cache_bytes: int = CACHE_BYTES, model: Denoiser | None = None) -> None:
        """``model`` is the plan's, where it is loaded already."""
        super().__init__()
        self.plan = plan
        self.painter = LivePainter(plan.spec, plan.grid, plan.occupied, cache_bytes, model)
        self._levels = tuple(level_sizes(plan.grid.width, plan.grid.height))
        self._tiles: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()
        self._tile_bytes = 0
        self._lock = threading.Lock()

    @classmethod
    def detect_format(cls, filename: Any) -> str | None:
        """Return "wsigen" for a slide mask, None for anything else."""
        try:
            SlideMask.open(filename).close()
        except MaskError:
            return None
        return "wsigen"

    def close(self) -> None:
        """Stop painting and let go of everything."""
        self.painter.close()
        with self._lock:
            self._tiles.clear()
            self._tile_bytes = 0

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
        """Powers of two."""
        return tuple(float(2**level) for level in range(self.level_count))

    @property
    def properties(self) -> Mapping[str, str]:
        """Scale, levels and provenance under OpenSlide's names."""
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
        """The label; thumbnail and macro would need the whole slide."""
        label = draw_label(self.plan.metadata, *self.dimensions)
        return MappingProxyType({"label": Image.fromarray(label).convert("RGBA")})

    def get_best_level_for_downsample(self, downsample: float) -> int:
        """Return the coarsest level that is not coarser than this."""
        return max(level for level in range(self.level_count) if level == 0 or 2**level <= downsample)

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        """Read (w, h) pixels of a level as RGBA, painting what is missing; transparent outside the slide.

        location: upper left corner in level 0 pixels; at other levels rounded down to a pixel.
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
        """Pixels of a region inside a level, in its own coordinates: uint8 (height, width, 3).

        Raises InterruptedError once ``cancelled`` answers yes.
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
        """One tile, painted if need be: uint8 (h, w, 3). Raises InterruptedError once ``cancelled`` answers yes."""
        key = level, column, row
        with self._lock:
            if key in self._tiles:
                self._tiles.move_to_end(key)
                return self._tiles[key]
        x, y, width, height = self._tile_box(*key)
        if level == 0:
            return self.painter.region(x, y, width, height, cancelled)
        tile = halve(self.pixels(level - 1, 2 * x, 2 * y, 2 * width, 2 * height, cancelled))
        with self._lock:
            if key not in self._tiles:
                self._tiles[key] = tile
                self._tile_bytes += tile.nbytes
            while self._tile_bytes > TILE_CACHE_BYTES and len(self._tiles) > 1:
                self._tile_bytes -= self._tiles.popitem(last=False)[1].nbytes
        return tile

    def tile_is_painted(self, level: int, column: int, row: int) -> bool:
        """Whether `paint_tile` would answer without painting."""
        with self._lock:
            if (level, column, row) in self._tiles:
                return True
        x, y, width, height = self._tile_box(level, column, row)
        return self.painter.is_painted(x << level, y << level, width << level, height << level)

    def _tile_box(self, level: int, column: int, row: int) -> tuple[int, int, int, int]:
        """Corner and size of a tile in its level."""
        (width, height), x, y = self._levels[level], column * TILE, row * TILE
        if not (0 <= x < width and 0 <= y < height):
            raise SettingsError(f"tile ({column}, {row}) of level {level}: outside its {width} x {height} pixels")
        return x, y, min(TILE, width - x), min(TILE, height - y)
