"""Label images to a slide mask: values become classes, ids stay apart, in one pass over the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from wsigen.errors import MaskError
from wsigen.masks.importers.class_maps import SKIP, TISSUE_REGION, UNCLASSIFIED, class_map
from wsigen.masks.importers.report import ImportReport, listed, refuse_empty, refuse_unknown
from wsigen.masks.importers.settings import ImportSettings, check_size
from wsigen.masks.importers.sources import LabelSource, damage_is_one_line
from wsigen.masks.importers.tissue import TissuePlane, has_tissue_plane, marks_tissue, same_file, tissue_of_file
from wsigen.masks.slide_mask import SlideMask
from wsigen.masks.window import GLASS, TISSUE, MaskWindow
from wsigen.masks.writer import rebuffered, write_slide_mask
from wsigen.system.folders import temporary_beside
from wsigen.system.reporting import Reporter
from wsigen.system.scale import plausible_mpp, plausible_sizes, square_mpp

MAX_ID = 2**32 - 1
LARGEST_TABLE = 1 << 24
REGION = 255  # in place of a class: the pixel is tissue
MERGED_AT = 1 << 22  # keys waiting to be merged


def import_labels(
    source: LabelSource, out: Path, settings: ImportSettings, overwrite: bool, progress: Reporter
) -> ImportReport:
    """Write the mask of a label image; raises what `import_mask` raises."""
    with temporary_beside(out, MaskError) as folder:
        try:
            check_size(source.path, source.width, source.height)
            mpp = _mpp(source, settings)
            mapping = _Mapping(source, settings)
            tissue = _tissue(source, settings, mapping, folder, progress)
            instances = source.kind == "instance" or source.has_ids
            rows = rebuffered(out, _mapped(source, mapping, progress), source.height)

            def with_tissue(y0: int, y1: int) -> MaskWindow:
                window = rows(y0, y1)
                if tissue is None or window.tissue is None:
                    return window
                return replace(window, tissue=tissue.rows(y0, window.classes, window.tissue == TISSUE))

            write_slide_mask(
                out, source.width, source.height, mpp, with_tissue, instances, tissue is not None, overwrite
            )
        finally:
            source.close()
    return _report(source, out, settings, mpp, mapping)


def _tissue(
    source: LabelSource, settings: ImportSettings, mapping: _Mapping, folder: Path, progress: Reporter
) -> TissuePlane | None:
    """What makes the tissue plane; None where there is to be none."""
    tissue = TissuePlane()
    mapping.with_tissue = mapping.has_regions or settings.tissue is not None
    same = settings.tissue is not None and same_file(settings.tissue, source.path)
    if same and not mapping.has_regions and not has_tissue_plane(source.path):
        raise MaskError(f"{source.path}: has no tissue plane; map a class to tissue with --class-map NUMBER=tissue")
    if settings.tissue is not None and not (same and mapping.has_regions):
        shrink = 1.0 if settings.size is None else source.width / settings.size[0]
        drawer, tissue.regions = tissue_of_file(settings, source.width, source.height, folder, progress, shrink)
        tissue.drawers.append(drawer)
    return tissue if mapping.with_tissue else None


def _mpp(source: LabelSource, settings: ImportSettings) -> float | None:
    """Scale of the mask; of a smaller copy of the slide it follows from the sizes."""
    if settings.size is None:
        return settings.mpp or square_mpp(source.path, plausible_sizes(source.pixel_sizes))
    ratio = settings.size[0] / source.width
    if abs(settings.size[1] / source.height / ratio - 1) > 0.01:
        size = f"{settings.size[0]} x {settings.size[1]}"
        raise MaskError(
            f"{source.path}: is {source.width} x {source.height} px and the slide {size}: another shape; give its slide"
        )
    return None if settings.mpp is None else plausible_mpp(settings.mpp * ratio)


def _counted(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values but for 0 and how many pixels have them; by runs, which is far faster than by pixels."""
    if values.dtype.itemsize == 1:
        counts = np.bincount(values.ravel().view(np.uint8), minlength=256)
        kinds = np.nonzero(counts)[0]
        kinds = kinds[kinds > 0]
        return kinds.astype(np.int64), counts[kinds]
    starts, lengths = _runs(values)
    kinds, of = np.unique(values.ravel()[starts], return_inverse=True)
    return kinds.astype(np.int64), np.bincount(of, weights=lengths, minlength=len(kinds)).astype(np.int64)


