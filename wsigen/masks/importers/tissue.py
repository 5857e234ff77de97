"""The tissue plane of an import: regions of the source itself, and outlines or a label image of another file.

A label image may be a smaller copy of the slide, as tissue masks mostly are. It is read from the top down beside the
nuclei, never whole. A slide mask of ours and OME-Zarr labels of ours have a tissue plane of their own, which is taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from wsigen.errors import MaskError
from wsigen.masks.importers.class_maps import SKIP, TISSUE_REGION, UNCLASSIFIED, ClassMap, class_map
from wsigen.masks.importers.outlines import OutlineSet, OutlineSpool
from wsigen.masks.importers.rasterise import Rasteriser
from wsigen.masks.importers.settings import ImportSettings
from wsigen.masks.importers.sniffing import open_source
from wsigen.masks.importers.sources import LabelSource, OutlineSource, damage_is_one_line
from wsigen.masks.slide_mask import MOST_CLASSES, SlideMask
from wsigen.masks.window import GLASS, TISSUE, UNKNOWN
from wsigen.system.reporting import Reporter
from wsigen.system.scale import plausible_mpp

SAME_SCALE = 0.05
SAME_SHAPE = 0.02  # sides of thumbnails are rounded
LABEL = "tissue"  # name of the label image of tissue in OME-Zarr


class Drawer(Protocol):
    """Draws tissue into a plane, band by band from the top down."""

    def draw(self, y0: int, out: np.ndarray) -> bool:
        """Draw what lies in rows y0 .. y0 + h - 1 into `out` (h, width) uint8; False where nothing does."""
        ...


@dataclass
class TissuePlane:
    """The tissue plane as its drawers make it; regions: outlines that they draw."""

    drawers: list[Drawer] = field(default_factory=list)
    regions: int = 0

    def rows(self, y0: int, classes: np.ndarray, regions: np.ndarray | None = None) -> np.ndarray:
        """The plane of a band; where a nucleus lies is tissue, whatever was drawn. regions: (h, width) bool, more."""
        plane = np.full(classes.shape, GLASS, np.uint8)
        for drawer in self.drawers:
            drawer.draw(y0, plane)
        plane[classes > 0] = TISSUE
        if regions is not None:
            plane[regions] = TISSUE
        return plane


def tissue_of_file(
    settings: ImportSettings, width: int, height: int, folder: Path, progress: Reporter, shrink: float = 1.0
) -> tuple[Drawer, int]:
    """What draws the tissue of the file `settings.tissue`, and how many outlines it has (of a label image: 1).

    width, height: of the mask. shrink: mask pixels per pixel of the slide, in which outlines are given. folder: for
    temporary files.
    """
    path = settings.tissue
    assert path is not None
    opened = open_source(path, None, LABEL if _has_label(path) else None)
    if isinstance(opened, LabelSource):
        return _of_labels(opened, settings, width, height), 1
    return _of_outlines(opened, settings, width, height, folder, progress, shrink)


def _of_outlines(
    source: OutlineSource,
    settings: ImportSettings,
    width: int,
    height: int,
    folder: Path,
    progress: Reporter,
    shrink: float,
) -> tuple[Rasteriser, int]:
    """Outlines mapped to tissue, else all that no map leaves out."""
    (folder / "tissue").mkdir()
    outlines, _ = read_outlines(source, folder / "tissue", source.pixel_centres, progress)
    mapping = class_map(settings.classes, settings.class_maps, source.built_in)
    resolved = np.array([mapping.resolve(full_name(source, n)) or 0 for n in outlines.names] or [0], np.int64)
    classes = resolved[outlines.object_name]
    chosen = classes == TISSUE_REGION if (classes == TISSUE_REGION).any() else classes != SKIP
    if not chosen.any():
        raise MaskError(f"{source.path}: holds no tissue outlines; draw annotations, or map their class to tissue")
    polygons = (outlines.polygon_object >= 0) & np.append(chosen, False)[outlines.polygon_object]
    scale, _ = scale_of(source, settings)
    outlines, _ = counted_from_slide(outlines, source, settings, scale)
    values = np.full(len(polygons), TISSUE, np.uint32)
    drawer = Rasteriser(outlines, polygons, values, width, height, scale * shrink, source.pixel_centres)
    return drawer, int(chosen.sum())


def _of_labels(source: LabelSource, settings: ImportSettings, width: int, height: int) -> Drawer:
    ratio = (source.width / width) / (source.height / height)
    if abs(ratio - 1) > SAME_SHAPE and abs(source.width - width * source.height / height) > 1:
        size = f"{source.width:,} x {source.height:,}"
        raise MaskError(f"{source.path}: is {size} px, another shape than the mask of {width:,} x {height:,} px")
    plane = _tissue_planes(source.path)
    if plane is not None:
        return TissueLabels(source.path, plane, (source.width, source.height), (width, height))
    mapping = class_map(settings.classes, settings.class_maps, source.built_in)
    only = marks_tissue(source, mapping)
    seen: dict[int, int] = {0: GLASS}

    def target(value: int) -> int:
        if value not in seen:
            name = source.class_of.get(value, str(value))
            resolved = mapping.resolve(name)
            tissue = resolved == TISSUE_REGION if only else resolved != SKIP
            seen[value] = TISSUE if tissue else UNKNOWN if name == "unknown" else GLASS
        return seen[value]

    def planes() -> Iterator[np.ndarray]:
        with damage_is_one_line(source.path, source.format):
            for band in source.bands():
                kinds = np.unique(band.values)
                targets = np.array([target(value) for value in kinds.tolist()], np.uint8)
                yield targets[np.searchsorted(kinds, band.values)]
            source.close()

    return TissueLabels(source.path, planes(), (source.width, source.height), (width, height))


def _tissue_planes(path: Path) -> Iterator[np.ndarray] | None:
    """The tissue plane of a slide mask; None for other files."""
    if path.is_dir():
        return None
    try:
        mask = SlideMask.open(path, MOST_CLASSES)
    except MaskError:
        return None
    if not mask.has_tissue:
        mask.close()
        return None

    def planes() -> Iterator[np.ndarray]:
        with mask:
            for band in mask.bands():
                assert band.tissue is not None
                yield band.tissue

    return planes()


class TissueLabels:
    """Draws a tissue plane that comes as bands of whole rows, at its own size, from the top down.

    planes: (h, w) uint8 of GLASS, TISSUE and UNKNOWN. size, onto: (width, height) of the planes and of the mask.
    """

    def __init__(self, path: Path, planes: Iterator[np.ndarray], size: tuple[int, int], onto: tuple[int, int]) -> None:
        self._path, self._planes, self._size, self._onto = path, planes, size, onto
        self._held: deque[np.ndarray] = deque()
        self._top = self._end = 0  # first row held, and past the last
        self._columns = None if size[0] == onto[0] else _nearest(0, onto[0], size[0], onto[0])
        self._found = False

    def draw(self, y0: int, out: np.ndarray) -> bool:
        """Draw the next rows; MaskError with the last ones where there is no tissue at all."""
        rows = _nearest(y0, len(out), self._size[1], self._onto[1])
        self._read_to(int(rows[0]), int(rows[-1]) + 1)
        held = self._held[0] if len(self._held) == 1 else np.concatenate(self._held)
        part = held[rows - self._top]
        part = part if self._columns is None else part[:, self._columns]
        np.copyto(out, part, where=part != GLASS)
        drawn = bool((part == TISSUE).any())
        self._found |= drawn
        if y0 + len(out) == self._onto[1] and not self._found:
            raise MaskError(f"{self._path}: holds no tissue; give a label image in which tissue is not 0")
        return drawn

    def _read_to(self, first: int, end: int) -> None:
        while self._end < end:
            band = next(self._planes, None)
            if band is None:
                raise MaskError(f"{self._path}: ends after {self._end} of {self._size[1]} rows; export it again")
            self._held.append(band)
            self._end += len(band)
        while self._top + len(self._held[0]) <= first:
            self._top += len(self._held.popleft())


def _nearest(first: int, count: int, size: int, onto: int) -> np.ndarray:
    """Nearest of `size` pixels for each of `count` of the `onto` pixels from `first` on, in exact integers."""
    return (2 * np.arange(first, first + count) + 1) * size // (2 * onto)


def has_tissue_plane(path: Path) -> bool:
    """Whether a slide mask or OME-Zarr labels have a tissue plane beside their nuclei."""
    planes = _tissue_planes(path)
    return planes is not None or _has_label(path)


def _has_label(path: Path) -> bool:
    return any((path / where / LABEL).is_dir() for where in ("labels", "."))


def same_file(a: Path, b: Path) -> bool:
    """Whether two paths that may not exist are one file or folder."""
    return a.exists() and b.exists() and a.samefile(b)


def marks_tissue(source: LabelSource, mapping: ClassMap) -> bool:
    """Whether a map says of a value of this image that it is tissue."""
    named = any(mapping.resolve(name) == TISSUE_REGION for name in set(source.class_of.values()))
    return named or any(key.isdecimal() and target == TISSUE_REGION for key, target in mapping.entries.items())


def read_outlines(source: OutlineSource, folder: Path, thin: bool, progress: Reporter) -> tuple[OutlineSet, int]:
    """All outlines of a source, with their vertices in `folder`, and how many objects could not be read."""
    spool = OutlineSpool(folder)
    with damage_is_one_line(source.path, source.format):
        for item in source.objects(progress):
            spool.add(item)
        outlines = spool.finish(thin)
    return outlines, spool.unreadable


def counted_from_slide(
    outlines: OutlineSet, source: OutlineSource, settings: ImportSettings, scale: float
) -> tuple[OutlineSet, tuple[int, int]]:
    """The outlines counted from the corner of the slide, and what was added to them, in pixels of the slide."""
    offset = settings.origin.offset(settings.bounds, source.from_bounds)
    return outlines.moved(offset[0] / scale, offset[1] / scale), offset


def full_name(source: OutlineSource, name: str) -> str:
    """Name of a class that a source calls by a number; an empty name is none."""
    return source.names.get(name, name).strip() or UNCLASSIFIED


def scale_of(source: OutlineSource, settings: ImportSettings) -> tuple[float, float | None]:
    """Mask pixels per unit of the source, and microns per pixel of the mask."""
    if settings.mpp is None or source.mpp is None:
        return 1.0, settings.mpp or plausible_mpp(source.mpp)
    ratio = source.mpp / settings.mpp
    return (1.0 if abs(ratio - 1) <= SAME_SCALE else ratio), settings.mpp
