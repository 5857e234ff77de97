"""Turn published colon data sets, or a user's own folder, into one training folder (see :mod:`.manifest`).

Every layout yields pictures at one resolution with class labels and nucleus ids; this module resamples, rebuilds ids
where a set publishes none, splits by source image and writes. Layouts:

- `lizard`: `images/*.webp`, `labels/*.png` at 0.5 mpp, classes only, 255 = not available (Graham et al. 2021);
- `consep`: `images/GROUP_NNN.jpg` of 256 px at 0.25 mpp, `instances/*.png`, `types.json` (Graham et al. 2019);
- `crchisto`: `images/*.webp`, `pseudo_labels/*.png` at 0.5 mpp; labels drawn by a network (Sirinukunwattana 2016);
- `conic`: `images.npy`, `labels.npy`, `patch_info.csv` at 0.5 mpp (Graham et al. 2022; `wsigen dataset`);
- `pannuke`: folds with `images.npy` and `masks.npy` at 0.25 mpp (Gamper et al. 2020), split by fold;
- `folder`: `images/*`, `labels/*.png`, optionally `instances/*.png`, at the resolution asked for.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from wsigen.errors import DataError
from wsigen.system.folders import is_dropping, is_empty
from wsigen.system.replacing import written_whole
from wsigen.system.text_files import read_text
from wsigen.training import manifest as folder_format
from wsigen.training.manifest import UNAVAILABLE, Manifest, Split, TrainingImage, read_label, read_rgb

Labels = npt.NDArray[np.uint8]
Instances = npt.NDArray[np.int32]
Progress = Callable[[int, int, str], None]  # pictures done, pictures in all, name

# Source images held out for validation unless others are named: each organ source and both annotation sets.
DEFAULT_HOLDOUT = (
    *("crag_6", "dpath_69", "glas_59", "glas_7", "pannuke_7"),
    *("test_2", "test_7"),
    *("img5", "img50"),
)

# Three of Lizard's pictures show the same tissue as CoNSeP's, under another number: found by comparing pixels (mean
# absolute difference 8 to 10 grey levels, next best above 20). They count as one source image when splitting.
SAME_TISSUE = {"consep_7": "train_27", "consep_8": "test_10", "consep_12": "train_16"}

# CoNSeP: 1 other, 2 inflammatory, 3 epithelial, 4 spindle-shaped -> connective, lymphocyte, epithelial, connective.
CONSEP_TYPES = {1: 6, 2: 3, 3: 2, 4: 6}
CONSEP_SIDE = 1000  # px of a source image
_CONSEP_PATCH = 256
_CONSEP_LAST = CONSEP_SIDE - _CONSEP_PATCH  # the last row and column are moved inwards and overlap their neighbours


@dataclass(frozen=True)
class Picture:
    """One picture of a layout at the resolution of the training folder."""

    group: str  # source image: the unit of splitting
    name: str  # unique in its layout
    rgb: npt.NDArray[np.uint8]  # (H, W, 3)
    labels: Labels  # (H, W): class, 255 where the picture is not available
    instances: Instances  # (H, W): nucleus ids, 0 background


@dataclass(frozen=True)
class LayoutSummary:
    """How much one layout gives to one side of the split."""

    source: str
    split: Split
    images: int
    groups: int
    pixels: int  # available ones
    class_pixels: tuple[int, ...]  # available pixels by class, background first
    windows: dict[int, int]  # window side in px -> windows on a grid of 32 px that are fully available


def prepare(
    sources: Mapping[str, str | Path],
    out: str | Path,
    mpp: float = 0.5,
    holdout: Sequence[str] | None = None,
    webp_quality: int | Mapping[str, int] | None = None,
    classes: Sequence[dict[str, Any]] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Write a training folder from data sets on disk; the same input gives the same files.

    Args:
        sources: layout (one of :data:`LAYOUTS`) -> its folder.
        out: folder to make. It appears only when complete.
        mpp: microns per pixel to write; a whole multiple of a layout's own (0.25 for consep and pannuke, 0.5 for the
            others). A `folder` is taken to be at `mpp` already.
        holdout: source images of the validation side. None: those of :data:`DEFAULT_HOLDOUT` that occur, and every
            tenth source image of a `folder` or `conic`, and the last of several folds of `pannuke`.
        webp_quality: None writes lossless WebP, 0..100 lossy; a mapping sets single layouts and leaves others lossless.
        classes: list of {index, name, colour}; None: the six of Lizard.
        overwrite: replace an earlier training folder.
        progress: called after each picture.

    Raises:
        DataError: an input that is missing or does not fit, or an output folder that is in the way.
    """
    _check_arguments(sources, mpp, webp_quality)
    target = Path(out)
    _check_target(target, overwrite)
    table = tuple(classes) if classes is not None else _default_classes()
    plans = [LAYOUTS[layout](Path(folder)) for layout, folder in sorted(sources.items())]
    validation = _validation_groups(plans, holdout)
    try:
        with written_whole(target) as partial:
            images = tuple(_write_all(plans, partial, mpp, validation, webp_quality, len(table), progress))
            result = Manifest(mpp, table, images)
            folder_format.save(result, partial)
            if target.exists():
                shutil.rmtree(target)
    except OSError as error:
        raise DataError(f"{target}: cannot be written ({error}); choose another folder or make room") from None
    return result


