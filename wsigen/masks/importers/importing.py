"""From any file of cells to a slide mask: recognise, read, map classes, draw, and account for every object."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsigen.errors import MaskError
from wsigen.masks.importers import label_import
from wsigen.masks.importers.class_maps import SKIP, TISSUE_REGION, ClassMap, class_map
from wsigen.masks.importers.outlines import OutlineSet
from wsigen.masks.importers.rasterise import Rasteriser
from wsigen.masks.importers.report import ImportReport, refuse_empty, refuse_unknown
from wsigen.masks.importers.settings import ImportSettings, check_size, check_target
from wsigen.masks.importers.sniffing import open_source
from wsigen.masks.importers.sources import Kind, LabelSource, OutlineSource
from wsigen.masks.importers.tissue import (
    TissuePlane,
    counted_from_slide,
    full_name,
    read_outlines,
    same_file,
    scale_of,
    tissue_of_file,
)
from wsigen.masks.window import TISSUE, MaskWindow
from wsigen.masks.writer import write_slide_mask
from wsigen.system.folders import temporary_beside
from wsigen.system.reporting import Reporter, silent


def import_mask(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: ImportSettings,
    overwrite: bool = False,
    progress: Reporter = silent,
) -> ImportReport:
    """Make a slide mask from a file of cells; its format is recognised from the content.

    A nucleus covers the pixels whose centres lie inside its outline, and has its own id. Memory is bounded: the
    coordinates are kept in a temporary file beside the mask.

    Args:
        source: file or folder of another tool.
        out: the mask to write.
        settings: classes, scale and the like.
        overwrite: replace an existing mask.
        progress: called with what is being done and the share of it that is done, 0 to 1.

    Raises:
        MaskError: the format is unknown, the file is damaged or unsafe, a class is in no map, there are no nuclei, or
            the mask exists already. Nothing is written.
    """
    source, out = Path(source), Path(out)
    check_target(out, overwrite)
    opened = open_source(source, settings.table, settings.image)
    if isinstance(opened, LabelSource):
        return label_import.import_labels(opened, out, settings, overwrite, progress)
    return _import_outlines(opened, out, settings, overwrite, progress)


def _import_outlines(
    source: OutlineSource, out: Path, settings: ImportSettings, overwrite: bool, progress: Reporter
) -> ImportReport:
    with temporary_beside(out, MaskError) as folder:
        placed = _Placed.read(source, settings, folder, progress)
        width, height = placed.width, placed.height
        fate = _Fates.of(placed)
        tissue = _tissue(placed, settings, folder, progress)
        nuclei = placed.rasteriser(fate.drawn_polygons, fate.ids[placed.outlines.polygon_object])
        lookup = np.concatenate([[0], placed.class_of[fate.ids[:-1] > 0]]).astype(np.uint8)
        seen = np.zeros(len(lookup), bool)

        def report() -> ImportReport:
            per_class = np.bincount(lookup[1:][seen[1:]], minlength=len(settings.classes) + 1)[1:]
            imported = tuple(zip(settings.classes, (int(n) for n in per_class)))
            return _report(placed, out, fate, seen, imported)

        def rows(y0: int, y1: int) -> MaskWindow | None:
            progress("drawing", y0 / height)
            ids = np.zeros((y1 - y0, width), np.uint32)
            classes = np.zeros(ids.shape, np.uint8)
            drawn = nuclei.draw(y0, ids)
            if drawn:
                marked = np.flatnonzero(ids != 0)
                labels = ids.reshape(-1)[marked]
                seen[labels] = True
                classes.reshape(-1)[marked] = lookup[labels]
            if y1 == height and not settings.allow_empty:
                _check_nuclei(source, report())
            if not drawn and tissue is None:
                return None
            return MaskWindow(classes, ids, tissue.rows(y0, classes) if tissue else None)

        write_slide_mask(out, width, height, placed.mpp, rows, True, tissue is not None, overwrite)
        progress("drawing", 1.0)
        return report()


def _check_nuclei(source: OutlineSource, report: ImportReport) -> None:
    """Refuse an import that gives neither nuclei nor the tissue regions that a class map asks for."""
    if report.nuclei or report.regions:
        return
    reason = "no objects" if not report.found else report.describe_others()
    refuse_empty(source.path, f"{reason}: {source.hint}" if source.hint else reason)


def _classes_of(
    outlines: OutlineSet, source: OutlineSource, mapping: ClassMap, settings: ImportSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Class 1..n of every object, 0 left out by a map, 255 unknown or a region; and whether it is a tissue region."""
    names = [full_name(source, name) for name in outlines.names]
    resolved = [mapping.resolve(name) for name in names]
    as_array = np.array([SKIP if entry is None else entry for entry in resolved] or [SKIP], np.int64)
    unknown_name = np.array([entry is None for entry in resolved] or [False])
    classes, unknown = as_array[outlines.object_name], unknown_name[outlines.object_name]
    # A file with nuclei and annotations has the annotations as regions: a "Tumor" that holds a thousand nuclei.
    annotation, core = outlines.object_kind == Kind.ANNOTATION, outlines.object_kind == Kind.REGION
    annotated = annotation & bool((~annotation & ~core).any())
    region = annotated | core
    tissue = classes == TISSUE_REGION
    if _has_own_tissue(source, settings) and not tissue.any():
        tissue = annotated if annotated.any() else region.copy()
    unknown &= ~region & ~tissue
    if unknown.any() and not settings.skip_unknown:
        counts = np.bincount(outlines.object_name[unknown], minlength=len(names))
        refuse_unknown(source.path, Counter({n: int(c) for n, c in zip(names, counts) if c}), settings.classes)
    nucleus = ~region & ~tissue & ~unknown & (classes > 0)
    return np.where(nucleus, classes, 0), tissue


