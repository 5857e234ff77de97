"""Label images to a slide mask: values become classes, ids stay apart, in two passes over the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from wsigen.errors import MaskError
from wsigen.masks.importers.class_maps import SKIP, TISSUE_REGION, UNCLASSIFIED, class_map
from wsigen.masks.importers.report import ImportReport, refuse_unknown
from wsigen.masks.importers.settings import ImportSettings, check_size
from wsigen.masks.importers.sources import LabelSource, Progress, damage_is_one_line
from wsigen.masks.slide_mask import SlideMask
from wsigen.masks.window import MaskWindow
from wsigen.masks.writer import write_slide_mask

MAX_ID = 2**32 - 1


def import_labels(
    source: LabelSource, out: Path, settings: ImportSettings, overwrite: bool, progress: Progress
) -> ImportReport:
    """Write the mask of a label image; raises what `import_mask` raises."""
    if settings.tissue is not None:
        raise MaskError(f"{settings.tissue}: tissue outlines go with outlines of nuclei; {source.path} is an image")
    try:
        check_size(source.path, source.width, source.height)
        mpp = _mpp(source, settings)
        with damage_is_one_line(source.path, source.format):
            values, pixels, class_of_id = _survey(source, progress)
        targets = _targets(source, settings, values, pixels)
        lookup = _Lookup(values, targets)
        instances = source.kind == "instance" or source.has_ids
        bands = _mapped(source, lookup, instances, progress)
        write_slide_mask(out, source.width, source.height, mpp, bands, instances, False, overwrite)
    finally:
        source.close()
    return _report(source, out, settings, mpp, values, targets, class_of_id)


def _mpp(source: LabelSource, settings: ImportSettings) -> float | None:
    """Scale of the mask; of a smaller copy of the slide it follows from the sizes."""
    if settings.size is None:
        return settings.mpp or source.mpp
    ratio = settings.size[0] / source.width
    if abs(settings.size[1] / source.height / ratio - 1) > 0.01:
        size = f"{settings.size[0]} x {settings.size[1]}"
        raise MaskError(
            f"{source.path}: is {source.width} x {source.height} px and the slide {size}: another shape; give its slide"
        )
    return None if settings.mpp is None else settings.mpp * ratio


def _survey(source: LabelSource, progress: Progress) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Values but for 0 that occur, sorted, their pixels, and (ids given beside classes) the first value of each id."""
    found = np.zeros((0,), np.int64), np.zeros((0,), np.int64)
    first_of_id = np.zeros((0, 2), np.int64)
    row = 0
    for band in source.bands():
        row += len(band.values)
        progress("reading", min(1.0, row / source.height))
        kinds, counts = _counted(band.values)
        found = _merged(found, (kinds, counts))
        if band.ids is not None:
            marked = band.ids != 0
            ids, first = np.unique(band.ids[marked], return_index=True)
            pairs = np.stack([ids.astype(np.int64), band.values[marked][first].astype(np.int64)], 1)
            first_of_id = np.concatenate([first_of_id, pairs])
            first_of_id = first_of_id[np.unique(first_of_id[:, 0], return_index=True)[1]]
    if row < source.height:
        raise ValueError(f"it ends after {row} of {source.height} rows")
    kinds, counts = found
    if len(kinds) and (kinds[0] < 0 or kinds[-1] > MAX_ID):
        raise ValueError(f"labels go from {kinds[0]} to {kinds[-1]}; they must be 0 to {MAX_ID}")
    return kinds, counts, first_of_id if source.has_ids else None