def summarise(folder: str | Path, windows: Sequence[int] = (128, 256), stride: int = 32) -> tuple[LayoutSummary, ...]:
    """Measure a training folder, by layout and side of the split; reads every label file."""
    found = folder_format.load(folder)
    rows = []
    for source in found.sources:
        for split in ("train", "val"):
            images = [image for image in found.of_split(split) if image.source == source]
            if images:
                rows.append(_summary(folder, source, split, images, len(found.classes), windows, stride))
    return tuple(rows)


def available_windows(labels: Labels, window: int, stride: int) -> npt.NDArray[np.int64]:
    """Return (N, 2) origins (x, y) of the windows on the grid of `stride` px in which every pixel is available."""
    height, width = labels.shape
    if height < window or width < window:
        return np.zeros((0, 2), np.int64)
    missing = np.pad((labels == UNAVAILABLE).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    y, x = np.arange(0, height - window + 1, stride)[:, None], np.arange(0, width - window + 1, stride)[None]
    count = missing[y + window, x + window] - missing[y, x + window] - missing[y + window, x] + missing[y, x]
    rows, columns = np.nonzero(count == 0)
    return np.stack([columns * stride, rows * stride], 1)


# --- nucleus ids from classes -----------------------------------------------------------------------------------------

_LEVEL_STEP = 0.25  # px between the depths at which a component is looked at
# Chosen on CoNSeP at 0.5 mpp, whose true ids are known: ids rebuilt from classes alone match (IoU > 0.5) with F1 0.85,
# connected components without a split with F1 0.72.
_SMOOTHING = 0.5  # px, standard deviation: keeps the rim's pixel steps from making peaks
_MIN_RISE = 0.3  # px that a peak must rise above the neck
_MIN_RISE_SHARE = 0.1  # the same as a share of the peak, so that large nuclei need a deeper waist
_MIN_SPLIT_AREA = 40  # px: below it a component is one nucleus
_MARGIN = 2  # px around a component, so that its rim has a distance


def rebuild_instances(labels: Labels, class_count: int) -> Instances:
    """Give every nucleus of a class map an id: (H, W) int32, 1, 2, …, 0 for background and unavailable pixels.

    Nuclei are the 4-connected components of each class; a component with a waist is cut there. The waist is sought in
    the smoothed distance from the rim: a component falls into the parts that remain above some depth, where each part
    rises clearly above that depth. Pixels below go to the nearest part.
    """
    instances = np.zeros(labels.shape, np.int32)
    count = 0
    for nucleus_class in range(1, class_count + 1):
        components, _ = ndimage.label(labels == nucleus_class)
        for index, box in enumerate(ndimage.find_objects(components), 1):
            mask = components[box] == index
            parts = _split_component(mask)
            instances[box][mask] = parts[mask] + count
            count += int(parts.max())
    return instances


def _split_component(mask: npt.NDArray[np.bool_]) -> Instances:
    if np.count_nonzero(mask) < _MIN_SPLIT_AREA:
        return mask.astype(np.int32)
    padded = np.pad(mask, _MARGIN)
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(padded), _SMOOTHING)
    seeds = np.zeros(padded.shape, np.int32)
    for index, core in enumerate(_cores(padded, depth), 1):
        seeds[core] = index
    rows, columns = ndimage.distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
    nearest = seeds[rows, columns][_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    return np.where(mask, nearest, 0)


def _cores(region: npt.NDArray[np.bool_], depth: npt.NDArray[np.float64]) -> list[npt.NDArray[np.bool_]]:
    """Return the parts into which `region` falls when it is flooded from below, itself if it stays whole."""
    peak = depth[region].max()
    for level in np.arange(depth[region].min(), peak - _MIN_RISE, _LEVEL_STEP):
        parts, count = ndimage.label(region & (depth > level), np.ones((3, 3), bool))
        if count < 2:
            continue
        peaks = ndimage.maximum(depth, parts, np.arange(1, count + 1))
        high = [i for i, top in enumerate(peaks, 1) if top - level >= max(_MIN_RISE, _MIN_RISE_SHARE * top)]
        if len(high) > 1:
            return [core for i in high for core in _cores(parts == i, depth)]
    return [region]


# --- layouts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """A data set on disk: its source images, and how to read the pictures of one."""

    name: str
    folder: Path
    mpp: float | None  # None: at the resolution asked for
    quality: Literal["manual", "machine"]
    units: dict[str, str]  # picture or set of patches -> source image
    load: Callable[[str, int], Picture]  # (unit, class count)


def _lizard(folder: Path) -> _Layout:
    names = _stems(folder / "images", ".webp")
    units = {name: SAME_TISSUE.get(name, name) for name in names}

    def load(name: str, class_count: int) -> Picture:
        files = (folder / "images" / f"{name}.webp", folder / "labels" / f"{name}.png", None)
        return _read_picture(name, units[name], *files, class_count)

    return _Layout("lizard", folder, 0.5, "manual", units, load)


def _crchisto(folder: Path) -> _Layout:
    units = {name: name for name in _stems(folder / "images", ".webp")}

    def load(name: str, class_count: int) -> Picture:
        files = (folder / "images" / f"{name}.webp", folder / "pseudo_labels" / f"{name}.png", None)
        return _read_picture(name, name, *files, class_count)

    return _Layout("crchisto", folder, 0.5, "machine", units, load)


def _own_folder(folder: Path) -> _Layout:
    found = sorted(path for path in (folder / "images").glob("*.*") if not is_dropping(path.name))
    files = {path.stem: path for path in found}
    if not files:
        raise DataError(f"{folder / 'images'}: holds no pictures; put them there, labels of the same name in labels/")

    def load(name: str, class_count: int) -> Picture:
        ids = folder / "instances" / f"{name}.png"
        label = folder / "labels" / f"{name}.png"
        return _read_picture(name, name, files[name], label, ids if ids.is_file() else None, class_count)

    return _Layout("folder", folder, None, "manual", {name: name for name in files}, load)


def _consep(folder: Path) -> _Layout:
    groups = sorted({name.rsplit("_", 1)[0] for name in _stems(folder / "images", ".jpg")})
    try:
        read = json.loads(read_text(folder / "types.json"))
        types = {str(name): {int(key): kind for key, kind in ids.items()} for name, ids in read.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{folder / 'types.json'}: cannot be read ({error}); it maps name -> id -> type") from None
    return _Layout(
        "consep", folder, 0.25, "manual", {name: name for name in groups}, lambda g, _: _stitch(folder, g, types)
    )


def _conic(folder: Path) -> _Layout:
    from wsigen.training.patch_arrays import ConicArrays

    arrays = ConicArrays(folder)

    def load(name: str, class_count: int) -> Picture:
        rgb, labels, instances = arrays.patch(name)
        _check_labels(folder / "labels.npy", labels, rgb.shape[:2], class_count)
        return Picture(arrays.units[name], name, rgb, labels, instances)

    return _Layout("conic", folder, 0.5, "manual", arrays.units, load)


def _pannuke(folder: Path) -> _Layout:
    from wsigen.training.patch_arrays import PanNukeArrays

    arrays = PanNukeArrays(folder)

    def load(name: str, class_count: int) -> Picture:
        rgb, labels, instances = arrays.patch(name)
        _check_labels(folder, labels, rgb.shape[:2], class_count)
        return Picture(arrays.units[name], name, rgb, labels, instances)

    return _Layout("pannuke", folder, 0.25, "machine", arrays.units, load)


LAYOUTS: dict[str, Callable[[Path], _Layout]] = {
    "lizard": _lizard,
    "consep": _consep,
    "crchisto": _crchisto,
    "conic": _conic,
    "pannuke": _pannuke,
    "folder": _own_folder,
}


def _consep_origins() -> list[tuple[int, int]]:
    """Return (x, y) of the 16 patches in order: nine inner ones by rows, the last row, the last column, corner."""
    inner = [_CONSEP_PATCH * i for i in range(3)]
    return [
        *((x, y) for y in inner for x in inner),
        *((x, _CONSEP_LAST) for x in inner),
        *((_CONSEP_LAST, y) for y in inner),
        (_CONSEP_LAST, _CONSEP_LAST),
    ]


def _stitch(folder: Path, group: str, types: dict[str, dict[int, Any]]) -> Picture:
    """Put the source image of 1000 px together again; where patches overlap, the first counts."""
    side = CONSEP_SIDE
    rgb, ids = np.zeros((side, side, 3), np.uint8), np.full((side, side), -1, np.int32)
    class_of = np.zeros(np.iinfo(np.uint16).max + 1, np.uint8)
    for index, (x, y) in enumerate(_consep_origins()):
        name = f"{group}_{index:03d}"
        picture = read_rgb(folder / "images" / f"{name}.jpg")
        patch = read_label(folder / "instances" / f"{name}.png")
        _check_patch(folder / "instances" / f"{name}.png", picture, patch)
        window = (slice(y, y + _CONSEP_PATCH), slice(x, x + _CONSEP_PATCH))
        fresh = ids[window] < 0
        if not np.array_equal(ids[window][~fresh], patch[~fresh]):
            raise DataError(
                f"{folder / 'instances' / name}.png: ids differ from the patch beside it; fetch CoNSeP again"
            )
        ids[window][fresh] = patch[fresh]
        rgb[window][fresh] = picture[fresh]
        for key, value in types.get(name, {}).items():
            if not 0 <= key < len(class_of):
                raise DataError(f"{folder / 'types.json'}: {name} has the id {key}, expected 0..{len(class_of) - 1}")
            class_of[key] = _consep_class(folder, name, value)
    labels = class_of[ids]
    if np.any((ids > 0) & (labels == 0)):
        missing = int(ids[(ids > 0) & (labels == 0)][0])
        raise DataError(f"{folder / 'types.json'}: no type for nucleus {missing} of {group}; add it")
    return Picture(group, group, rgb, labels, ids)


def _check_patch(path: Path, picture: npt.NDArray[np.uint8], ids: npt.NDArray[Any]) -> None:
    expected = (_CONSEP_PATCH, _CONSEP_PATCH)
    if ids.shape != expected or picture.shape[:2] != expected:
        raise DataError(f"{path}: picture {picture.shape[:2]} and ids {ids.shape}, expected {expected}; fetch it again")


def _consep_class(folder: Path, name: str, value: Any) -> int:
    if not isinstance(value, int) or value not in CONSEP_TYPES:
        raise DataError(f"{folder / 'types.json'}: {name} has type {value!r}, expected one of {sorted(CONSEP_TYPES)}")
    return CONSEP_TYPES[value]


def _read_picture(name: str, group: str, image: Path, label: Path, ids: Path | None, class_count: int) -> Picture:
    rgb, labels = read_rgb(image), read_label(label)
    _check_labels(label, labels, rgb.shape[:2], class_count)
    if ids is None:
        instances = rebuild_instances(labels, class_count)
    else:
        instances = read_label(ids).astype(np.int32)
        if instances.shape != labels.shape:
            raise DataError(f"{ids}: {instances.shape[::-1]} px, its labels have {labels.shape[::-1]}; make them equal")
        instances[(labels == 0) | (labels == UNAVAILABLE)] = 0
    return Picture(group, name, rgb, labels, instances)


def _check_labels(path: Path, labels: npt.NDArray[Any], shape: tuple[int, ...], class_count: int) -> None:
    if labels.shape != shape:
        raise DataError(f"{path}: {labels.shape[::-1]} px, its picture has {shape[::-1]}; make them equal")
    wrong = np.setdiff1d(labels, [*range(class_count + 1), UNAVAILABLE])
    if labels.dtype != np.uint8 or wrong.size:
        value = int(wrong[0]) if wrong.size else labels.dtype
        raise DataError(
            f"{path}: label {value}, expected 0..{class_count} or {UNAVAILABLE}; give its class or correct it"
        )


def _stems(folder: Path, ending: str) -> list[str]:
    names = sorted(path.stem for path in folder.glob(f"*{ending}") if not is_dropping(path.name))
    if not names:
        raise DataError(f"{folder}: holds no *{ending}; name the folder of the data set, above images/")
    return names


# --- resampling, split and files --------------------------------------------------------------------------------------


def _shrink(picture: Picture, factor: int) -> Picture:
    """Shrink by a whole factor: mean of each block of pixels, and the label at the block's centre (lower right)."""
    if factor == 1:
        return picture
    height, width = (side // factor * factor for side in picture.labels.shape)
    blocks = picture.rgb[:height, :width].reshape(height // factor, factor, width // factor, factor, 3)
    rgb = np.rint(blocks.mean((1, 3))).astype(np.uint8)
    phase = (slice(factor // 2, height, factor), slice(factor // 2, width, factor))
    return Picture(picture.group, picture.name, rgb, picture.labels[phase], picture.instances[phase])


def _factor(layout: _Layout, mpp: float) -> int:
    ratio = 1.0 if layout.mpp is None else mpp / layout.mpp
    if ratio < 1 or abs(ratio - round(ratio)) > 1e-6:
        raise DataError(f"mpp {mpp:g}: {layout.name} is at {layout.mpp:g}; take a whole multiple of it, such as 0.5")
    return round(ratio)


def _validation_groups(layouts: Sequence[_Layout], holdout: Sequence[str] | None) -> frozenset[str]:
    groups = {group for layout in layouts for group in layout.units.values()}
    if holdout is None:
        own = [group for layout in layouts for group in _own_validation(layout)]
        return frozenset(groups.intersection(DEFAULT_HOLDOUT).union(own))
    wanted = {SAME_TISSUE.get(name, name) for name in holdout}
    unknown = sorted(wanted - groups)
    if unknown:
        raise DataError(f"holdout {unknown[0]!r}: no source image is called so; there are: {', '.join(sorted(groups))}")
    return frozenset(wanted)


def _own_validation(layout: _Layout) -> list[str]:
    """Source images that a layout without a fixed list holds out."""
    groups = sorted(set(layout.units.values()))
    if layout.name == "pannuke":
        return groups[-1:] if len(groups) > 1 else []
    return groups[9::10] if layout.name in ("folder", "conic") else []


def _write_all(
    layouts: Sequence[_Layout],
    out: Path,
    mpp: float,
    validation: frozenset[str],
    webp_quality: int | Mapping[str, int] | None,
    class_count: int,
    progress: Progress | None,
) -> Iterator[TrainingImage]:
    for name in ("images", "labels", "instances"):
        (out / name).mkdir(parents=True)
    done, total = 0, sum(len(layout.units) for layout in layouts)
    for layout in layouts:
        factor = _factor(layout, mpp)
        quality = webp_quality.get(layout.name) if isinstance(webp_quality, Mapping) else webp_quality
        for unit in sorted(layout.units):
            picture = _shrink(layout.load(unit, class_count), factor)
            split: Split = "val" if picture.group in validation else "train"
            height, width = picture.labels.shape
            name = f"{layout.name}_{picture.name}"
            _write_picture(out, name, picture, quality)
            yield TrainingImage(name, layout.name, picture.group, split, width, height, layout.quality)
            done += 1
            if progress is not None:
                progress(done, total, name)


def _write_picture(out: Path, name: str, picture: Picture, quality: int | None) -> None:
    import pyvips

    ids = np.unique(picture.instances, return_inverse=True)[1].reshape(picture.instances.shape)
    if not (picture.instances == 0).any():
        ids = ids + 1  # id 0 means background, also where there is none
    if ids.max() > np.iinfo(np.uint16).max:
        raise DataError(f"{name}: {int(ids.max())} nuclei, at most 65535 fit one picture; cut it into smaller ones")
    rgb = np.where((picture.labels == UNAVAILABLE)[..., None], np.uint8(0), picture.rgb)
    options = {"lossless": True} if quality is None else {"Q": quality, "smart_subsample": True}
    try:
        image = pyvips.Image.new_from_array(rgb)
        image.webpsave(str(folder_format.image_path(out, name)), effort=4, keep="none", **options)
        for array, locate in (
            (picture.labels, folder_format.label_path),
            (ids.astype(np.uint16), folder_format.instance_path),
        ):
            plane = pyvips.Image.new_from_array(np.ascontiguousarray(array))
            plane.copy(interpretation="grey16" if array.dtype == np.uint16 else "b-w").pngsave(
                str(locate(out, name)), compression=9, keep="none"
            )
    except pyvips.Error as error:
        raise DataError(f"{out}: {name} cannot be written ({' '.join(str(error).split())}); make room") from None


def _summary(
    folder: str | Path,
    source: str,
    split: Split,
    images: Sequence[TrainingImage],
    class_count: int,
    windows: Sequence[int],
    stride: int,
) -> LayoutSummary:
    counts = np.zeros(256, np.int64)
    found = dict.fromkeys(windows, 0)
    for image in images:
        labels = read_label(folder_format.label_path(folder, image.name))
        counts += np.bincount(labels.ravel(), minlength=256)
        for window in windows:
            found[window] += len(available_windows(labels, window, stride))
    by_class = tuple(int(count) for count in counts[: class_count + 1])
    return LayoutSummary(
        source, split, len(images), len({image.group for image in images}), sum(by_class), by_class, found
    )


def _default_classes() -> tuple[dict[str, Any], ...]:
    from wsigen.models.config import LIZARD_CLASSES

    return tuple(LIZARD_CLASSES.to_config())


def _check_arguments(sources: Mapping[str, Any], mpp: float, quality: int | Mapping[str, int] | None) -> None:
    if not sources:
        raise DataError(f"no data set is named; name the folder of at least one of: {', '.join(LAYOUTS)}")
    for layout in sources:
        if layout not in LAYOUTS:
            raise DataError(f"layout {layout!r} is not known; there are: {', '.join(LAYOUTS)}")
    if not mpp > 0:
        raise DataError(f"mpp {mpp!r}: must be above 0, such as 0.5")
    values = quality.values() if isinstance(quality, Mapping) else [quality]
    for value in values:
        if value is not None and not 0 <= value <= 100:
            raise DataError(f"webp quality {value!r}: must be 0..100, or left out for lossless")


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists() or (target.is_dir() and is_empty(target)):
        return
    if not overwrite:
        raise DataError(f"{target}: exists and is not empty; choose another folder or overwrite it")
    # A slip of the pen must not delete a folder that this module did not write.
    if not (target / folder_format.FILE_NAME).is_file():
        raise DataError(
            f"{target}: holds no {folder_format.FILE_NAME}, so it is no training folder; choose another one"
        )
