"""What is painted next: the windows that a page shows, from the middle outwards, then those around.

What a page shows is cut into blocks of windows. One block is painted at a time, so that a page that moves on waits for
little. A block that no page shows any more is given up before its next batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from wsigen.painting.grid import Rectangle, WindowGrid
from wsigen.slides.tiled_tiff import TILE

LARGEST_BLOCK = 3  # blocks are squares of TILE << 0 to TILE << LARGEST_BLOCK pixels
BATCHES = 16  # that a block holds, about

Missing = Callable[[Rectangle], bool]  # whether anything of a block is still to be painted


@dataclass(frozen=True)
class Blocks:
    """What is to be painted for one page: what it shows, and what lies around it; the first blocks come first.

    too_large: the page shows more windows than the cache can keep, so that none of them is painted.
    """

    visible: tuple[Rectangle, ...] = ()
    near: tuple[Rectangle, ...] = ()
    too_large: bool = False


@dataclass(frozen=True)
class BlockCutter:
    """Cuts what a page shows into blocks."""

    grid: WindowGrid
    batch_size: int  # windows
    cache_bytes: int  # of painted windows

    def clipped(self, x: int, y: int, width: int, height: int) -> Rectangle | None:
        """The part of a rectangle of level 0 that lies inside the slide, None if there is none."""
        part = _common(Rectangle(x, y, width, height), Rectangle(0, 0, self.grid.width, self.grid.height))
        return part if part.width > 0 and part.height > 0 else None

    def cut(self, look: Rectangle | None) -> Blocks:
        """The blocks of a page that shows ``look``, a part of the slide."""
        if look is None:
            return Blocks()
        if not self._fits(look):
            return Blocks(too_large=True)
        visible = self._blocks(look, look)
        around = self.clipped(look.x - look.width // 2, look.y - look.height // 2, 2 * look.width, 2 * look.height)
        near = self._blocks(around, look) if around is not None and self._fits(around) else ()
        return Blocks(visible, near)

    def _fits(self, part: Rectangle) -> bool:
        """Whether a part takes at most half of the cache; the rest is for the windows that it depends on."""
        stride, window = self.grid.stride, self.grid.window
        windows = (part.width // stride + 2) * (part.height // stride + 2)
        return windows <= self.cache_bytes // (2 * 3 * window * window)

    def _blocks(self, part: Rectangle, middle: Rectangle) -> tuple[Rectangle, ...]:
        """Blocks that a part is cut into, those near the middle first.

        Large blocks fill batches; of small ones less is painted in vain once the page has moved on.
        """
        exponent = round(np.log2(max(1.0, np.sqrt(BATCHES * self.batch_size) * self.grid.stride / TILE)))
        side = TILE << min(LARGEST_BLOCK, exponent)
        columns, rows = -(-part.width // side), -(-part.height // side)
        xs = [part.x + part.width * i // columns for i in range(columns + 1)]
        ys = [part.y + part.height * j // rows for j in range(rows + 1)]
        cx, cy = middle.x + middle.width / 2, middle.y + middle.height / 2
        blocks = [
            Rectangle(left, top, right - left, bottom - top)
            for top, bottom in pairwise(ys)
            for left, right in pairwise(xs)
        ]
        return tuple(sorted(blocks, key=lambda r: (r.x + r.width / 2 - cx) ** 2 + (r.y + r.height / 2 - cy) ** 2))


def next_block(pages: Sequence[Blocks], missing: Missing, visible_only: bool = False) -> Rectangle | None:
    """The block to paint now: first what pages show, then what lies around; earlier pages come first."""
    shown = [block for page in pages for block in page.visible]
    around = [] if visible_only else [block for page in pages for block in page.near]
    return next(filter(missing, [*shown, *around]), None)


def is_outdated(current: Rectangle, pages: Sequence[Blocks], missing: Missing) -> bool:
    """Whether to give up the block that is being painted, since something else comes first now."""
    if _touches(current, (block for page in pages for block in page.visible)):
        return False
    near = _touches(current, (block for page in pages for block in page.near))
    return not near or next_block(pages, missing, visible_only=True) is not None


def _touches(current: Rectangle, blocks: Iterable[Rectangle]) -> bool:
    """Whether any of some blocks shares pixels with ``current``."""
    parts = (_common(current, block) for block in blocks)
    return any(part.width > 0 and part.height > 0 for part in parts)


def _common(a: Rectangle, b: Rectangle) -> Rectangle:
    """What two rectangles share; without pixels where they share nothing."""
    left, top = max(a.x, b.x), max(a.y, b.y)
    right, bottom = min(a.x + a.width, b.x + b.width), min(a.y + a.height, b.y + b.height)
    return Rectangle(left, top, max(0, right - left), max(0, bottom - top))
