"""OME-Zarr labels (0.4 and 0.5): a label image, or a pair `classes` + `nuclei` as wsigen itself writes it.

Given an image, its `labels` group, or one label image in it. Classes stand in `image-label` / `properties`, one entry
for each label value. Metadata are read as plain JSON first: arrays whose codecs are not on the list below are refused,
since a Zarr 2 filter may be a pickle.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from wsigen.errors import MaskError
from wsigen.masks.importers.settings import check_size
from wsigen.masks.importers.sources import Head, Labels, LabelSource, damage_is_one_line
from wsigen.masks.importers.zarr_chunks import ChunkCheck
from wsigen.system.text_files import read_text
from wsigen.system.zarr_levels import pixel_sizes

MAX_METADATA_BYTES = 1 << 28
MAX_CHUNK_BYTES = 1 << 29
BAND_BYTES = 64 << 20
YIELDED_ROWS = 128
CHUNKS_AT_ONCE = 8
SAFE_CODECS = {
    "bytes",
    "blosc",
    "zstd",
    "gzip",
    "crc32c",
    "transpose",
    "sharding_indexed",
    "zlib",
    "lz4",
    "bz2",
    "lzma",
}
_CLASS_KEYS = ("class", "name", "type", "label", "class_name", "classification")


class OmeZarrSource(LabelSource):
    """Level 0 of a label image in an OME-Zarr folder."""

    format = "OME-Zarr labels"

    @classmethod
    def recognises(cls, head: Head) -> bool:
        """See `OutlineSource`."""
        return head.path.is_dir() and (is_zarr(head.path) or (head.path / "labels").is_dir())

    @classmethod
    def open(cls, path: Path, table: Path | None, image: str | None) -> Self:
        """See `OutlineSource`."""
        return cls(path, image)

    def __init__(self, path: Path, name: str | None = None) -> None:
        super().__init__(path)
        with damage_is_one_line(path, self.format):
            label, ids = _choose(path, name)
            attributes = _attributes(label)
            self.class_of = _classes(attributes)
            self._values, check, self.pixel_sizes = _level0(label, attributes)
            self._ids, self._checks = None, [check]
            if ids is not None:
                self._ids, check, _ = _level0(ids, _attributes(ids))
                self._checks.append(check)
        self.has_ids = self._ids is not None
        self.height, self.width = self._values.shape[-2:]
        check_size(path, self.width, self.height)
        if self._ids is not None and self._ids.shape[-2:] != self._values.shape[-2:]:
            raise MaskError(f"{path}: the labels differ in size; write them at the size of the slide")
        small = self._values.dtype.itemsize == 1
        self.kind = "class" if self.has_ids or (small and len(self.class_of) < 255) else "instance"

    def bands(self) -> Iterator[Labels]:
        """Read whole rows of chunks."""
        import zarr

        tallest = int(self._values.chunks[-2])
        rows = tallest * max(1, BAND_BYTES // (8 * self.width * tallest))
        if tallest * self.width * self._values.dtype.itemsize > MAX_CHUNK_BYTES:
            rows = max(1, BAND_BYTES // (8 * self.width))
        arrays = [self._values] if self._ids is None else [self._values, self._ids]
        largest = max(math.prod(array.chunks) * array.dtype.itemsize for array in arrays)
        for y in range(0, self.height, rows):
            end = min(y + rows, self.height)
            for check in self._checks:
                check.rows(y, end)
            # zarr unpacks as many chunks at a time as it is allowed to, whatever their size.
            with zarr.config.set({"async.concurrency": max(1, min(CHUNKS_AT_ONCE, MAX_CHUNK_BYTES // largest))}):
                values, *ids = (np.asarray(a[(*(0,) * (a.ndim - 2), slice(y, end))]) for a in arrays)
            for top in range(0, end - y, YIELDED_ROWS):  # what is made from a band is then small
                below = slice(top, top + YIELDED_ROWS)
                yield Labels(values[below], ids[0][below] if ids else None)


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr group or array."""
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs", ".zarray"))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    if path.stat().st_size > MAX_METADATA_BYTES:
        raise ValueError(f"{path.name} has more than {MAX_METADATA_BYTES >> 20} MB")
    data = json.loads(read_text(path))
    return data if isinstance(data, dict) else {}


def _attributes(folder: Path) -> dict[str, Any]:
    """The OME metadata of a group: under `ome` in 0.5, at the top before."""
    attributes = _read_json(folder / "zarr.json").get("attributes") or _read_json(folder / ".zattrs")
    nested = attributes.get("ome")
    return {**attributes, **nested} if isinstance(nested, dict) else attributes