def _scaled_size(size: tuple[int, int] | None, scale: float) -> tuple[int, int] | None:
    return None if size is None else (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))


def _extent(outlines: OutlineSet, scale: float, centres: bool) -> tuple[int, int]:
    sound = outlines.polygon_object >= 0
    if not sound.any():
        return 1, 1
    right, bottom = (outlines.bounds[sound, 2:].max(0) + centres) * scale
    return max(1, int(np.ceil(right))), max(1, int(np.ceil(bottom)))


@dataclass(frozen=True)
class _Placed:
    """The outlines of a file, what each object is, and where they lie on the slide."""

    source: OutlineSource
    outlines: OutlineSet
    unreadable: int  # objects
    class_of: np.ndarray  # (O,) 1..n, 0 left out by a map, 255 unknown or a region
    is_region: np.ndarray  # (O,) bool: tissue regions
    width: int
    height: int
    mpp: float | None
    scale: float  # pixels of the slide to one of the file
    centres: bool  # the file counts from the middle of its first pixel
    offset: tuple[int, int]  # that was added, in px of the slide: see ImportReport

    @classmethod
    def read(cls, source: OutlineSource, settings: ImportSettings, folder: Path, progress: Reporter) -> _Placed:
        """Read a file; the coordinates wait in ``folder``."""
        centres = source.pixel_centres if settings.pixel_centres is None else settings.pixel_centres
        outlines, unreadable = read_outlines(source, folder, centres, progress)
        mapping = class_map(settings.classes, settings.class_maps, source.built_in)
        class_of, is_region = _classes_of(outlines, source, mapping, settings)
        scale, mpp = scale_of(source, settings)
        outlines, offset = counted_from_slide(outlines, source, settings, scale)
        width, height = settings.size or _scaled_size(source.size, scale) or _extent(outlines, scale, centres)
        check_size(source.path, width, height)
        return cls(source, outlines, unreadable, class_of, is_region, width, height, mpp, scale, centres, offset)

    def rasteriser(self, chosen: np.ndarray, labels: np.ndarray) -> Rasteriser:
        """Draws chosen polygons (P,) bool with labels (P,) uint32."""
        return Rasteriser(self.outlines, chosen, labels, self.width, self.height, self.scale, self.centres)


def _has_own_tissue(source: OutlineSource, settings: ImportSettings) -> bool:
    """Whether the regions of tissue are to be taken from the file of the nuclei itself."""
    return settings.tissue is not None and same_file(settings.tissue, source.path)


