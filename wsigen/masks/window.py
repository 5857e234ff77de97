"""A rectangle of a slide mask, and how coordinates outside the slide are folded back into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

GLASS, TISSUE, UNKNOWN = 0, 1, 255


@dataclass(frozen=True)
class MaskWindow:
    """A rectangle of a slide mask.

    Attributes:
        classes: (H, W) uint8, 0 background, then the model's classes.
        instances: (H, W) uint32, one id per nucleus, 0 background; None if the mask has no instance plane.
        tissue: (H, W) uint8, 0 glass, 1 tissue, 255 unknown; None if the mask has no tissue plane.
    """

    classes: np.ndarray
    instances: np.ndarray | None = None
    tissue: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.classes.shape[0], self.classes.shape[1]

    def padded(self, rows: tuple[int, int], columns: tuple[int, int]) -> MaskWindow:
        """Add reflected pixels before and after the rows and columns; on each side at most as many as there are."""
        return self._changed(lambda plane: np.pad(plane, (rows, columns), "symmetric"))

    def take(self, rows: np.ndarray | slice, columns: np.ndarray | slice) -> MaskWindow:
        """Select rows and columns; index arrays may repeat or reorder them."""
        return self._changed(lambda plane: np.ascontiguousarray(plane[rows][:, columns]))

    def _changed(self, change: Callable[[np.ndarray], np.ndarray]) -> MaskWindow:
        """The window with all planes that it has changed alike."""
        others = (None if plane is None else change(plane) for plane in (self.instances, self.tissue))
        return MaskWindow(change(self.classes), *others)


def reflected(start: int, count: int, size: int) -> np.ndarray:
    """Coordinates start .. start + count - 1 folded into 0 .. size - 1 as numpy's "symmetric" padding does.

    The border pixel is repeated (-1 is 0, size is size - 1), at any distance. Returns (count,) int64.
    """
    folded = np.arange(start, start + count, dtype=np.int64) % (2 * size)
    return np.where(folded < size, folded, 2 * size - 1 - folded)
