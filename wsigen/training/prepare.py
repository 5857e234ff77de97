"""Turn published colon data sets, or a user's own folder, into one training folder (see `data.manifest`).

Every data set yields pictures at one resolution with class labels and nucleus ids (`data.formats` lists the
formats); this module resamples them, splits by source image and writes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsigen.errors import DataError
from wsigen.system.folders import is_empty
from wsigen.system.replacing import written_whole
from wsigen.system.reporting import Reporter, silent
from wsigen.training.data import manifest as folder_format
from wsigen.training.data.formats import DATA_SETS
from wsigen.training.data.manifest import UNAVAILABLE, Manifest, Split, TrainingImage
from wsigen.training.data.source import DataSet, Picture
from wsigen.training.data.split import validation_groups


def prepare(
    sources: Mapping[str, str | Path],
    out: str | Path,
    mpp: float = 0.5,
    holdout: Sequence[str] | None = None,
    webp_quality: int | Mapping[str, int] | None = None,
    classes: Sequence[dict[str, Any]] | None = None,
    overwrite: bool = False,
    progress: Reporter = silent,
) -> Manifest:
    """Write a training folder from data sets on disk; the same input gives the same files.

    Args:
        sources: data set (one of `data.formats.DATA_SETS`) -> its folder.
        out: folder to make. It appears only when complete.
        mpp: microns per pixel to write; a whole multiple of a data set's own (0.25 for consep and pannuke, 0.5 for the
            others). A `folder` is taken to be at `mpp` already.
        holdout: source images of the validation side. None: those of `data.split.DEFAULT_HOLDOUT` that occur,
            and every tenth source image of a `folder` or `conic`, and the last of several folds of `pannuke`.
        webp_quality: None writes lossless WebP, 0..100 lossy; a mapping sets single data sets, others are lossless.
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
    data_sets = [DATA_SETS[name](Path(folder)) for name, folder in sorted(sources.items())]
    validation = validation_groups(data_sets, holdout)
    try:
        with written_whole(target) as partial:
            images = tuple(_write_all(data_sets, partial, mpp, validation, webp_quality, len(table), progress))
            result = Manifest(mpp, table, images)
            folder_format.save(result, partial)
            if target.exists():
                shutil.rmtree(target)
    except OSError as error:
        raise DataError(f"{target}: cannot be written ({error}); choose another folder or make room") from None
    return result


def _shrink(picture: Picture, factor: int) -> Picture:
    """Shrink by a whole factor: mean of each block of pixels, and the label at the block's centre (lower right)."""
    if factor == 1:
        return picture
    height, width = (side // factor * factor for side in picture.labels.shape)
    blocks = picture.rgb[:height, :width].reshape(height // factor, factor, width // factor, factor, 3)
    rgb = np.rint(blocks.mean((1, 3))).astype(np.uint8)
    phase = (slice(factor // 2, height, factor), slice(factor // 2, width, factor))
    return Picture(picture.group, picture.name, rgb, picture.labels[phase], picture.instances[phase])


def _factor(data_set: DataSet, mpp: float) -> int:
    ratio = 1.0 if data_set.mpp is None else mpp / data_set.mpp
    if ratio < 1 or abs(ratio - round(ratio)) > 1e-6:
        raise DataError(
            f"mpp {mpp:g}: {data_set.name} is at {data_set.mpp:g}; take a whole multiple of it, such as 0.5"
        )
    return round(ratio)


def _write_all(
    data_sets: Sequence[DataSet],
    out: Path,
    mpp: float,
    validation: frozenset[str],
    webp_quality: int | Mapping[str, int] | None,
    class_count: int,
    progress: Reporter,
) -> Iterator[TrainingImage]:
    for name in ("images", "labels", "instances"):
        (out / name).mkdir(parents=True)
    done, total = 0, sum(len(data_set.units) for data_set in data_sets)
    for data_set in data_sets:
        factor = _factor(data_set, mpp)
        quality = webp_quality.get(data_set.name) if isinstance(webp_quality, Mapping) else webp_quality
        for unit in sorted(data_set.units):
            picture = _shrink(data_set.load(unit, class_count), factor)
            split: Split = "val" if picture.group in validation else "train"
            height, width = picture.labels.shape
            name = f"{data_set.name}_{picture.name}"
            _write_picture(out, name, picture, quality)
            yield TrainingImage(name, data_set.name, picture.group, split, width, height, data_set.quality)
            done += 1
            progress("preparing pictures", done, total)


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


def _default_classes() -> tuple[dict[str, Any], ...]:
    from wsigen.models.config import LIZARD_CLASSES

    return tuple(LIZARD_CLASSES.to_config())


def _check_arguments(sources: Mapping[str, Any], mpp: float, quality: int | Mapping[str, int] | None) -> None:
    if not sources:
        raise DataError(f"no data set is named; name the folder of at least one of: {', '.join(DATA_SETS)}")
    for name in sources:
        if name not in DATA_SETS:
            raise DataError(f"layout {name!r} is not known; there are: {', '.join(DATA_SETS)}")
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
