"""Label images: TIFF or PNG of classes, of ids with a table of their classes, or of both on two pages.

Rows are decoded as they are needed, by libvips. Values of 8 bits are classes unless there is a table; values of more
bits are ids of nuclei (StarDist, Cellpose, HoVer-Net). A table is a CSV with a column of ids and one of classes, or
JSON: {id: class}, {name of the image: {id: class}}, [{"id", "class"}, ..], or StarDist's details with "class_id".
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from wsigen.errors import MaskError
from wsigen.masks.importers.settings import check_size
from wsigen.masks.importers.sources import Labels, LabelSource
from wsigen.masks.slide_mask import SlideMask
from wsigen.masks.tiff_planes import page_rows

YIELDED_ROWS = 128  # what is made from a band is then small
MAX_TABLE_BYTES = 1 << 28
MAX_PAGES = 64
_ID_COLUMNS = ("id", "label", "instance", "instance_id", "inst_id", "nucleus", "nucleus_id", "cell", "cell_id", "value")
_CLASS_COLUMNS = ("class", "type", "class_name", "classification", "category", "class_id", "inst_type", "name")
_TYPES = {"uchar": "u1", "ushort": "u2", "uint": "u4", "char": "i1", "short": "i2", "int": "i4"}
_MICRONS_PER_MM = 1000.0
_MAX_PLAUSIBLE_MPP = 50.0


class LabelImageSource(LabelSource):
    """A TIFF or PNG label image."""

    format = "label image"

    def __init__(self, path: Path, table: Path | None, loader: str) -> None:
        super().__init__(path)
        self._loader = loader
        first = self._open(0)
        self.width, self.height = first.width, first.height
        check_size(path, self.width, self.height)
        self.mpp = _mpp(first, loader)
        self._bits = 8 if first.format == "uchar" else 16
        self.has_ids = self._second_page_is_ids(first)
        self.kind = "class" if self.has_ids or (first.format in ("uchar", "char") and table is None) else "instance"
        self.class_of = read_table(table, path.stem) if table is not None else {}
        if table is not None and not self.class_of:
            raise MaskError(f"{table}: names no classes of {path.name}; give a CSV or JSON of ids and classes")

    def _open(self, page: int) -> Any:
        import pyvips

        loaders = {"tiff": pyvips.Image.tiffload, "png": pyvips.Image.pngload}
        options = {"page": page} if self._loader == "tiff" else {}
        try:
            image = loaders[self._loader](str(self.path), access="sequential", fail_on="error", **options)
        except pyvips.Error as error:
            raise _unreadable(self.path, error) from None
        if image.bands != 1:
            raise MaskError(
                f"{self.path}: is a picture of {image.bands} channels; export the labels, not their colours"
            )
        if image.format not in _TYPES:
            raise MaskError(f"{self.path}: labels are {image.format}; convert them to whole numbers (uint8 to uint32)")
        return image

    def _second_page_is_ids(self, first: Any) -> bool:
        pages = first.get("n-pages") if first.get_typeof("n-pages") else 1
        if self._loader != "tiff" or not 1 < pages <= MAX_PAGES or first.format not in ("uchar", "char"):
            return False
        try:
            second = self._open(1)
        except MaskError:
            return False
        return (second.width, second.height) == (self.width, self.height) and second.format not in ("uchar", "char")

    def bands(self) -> Iterator[Labels]:
        """Decode the rows anew."""
        if self._loader == "tiff" and self._bits == 8:
            try:
                mask = SlideMask.open(self.path, class_count=255)
            except MaskError:  # a kind of TIFF that only libvips reads
                yield from self._decoded()
                return
            with mask:  # decodes deflate several times as fast as libvips
                for band in mask.bands():
                    for top in range(0, band.shape[0], YIELDED_ROWS):
                        rows = slice(top, top + YIELDED_ROWS)
                        ids = band.instances if self.has_ids else None
                        yield Labels(band.classes[rows], None if ids is None else ids[rows])
            return
        yield from self._decoded()

    def _decoded(self) -> Iterator[Labels]:
        values, *ids = (self._rows(page) for page in ((0, 1) if self.has_ids else (0,)))
        yield from (Labels(rows, ids_rows) for rows, ids_rows in zip(values, ids[0] if ids else repeat(None)))

    def _rows(self, page: int) -> Iterator[np.ndarray]:
        """Bands of `YIELDED_ROWS` rows of one page."""
        if self._loader == "tiff" and self._open(page).format in ("uchar", "ushort", "uint"):
            return _cut(page_rows(self.path, page))  # libvips takes tiles that are damaged for empty ones
        return self._rows_of_libvips(page)

    def _rows_of_libvips(self, page: int) -> Iterator[np.ndarray]:
        import pyvips

        image = self._open(page)
        # A region stays where it is in the file; crops would each begin with the strip that the last one ended in.
        region = pyvips.Region.new(image)
        try:
            for y in range(0, self.height, YIELDED_ROWS):
                shape = min(YIELDED_ROWS, self.height - y), self.width
                yield np.frombuffer(region.fetch(0, y, *reversed(shape)), _TYPES[image.format]).reshape(shape)
        except pyvips.Error as error:
            raise _unreadable(self.path, error) from None


def _cut(bands: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Rows of bands of any height, `YIELDED_ROWS` at a time."""
    rest: np.ndarray | None = None
    for band in bands:
        rest = band if rest is None else np.concatenate([rest, band])
        while len(rest) >= YIELDED_ROWS:
            yield rest[:YIELDED_ROWS]
            rest = rest[YIELDED_ROWS:]
    if rest is not None and len(rest):
        yield rest


