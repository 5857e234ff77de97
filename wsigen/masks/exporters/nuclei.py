"""The nuclei of a mask one after the other, each as its runs of pixels, without ever holding the mask.

Bands are read from top to bottom; a nucleus is given out when no further row can hold a part of it. With an instance
plane a nucleus is one id, in as many pieces as it has; else it is a 4-connected component of one class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from wsigen.masks.source import MaskSource
from wsigen.masks.window import TISSUE, MaskWindow
from wsigen.masks.writer import TILE
from wsigen.system.reporting import Reporter, silent

BAND_PIXELS = 1 << 26
MIN_ROWS, MAX_ROWS = 64, 2048


@dataclass(frozen=True)
class Runs:
    """Runs of pixels: object, row, first column and past the last, and value (class); all (N,) int64."""

    owner: np.ndarray
    row: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray

    def __len__(self) -> int:
        return len(self.owner)

    def where(self, chosen: np.ndarray) -> Runs:
        """The chosen runs (a bool or index array)."""
        return Runs(*(part[chosen] for part in (self.owner, self.row, self.left, self.right, self.value)))

    def followed_by(self, other: Runs) -> Runs:
        """These runs, then the others."""
        a = (self.owner, self.row, self.left, self.right, self.value)
        b = (other.owner, other.row, other.left, other.right, other.value)
        return Runs(*(np.concatenate(pair) for pair in zip(a, b)))


NO_RUNS = Runs(*(np.zeros(0, np.int64),) * 5)


def finished_nuclei(mask: MaskSource, progress: Reporter = silent) -> Iterator[Runs]:
    """Batches of whole nuclei; `owner` is the id in the mask, else a number from 1 on; `value` is the class."""
    if mask.has_instances:
        return _by_id(mask, progress)
    return _by_component(mask, lambda band: band.classes, progress)


def finished_tissue(mask: MaskSource) -> Iterator[Runs]:
    """Batches of whole 4-connected regions of the tissue plane."""
    return _by_component(mask, _tissue_of, silent)


def _tissue_of(band: MaskWindow) -> np.ndarray:
    assert band.tissue is not None
    return (band.tissue == TISSUE).astype(np.uint8)


def bands(mask: MaskSource) -> Iterator[tuple[int, MaskWindow]]:
    """Bands of whole rows with their first row; the next one is read meanwhile."""
    rows = int(np.clip(BAND_PIXELS // mask.width, MIN_ROWS, MAX_ROWS))
    rows = rows // TILE * TILE or rows  # rows of whole tiles, as we write them, are unpacked once
    with ThreadPoolExecutor(1, "wsigen-bands") as pool:

        def read(y: int) -> Future[MaskWindow]:
            return pool.submit(mask.read, 0, y, mask.width, min(rows, mask.height - y))

        following = read(0)
        for y in range(0, mask.height, rows):
            band = following.result()
            if y + rows < mask.height:
                following = read(y + rows)
            yield y, band


def _runs_of(labels: np.ndarray, values: np.ndarray, y0: int) -> Runs:
    """Runs of one label other than 0 within a row; the value is that of their first pixel."""
    flat = labels.reshape(-1)
    width = labels.shape[1]
    change = np.empty(flat.size, bool)
    change[0] = True
    np.not_equal(flat[1:], flat[:-1], out=change[1:])
    change[::width] = True
    starts = np.flatnonzero(change)
    ends = np.append(starts[1:], flat.size)
    marked = flat[starts] != 0
    starts, ends = starts[marked], ends[marked]
    row = starts // width
    owner, value = flat[starts].astype(np.int64), values.reshape(-1)[starts].astype(np.int64)
    return Runs(owner, row + y0, starts - row * width, ends - row * width, value)


def _by_id(mask: MaskSource, progress: Reporter) -> Iterator[Runs]:
    ids, last = _last_rows(mask, progress)
    held = NO_RUNS
    for y, band in bands(mask):
        assert band.instances is not None
        found = _runs_of(np.where(band.classes > 0, band.instances, 0), band.classes, y)
        held = held.followed_by(found)
        done = last[np.searchsorted(ids, held.owner)] < y + band.shape[0]
        if done.any():
            yield held.where(done)
            held = held.where(~done)
        progress("tracing", 0.5 + 0.5 * (y + band.shape[0]) / mask.height)


def _last_rows(mask: MaskSource, progress: Reporter) -> tuple[np.ndarray, np.ndarray]:
    """Every id, sorted, and the first row of the last band in which it occurs."""
    ids, last = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for y, band in bands(mask):
        assert band.instances is not None
        found = np.unique(_runs_of(np.where(band.classes > 0, band.instances, 0), band.classes, y).owner)
        both = np.concatenate([found, ids])
        rows = np.concatenate([np.full(len(found), y, np.int64), last])
        ids, first = np.unique(both, return_index=True)
        last = rows[first]
        progress("tracing", 0.5 * (y + band.shape[0]) / mask.height)
    return ids, last


def _by_component(mask: MaskSource, plane: Callable[[MaskWindow], np.ndarray], progress: Reporter) -> Iterator[Runs]:
    held, next_id = NO_RUNS, 1
    for y, band in bands(mask):
        values = plane(band)
        found = _runs_of(values, values, y)
        held, next_id = _joined(held, found, y, mask.width, next_id)
        bottom = y + band.shape[0]
        reaching = np.unique(held.owner[held.row == bottom - 1]) if bottom < mask.height else np.zeros(0, np.int64)
        waiting = np.isin(held.owner, reaching)
        if not waiting.all():
            yield held.where(~waiting)
        held = held.where(waiting)
        progress("tracing", bottom / mask.height)


def _joined(held: Runs, found: Runs, y: int, width: int, next_id: int) -> tuple[Runs, int]:
    """Number the components of new runs, joined with those above that they touch."""
    edge = held.where(held.row == y - 1)
    rows = edge.followed_by(found)
    order = np.lexsort((rows.left, rows.row))
    rows = rows.where(order)
    start, end = (rows.row - y + 1) * (width + 1) + rows.left, (rows.row - y + 1) * (width + 1) + rows.right
    low = np.searchsorted(end, start + width + 1, "right")
    high = np.searchsorted(start, end + width + 1, "left")
    count = np.maximum(high - low, 0)
    upper = np.repeat(np.arange(len(rows)), count)
    lower = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(low, count)
    same = rows.value[upper] == rows.value[lower]
    upper, lower = upper[same], lower[same]
    # Edge runs of one component are joined even if they meet only in rows that are gone.
    known, of_edge = np.unique(edge.owner, return_inverse=True)
    edge_at = np.empty(len(order), np.int64)
    edge_at[order] = np.arange(len(order))
    links = np.concatenate([upper, edge_at[: len(edge)]]), np.concatenate([lower, len(rows) + of_edge])
    nodes = len(rows) + len(known)
    graph = coo_matrix((np.ones(len(links[0]), np.int8), links), shape=(nodes, nodes))
    total, label = connected_components(graph, directed=False) if nodes else (0, np.zeros(0, np.int64))
    label = label.astype(np.int64) + next_id
    new_of_known = label[len(rows) :]
    renamed = held
    if len(held):
        # Components that do not reach the edge were given out before, so every held one is known.
        at = np.searchsorted(known, held.owner)
        renamed = Runs(new_of_known[at], held.row, held.left, held.right, held.value)
    fresh = order >= len(edge)
    numbered = Runs(label[: len(rows)], rows.row, rows.left, rows.right, rows.value).where(fresh)
    return renamed.followed_by(numbered), next_id + int(total)
