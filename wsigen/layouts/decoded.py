"""A painted picture of a mask, read as a mask: decoded where it is read, in tiles that are kept for a while."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wsigen.layouts.decoding import HALO, Decoder
from wsigen.layouts.layout import Layout
from wsigen.layouts.mask_code import LAND
from wsigen.masks.source import MaskSource
from wsigen.masks.window import TISSUE, MaskWindow
from wsigen.system.caching import LastUsed

TILE = 1024  # px; with HALO around it twice the pixels are decoded
KEPT_TILES = 96  # 6 bytes a pixel
LABELS = (1 << 31) - 1  # nuclei that are nearer to each other than this in reading order have different labels

Panels = Callable[[int, int, int, int], np.ndarray]  # x, y, width, height -> (height, width, 3) uint8


class Place(NamedTuple):
    """A part of a slide, px."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class DecodedTile:
    """The nuclei of a part of a slide.

    index: (H, W) int32, which of them a pixel belongs to, from 1; 0 for none. keys: where their summits are on the
    slide, as flat indices, in order. kinds: their classes. dropped: shapes with a summit here that no real nucleus has.
    """

    index: np.ndarray
    keys: np.ndarray
    kinds: np.ndarray
    dropped: int

    @property
    def classes(self) -> np.ndarray:
        """(H, W) uint8, 0 for background."""
        return np.concatenate([[0], self.kinds]).astype(np.uint8)[self.index]


def around(place: Place, width: int, height: int, tile: int = 1) -> Place:
    """The part of the picture, which is ``width`` x ``height`` px, that decides what is decoded at a place.

    With ``tile`` that of all tiles of this size that the place touches.
    """
    left, top = (max(0, start // tile * tile - HALO) for start in (place.x, place.y))
    right = min(width, -(-(place.x + place.width) // tile) * tile + HALO)
    bottom = min(height, -(-(place.y + place.height) // tile) * tile + HALO)
    return Place(left, top, right - left, bottom - top)


def decode_tile(panels: Panels, layout: Layout, decoder: Decoder, place: Place) -> DecodedTile:
    """Decode a place inside the slide; what it gives does not depend on how a slide is cut into places."""
    x, y, width, height = place
    left, top, *size = around(place, layout.width, layout.height)
    picture = panels(left, top, *size)
    nothing = np.zeros(0, np.int64)
    if picture[..., 0].max() < LAND:
        return DecodedTile(np.zeros((height, width), np.int32), nothing, nothing, 0)
    nuclei = decoder(picture)
    inner = nuclei.index[y - top : y - top + height, x - left : x - left + width]
    seen = np.unique(inner)
    seen = seen[seen > 0]
    renumbered = np.zeros(len(nuclei.kind) + 1, np.int32)
    renumbered[seen] = np.arange(1, len(seen) + 1)
    keys = (nuclei.y[seen - 1] + top) * layout.width + nuclei.x[seen - 1] + left
    mine = (nuclei.lost_y + top >= y) & (nuclei.lost_y + top < y + height)
    mine &= (nuclei.lost_x + left >= x) & (nuclei.lost_x + left < x + width)
    return DecodedTile(renumbered[inner], keys, nuclei.kind[seen - 1], int(mine.sum()))


def tissue_of(layout: Layout, place: Place, classes: np.ndarray) -> np.ndarray:
    """Tissue plane of a place: where the layout has it, and where nuclei are."""
    return np.where(classes > 0, np.uint8(TISSUE), layout.tissue(*place))


class DecodedMask(MaskSource):
    """The mask that a picture on a canvas shows, of the classes of its layout. Threads may share it.

    What is read must be painted already, as far as `around` says with TILE.
    """

    planes = ("class", "instance", "tissue")

    def __init__(self, path: Path, panels: Panels, layout: Layout, decoder: Decoder, tile: int = TILE) -> None:
        self.path, self.panels, self.layout, self.decoder, self.tile = path, panels, layout, decoder, tile
        self.width, self.height, self.mpp = layout.width, layout.height, layout.mpp
        self.class_count = len(layout.classes)
        self._tiles = LastUsed[tuple[int, int], Future[tuple[np.ndarray, np.ndarray]]](KEPT_TILES)
        self._lock = threading.Lock()

    def close(self) -> None:
        """Let go of the decoded tiles."""
        with self._lock:
            self._tiles.clear()

    def _read_inside(self, x: int, y: int, w: int, h: int) -> MaskWindow:
        classes, labels = np.empty((h, w), np.uint8), np.empty((h, w), np.uint32)
        for row in range(y // self.tile, (y + h - 1) // self.tile + 1):
            for column in range(x // self.tile, (x + w - 1) // self.tile + 1):
                left, top = column * self.tile, row * self.tile
                rows = slice(max(y, top), min(y + h, top + self.tile))
                columns = slice(max(x, left), min(x + w, left + self.tile))
                here = np.s_[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
                there = np.s_[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
                classes[here], labels[here] = (plane[there] for plane in self._decoded(column, row))
        return MaskWindow(classes, labels, tissue_of(self.layout, Place(x, y, w, h), classes))

    def _decoded(self, column: int, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Classes and labels of a tile; decoded by the first thread that asks for it."""
        with self._lock:
            kept = self._tiles.get((column, row))
            if kept is None:
                mine: Future[tuple[np.ndarray, np.ndarray]] = Future()
                self._tiles.keep((column, row), mine)
        if kept is not None:
            return kept.result()
        try:
            mine.set_result(self._decode(column, row))
        except BaseException as error:
            mine.set_exception(error)
            with self._lock:
                self._tiles.drop((column, row))
        return mine.result()

    def _decode(self, column: int, row: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = column * self.tile, row * self.tile
        place = Place(x, y, min(self.tile, self.width - x), min(self.tile, self.height - y))
        tile = decode_tile(self.panels, self.layout, self.decoder, place)
        labels = np.concatenate([[0], tile.keys % LABELS + 1]).astype(np.uint32)
        return tile.classes, labels[tile.index]

    def _band_rows(self) -> int:
        return self.tile