def _runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First flat position and length of each run of one value other than 0."""
    flat = values.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(np.append(starts, flat.size))
    kept = flat[starts] != 0
    return starts[kept], lengths[kept]


class _Tally:
    """Numbers by key, gathered band by band: keys of a band are sorted and distinct."""

    def __init__(self, keep: Callable[[np.ndarray, np.ndarray, int], np.ndarray]) -> None:
        self._keep, self._parts, self._size = keep, [(np.zeros(0, np.int64), np.zeros(0, np.int64))], 0

    def add(self, keys: np.ndarray, numbers: np.ndarray) -> None:
        """Take those of a band."""
        self._parts.append((keys, numbers))
        self._size += len(keys)
        if self._size > MERGED_AT:
            self._merge()

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """All keys, sorted, and their numbers."""
        self._merge()
        return self._parts[0]

    def _merge(self) -> None:
        keys, of = np.unique(np.concatenate([part[0] for part in self._parts]), return_inverse=True)
        numbers = np.concatenate([part[1] for part in self._parts])
        self._parts, self._size = [(keys, self._keep(numbers, of, len(keys)))], 0


def _sums(numbers: np.ndarray, of: np.ndarray, count: int) -> np.ndarray:
    return np.bincount(of, weights=numbers, minlength=count).astype(np.int64)


def _earliest(numbers: np.ndarray, of: np.ndarray, count: int) -> np.ndarray:
    out = np.zeros(count, np.int64)
    out[of[::-1]] = numbers[::-1]
    return out


def _name(source: LabelSource, value: int) -> str:
    missing = str(value) if source.kind == "class" else UNCLASSIFIED
    return source.class_of.get(value, missing).strip() or UNCLASSIFIED


class _Mapping:
    """Classes of the values of a label image, resolved as values occur, and what has occurred.

    So one pass is enough: what is unknown shows at its end, before anything is put in place.
    """

    def __init__(self, source: LabelSource, settings: ImportSettings) -> None:
        self._source, self._settings = source, settings
        self._map = class_map(settings.classes, settings.class_maps, source.built_in)
        self.has_regions = marks_tissue(source, self._map)
        self.with_tissue = self.has_regions
        self._resolved: dict[str, int | None] = {}
        self._table = np.zeros(256, np.uint8)
        self.pixels = _Tally(_sums)
        self.value_of_id = _Tally(_earliest)

    def classes(self, values: np.ndarray) -> np.ndarray:
        """Class of every pixel, 0 for what is left out or unknown, `REGION` for tissue; takes note of what occurs."""
        kinds, counts = _counted(values)
        if len(kinds) and (kinds[0] < 0 or kinds[-1] > MAX_ID):
            raise ValueError(f"labels go from {kinds[0]} to {kinds[-1]}; they must be 0 to {MAX_ID}")
        self.pixels.add(kinds, counts)
        targets = self.targets(kinds)
        if len(kinds) and kinds[-1] >= LARGEST_TABLE:
            out = np.zeros(values.shape, np.uint8)
            marked = values != 0
            out[marked] = targets[np.searchsorted(kinds, values[marked])]
            return out
        if len(kinds) and kinds[-1] >= len(self._table):
            self._table = np.zeros(min(LARGEST_TABLE, 2 * int(kinds[-1])), np.uint8)
        self._table[kinds] = targets
        return self._table[values]

    def note_ids(self, ids: np.ndarray, values: np.ndarray) -> None:
        """Take note of ids that stand beside classes."""
        starts, _ = _runs(ids)
        found, first = np.unique(ids.ravel()[starts], return_index=True)
        self.value_of_id.add(found.astype(np.int64), values.ravel()[starts[first]].astype(np.int64))

    def targets(self, values: np.ndarray) -> np.ndarray:
        """Class of each value, 0 for what is left out or unknown, `REGION` for tissue."""
        found = [self._resolve(_name(self._source, value)) for value in values.tolist()]
        special = {None: 0, SKIP: 0, TISSUE_REGION: REGION}
        return np.array([special.get(target, target) for target in found], np.uint8)

    def _resolve(self, name: str) -> int | None:
        if name not in self._resolved:
            target = self._map.resolve(name)
            plain = self._source.kind == "class" and not self._settings.class_maps and not self._source.class_of
            if target is None and plain and 1 <= int(name) <= len(self._settings.classes):
                target = int(name)  # a plain class image without a map has the model's own numbers
            self._resolved[name] = target
        return self._resolved[name]

    def refuse_unknown(self) -> None:
        """Raise the line that lists values without a counterpart, unless they are to be skipped."""
        if self._settings.skip_unknown or None not in self._resolved.values():
            return
        unknown = Counter[str]()
        values, pixels = self.pixels.result()
        for value, count in zip(values.tolist(), pixels.tolist()):
            name = _name(self._source, value)
            if self._resolved[name] is None:
                instance = self._source.kind == "instance"
                unknown[name if instance else f"{name} (pixels)"] += 1 if instance else count
        refuse_unknown(self._source.path, unknown, self._settings.classes)

    def refuse_empty(self) -> None:
        """Raise the line of an image without nuclei, unless it is wanted, or the map asks for tissue."""
        values, _ = self.pixels.result()
        if self._settings.allow_empty or (self.targets(values) > 0).any():
            return
        left_out = Counter(_name(self._source, value) for value in values.tolist())
        reason = f"left out by class: {listed(left_out)}" if left_out else "all pixels are 0"
        refuse_empty(self._source.path, reason)


def _mapped(source: LabelSource, mapping: _Mapping, progress: Reporter) -> Iterator[MaskWindow]:
    row = 0
    with damage_is_one_line(source.path, source.format):
        for band in source.bands():
            row += len(band.values)
            progress("importing", min(1.0, row / source.height))
            classes = mapping.classes(band.values)
            tissue = None
            if mapping.with_tissue:
                tissue = np.where(classes == REGION, np.uint8(TISSUE), np.uint8(GLASS))
            if mapping.has_regions:
                classes[classes == REGION] = 0
            given = band.values if source.kind == "instance" else band.ids
            if band.ids is not None:
                mapping.note_ids(band.ids, band.values)
            if row == source.height:
                mapping.refuse_unknown()
                mapping.refuse_empty()
            yield MaskWindow(classes, None if given is None else given.astype(np.uint32) * (classes > 0), tissue)
        if row < source.height:
            raise ValueError(f"it ends after {row} of {source.height} rows")


def _report(
    source: LabelSource, out: Path, settings: ImportSettings, mpp: float | None, mapping: _Mapping
) -> ImportReport:
    values = mapping.pixels.result()[0]
    targets = mapping.targets(values)
    skipped = Counter[str]()
    hidden = 0
    if source.kind == "instance":
        objects = targets
        skipped.update(_name(source, value) for value in values[targets == 0].tolist())
        hidden = len(set(source.class_of) - set(values.tolist()) - {0})
    elif source.has_ids:
        ids_values = mapping.value_of_id.result()[1]
        objects = np.append(targets, 0)[np.searchsorted(values, ids_values)]
        objects[ids_values == 0] = 0
        left_out = ids_values[objects == 0].tolist()
        skipped.update(_name(source, value) if value else UNCLASSIFIED for value in left_out)
    else:
        objects = targets[targets == REGION]
        skipped.update(f"class {_name(source, value)}" for value in values[targets == 0].tolist())
    regions = int((objects == REGION).sum())
    per_class = np.bincount(objects[objects != REGION], minlength=len(settings.classes) + 1)[1:]
    if source.kind == "class" and not source.has_ids:
        with SlideMask.open(out, len(settings.classes)) as written:
            per_class = np.array(written.count_nuclei())
    return ImportReport(
        format=source.format,
        out=out,
        width=source.width,
        height=source.height,
        mpp=mpp,
        found=int(per_class.sum()) + regions + sum(skipped.values()) + hidden,
        imported=tuple(zip(settings.classes, (int(n) for n in per_class))),
        regions=regions,
        skipped=skipped,
        hidden=hidden,
    )
