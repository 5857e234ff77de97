"""COCO instances: {"images", "annotations", "categories"}, outlines as polygons or run-length codes.

Polygons are flat lists [x, y, x, y, ..] along pixel edges, several for a nucleus in pieces. Run-length codes count
background and object pixels in turn, column by column, as a list or in COCO's text form. Schema: cocodataset.org and
pycocotools' `maskApi.c`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from wsigen.errors import MaskError
from wsigen.masks.importers.json_stream import JsonStream
from wsigen.masks.importers.sources import CountedFile, Head, OutlineSource, SourceObject
from wsigen.masks.outline import trace_bitmap
from wsigen.system.reporting import Reporter

MAX_BITMAP_PIXELS = 1 << 24
MAX_RUNS = 1 << 24


class CocoSource(OutlineSource):
    """Annotations of one picture of a COCO file."""

    format = "COCO JSON"
    telling = frozenset({"annotations"})

    @classmethod
    def recognises(cls, head: Head) -> bool:
        """See `OutlineSource`."""
        return head.keys is not None and ("annotations" in head.keys or {"images", "categories"} <= head.keys)

    @classmethod
    def open(cls, path: Path, table: Path | None, image: str | None) -> Self:
        """See `OutlineSource`."""
        super().open(path, table, image)
        return cls(path, image)

    def __init__(self, path: Path, image: str | None = None) -> None:
        super().__init__(path)
        self._image = image

    def objects(self, progress: Reporter) -> Iterator[SourceObject | None]:
        """Read the annotations of the chosen picture; categories and pictures may stand before or after them."""
        chosen = self._choose(progress)
        with CountedFile(self.path, progress) as file:
            stream = JsonStream(file)
            stream.expect("start_map")
            for key in stream.members():
                if key == "annotations" and stream.expect("start_array"):
                    for item in stream.items():
                        entry = stream.value(item)
                        if chosen is None or not isinstance(entry, dict) or entry.get("image_id") == chosen:
                            yield self._annotation(entry)
                elif key != "annotations":
                    stream.skip()

    def _choose(self, progress: Reporter) -> Any:
        """Read pictures and categories; returns the id of the picture, None where the file lists none."""
        images: list[Any] = []
        with CountedFile(self.path, progress) as file:
            stream = JsonStream(file)
            stream.expect("start_map")
            missing = {"images", "categories"}
            for key in stream.members():
                if key in missing:
                    missing.discard(key)
                    value = stream.value()
                    if key == "images" and isinstance(value, list):
                        images = [item for item in value if isinstance(item, dict)]
                    elif isinstance(value, list):
                        entries = [item for item in value if isinstance(item, dict)]
                        self.names = {str(item.get("id")): str(item.get("name") or "") for item in entries}
                    if not missing:
                        break
                else:
                    stream.skip()
        if self._image is not None:
            images = [item for item in images if self._image in (str(item.get("file_name")), str(item.get("id")))]
            if not images:
                raise MaskError(f"{self.path}: no picture is called {self._image!r}; give a file_name that it lists")
        if len(images) > 1:
            names = ", ".join(str(item.get("file_name")) for item in images[:5])
            raise MaskError(f"{self.path}: describes {len(images)} pictures ({names}, ..); choose one with --image")
        if not images:
            return None
        width, height = images[0].get("width"), images[0].get("height")
        if isinstance(width, int) and isinstance(height, int):
            self.size = (width, height)
        return images[0].get("id")

    def _annotation(self, entry: Any) -> SourceObject | None:
        if not isinstance(entry, dict):
            return None
        name = str(entry.get("category_id", ""))
        shape = entry.get("segmentation")
        try:
            polygons = _run_length(shape) if isinstance(shape, dict) else _flat_polygons(shape)
        except (TypeError, ValueError, KeyError, OverflowError):
            return None
        return SourceObject(name, polygons) if polygons else None


def _flat_polygons(shape: Any) -> list[list[np.ndarray]]:
    if not isinstance(shape, list):
        return []
    return [[np.asarray(ring, np.float64).reshape(-1, 2)] for ring in shape]


def _run_length(shape: dict[str, Any]) -> list[list[np.ndarray]]:
    """Polygons of a run-length code, from the bitmap of its bounding box."""
    height, width = (int(side) for side in shape["size"])
    counts = shape["counts"]
    runs = np.asarray(decode_counts(counts) if isinstance(counts, str) else counts, np.int64)
    if (
        height < 1
        or width < 1
        or len(runs) > MAX_RUNS
        or (runs < 0).any()
        or (runs > height * width).any()
        or int(runs.sum()) > height * width
    ):
        raise ValueError("a run-length code does not fit its size")
    ends = np.cumsum(runs)
    starts, lengths = ends[0::2][: len(runs) // 2], runs[1::2]
    starts, lengths = starts[lengths > 0], lengths[lengths > 0]
    if not len(starts):
        return []
    first, last = starts, starts + lengths - 1
    left, right = int(first.min() // height), int(last.max() // height)
    whole = first // height != last // height  # a run over several columns
    top = 0 if whole.any() else int((first % height).min())
    bottom = height - 1 if whole.any() else int((last % height).max())
    box = (right - left + 1) * (bottom - top + 1)
    if box > MAX_BITMAP_PIXELS:
        raise ValueError("an object is larger than any nucleus")
    bitmap = np.zeros((right - left + 1, bottom - top + 1), np.uint8)
    columns = np.zeros((right - left + 1) * height + 1, np.int8) if whole.any() else None
    if columns is not None:
        np.add.at(columns, first - left * height, 1)
        np.add.at(columns, last + 1 - left * height, -1)
        bitmap[:] = np.cumsum(columns[:-1], dtype=np.int8).reshape(-1, height)
    else:
        for column, begin, length in zip((first // height - left).tolist(), (first % height - top).tolist(), lengths):
            bitmap[column, begin : begin + length] = 1
    return trace_bitmap(bitmap.T, left, top)


def decode_counts(text: str) -> list[int]:
    """COCO's text form of a run-length code: six bits a character, from the third run on as a difference."""
    counts: list[int] = []
    at = 0
    codes = text.encode("ascii")
    while at < len(codes):
        value, shift = 0, 0
        while True:
            if at >= len(codes) or not 48 <= codes[at] < 112 or shift > 60:
                raise ValueError("a run-length code is damaged")
            code = codes[at] - 48
            at += 1
            value |= (code & 0x1F) << shift
            shift += 5
            if not code & 0x20:
                if code & 0x10:
                    value |= -1 << shift
                break
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    return counts
