"""CRCHisto: `images/*.webp`, `pseudo_labels/*.png` at 0.5 mpp; labels drawn by a network (Sirinukunwattana 2016)."""

from __future__ import annotations

from pathlib import Path

from wsigen.training.data.picture_files import read_picture
from wsigen.training.data.source import DataSet, Picture, picture_names


def crchisto(folder: Path) -> DataSet:
    """Open the data set in `folder`. Raises DataError where it holds no pictures."""
    units = {name: name for name in picture_names(folder / "images", ".webp")}

    def load(name: str, class_count: int) -> Picture:
        files = (folder / "images" / f"{name}.webp", folder / "pseudo_labels" / f"{name}.png", None)
        return read_picture(name, name, *files, class_count)

    return DataSet("crchisto", 0.5, "machine", units, load)
