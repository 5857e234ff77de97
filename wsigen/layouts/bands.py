"""A painted picture of a mask, decoded in tiles and put together in bands for the mask writer, in bounded memory.

Nuclei are known by where their summits are, and so are the same in every tile that shows them. Their ids are given in
the order of first sight: tiles row by row, in each tile by summit.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from wsigen.layouts.decoded import TILE, DecodedTile, Panels, Place, decode_tile, tissue_of
from wsigen.layouts.decoding import REACH, Decoder
from wsigen.layouts.layout import Layout
from wsigen.masks.window import MaskWindow
from wsigen.system.cores import available_cores

DECODERS = 8  # tiles at a time; each takes some 150 MB


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
                places = [Place(x, y, min(self.tile, x0 + width - x), rows) for x in starts]
                parts = [self._numbered(place, tile) for place, tile in zip(places, pool.map(self._decoded, places))]
                yield MaskWindow(*(np.concatenate(planes, axis=1) for planes in zip(*parts)))
                self._forget(y + rows)

    def _decoded(self, place: Place) -> DecodedTile:
        return decode_tile(self.panels, self.layout, self.decoder, place)

    def _numbered(self, place: Place, tile: DecodedTile) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Classes, ids and tissue of a tile. Nuclei are in the order of their summits."""
        ids = np.zeros(len(tile.keys) + 1, np.uint32)
        for number, (key, kind) in enumerate(zip(tile.keys.tolist(), tile.kinds.tolist()), 1):
            if key not in self._ids:
                self._ids[key] = self._next
                self._next += 1
                self.nuclei[kind - 1] += 1
            ids[number] = self._ids[key]
        self.dropped += tile.dropped
        classes = tile.classes
        return classes, ids[tile.index], tissue_of(self.layout, place, classes)

    def _forget(self, bottom: int) -> None:
        """Drop ids that no later tile can ask for."""
        least = (bottom - REACH) * self.layout.width
        self._ids = {key: number for key, number in self._ids.items() if key >= least}