def _unreadable(path: Path, error: Exception) -> MaskError:
    reason = " ".join(str(error).split())[:200]
    return MaskError(f"{path}: cannot be read as a label image ({reason}); copy or export it again")


def _mpp(image: Any, loader: str) -> float | None:
    """Scale in the resolution tags; a printer's resolution is none."""
    if loader != "tiff" or not image.xres > 0:
        return None
    mpp = _MICRONS_PER_MM / image.xres
    return mpp if 0.01 <= mpp < _MAX_PLAUSIBLE_MPP else None


def read_table(path: Path, stem: str) -> dict[int, str]:
    """Classes by id from a CSV or JSON file; of a JSON of several images the part called `stem`."""
    try:
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise MaskError(f"{path}: has more than {MAX_TABLE_BYTES >> 20} MB; give the table of one image")
        text = path.read_text(encoding="utf-8-sig")
        table = _json_table(json.loads(text), stem) if text.lstrip()[:1] in ("{", "[") else _csv_table(text)
        return {int(key): _class_text(value) for key, value in table.items()}
    except (OSError, ValueError, TypeError, KeyError, RecursionError, csv.Error) as error:
        reason = " ".join(str(error).split())[:200]
        raise MaskError(f"{path}: is no table of ids and classes ({reason}); write the columns id,class") from None


def _json_table(data: Any, stem: str) -> Mapping[Any, Any]:
    if isinstance(data, list):
        return {_first(item, _ID_COLUMNS): _first(item, _CLASS_COLUMNS) for item in data}
    if isinstance(data.get(stem), dict):
        return data[stem]
    if isinstance(data.get("class_id"), list):
        return dict(enumerate(data["class_id"], 1))
    return data


def _csv_table(text: str) -> Mapping[Any, Any]:
    separator = max(",;\t", key=text.partition("\n")[0].count)
    rows = [row for row in csv.reader(io.StringIO(text), delimiter=separator) if row]
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    if len(header) >= 2 and header[0].isdecimal():
        return {row[0]: row[1] for row in rows}
    key = next(header.index(name) for name in _ID_COLUMNS if name in header) if set(header) & set(_ID_COLUMNS) else None
    kind = next((header.index(name) for name in _CLASS_COLUMNS if name in header), None)
    if key is None or kind is None:
        raise ValueError(f"its columns are {', '.join(header)[:80]}")
    return {row[key]: row[kind] for row in rows[1:]}


def _first(item: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next(item[name] for name in (*names, *item) if name in item)


def _class_text(value: Any) -> str:
    if isinstance(value, dict):
        value = _first(value, _CLASS_COLUMNS)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()
