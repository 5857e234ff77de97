"""A user's own folder: `images/*`, `labels/*.png`, optionally `instances/*.png`, at the resolution asked for."""

from __future__ import annotations

from pathlib import Path

from wsigen.errors import DataError
from wsigen.system.folders import is_dropping
from wsigen.training.data.picture_files import read_picture
from wsigen.training.data.source import DataSet, Picture, every_tenth


def own_folder(folder: Path) -> DataSet:
    """Open the user's own folder; it holds out every tenth picture. Raises DataError where it holds no pictures."""
    found = sorted(path for path in (folder / "images").glob("*.*") if not is_dropping(path.name))
    files = {path.stem: path for path in found}
    if not files:
        raise DataError(f"{folder / 'images'}: holds no pictures; put them there, labels of the same name in labels/")

    def load(name: str, class_count: int) -> Picture:
        ids = folder / "instances" / f"{name}.png"
        label = folder / "labels" / f"{name}.png"
        return read_picture(name, name, files[name], label, ids if ids.is_file() else None, class_count)

    units = {name: name for name in files}
    return DataSet("folder", None, "manual", units, load, every_tenth(units))
