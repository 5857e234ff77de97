"""The levels of an OME-Zarr image, written in one pass over its rows from the top down.

Rows wait until they fill a row of chunks; that is written, halved and handed to the next level. So no chunk is written
twice and no level is read back. Writing runs in a thread of its own beside whoever makes the rows; zarr packs the
chunks in further threads. Chunks of nothing but the fill value are left out: a reader sees that value there anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from types import TracebackType
from typing import Any, Self

import numpy as np

from wsigen.system.scale import MICRONS_PER_UNIT

CHUNK = 512


def create_level(group: Any, name: str, shape: tuple[int, ...], dtype: Any, axes: Sequence[str], fill: int) -> Any:
    """An array of a level in a Zarr 3 group; its last two axes are y and x, in chunks of `CHUNK`, others in one."""
    return group.create_array(
        name,
        shape=shape,
        chunks=(*shape[:-2], CHUNK, CHUNK),
        dtype=dtype,
        dimension_names=list(axes),
        fill_value=fill,
        # Empty chunks are sorted out here, row by row; zarr would compare each of them once more.
        config={"write_empty_chunks": True},
    )


def pixel_sizes(multiscale: Any, dataset: Any) -> tuple[float, ...]:
    """Width and height of a pixel of a level in microns, as OME-Zarr's metadata state them; nothing without a unit.

    A level's own scale is multiplied by that of all levels, which may stand beside them.
    """
    axes = multiscale.get("axes") or []
    units = [axis.get("unit") if isinstance(axis, dict) else None for axis in axes]
    scales = [_scale_of(place) for place in (dataset, multiscale)]
    sizes = []
    for axis in (-1, -2):  # x, then y
        unit = MICRONS_PER_UNIT.get(str(units[axis])) if len(units) >= 2 else None
        stated = [scale[axis] for scale in scales if len(scale) >= 2]
        if unit is not None and stated:
            sizes.append(unit * math.prod(stated))
    return tuple(sizes)


def _scale_of(place: Any) -> list[float]:
    """The scale among the coordinate transformations of a level, or of all levels; empty where there is none."""
    for transformation in place.get("coordinateTransformations") or []:
        scale = transformation.get("scale") if isinstance(transformation, dict) else None
        if isinstance(scale, list) and all(isinstance(value, float | int) for value in scale):
            return [float(value) for value in scale]
    return []


class LevelWriter:
    """Takes the rows of level 0; a context manager that writes what is left at its end.

    arrays: largest first, each half of the last, rounded down; (H, W) for rows (h, W), (3, H, W) for rows (h, W, 3).
    halve: rows (2h, 2w, ..) -> (h, w, ..), an odd last line dropped.
    """

    def __init__(self, arrays: Sequence[Any], halve: Callable[[np.ndarray], np.ndarray]) -> None:
        self._levels = [_Level(array) for array in arrays]
        self._halve = halve
        self._pool = ThreadPoolExecutor(1, "wsigen-levels")
        self._writing: Future[None] | None = None

    def add(self, rows: np.ndarray) -> None:
        """Take rows of level 0, which must not change from now on; waits while the rows before them are written."""
        self._wait()
        self._writing = self._pool.submit(self._store, rows)

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _store(self, rows: np.ndarray) -> None:
        self._levels[0].add(rows)
        self._pass_on(last=False)

    def _pass_on(self, last: bool) -> None:
        for level, smaller in zip(self._levels, [*self._levels[1:], None]):
            for full in level.full(last):
                level.write(full)
                if smaller is not None:
                    smaller.add(self._halve(full))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._wait()
            if kind is None:
                self._pass_on(last=True)
        finally:
            self._pool.shutdown()


class _Level:
    """One array, and the rows that do not fill a row of its chunks yet."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self._waiting: list[np.ndarray] = []
        self._written = 0

    def add(self, rows: np.ndarray) -> None:
        """Keep rows."""
        self._waiting.append(rows)

    def full(self, last: bool) -> Iterator[np.ndarray]:
        """Rows that fill a row of chunks, from the top down; at the last all."""
        held = sum(len(rows) for rows in self._waiting)
        while held >= CHUNK or (last and held):
            rows = self._waiting[0] if len(self._waiting) == 1 else np.concatenate(self._waiting)
            self._waiting = [rows[CHUNK:]] if len(rows) > CHUNK else []
            held = max(0, held - CHUNK)
            yield rows[:CHUNK]

    def write(self, rows: np.ndarray) -> None:
        """Write the next row of chunks, where it holds more than the fill value."""
        y0, y1 = self._written, self._written + len(rows)
        self._written = y1
        for left, right in _spans(rows, self._array.fill_value):
            self._array[..., y0:y1, left:right] = np.moveaxis(rows[:, left:right], (0, 1), (-2, -1))


def _spans(rows: np.ndarray, fill: int) -> Iterator[tuple[int, int]]:
    """First column and past the last of neighbouring chunks that hold more than the fill value."""
    width = rows.shape[1]

    def is_filled(x: int) -> bool:
        chunk = rows[:, x : x + CHUNK]
        return bool((chunk[len(chunk) // 2] != fill).any() or (chunk != fill).any())  # mostly one row tells

    filled = [is_filled(x) for x in range(0, width, CHUNK)]
    x = 0
    for wanted, chunks in groupby(filled):
        end = min(x + CHUNK * len(list(chunks)), width)
        if wanted:
            yield x, end
        x = end
