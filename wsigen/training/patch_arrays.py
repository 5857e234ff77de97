"""Data sets that are published as arrays of patches: CoNIC and PanNuke.

Arrays are mapped, never loaded whole, and only numbers are read: a file that holds Python objects is refused, since
opening one can run code.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wsigen.errors import DataError
from wsigen.system.text_files import read_text
from wsigen.training.manifest import UNAVAILABLE

MAX_INFO_BYTES = 1 << 26
_PatchArrays = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.int32]]

# PanNuke's channels neoplastic, inflammatory, connective, dead, epithelial -> epithelial, lymphocyte, connective, none
# (dead cells have no class of ours: their pixels are not available), epithelial.
PANNUKE_CHANNELS = (2, 3, 6, UNAVAILABLE, 2)


class ConicArrays:
    """images.npy (N, S, S, 3) and labels.npy (N, S, S, 2: id, class); patch_info.csv names the source image.

    units: patch -> source image. Patches of one image overlap, so a set without patch_info.csv cannot be split.
    """

    def __init__(self, folder: Path) -> None:
        self._images = _mapped(folder / "images.npy", 3)
        self._labels = _mapped(folder / "labels.npy", 2)
        _check_equal(folder, self._images, self._labels)
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

    def patch(self, unit: str) -> _PatchArrays:
        """RGB, classes and ids of a patch."""
        rgb, labels = self._images[self._at[unit]], self._labels[self._at[unit]]
        return _rgb(rgb), np.asarray(labels[..., 1]).astype(np.uint8), np.asarray(labels[..., 0]).astype(np.int32)


class PanNukeArrays:
    """Folds, each a pair images.npy (N, S, S, 3) and masks.npy (N, S, S, 6: ids by class) somewhere below the folder.

    units: patch -> fold. PanNuke does not say which patches belong to one slide, only that folds are apart.
    """

    def __init__(self, folder: Path) -> None:
        images, masks = sorted(folder.rglob("images.npy")), sorted(folder.rglob("masks.npy"))
        if not images or len(images) != len(masks):
            raise DataError(
                f"{folder}: {len(images)} images.npy and {len(masks)} masks.npy; give the folder of the folds"
            )
        self._folds: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.units: dict[str, str] = {}
        for number, (image, mask) in enumerate(zip(images, masks), 1):
            pair = _mapped(image, 3), _mapped(mask, 6)
            _check_equal(image.parent, *pair)
            self._folds[f"fold{number}"] = pair
            self.units |= {f"fold{number}-{index:05d}": f"fold{number}" for index in range(len(pair[0]))}

    def patch(self, unit: str) -> _PatchArrays:
        """RGB, classes and ids of a patch; ids of the channels are kept apart."""
        fold, _, index = unit.partition("-")
        images, masks = self._folds[fold]
        channels = np.asarray(masks[int(index)])[..., :5].astype(np.int64)
        labels, instances = np.zeros(channels.shape[:2], np.uint8), np.zeros(channels.shape[:2], np.int64)
        for number, kind in enumerate(PANNUKE_CHANNELS):
            marked = channels[..., number] > 0
            labels[marked] = kind
            instances[marked] = channels[..., number][marked] * len(PANNUKE_CHANNELS) + number
        instances[labels == UNAVAILABLE] = 0
        return (
            _rgb(images[int(index)]),
            labels,
            np.unique(instances, return_inverse=True)[1].reshape(labels.shape).astype(np.int32),
        )


def _mapped(path: Path, channels: int) -> np.ndarray:
    """An array of patches (N, S, S, channels) of numbers, mapped."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: not found; give the folder of the data set") from None
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: cannot be read ({reason}); arrays of objects are refused, fetch it again") from None
    if (
        not isinstance(array, np.ndarray)
        or array.ndim != 4
        or array.shape[3] != channels
        or array.dtype.kind not in "uif"
    ):
        shape = getattr(array, "shape", "an archive")
        raise DataError(f"{path}: is {shape}; expected (patches, side, side, {channels}) of numbers")
    return array


def _check_equal(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    if images.shape[:3] != labels.shape[:3]:
        raise DataError(f"{folder}: images are {images.shape[:3]}, labels {labels.shape[:3]}; fetch the set again")


def _rgb(pixels: np.ndarray) -> npt.NDArray[np.uint8]:
    """PanNuke publishes its pictures as doubles of whole values."""
    return np.ascontiguousarray(np.clip(np.asarray(pixels), 0, 255).astype(np.uint8))


def _first_column(path: Path) -> list[str]:
    try:
        if path.stat().st_size > MAX_INFO_BYTES:
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