@dataclass(frozen=True)
class _Fates:
    """What will become of the objects: ids (O,) uint32, 1.. for those that are drawn, and why the others are not."""

    ids: np.ndarray
    drawn_polygons: np.ndarray
    invalid: int
    outside: int
    clipped: np.ndarray  # (O,) bool
    repaired: np.ndarray  # (O,) bool
    wanted: np.ndarray  # (O,) bool: nuclei of a known class

    @classmethod
    def of(cls, placed: _Placed) -> _Fates:
        """Decide what becomes of each object."""
        outlines, width, height = placed.outlines, placed.width, placed.height
        shift = 0.5 * placed.scale if placed.centres else 0.0
        count = outlines.object_count
        sound = outlines.polygon_object >= 0
        owner = np.where(sound, outlines.polygon_object, 0)
        left, top, right, bottom = (outlines.bounds * placed.scale + shift).T
        touches = sound & (right > 0) & (bottom > 0) & (left < width) & (top < height)
        crosses = touches & ((left < 0) | (top < 0) | (right > width) | (bottom > height))

        def any_of(polygons: np.ndarray) -> np.ndarray:
            found = np.zeros(count, bool)
            found[owner[polygons & sound]] = True
            return found

        wanted = placed.class_of > 0
        valid, reachable = any_of(sound), any_of(touches)
        drawn = wanted & reachable
        ids = np.zeros(count + 1, np.uint32)  # the last entry answers for polygons of no object
        ids[:-1][drawn] = np.arange(1, int(drawn.sum()) + 1, dtype=np.uint32)
        return cls(
            ids=ids,
            drawn_polygons=touches & drawn[owner] if count else touches,
            invalid=int((wanted & ~valid).sum()),
            outside=int((wanted & valid & ~reachable).sum()),
            clipped=drawn & any_of(crosses),
            repaired=drawn & any_of(outlines.crossing),
            wanted=wanted,
        )


def _tissue(placed: _Placed, settings: ImportSettings, folder: Path, progress: Reporter) -> TissuePlane | None:
    """The plane of tissue, of regions in the file and of those in a file of their own; None where there are none."""
    tissue, outlines, is_region = TissuePlane(), placed.outlines, placed.is_region
    if is_region.any():
        chosen = (outlines.polygon_object >= 0) & np.append(is_region, False)[outlines.polygon_object]
        tissue.drawers.append(placed.rasteriser(chosen, np.full(len(chosen), TISSUE, np.uint32)))
        tissue.regions += int(is_region.sum())
    if settings.tissue is not None and not _has_own_tissue(placed.source, settings):
        drawer, regions = tissue_of_file(settings, placed.width, placed.height, folder, progress)
        tissue.drawers.append(drawer)
        tissue.regions += regions
    if settings.tissue is not None and not tissue.regions:
        raise MaskError(f"{settings.tissue}: holds no tissue outlines; draw annotations, or map their class to tissue")
    return tissue if tissue.regions else None


def _report(
    placed: _Placed, out: Path, fate: _Fates, seen: np.ndarray, imported: tuple[tuple[str, int], ...]
) -> ImportReport:
    """Account for every object. seen: (labels,) bool, which were drawn; imported: nuclei by class."""
    source, outlines = placed.source, placed.outlines
    drawn = fate.ids[:-1] > 0
    visible = np.zeros(outlines.object_count, bool)
    visible[drawn] = seen[1:]
    left_out = ~fate.wanted & ~placed.is_region
    names = Counter[str]()
    counts = np.bincount(outlines.object_name[left_out], minlength=len(outlines.names))
    for name, number in zip(outlines.names, counts):
        if number:
            names[full_name(source, name)] += int(number)
    return ImportReport(
        format=source.format,
        out=out,
        width=placed.width,
        height=placed.height,
        mpp=placed.mpp,
        found=outlines.object_count + placed.unreadable + source.not_polygons,
        imported=imported,
        clipped=int((fate.clipped & visible).sum()),
        repaired=int((fate.repaired & visible).sum()),
        regions=int(placed.is_region.sum()),
        skipped=names,
        invalid=fate.invalid + placed.unreadable,
        not_polygons=source.not_polygons,
        outside=fate.outside,
        hidden=int((drawn & ~visible).sum()),
        offset=placed.offset,
    )
