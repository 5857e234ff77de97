"""What a data set of labelled pictures is to `prepare`, whatever its format: names, and how to read one picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from wsigen.errors import DataError
from wsigen.system.folders import is_dropping
from wsigen.training.data.manifest import UNAVAILABLE

Labels = npt.NDArray[np.uint8]
Instances = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Picture:
    """One labelled picture of a data set, at the data set's own resolution."""

    group: str  # source image: the unit of splitting
    name: str  # unique in its data set
    rgb: npt.NDArray[np.uint8]  # (H, W, 3)
    labels: Labels  # (H, W): class, 255 where the picture is not available
    instances: Instances  # (H, W): nucleus ids, 0 background


@dataclass(frozen=True)
class DataSet:
    """A data set on disk: its source images, and how to read the pictures of one.

    A format is a module with one function, folder -> DataSet, that stands in `formats.DATA_SETS`.
    """

    name: str
    mpp: float | None  # microns per pixel; None: at the resolution asked for
    quality: Literal["manual", "machine"]  # who drew the labels
    units: Mapping[str, str]  # picture, or set of patches that make one -> source image
    load: Callable[[str, int], Picture]  # (unit, class count) -> picture
    own_holdout: tuple[str, ...] = ()  # source images held out for validation, beside `split.DEFAULT_HOLDOUT`

    @property
    def groups(self) -> tuple[str, ...]:
        """Source images, sorted."""
        return tuple(sorted(set(self.units.values())))


def every_tenth(units: Mapping[str, str]) -> tuple[str, ...]:
    """Every tenth source image: what a data set of unknown contents holds out for validation."""
    return tuple(sorted(set(units.values()))[9::10])


def check_labels(path: Path, labels: npt.NDArray[Any], shape: tuple[int, ...], class_count: int) -> None:
    """Raise DataError unless labels (H, W) uint8 fit their picture's shape and hold known classes or 255 alone."""
    if labels.shape != shape:
        raise DataError(f"{path}: {labels.shape[::-1]} px, its picture has {shape[::-1]}; make them equal")
    wrong = np.setdiff1d(labels, [*range(class_count + 1), UNAVAILABLE])
    if labels.dtype != np.uint8 or wrong.size:
        value = int(wrong[0]) if wrong.size else labels.dtype
        raise DataError(
            f"{path}: label {value}, expected 0..{class_count} or {UNAVAILABLE}; give its class or correct it"
        )


def picture_names(folder: Path, ending: str) -> list[str]:
    """Names without ending of the pictures in a folder, sorted. Raises DataError where there are none."""
    names = sorted(path.stem for path in folder.glob(f"*{ending}") if not is_dropping(path.name))
    if not names:
        raise DataError(f"{folder}: holds no *{ending}; name the folder of the data set, above images/")
    return names