def _counted(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values but for 0 and how many pixels have them; by runs, which is far faster than by pixels."""
    if values.dtype.itemsize == 1:
        counts = np.bincount(values.ravel().view(np.uint8), minlength=256)
        kinds = np.nonzero(counts)[0]
        kinds = kinds[kinds > 0]
        return kinds.astype(np.int64), counts[kinds]
    flat = values.ravel()
    starts = np.concatenate([[0], np.nonzero(flat[1:] != flat[:-1])[0] + 1])
    lengths = np.diff(np.append(starts, flat.size))
    labels = flat[starts]
    kept = labels != 0
    kinds, of = np.unique(labels[kept], return_inverse=True)
    return kinds.astype(np.int64), np.bincount(of, weights=lengths[kept], minlength=len(kinds)).astype(np.int64)


def _merged(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    kinds, of = np.unique(np.concatenate([a[0], b[0]]), return_inverse=True)
    weights = np.concatenate([a[1], b[1]])
    return kinds, np.bincount(of, weights=weights, minlength=len(kinds)).astype(np.int64)


def _name(source: LabelSource, value: int) -> str:
    missing = str(value) if source.kind == "class" else UNCLASSIFIED
    return source.class_of.get(value, missing)


def _targets(source: LabelSource, settings: ImportSettings, values: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Class of every value, 0 for what is left out."""
    mapping = class_map(settings.classes, settings.class_maps, source.built_in)
    names = [_name(source, int(value)) for value in values]
    resolved = {name: mapping.resolve(name) for name in set(names)}
    if source.kind == "class" and not settings.class_maps and not source.class_of:
        # A plain class image without a map has the model's own numbers.
        resolved |= {n: int(n) for n in resolved if resolved[n] is None and 1 <= int(n) <= len(settings.classes)}
    unknown = Counter[str]()
    for name, count in zip(names, pixels.tolist()):
        if resolved[name] is None:
            unknown[name if source.kind != "class" else f"{name} (pixels)"] += 1 if source.kind == "instance" else count
    if unknown and not settings.skip_unknown:
        refuse_unknown(source.path, unknown, settings.classes)
    if any(target == TISSUE_REGION for target in resolved.values()):
        raise MaskError(f"{source.path}: a class of a label image cannot become tissue; give tissue as outlines")
    chosen = [resolved[name] for name in names]
    return np.array([0 if target in (None, SKIP) else target for target in chosen], np.uint8)


class _Lookup:
    """value -> class: a table where values are small, else a search in the sorted values."""

    def __init__(self, values: np.ndarray, targets: np.ndarray) -> None:
        self._values, self._targets = values, targets
        self._table: np.ndarray | None = None
        largest = int(values[-1]) if len(values) else 0
        if largest < 1 << 24:
            self._table = np.zeros(largest + 1, np.uint8)
            self._table[values] = targets

    def __call__(self, labels: np.ndarray) -> np.ndarray:
        if self._table is not None:
            return self._table[labels]
        out = np.zeros(labels.shape, np.uint8)
        marked = labels != 0
        out[marked] = self._targets[np.searchsorted(self._values, labels[marked])]
        return out


def _mapped(source: LabelSource, lookup: _Lookup, instances: bool, progress: Progress) -> Iterator[MaskWindow]:
    row = 0
    with damage_is_one_line(source.path, source.format):
        for band in source.bands():
            row += len(band.values)
            progress("writing", min(1.0, row / source.height))
            classes = lookup(band.values)
            ids: np.ndarray | None = None
            if instances:
                given = band.values if source.kind == "instance" else band.ids
                assert given is not None
                ids = np.where(classes > 0, given, 0).astype(np.uint32)
            yield MaskWindow(classes, ids, None)


def _report(
    source: LabelSource,
    out: Path,
    settings: ImportSettings,
    mpp: float | None,
    values: np.ndarray,
    targets: np.ndarray,
    class_of_id: np.ndarray | None,
) -> ImportReport:
    skipped = Counter[str]()
    hidden = 0
    if source.kind == "instance":
        per_class = np.bincount(targets, minlength=len(settings.classes) + 1)[1:]
        for value in values[targets == 0].tolist():
            skipped[_name(source, value)] += 1
        hidden = len(set(source.class_of) - set(values.tolist()) - {0})
    elif class_of_id is not None:
        of_value = dict(zip(values.tolist(), targets.tolist()))
        classes = np.array([of_value.get(value, 0) for value in class_of_id[:, 1].tolist()], np.int64)
        per_class = np.bincount(classes, minlength=len(settings.classes) + 1)[1:]
        for value in class_of_id[classes == 0, 1].tolist():
            skipped[_name(source, value) if value else UNCLASSIFIED] += 1
    else:
        with SlideMask.open(out, len(settings.classes)) as written:
            per_class = np.array(written.count_nuclei())
        for value in values[targets == 0].tolist():
            skipped[f"class {_name(source, value)}"] += 1
    return ImportReport(
        format=source.format,
        out=out,
        width=source.width,
        height=source.height,
        mpp=mpp,
        found=int(per_class.sum()) + sum(skipped.values()) + hidden,
        imported=tuple(zip(settings.classes, (int(n) for n in per_class))),
        skipped=skipped,
        hidden=hidden,
    )
