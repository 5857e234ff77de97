"""One streaming pass over a mask: nuclei per class, a hash of the content, and checks of the values.

The pass sees the mask in bands of whole rows, top to bottom, and holds one band at a time. What it returns does not
depend on the height of the bands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from wsigen.masks.occupancy import Occupancy, OccupancyCount
from wsigen.masks.window import TISSUE, UNKNOWN, MaskWindow


@dataclass(frozen=True)
class MaskSummary:
    """What a mask holds.

    nuclei: nuclei of class 1..n. With an instance plane one per id, of the class of its first pixel in reading
        order; else one per 4-connected component of one class.
    class_pixels: pixels of class 1..n.
    tissue_share: part of the pixels that is tissue, 0..1; None where the mask has no tissue plane.
    sha256: hash of size, plane names and pixels; not of the file's bytes, layout, compression or dtype.
    hint: one line about something that looks wrong without being an error; None where nothing does.
    occupancy: where there is anything but glass, coarsely.
    """

    width: int
    height: int
    nuclei: tuple[int, ...]
    class_pixels: tuple[int, ...]
    tissue_share: float | None
    sha256: str
    hint: str | None = None
    occupancy: Occupancy | None = field(default=None, compare=False, repr=False)


def summarise(bands: Iterable[MaskWindow], width: int, height: int, class_count: int) -> MaskSummary:
    """Summarise a mask from its bands of whole rows, top to bottom, all with the same planes."""
    content, pixels, occupancy = _ContentHash(width, height), _PixelCount(class_count), OccupancyCount(width, height)
    nuclei = NucleusCount(class_count)
    with ThreadPoolExecutor(8, "wsigen-scan") as pool:
        counting: list = []
        for band in bands:  # the next band is read while this one is counted
            for job in counting:
                job.result()
            adders = (pixels.add, occupancy.add, nuclei.add, *content.adders(band))
            counting = [pool.submit(add, band) for add in adders]
        for job in counting:
            job.result()
    counts = nuclei.counts()
    return MaskSummary(
        width,
        height,
        counts,
        tuple(int(count) for count in pixels.of_class[1:]),
        None if pixels.tissue is None else pixels.tissue / (width * height),
        content.hexdigest(),
        _hint(counts, pixels.of_class, pixels.tissue, pixels.unknown, pixels.unnumbered),
        occupancy.result(),
    )


def _hint(
    nuclei: tuple[int, ...], class_pixels: np.ndarray, tissue: int | None, unknown: int, unnumbered: int
) -> str | None:
    if unnumbered:
        return (
            f"{unnumbered} nucleus pixels have no id in the instance plane; give every nucleus an id, or leave it out"
        )
    if tissue == 0 and unknown:
        return "the tissue plane holds no 1, only 255 (unknown); if 255 means tissue there, write 1"
    if len(nuclei) > 1 and sum(nuclei) > 0 and class_pixels[1] == class_pixels[1:].sum():
        return "the class plane holds only 0 and 1; if it is a tissue mask, write it as the plane 'tissue'"
    return None


class _PixelCount:
    """Counts pixels of each class, of tissue, of unknown tissue, and of nuclei without an id."""

    def __init__(self, class_count: int) -> None:
        self.of_class = np.zeros(class_count + 1, np.int64)
        self.tissue: int | None = None
        self.unknown = self.unnumbered = 0

    def add(self, band: MaskWindow) -> None:
        marked = bool(band.classes.any())
        if marked:
            self.of_class += np.bincount(band.classes[band.classes > 0], minlength=len(self.of_class))
        if marked and band.instances is not None:
            self.unnumbered += int(np.count_nonzero((band.classes > 0) & (band.instances == 0)))
        if band.tissue is not None:
            self.tissue = (self.tissue or 0) + int(np.count_nonzero(band.tissue == TISSUE))
            self.unknown += int(np.count_nonzero(band.tissue == UNKNOWN))


class _ContentHash:
    """Each plane is hashed in reading order by itself, so that the height of the bands does not matter."""

    def __init__(self, width: int, height: int) -> None:
        self._header = f"wsigen mask {width} x {height}"
        self._planes = {"class": hashlib.sha256(), "instance": hashlib.sha256(), "tissue": hashlib.sha256()}
        self._seen: set[str] = set()

    def adders(self, band: MaskWindow) -> list[Callable[[MaskWindow], None]]:
        """One function for each plane of the band, which may run at the same time."""
        present = {"class": band.classes, "instance": band.instances, "tissue": band.tissue}
        return [partial(self._add, name) for name, pixels in present.items() if pixels is not None]

    def _add(self, name: str, band: MaskWindow) -> None:
        planes = {"class": (band.classes, "u1"), "instance": (band.instances, "<u4"), "tissue": (band.tissue, "u1")}
        pixels, dtype = planes[name]
        self._seen.add(name)
        self._planes[name].update(np.ascontiguousarray(pixels, dtype).data)

    def hexdigest(self) -> str:
        parts = [self._header, *(f"{n} {p.hexdigest()}" for n, p in self._planes.items() if n in self._seen)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class NucleusCount:
    """Counts nuclei of class 1..n, band by band: ids where there is an instance plane, else components."""

    def __init__(self, class_count: int) -> None:
        self._instances, self._components = _InstanceCount(class_count), _ComponentCount(class_count)
        self._with_instances = False

    def add(self, band: MaskWindow) -> None:
        """Add the next band of whole rows; all bands have an instance plane, or none has."""
        if band.instances is not None:
            self._with_instances = True
            self._instances.add(band.classes, band.instances)
        else:
            self._components.add(band.classes)

    def counts(self) -> tuple[int, ...]:
        """Nuclei of each class in the bands so far."""
        return self._instances.counts() if self._with_instances else self._components.counts()


class _InstanceCount:
    """Counts ids; keeps eight bytes per nucleus and band."""

    def __init__(self, class_count: int) -> None:
        self._class_count = class_count
        self._found: list[np.ndarray] = []

    def add(self, classes: np.ndarray, instances: np.ndarray) -> None:
        starts = instances != 0
        starts[:, 1:] &= (instances[:, 1:] != instances[:, :-1]) | (classes[:, 1:] != classes[:, :-1])
        starts &= classes != 0
        ids, first = np.unique(instances[starts], return_index=True)
        self._found.append(ids.astype(np.uint64) << np.uint64(8) | classes[starts][first].astype(np.uint64))

    def counts(self) -> tuple[int, ...]:
        found = np.concatenate(self._found) if self._found else np.zeros(0, np.uint64)
        _, first = np.unique(found >> np.uint64(8), return_index=True)
        per_class = np.bincount((found[first] & np.uint64(255)).astype(np.int64), minlength=self._class_count + 1)
        return tuple(int(n) for n in per_class[1:])


class _ComponentCount:
    """Counts 4-connected components of one class, as runs of rows joined to those of the row below.

    From band to band only the runs of the last row are kept, with the component that each belongs to.
    """

    def __init__(self, class_count: int) -> None:
        self._counts = np.zeros(class_count + 1, np.int64)
        self._last_row: np.ndarray | None = None
        self._last_components = np.zeros(0, np.int64)

    def add(self, classes: np.ndarray) -> None:
        width = classes.shape[1]
        seam = self._last_row is not None
        rows = np.concatenate([self._last_row, classes]) if self._last_row is not None else classes
        starts, ends, values = _runs(rows)
        upper, lower = _touching_runs(starts, ends, values, width)
        known = int(np.searchsorted(starts, width)) if seam else 0
        # Runs of the last row seen may belong to one component by a way through rows that are gone.
        extra = len(starts) + self._last_components
        nodes = len(starts) + known
        links = np.concatenate([upper, np.arange(known)]), np.concatenate([lower, extra])
        from scipy.sparse import coo_matrix  # half a second of a start, of which masks with instances need none
        from scipy.sparse.csgraph import connected_components

        graph = coo_matrix((np.ones(len(links[0]), np.int8), links), shape=(nodes, nodes))
        count, labels = connected_components(graph, directed=False) if nodes else (0, np.zeros(0, np.int64))
        class_of = np.zeros(count, np.int64)
        class_of[labels[: len(starts)]] = values
        joined = np.bincount(
            values[np.unique(self._last_components, return_index=True)[1]], minlength=len(self._counts)
        )
        # New components, less those that the old ones have become: two old ones that meet here were counted twice.
        self._counts += np.bincount(class_of[np.unique(labels[: len(starts)])], minlength=len(self._counts)) - joined
        bottom = int(np.searchsorted(starts, (len(rows) - 1) * width))
        self._last_components = np.unique(labels[bottom : len(starts)], return_inverse=True)[1]
        self._last_row = rows[-1:].copy()

    def counts(self) -> tuple[int, ...]:
        return tuple(int(n) for n in self._counts[1:])


def _runs(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs of one non-zero value within a row: first and past-the-last flat position, and the value."""
    change = np.ones((rows.shape[0], rows.shape[1] + 1), bool)
    np.not_equal(rows[:, 1:], rows[:, :-1], out=change[:, 1:-1])
    start_row, start_column = np.nonzero(change[:, :-1] & (rows != 0))
    end_row, end_column = np.nonzero(change[:, 1:] & (rows != 0))
    values = rows[start_row, start_column].astype(np.int64)
    return start_row * rows.shape[1] + start_column, end_row * rows.shape[1] + end_column + 1, values


def _touching_runs(
    starts: np.ndarray, ends: np.ndarray, values: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (upper, lower) of runs of one value that share a column in neighbouring rows."""
    low = np.searchsorted(ends, starts + width, "right")
    high = np.searchsorted(starts, ends + width, "left")
    count = np.maximum(high - low, 0)
    upper = np.repeat(np.arange(len(starts)), count)
    lower = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(low, count)
    same = values[upper] == values[lower]
    return upper[same], lower[same]
