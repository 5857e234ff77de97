"""Tiles of a slide of which a part is painted: painted windows, and the preview where nothing is painted yet.

Tiles of the finer levels are made from windows. Coarser tiles are made from the four tiles of the level below, so that
a tile of a far level costs little once those below are known.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from wsigen.config import RenderSettings
from wsigen.painting.grid import Rectangle
from wsigen.rendering.on_demand import GeneratedSlide
from wsigen.rendering.plan import RenderPlan
from wsigen.slides.pyramid import halve, level_sizes
from wsigen.slides.tiled_tiff import TILE
from wsigen.system.caching import LastUsed
from wsigen.viewer.overlays import MaskOverlay
from wsigen.viewer.stain_preview import preview_pixels
from wsigen.viewer.tiles import tile_box

JOINED_LEVEL = 3  # tiles up to here are made from windows, coarser ones from tiles
FAR_TILES = 256  # of JOINED_LEVEL that are kept

Tile = tuple[np.ndarray, bool]  # pixels (h, w, 3) uint8, and whether all of them are painted
Box = tuple[int, int, int, int]  # x, y, width, height in pixels of a level


@dataclass(frozen=True)
class View:
    """What is being painted, all of one mask and one choice of settings; ``slide`` is None until the model is there.

    ``settings`` are those that ``plan`` was made of.
    """

    generation: int
    plan: RenderPlan
    overlay: MaskOverlay
    settings: RenderSettings
    slide: GeneratedSlide | None = None

    @property
    def levels(self) -> list[tuple[int, int]]:
        """Sizes of the levels."""
        return level_sizes(self.plan.grid.width, self.plan.grid.height)


class LiveTiles:
    """Makes the tiles of a view that is being painted. Threads may share it.

    A tile is kept only if neither the view nor anything painted has changed while it was made.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._lock = threading.Lock()
        self._far = LastUsed[tuple[int, int], Tile](FAR_TILES)  # tiles of JOINED_LEVEL
        self._painted: set[tuple[int, int]] = set()  # tiles of JOINED_LEVEL with something painted in them
        self._changes = 0

    @property
    def view(self) -> View:
        """The view that is shown."""
        return self._view

    def show(self, view: View) -> None:
        """Make the tiles of another view from now on."""
        with self._lock:
            self._view = view
            self._far.clear()
            if view.slide is None:
                self._painted.clear()

    def note(self, part: Rectangle) -> None:
        """A part of level 0 is painted from now on."""
        side = TILE << JOINED_LEVEL
        with self._lock:
            self._changes += 1
            for j in range(part.y // side, (part.y + part.height - 1) // side + 1):
                for i in range(part.x // side, (part.x + part.width - 1) // side + 1):
                    self._painted.add((i, j))
                    self._far.drop((i, j))

    def tile(self, level: int, column: int, row: int) -> Tile:
        """A tile as far as it is painted. Never waits for painting."""
        return self._tile(self._view, level, column, row)

    def _tile(self, view: View, level: int, column: int, row: int) -> Tile:
        box = tile_box(view.levels, level, column, row)
        if box is None:  # the mask has shrunk at this moment
            return np.zeros((1, 1, 3), np.uint8), False
        if level > JOINED_LEVEL:
            return self._far_tile(view, level, box)
        if level == JOINED_LEVEL:
            return self._joined_tile(view, column, row, box)
        return _near_tile(view, level, column, row, box)

    def _joined_tile(self, view: View, column: int, row: int, box: Box) -> Tile:
        """A tile of JOINED_LEVEL, from those that are kept if it is among them."""
        with self._lock:
            kept, changes = self._far.get((column, row)), self._changes
            if kept is not None and view is self._view:
                return kept
        tile = _near_tile(view, JOINED_LEVEL, column, row, box)
        with self._lock:
            if view is self._view and changes == self._changes:
                self._far.keep((column, row), tile)
        return tile

    def _far_tile(self, view: View, level: int, box: Box) -> Tile:
        """A tile from the four of the level below, if anything beneath it is painted."""
        x, y, width, height = box
        shift = level - JOINED_LEVEL
        with self._lock:
            painted = any((i >> shift, j >> shift) == (x // TILE, y // TILE) for i, j in self._painted)
        if not painted:
            return _preview(view, level, box), False
        finer = np.empty((2 * height, 2 * width, 3), np.uint8)
        for row in range(2 * y // TILE, (2 * (y + height) - 1) // TILE + 1):
            for column in range(2 * x // TILE, (2 * (x + width) - 1) // TILE + 1):
                pixels, whole = self._tile(view, level - 1, column, row)
                left, top = column * TILE - 2 * x, row * TILE - 2 * y
                part = finer[top : top + TILE, left : left + TILE]
                part[:] = pixels[: part.shape[0], : part.shape[1]]
                painted &= whole
        return halve(finer), painted


def _near_tile(view: View, level: int, column: int, row: int, box: Box) -> Tile:
    """A tile from windows."""
    slide = view.slide
    if slide is None:
        return _preview(view, level, box), False
    if slide.tile_is_painted(level, column, row):
        try:
            return slide.paint_tile(level, column, row, cancelled=lambda: True), True
        except InterruptedError:  # dropped from the cache at this moment
            pass
    pixels, known = slide.painter.at_hand(*(side << level for side in box))
    if not known.any():
        return _preview(view, level, box), False
    for _ in range(level):
        pixels, known = halve(pixels), _all_known(known)
    return np.where(known[..., None], pixels, _preview(view, level, box)), False


def _preview(view: View, level: int, box: Box) -> np.ndarray:
    return preview_pixels(view.overlay, view.plan.spec.style, level, *box)


def _all_known(known: np.ndarray) -> np.ndarray:
    """Whether all four pixels are known: bool (h, w) -> (h // 2, w // 2)."""
    height, width = known.shape[0] // 2 * 2, known.shape[1] // 2 * 2
    even = known[:height, :width]
    return even[0::2, 0::2] & even[0::2, 1::2] & even[1::2, 0::2] & even[1::2, 1::2]