def _choose(path: Path, name: str | None) -> tuple[Path, Path | None]:
    """Folder of the label image, and that of the ids beside it if there is a pair."""
    folder = path / "labels" if (path / "labels").is_dir() else path
    if "multiscales" in _attributes(folder) and folder == path:
        return path, None
    listed = _attributes(folder).get("labels")
    names = [n for n in listed if isinstance(n, str)] if isinstance(listed, list) else []
    names = [n for n in names if _inside(folder, n)] or sorted(p.name for p in folder.iterdir() if is_zarr(p))
    if name is not None:
        if name not in names:
            raise MaskError(f"{path}: has no label image {name!r}; there are {', '.join(names) or 'none'}")
        return folder / name, None
    if {"classes", "nuclei"} <= set(names):
        return folder / "classes", folder / "nuclei"
    if len(names) != 1:
        raise MaskError(f"{path}: has {len(names)} label images ({', '.join(names)}); choose one with --image")
    return folder / names[0], None


def _inside(folder: Path, name: str) -> bool:
    """Whether a listed name stays in its folder."""
    return (folder / name).resolve().is_relative_to(folder.resolve())


def _classes(attributes: dict[str, Any]) -> dict[int, str]:
    label = attributes.get("image-label")
    entries = label.get("properties") if isinstance(label, dict) else None
    found: dict[int, str] = {}
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict) or not isinstance(entry.get("label-value"), int):
            continue
        kind = next((entry[key] for key in _CLASS_KEYS if key in entry), None)
        if isinstance(kind, str | int):
            found[entry["label-value"]] = str(kind)
    return found


def _level0(folder: Path, attributes: dict[str, Any]) -> tuple[Any, ChunkCheck, tuple[float, ...]]:
    """The array of the largest level, the check of its chunks, and width and height of its pixels in microns."""
    import zarr

    scales = attributes["multiscales"][0]
    dataset = scales["datasets"][0]
    if not _inside(folder, str(dataset["path"])):
        raise ValueError("a level lies outside the folder")
    target = folder / str(dataset["path"])
    _check_codecs(target)
    array = zarr.open_array(store=str(target), mode="r")
    lead = array.shape[:-2]
    if array.ndim < 2 or array.ndim > 5 or math.prod(lead) != 1 or array.dtype.kind not in "ui":
        raise ValueError(f"level 0 is {array.shape} of {array.dtype}; labels are one plane of whole numbers")
    size = math.prod(array.chunks) * array.dtype.itemsize
    if size > MAX_CHUNK_BYTES:
        raise MaskError(
            f"{target}: a chunk of {array.chunks} unpacks to {size / 1e6:,.0f} MB, {MAX_CHUNK_BYTES / 1e6:.0f} MB are "
            "read at most; write the labels in smaller chunks, such as 1024 x 1024"
        )
    check = ChunkCheck(target, array, _read_json(target / "zarr.json"), _read_json(target / ".zarray"))
    return array, check, pixel_sizes(scales, dataset)


def _check_codecs(folder: Path) -> None:
    """Refuse codecs that are not known to be harmless, wherever in the metadata they stand."""
    modern, old = _read_json(folder / "zarr.json"), _read_json(folder / ".zarray")
    if not modern and not old:
        raise ValueError(f"{folder.name} is no array")
    codecs = list(modern.get("codecs") or [])
    while codecs:
        codec = codecs.pop()
        name = codec.get("name") if isinstance(codec, dict) else codec
        if name not in SAFE_CODECS:
            raise MaskError(
                f"{folder}: is packed with {str(name)[:40]!r}; only {', '.join(sorted(SAFE_CODECS))} are read"
            )
        inner = codec.get("configuration") if isinstance(codec, dict) else None
        for key in ("codecs", "index_codecs"):
            codecs += (inner.get(key) or []) if isinstance(inner, dict) else []
    for codec in [old.get("compressor"), *(old.get("filters") or [])] if old else []:
        name = codec.get("id") if isinstance(codec, dict) else codec
        if name is not None and name not in SAFE_CODECS:
            raise MaskError(
                f"{folder}: is packed with {str(name)[:40]!r}; only {', '.join(sorted(SAFE_CODECS))} are read"
            )
    if old and "O" in str(old.get("dtype")):
        raise MaskError(f"{folder}: holds objects, which are refused as unsafe; save whole numbers")
