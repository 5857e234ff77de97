"""A painted picture of a mask, decoded in tiles and put together in bands for the mask writer, in bounded memory.

Nuclei are known by where their summits are, and so are the same in every tile that shows them. Their ids are given in
the order of first sight: tiles row by row, in each tile by summit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from wsigen.layouts.decoding import HALO, REACH, Decoder
from wsigen.layouts.layout import Layout
from wsigen.layouts.mask_code import LAND
from wsigen.masks.window import TISSUE, MaskWindow
from wsigen.system.cores import available_cores

TILE = 1024
DECODERS = 8  # tiles at a time; each takes some 150 MB

Panels = Callable[[int, int, int, int], np.ndarray]  # x, y, width, height -> (height, width, 3) uint8


@dataclass(frozen=True)
class _Tile:
    """A decoded tile: which of its nuclei each pixel belongs to (from 1), where their summits are, their classes."""

    index: np.ndarray
    keys: np.ndarray
    kinds: np.ndarray
    dropped: int


class DecodedBands:
    """Iterates over bands of a part (x, y, width, height) of a slide; ``panels`` reads the picture anywhere on it.

    nuclei: of each class, (C,) int64, and dropped: those unlike real ones; both count up while bands are taken.
    """

    def __init__(
        self, panels: Panels, layout: Layout, decoder: Decoder, part: tuple[int, int, int, int], tile: int = TILE
    ) -> None:
        self.panels, self.layout, self.decoder, self.part, self.tile = panels, layout, decoder, part, tile
        self.nuclei = np.zeros(len(layout.classes), np.int64)
        self.dropped = 0
        self._ids: dict[int, int] = {}
        self._next = 1

    def __iter__(self) -> Iterator[MaskWindow]:
        x0, y0, width, height = self.part
        with ThreadPoolExecutor(available_cores(DECODERS), "wsigen-decode") as pool:
            for y in range(y0, y0 + height, self.tile):
                rows = min(self.tile, y0 + height - y)
                starts = range(x0, x0 + width, self.tile)
                places = [(x, y, min(self.tile, x0 + width - x), rows) for x in starts]
                parts = [self._numbered(place, tile) for place, tile in zip(places, pool.map(self._decoded, places))]
                yield MaskWindow(*(np.concatenate(planes, axis=1) for planes in zip(*parts)))
                self._forget(y + rows)

    def _decoded(self, place: tuple[int, int, int, int]) -> _Tile:
        x, y, width, height = place
        left, top = max(0, x - HALO), max(0, y - HALO)
        right, bottom = min(self.layout.width, x + width + HALO), min(self.layout.height, y + height + HALO)
        picture = self.panels(left, top, right - left, bottom - top)
        nothing = np.zeros(0, np.int64)
        if picture[..., 0].max() < LAND:
            return _Tile(np.zeros((height, width), np.int32), nothing, nothing, 0)
        nuclei = self.decoder(picture)
        inner = nuclei.index[y - top : y - top + height, x - left : x - left + width]
        seen = np.unique(inner)
        seen = seen[seen > 0]
        renumbered = np.zeros(len(nuclei.kind) + 1, np.int32)
        renumbered[seen] = np.arange(1, len(seen) + 1)
        keys = (nuclei.y[seen - 1] + top) * self.layout.width + nuclei.x[seen - 1] + left
        mine = (nuclei.lost_y + top >= y) & (nuclei.lost_y + top < y + height)
        mine &= (nuclei.lost_x + left >= x) & (nuclei.lost_x + left < x + width)
        return _Tile(renumbered[inner], keys, nuclei.kind[seen - 1], int(mine.sum()))

    def _numbered(self, place: tuple[int, int, int, int], tile: _Tile) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Classes, ids and tissue of a tile. Nuclei are in the order of their summits."""
        ids = np.zeros(len(tile.keys) + 1, np.uint32)
        for number, (key, kind) in enumerate(zip(tile.keys.tolist(), tile.kinds.tolist()), 1):
            if key not in self._ids:
                self._ids[key] = self._next
                self._next += 1
                self.nuclei[kind - 1] += 1
            ids[number] = self._ids[key]
        self.dropped += tile.dropped
        classes = np.concatenate([[0], tile.kinds]).astype(np.uint8)[tile.index]
        tissue = np.where(classes > 0, np.uint8(TISSUE), self.layout.tissue(*place))
        return classes, ids[tile.index], tissue

    def _forget(self, bottom: int) -> None:
        """Drop ids that no later tile can ask for."""
        least = (bottom - REACH) * self.layout.width
        self._ids = {key: number for key, number in self._ids.items() if key >= least}
