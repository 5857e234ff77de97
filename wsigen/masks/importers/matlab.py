"""MATLAB files of label images: Lizard, CoNSeP, and the tiles of HoVer-Net, told apart by their variables.

All have `inst_map` (H, W). Lizard: `id` (N, 1) and `class` (N, 1). HoVer-Net tiles: `inst_type` (N, 1), and
`inst_uid` where ids have gaps. CoNSeP: also `type_map` (H, W). A file is unpacked only as far as its declared sizes.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wsigen.errors import MaskError
from wsigen.masks.importers.sources import Head, Labels, LabelSource, damage_is_one_line

MAX_UNPACKED = 1_000_000_000
MAX_PIXELS = 1 << 26  # 8,192 x 8,192; tiles are smaller, and labels may be doubles
_HEADER = 128
_PACKED = 15
_CHUNK = 1 << 20
_TABLES = ("id", "class", "inst_uid", "inst_type")


class MatlabSource(LabelSource):
    """The instance map of a MATLAB file with the types of its nuclei."""

    format = "MATLAB label file"
    title = ".mat of Lizard, CoNSeP or HoVer-Net"

    @classmethod
    def recognises(cls, head: Head) -> bool:
        """See `OutlineSource`."""
        return head.data.startswith(b"MATLAB 5.0") or head.data[126:128] in (b"IM", b"MI")

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.kind = "instance"
        with damage_is_one_line(path, self.format):
            _check_unpacked_size(path)
            shapes = _variables(path)
            if "inst_map" not in shapes:
                found = ", ".join(sorted(shapes)[:10]) or "nothing"
                raise MaskError(
                    f"{path}: holds no inst_map but {found}; give the labels of Lizard, CoNSeP or HoVer-Net"
                )
            self.height, self.width = _image_shape(path, shapes["inst_map"])
            self._pixels, self.class_of = self._load(shapes)

    def _load(self, shapes: dict[str, tuple[int, ...]]) -> tuple[np.ndarray, dict[int, str]]:
        tables = [name for name in _TABLES if name in shapes]
        data = _loadmat(self.path, ["inst_map", *tables])
        pixels = _whole(self.path, "inst_map", data["inst_map"])
        table = {name: _whole(self.path, name, data[name]).ravel() for name in tables}
        if "class" in table:
            self.format, self.built_in = "Lizard .mat", ("lizard",)
            ids, types = table.get("id", np.arange(1, len(table["class"]) + 1)), table["class"]
        elif "inst_type" in table:
            self.format = "HoVer-Net or CoNSeP .mat"
            types = table["inst_type"]
            present = np.unique(pixels[pixels > 0])
            ids = table.get("inst_uid", present if len(present) == len(types) else np.arange(1, len(types) + 1))
        else:
            return pixels, {}
        if len(ids) != len(types):
            raise MaskError(f"{self.path}: {len(ids)} ids have {len(types)} types; export the labels again")
        return pixels, {int(i): str(int(t)) for i, t in zip(ids, types)}

    def bands(self) -> Iterator[Labels]:
        """The whole image."""
        yield Labels(self._pixels)


def _variables(path: Path) -> dict[str, tuple[int, ...]]:
    import scipy.io

    return {name: shape for name, shape, _ in scipy.io.whosmat(path, appendmat=False)}


def _loadmat(path: Path, names: list[str]) -> dict[str, Any]:
    import scipy.io

    return scipy.io.loadmat(path, variable_names=names, appendmat=False)


def _image_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) != 2 or math.prod(shape) > MAX_PIXELS or min(shape) < 1:
        raise MaskError(f"{path}: inst_map has the shape {shape}; expected rows and columns of up to {MAX_PIXELS} px")
    return int(shape[0]), int(shape[1])


def _whole(path: Path, name: str, values: Any) -> np.ndarray:
    """Values as int64 or their own unsigned type; MATLAB and scipy store labels as doubles too."""
    array = np.asarray(values)
    if array.dtype.kind == "f" and np.isfinite(array).all() and (array == np.rint(array)).all():
        array = array.astype(np.int64) if np.abs(array).max(initial=0) < 2**53 else array
    if array.dtype.kind not in "ui":
        raise MaskError(f"{path}: {name} is {array.dtype}; labels are whole numbers")
    return array


def _check_unpacked_size(path: Path) -> None:
    """Refuse a file whose packed variables unpack to more than any tile needs, before they are unpacked."""
    total = 0
    end = path.stat().st_size
    with open(path, "rb") as file:
        order = "<" if file.read(_HEADER)[126:128] == b"IM" else ">"
        while file.tell() + 8 <= end:
            kind, size = struct.unpack(f"{order}II", file.read(8))
            following = file.tell() + size
            if kind == _PACKED:
                total += _unpacked_size(file.read(min(size, end - file.tell())), MAX_UNPACKED - total)
            else:
                total += size
            if total > MAX_UNPACKED:
                raise MaskError(f"{path}: unpacks to more than {MAX_UNPACKED / 1e9:g} GB; give smaller tiles")
            file.seek(following)


def _unpacked_size(data: bytes, limit: int) -> int:
    unpacker = zlib.decompressobj()
    size = 0
    while size <= limit:
        piece = unpacker.decompress(data, _CHUNK)
        size += len(piece)
        data = unpacker.unconsumed_tail
        if not piece and (not data or unpacker.eof):
            break
    return size
