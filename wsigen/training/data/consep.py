"""CoNSeP: `images/GROUP_NNN.jpg` of 256 px at 0.25 mpp, `instances/*.png`, `types.json` (Graham et al. 2019)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsigen.errors import DataError
from wsigen.system.text_files import read_text
from wsigen.training.data.manifest import read_label, read_rgb
from wsigen.training.data.source import DataSet, Picture, picture_names

# Types 1 other, 2 inflammatory, 3 epithelial, 4 spindle-shaped -> connective, lymphocyte, epithelial, connective.
CLASS_OF_TYPE = {1: 6, 2: 3, 3: 2, 4: 6}
_SIDE = 1000  # px of a source image
_PATCH = 256
_LAST = _SIDE - _PATCH  # the last row and column are moved inwards and overlap their neighbours


def consep(folder: Path) -> DataSet:
    """Open the data set in `folder`. Raises DataError for no pictures, or a types.json that cannot be read."""
    groups = sorted({name.rsplit("_", 1)[0] for name in picture_names(folder / "images", ".jpg")})
    try:
        read = json.loads(read_text(folder / "types.json"))
        types = {str(name): {int(key): kind for key, kind in ids.items()} for name, ids in read.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{folder / 'types.json'}: cannot be read ({error}); it maps name -> id -> type") from None
    units = {name: name for name in groups}
    return DataSet("consep", 0.25, "manual", units, lambda group, _: _stitch(folder, group, types))


def _origins() -> list[tuple[int, int]]:
    """Return (x, y) of the 16 patches in order: nine inner ones by rows, the last row, the last column, corner."""
    inner = [_PATCH * i for i in range(3)]
    return [
        *((x, y) for y in inner for x in inner),
        *((x, _LAST) for x in inner),
        *((_LAST, y) for y in inner),
        (_LAST, _LAST),
    ]


def _stitch(folder: Path, group: str, types: dict[str, dict[int, Any]]) -> Picture:
    """Put the source image of 1000 px together again; where patches overlap, the first counts."""
    side = _SIDE
    rgb, ids = np.zeros((side, side, 3), np.uint8), np.full((side, side), -1, np.int32)
    class_of = np.zeros(np.iinfo(np.uint16).max + 1, np.uint8)
    for index, (x, y) in enumerate(_origins()):
        name = f"{group}_{index:03d}"
        picture = read_rgb(folder / "images" / f"{name}.jpg")
        patch = read_label(folder / "instances" / f"{name}.png")
        _check_patch(folder / "instances" / f"{name}.png", picture, patch)
        window = (slice(y, y + _PATCH), slice(x, x + _PATCH))
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
            class_of[key] = _class_of(folder, name, value)
    labels = class_of[ids]
    if np.any((ids > 0) & (labels == 0)):
        missing = int(ids[(ids > 0) & (labels == 0)][0])
        raise DataError(f"{folder / 'types.json'}: no type for nucleus {missing} of {group}; add it")
    return Picture(group, group, rgb, labels, ids)


def _check_patch(path: Path, picture: npt.NDArray[np.uint8], ids: npt.NDArray[Any]) -> None:
    expected = (_PATCH, _PATCH)
    if ids.shape != expected or picture.shape[:2] != expected:
        raise DataError(f"{path}: picture {picture.shape[:2]} and ids {ids.shape}, expected {expected}; fetch it again")


def _class_of(folder: Path, name: str, value: Any) -> int:
    if not isinstance(value, int) or value not in CLASS_OF_TYPE:
        raise DataError(f"{folder / 'types.json'}: {name} has type {value!r}, expected one of {sorted(CLASS_OF_TYPE)}")
    return CLASS_OF_TYPE[value]
