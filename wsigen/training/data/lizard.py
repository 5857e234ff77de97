"""Lizard: `images/*.webp`, `labels/*.png` at 0.5 mpp, classes only, 255 = not available (Graham et al. 2021)."""

from __future__ import annotations

from pathlib import Path

from wsigen.training.data.picture_files import read_picture
from wsigen.training.data.source import DataSet, Picture, picture_names

# Three of Lizard's pictures show the same tissue as CoNSeP's, under another number: found by comparing pixels (mean
# absolute difference 8 to 10 grey levels, next best above 20). They count as one source image when splitting.
SAME_TISSUE = {"consep_7": "train_27", "consep_8": "test_10", "consep_12": "train_16"}


def lizard(folder: Path) -> DataSet:
    """Open the data set in `folder`. Raises DataError where it holds no pictures."""
    names = picture_names(folder / "images", ".webp")
    units = {name: SAME_TISSUE.get(name, name) for name in names}

    def load(name: str, class_count: int) -> Picture:
        files = (folder / "images" / f"{name}.webp", folder / "labels" / f"{name}.png", None)
        return read_picture(name, units[name], *files, class_count)

    return DataSet("lizard", 0.5, "manual", units, load)
