"""CoNIC: `images.npy`, `labels.npy`, `patch_info.csv` at 0.5 mpp (Graham et al. 2022; also of `wsigen dataset`)."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from pathlib import Path

import numpy as np

from wsigen.errors import DataError
from wsigen.system.text_files import read_text
from wsigen.training.data.patch_arrays import PatchArrays, check_equal_patches, mapped_patches, to_bytes
from wsigen.training.data.source import DataSet, Picture, check_labels, every_tenth

_MAX_INFO_BYTES = 1 << 26


def conic(folder: Path) -> DataSet:
    """Open the data set in `folder`, which holds out every tenth source image.

    Raises DataError for a file that is missing or does not fit.
    """
    arrays = _ConicArrays(folder)

    def load(name: str, class_count: int) -> Picture:
        rgb, labels, instances = arrays.patch(name)
        check_labels(folder / "labels.npy", labels, rgb.shape[:2], class_count)
        return Picture(arrays.units[name], name, rgb, labels, instances)

    return DataSet("conic", 0.5, "manual", arrays.units, load, every_tenth(arrays.units))


class _ConicArrays:
    """images.npy (N, S, S, 3) and labels.npy (N, S, S, 2: id, class); patch_info.csv names the source image.

    units: patch -> source image. Patches of one image overlap, so a set without patch_info.csv cannot be split.
    """

    def __init__(self, folder: Path) -> None:
        self._images = mapped_patches(folder / "images.npy", 3)
        self._labels = mapped_patches(folder / "labels.npy", 2)
        check_equal_patches(folder, self._images, self._labels)
        names = _first_column(folder / "patch_info.csv")
        if len(names) != len(self._images):
            raise DataError(
                f"{folder / 'patch_info.csv'}: {len(names)} rows for {len(self._images)} patches; fetch again"
            )
        count: defaultdict[str, int] = defaultdict(int)
        self.units: dict[str, str] = {}
        self._at: dict[str, int] = {}
        for index, name in enumerate(names):
            source = _source_of(name)
            unit = f"{source}-{count[source]:05d}"
            count[source] += 1
            self.units[unit], self._at[unit] = source, index

    def patch(self, unit: str) -> PatchArrays:
        """RGB, classes and ids of a patch."""
        rgb, labels = self._images[self._at[unit]], self._labels[self._at[unit]]
        return to_bytes(rgb), np.asarray(labels[..., 1]).astype(np.uint8), np.asarray(labels[..., 0]).astype(np.int32)


def _first_column(path: Path) -> list[str]:
    try:
        if path.stat().st_size > _MAX_INFO_BYTES:
            raise DataError(f"{path}: is too large for a list of patches; fetch it again")
        return [row[0] for row in csv.reader(io.StringIO(read_text(path))) if row][1:]
    except FileNotFoundError:
        raise DataError(f"{path}: not found; without it patches of one image could stand on both sides") from None
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}); its first column names the patches") from None


def _source_of(name: str) -> str:
    """`consep_1-0003` was cut from `consep_1`; `slide_0_x0_y256`, as `wsigen dataset` names it, from `slide_0`."""
    source = name.rsplit("-", 1)[0] if "-" in name else name.partition("_x")[0]
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in source) or "unnamed"
