"""PanNuke: folds with `images.npy` and `masks.npy` at 0.25 mpp (Gamper et al. 2020), split by fold."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wsigen.errors import DataError
from wsigen.training.data.manifest import UNAVAILABLE
from wsigen.training.data.patch_arrays import PatchArrays, check_equal_patches, mapped_patches, to_bytes
from wsigen.training.data.source import DataSet, Picture, check_labels

# Channels neoplastic, inflammatory, connective, dead, epithelial -> epithelial, lymphocyte, connective, none
# (dead cells have no class of ours: their pixels are not available), epithelial.
CHANNELS = (2, 3, 6, UNAVAILABLE, 2)


def pannuke(folder: Path) -> DataSet:
    """Open the data set in `folder`, which holds out the last of several folds.

    Raises DataError for a file that is missing or does not fit.
    """
    arrays = _PanNukeArrays(folder)

    def load(name: str, class_count: int) -> Picture:
        rgb, labels, instances = arrays.patch(name)
        check_labels(folder, labels, rgb.shape[:2], class_count)
        return Picture(arrays.units[name], name, rgb, labels, instances)

    folds = sorted(set(arrays.units.values()))
    return DataSet("pannuke", 0.25, "machine", arrays.units, load, tuple(folds[1:][-1:]))


class _PanNukeArrays:
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
            pair = mapped_patches(image, 3), mapped_patches(mask, 6)
            check_equal_patches(image.parent, *pair)
            self._folds[f"fold{number}"] = pair
            self.units |= {f"fold{number}-{index:05d}": f"fold{number}" for index in range(len(pair[0]))}

    def patch(self, unit: str) -> PatchArrays:
        """RGB, classes and ids of a patch; ids of the channels are kept apart."""
        fold, _, index = unit.partition("-")
        images, masks = self._folds[fold]
        channels = np.asarray(masks[int(index)])[..., :5].astype(np.int64)
        labels, instances = np.zeros(channels.shape[:2], np.uint8), np.zeros(channels.shape[:2], np.int64)
        for number, kind in enumerate(CHANNELS):
            marked = channels[..., number] > 0
            labels[marked] = kind
            instances[marked] = channels[..., number][marked] * len(CHANNELS) + number
        instances[labels == UNAVAILABLE] = 0
        return (
            to_bytes(images[int(index)]),
            labels,
            np.unique(instances, return_inverse=True)[1].reshape(labels.shape).astype(np.int32),
        )
