"""What masks are like: how many nuclei, how large, how they lie to one another.

A mask is measured in fields, each a picture or a square of a slide, so that bands of confidence come from drawing
fields anew. Every measure is kept as sums over fields that add up: a numerator and a denominator for each entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from wsigen.errors import DataError
from wsigen.layouts.regions import GLAND, LUMEN, epithelial_classes, region_plane
from wsigen.masks.conditions import tissue_near_nuclei
from wsigen.masks.slide_mask import SlideMask
from wsigen.masks.window import GLASS
from wsigen.models.stain import tissue_from_density
from wsigen.training.data import manifest as manifests
from wsigen.training.data.manifest import UNAVAILABLE

FIELD = 512  # px, side of the squares that a slide is cut into
LEAST_TISSUE = 0.1  # of a field, or it is left out
RADII_UM = np.arange(0.0, 62.0, 2.0)  # edges of the rings of the pair correlation
COARSE = 2  # px, of the plane that its edge correction is computed on
RESAMPLES = 400


@dataclass(frozen=True)
class Field:
    """A piece of a mask: classes (H, W) uint8, instances (H, W), tissue (H, W) 0 glass, known (H, W) bool."""

    classes: np.ndarray
    instances: np.ndarray
    tissue: np.ndarray
    known: np.ndarray
    mpp: float


@dataclass(frozen=True)
class Nuclei:
    """Whole nuclei of a field: class, place (px), area (µm²), eccentricity, direction of the long axis, touching."""

    kind: np.ndarray
    y: np.ndarray
    x: np.ndarray
    area: np.ndarray
    eccentricity: np.ndarray
    angle: np.ndarray
    touching: np.ndarray


Sums = dict[str, tuple[np.ndarray, np.ndarray]]  # for each measure numerators and denominators, (n,) each


def fields_of_folder(folder: Path, split: str = "val") -> Iterator[Field]:
    """Pictures of one side of a training folder."""
    manifest = manifests.load(folder)
    for entry in manifest.images:
        if entry.split == split:
            labels = manifests.read_label(manifests.label_path(folder, entry.name))
            instances = manifests.read_label(manifests.instance_path(folder, entry.name)).astype(np.int64)
            known = labels != UNAVAILABLE
            classes = np.where(known, labels, 0).astype(np.uint8)
            rgb = manifests.read_rgb(manifests.image_path(folder, entry.name))
            tissue = tissue_from_density(rgb, classes > 0, known)
            yield Field(classes, np.where(classes > 0, instances, 0), tissue, known, manifest.mpp)


def fields_of_mask(path: Path, class_count: int, side: int = FIELD) -> Iterator[Field]:
    """Squares of a slide mask that hold tissue. Raises DataError where nuclei have no ids."""
    with SlideMask.open(path, class_count) as mask:
        if not mask.has_instances:
            raise DataError(f"{path}: has no instance plane; nuclei that touch cannot be told apart without one")
        mpp = mask.mpp or 0.5
        for y in range(0, mask.height - side // 2, side):
            for x in range(0, mask.width - side // 2, side):
                read = mask.read(x, y, min(side, mask.width - x), min(side, mask.height - y))
                tissue = tissue_near_nuclei(read.classes, mpp) if read.tissue is None else read.tissue
                if (tissue != GLASS).mean() >= LEAST_TISSUE:
                    assert read.instances is not None
                    known = np.ones(read.shape, bool)
                    yield Field(read.classes, read.instances.astype(np.int64), tissue, known, mpp)


def fields_of(path: Path, class_count: int) -> Iterator[Field]:
    """Fields of the held-out side of a training folder, or of a mask."""
    return fields_of_folder(path) if path.is_dir() else fields_of_mask(path, class_count)


def nuclei_of(field: Field) -> tuple[Nuclei, np.ndarray]:
    """Nuclei of a field, and which of them no border cuts, (N,) bool."""
    rows, columns = np.nonzero(field.instances)
    if not len(rows):
        nothing = np.zeros(0)
        return Nuclei(*[nothing] * 7), np.zeros(0, bool)
    _, first, label = np.unique(field.instances[rows, columns], return_index=True, return_inverse=True)
    count = np.bincount(label)
    y, x = np.bincount(label, rows) / count, np.bincount(label, columns) / count
    dy, dx = rows - y[label], columns - x[label]
    yy, xx, xy = (np.bincount(label, p) / count for p in (dy * dy, dx * dx, dy * dx))
    spread = np.hypot((yy - xx) / 2, xy)
    large, small = (yy + xx) / 2 + spread + 1 / 12, (yy + xx) / 2 - spread + 1 / 12
    open_ = ndimage.binary_erosion(field.known)
    whole = np.bincount(label, ~open_[rows, columns]) == 0
    touching = np.zeros(len(count), bool)
    plane = np.zeros(field.instances.shape, np.int64)
    plane[rows, columns] = label + 1
    for a, b in ((plane[1:], plane[:-1]), (plane[:, 1:], plane[:, :-1])):
        meet = (a != b) & (a > 0) & (b > 0)
        touching[a[meet] - 1] = touching[b[meet] - 1] = True
    kind = field.classes[rows[first], columns[first]]
    eccentricity = np.sqrt(np.maximum(1 - small / large, 0))
    area = count * field.mpp**2
    return Nuclei(kind, y, x, area, eccentricity, 0.5 * np.arctan2(2 * xy, xx - yy), touching), whole


def sums_of(field: Field, classes: tuple[str, ...]) -> Sums:
    """All measures of a field, as sums."""
    nuclei, whole = nuclei_of(field)
    mm2 = ((field.tissue != GLASS) & field.known).sum() * (field.mpp / 1000) ** 2
    sums: Sums = {}
    present = range(1, len(classes) + 1)
    per_class = np.array([(nuclei.kind == k).sum() for k in present], np.float64)
    sums["nuclei per mm2"] = per_class, np.full(len(classes), mm2)
    for name, values in (("area, um2", nuclei.area), ("eccentricity", nuclei.eccentricity)):
        picked = [values[whole & (nuclei.kind == k)] for k in present]
        sums[f"{name}: mean"] = _means(picked)
        sums[f"{name}: mean square"] = _means([part**2 for part in picked])
    sums["share that touches another"] = _means([nuclei.touching[nuclei.kind == k] for k in present])
    sums["nearest neighbour, um: any"] = _means(_nearest(nuclei, present, field.mpp, same=False))
    sums["nearest neighbour, um: same class"] = _means(_nearest(nuclei, present, field.mpp, same=True))
    sums |= _glands(field, nuclei, classes)
    sums |= _pair_correlation(field, nuclei, classes)
    return sums


def _means(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([part.sum() for part in parts], np.float64), np.array([len(part) for part in parts], np.float64)


def _nearest(nuclei: Nuclei, present: Iterable[int], mpp: float, same: bool) -> list[np.ndarray]:
    """Distance of each nucleus of a class to the nearest one, of its own class or of any."""
    places = np.stack([nuclei.y, nuclei.x], 1)
    out = []
    for k in present:
        mine = places[nuclei.kind == k]
        others = mine if same else places
        out.append(cKDTree(others).query(mine, 2)[0][:, 1] * mpp if len(mine) and len(others) > 1 else np.zeros(0))
    return out


def _glands(field: Field, nuclei: Nuclei, classes: tuple[str, ...]) -> Sums:
    """How glands are built: the share of lumen in them, and how far their nuclei stand side by side.

    The latter is the mean of |sin| between a nucleus's long axis and the way to its nearest fellow: 2 / pi where they
    lie anyhow, 1 where they stand like a palisade.
    """
    epithelial = epithelial_classes(classes)
    zone = region_plane(field.classes, field.tissue, epithelial, field.mpp)
    gland, lumen = (((zone == part) & field.known).sum() for part in (GLAND, LUMEN))
    mine = np.isin(nuclei.kind, epithelial) & (nuclei.eccentricity > 0.6)
    sines = np.zeros(0)
    if mine.sum() > 1:
        places = np.stack([nuclei.y[mine], nuclei.x[mine]], 1)
        way = places[cKDTree(places).query(places, 2)[1][:, 1]] - places
        sines = np.abs(np.sin(np.arctan2(way[:, 0], way[:, 1]) - nuclei.angle[mine]))
    return {
        "lumen in glands": (np.array([float(lumen)]), np.array([float(gland + lumen)])),
        "side by side": _means([sines]),
    }


def _pair_correlation(field: Field, nuclei: Nuclei, classes: tuple[str, ...]) -> Sums:
    """g(r) within and between classes: pairs at a distance over those that a field without order would hold.

    The denominator is exact for any shape of the field: pairs of points of its tissue at the distance, counted by a
    Fourier transform on a plane of COARSE px.
    """
    area = (field.tissue != GLASS) & field.known
    height, width = (side // COARSE for side in area.shape)
    plane = area[: height * COARSE, : width * COARSE].reshape(height, COARSE, width, COARSE).mean((1, 3))
    reach = int(RADII_UM[-1] / field.mpp / COARSE) + 2
    shape = (height + reach, width + reach)
    spectrum = np.fft.rfft2(plane, shape)
    overlap = np.fft.irfft2(np.abs(spectrum) ** 2, shape)
    dy, dx = (np.minimum(np.arange(side), side - np.arange(side)) for side in shape)
    distance = np.hypot(dy[:, None], dx[None]) * COARSE * field.mpp
    rings = np.histogram(distance, RADII_UM, weights=np.maximum(overlap, 0))[0]
    total = plane.sum() ** 2
    sums: Sums = {}
    names = {index + 1: name for index, name in enumerate(classes)}
    for a, b in _pairs_of_classes(len(classes)):
        mine, other = (np.stack([nuclei.y, nuclei.x], 1)[nuclei.kind == k] * field.mpp for k in (a, b))
        pairs = _pair_counts(mine, other, a == b)
        number = len(mine) * (len(other) - (a == b))
        expected = rings / max(total, 1) * number
        sums[f"g(r): {names[a]} - {names[b]}"] = pairs, expected
    return sums


def _pairs_of_classes(count: int) -> Iterator[tuple[int, int]]:
    for a in range(1, count + 1):
        for b in range(a, count + 1):
            yield a, b


def _pair_counts(mine: np.ndarray, other: np.ndarray, same: bool) -> np.ndarray:
    """Ordered pairs whose distance lies in each ring."""
    if not len(mine) or not len(other):
        return np.zeros(len(RADII_UM) - 1)
    pairs = cKDTree(mine).sparse_distance_matrix(cKDTree(other), RADII_UM[-1], output_type="coo_matrix")
    distances = pairs.data[pairs.row != pairs.col] if same else pairs.data
    return np.histogram(distances, RADII_UM)[0].astype(np.float64)


@dataclass(frozen=True)
class Measured:
    """Measures of a set of fields: for each the value (n,), and a band of 95 % from drawing fields anew, (2, n)."""

    values: Mapping[str, np.ndarray]
    bands: Mapping[str, np.ndarray]
    fields: int
    sums: Mapping[str, tuple[np.ndarray, np.ndarray]]  # by field: (fields, n) each


def measure(fields: Iterable[Field], classes: tuple[str, ...], seed: int = 0) -> Measured:
    """Measure fields. Raises DataError where there are none."""
    return collected([sums_of(field, classes) for field in fields], seed)


def collected(parts: list[Sums], seed: int = 0) -> Measured:
    """Put the sums of fields together."""
    if not parts:
        raise DataError("no field holds tissue; give masks with some")
    sums = {name: tuple(np.stack([part[name][side] for part in parts]) for side in range(2)) for name in parts[0]}
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(parts), np.full(len(parts), 1 / len(parts)), RESAMPLES)
    values, bands = {}, {}
    for name, (numerator, denominator) in sums.items():
        values[name] = _ratio(numerator.sum(0), denominator.sum(0))
        drawn = _ratio(weights @ numerator, weights @ denominator)
        bands[name] = _band(drawn)
    return Measured(values, bands, len(parts), sums)  # type: ignore[arg-type]


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)


def _band(drawn: np.ndarray) -> np.ndarray:
    """2.5th and 97.5th percentiles over draws, (2, n); nan where no draw has a value."""
    out = np.full((2, drawn.shape[1]), np.nan)
    for column in range(drawn.shape[1]):
        finite = drawn[np.isfinite(drawn[:, column]), column]
        if len(finite):
            out[:, column] = np.percentile(finite, (2.5, 97.5))
    return out


@dataclass(frozen=True)
class BorderProfile:
    """Nuclei at borders of windows: their number within NEAR px of one over that elsewhere, with a 95 % band.

    ``area``: likewise of their mean area. ``control``: the same about lines midway between borders.
    """

    number: tuple[float, float, float]
    area: tuple[float, float, float]
    control: tuple[float, float, float]


NEAR = 6  # px


def border_profile(path: Path, class_count: int, window: int, overlap: int, seed: int = 0) -> BorderProfile:
    """Look for the borders of windows in a sampled mask: 1 is none. See `wsigen.painting.grid`."""
    from wsigen.evaluation.seams import border_positions

    with SlideMask.open(path, class_count) as mask:
        size = (mask.width, mask.height)
    lines = [border_positions(side, window, overlap) for side in size]
    shift = (window - overlap) // 2
    places, areas = _places(path, class_count)
    block = (places // 1024).astype(int)
    blocks = np.unique(block, axis=0, return_inverse=True)[1].ravel()
    near = _near(places, lines)
    control = _near(places, [(line + shift) % side for line, side in zip(lines, size, strict=True)])
    share = _share(lines, size)
    rng = np.random.default_rng(seed)
    count = blocks.max() + 1 if len(blocks) else 1
    draws = rng.multinomial(count, np.full(count, 1 / count), RESAMPLES)

    def excess(mark: np.ndarray) -> tuple[float, float, float]:
        inside, all_ = np.bincount(blocks, mark, count), np.bincount(blocks, minlength=count)
        values = np.concatenate([[inside.sum() / all_.sum()], (draws @ inside) / np.maximum(draws @ all_, 1)])
        values = values / (1 - values) / (share / (1 - share))
        return _with_band(values)

    def larger() -> tuple[float, float, float]:
        parts = [np.bincount(blocks, w, count) for w in (near * areas, near, ~near * areas, ~near)]
        drawn = [np.concatenate([[part.sum()], draws @ part]) for part in parts]
        values = _ratio(_ratio(drawn[0], drawn[1]), _ratio(drawn[2], drawn[3]))
        return _with_band(values)

    return BorderProfile(excess(near), larger(), excess(control))


def _with_band(values: np.ndarray) -> tuple[float, float, float]:
    """The first value, and percentiles of the others, which are draws."""
    low, high = np.nanpercentile(values[1:], (2.5, 97.5))
    return float(values[0]), float(low), float(high)


def _places(path: Path, class_count: int) -> tuple[np.ndarray, np.ndarray]:
    """Middle (x, y) and area of every nucleus of a mask, px: (N, 2), (N,)."""
    sums: dict[str, np.ndarray] = {}
    with SlideMask.open(path, class_count) as mask:
        y0 = 0
        parts = []
        for band in mask.bands():
            assert band.instances is not None
            rows, columns = np.nonzero(band.instances)
            ids, label = np.unique(band.instances[rows, columns], return_inverse=True)
            stack = [np.bincount(label, w) for w in (np.ones(len(rows)), columns, rows + y0)]
            parts.append(np.stack([ids, *stack], 1) if len(ids) else np.zeros((0, 4)))
            y0 += band.shape[0]
    table = np.concatenate(parts)
    ids, label = np.unique(table[:, 0], return_inverse=True)
    for name, column in (("area", 1), ("x", 2), ("y", 3)):
        sums[name] = np.bincount(label, table[:, column])
    return np.stack([sums["x"], sums["y"]], 1) / sums["area"][:, None], sums["area"]


def _near(places: np.ndarray, lines: list[np.ndarray]) -> np.ndarray:
    near = np.zeros(len(places), bool)
    for axis, line in enumerate(lines):
        if len(line):
            ordered = np.sort(line)
            after = np.searchsorted(ordered, places[:, axis]).clip(1, max(1, len(ordered) - 1))
            gap = np.minimum(
                np.abs(places[:, axis] - ordered[after - 1]),
                np.abs(places[:, axis] - ordered[np.minimum(after, len(ordered) - 1)]),
            )
            near |= gap <= NEAR
    return near


def _share(lines: list[np.ndarray], size: tuple[int, int]) -> float:
    """Share of a slide's pixels near a line."""
    covered = [min(1.0, 2 * NEAR * len(line) / side) for line, side in zip(lines, size, strict=True)]
    return 1 - (1 - covered[0]) * (1 - covered[1])
