"""Label images: TIFF or PNG of classes, of ids with a table of their classes, or of both on two pages.

Rows are decoded as they are needed. In a picture with a palette the indices are the labels, not the colours. Values of
8 bits are classes unless there is a table; values of more bits are ids of nuclei (StarDist, Cellpose, HoVer-Net). A
table is a CSV with a column of ids and one of classes, or JSON: {id: class}, {name of the image: {id: class}}, [{"id",
"class"}, ..], or StarDist's details with "class_id".
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from itertools import repeat
from pathlib import Path
from typing import Any, Self

import numpy as np

from wsigen.errors import MaskError
from wsigen.masks.importers.class_maps import UNCLASSIFIED
from wsigen.masks.importers.settings import check_size
from wsigen.masks.importers.sources import Head, Labels, LabelSource
from wsigen.masks.palettes import palette_indices
from wsigen.masks.slide_mask import MOST_CLASSES, SlideMask
from wsigen.masks.tiff.labels import LabelPage, label_pages, page_rows
from wsigen.masks.tiff.metadata import PLANE_NAMES
from wsigen.system.text_files import read_text

YIELDED_ROWS = 128  # what is made from a band is then small
MAX_TABLE_BYTES = 1 << 28
_ID_COLUMNS = ("id", "label", "instance", "instance_id", "inst_id", "nucleus", "nucleus_id", "cell", "cell_id", "value")
_CLASS_COLUMNS = ("class", "type", "class_name", "classification", "category", "class_id", "inst_type", "name")
_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\x89PNG")  # TIFF, BigTIFF, PNG
_PALETTE = 3  # type of colour of a PNG
_TYPES = {"uchar": "u1", "ushort": "u2"}
_GREY_STEPS = {2: 85, 4: 17}  # PNG of fewer bits: libvips spreads the values over 0 to 255


class LabelImageSource(LabelSource):
    """A TIFF or PNG label image.

    image: of a TIFF of several channels the one to read, by its name in OME-XML or its number from 1 on.
    """

    format = "label image"
    title = "label TIFF or PNG"

    @classmethod
    def recognises(cls, head: Head) -> bool:
        """See `OutlineSource`."""
        return head.data.startswith(_HEADS)

    @classmethod
    def open(cls, path: Path, table: Path | None, image: str | None) -> Self:
        """See `OutlineSource`."""
        return cls(path, table, image)

    def __init__(self, path: Path, table: Path | None, image: str | None = None) -> None:
        super().__init__(path)
        self._reader: _TiffLabels | _PngLabels = _PngLabels(path) if _is_png(path) else _TiffLabels(path, image)
        self.width, self.height = self._reader.width, self._reader.height
        check_size(path, self.width, self.height)
        self.pixel_sizes = self._reader.pixel_sizes
        self.has_ids = self._reader.has_ids
        small = self._reader.dtype.itemsize == 1
        self.kind = "class" if self.has_ids or (small and table is None) else "instance"
        self.class_of = read_table(table, path.stem) if table is not None else {}
        if table is not None and not self.class_of:
            raise MaskError(f"{table}: names no classes of {path.name}; give a CSV or JSON of ids and classes")

    def bands(self) -> Iterator[Labels]:
        """Decode the rows anew."""
        return self._reader.bands()


class _TiffLabels:
    """Labels on one page of a TIFF, and ids on the next one where that has more bits."""

    def __init__(self, path: Path, image: str | None) -> None:
        self._path = path
        pages, self.pixel_sizes = label_pages(path)
        page = pages[0] if image is None else _chosen(path, pages, image)
        self._page, self.width, self.height = page.index, page.width, page.height
        self.dtype = _label_type(path, page)
        labels = [other for other in pages if other.channels == 1]
        self.has_ids = image is None and _are_classes_and_ids(labels)
        understood = labels[0].name in PLANE_NAMES or (self.has_ids and len(labels) == 2)
        if image is None and len(labels) > 1 and not understood:
            names = ", ".join(other.name or str(number) for number, other in enumerate(labels, 1))
            raise MaskError(
                f"{path}: has {len(labels)} channels ({names[:200]}); choose one with --image NAME or NUMBER"
            )
        self._as_mask = self._page == 0 and self.dtype.itemsize == 1

    def bands(self) -> Iterator[Labels]:
        if self._as_mask:
            try:
                mask = SlideMask.open(self._path, MOST_CLASSES)
            except MaskError:  # its further pages make no mask, or it has single bits
                yield from self._decoded()
                return
            with mask:
                for band in mask.bands():
                    for top in range(0, band.shape[0], YIELDED_ROWS):
                        rows = slice(top, top + YIELDED_ROWS)
                        ids = band.instances if self.has_ids else None
                        yield Labels(band.classes[rows], None if ids is None else ids[rows])
            return
        yield from self._decoded()

    def _decoded(self) -> Iterator[Labels]:
        values = _cut(page_rows(self._path, self._page))
        ids = _cut(page_rows(self._path, self._page + 1)) if self.has_ids else repeat(None)
        yield from (Labels(rows, ids_rows) for rows, ids_rows in zip(values, ids))


def _chosen(path: Path, pages: list[LabelPage], image: str) -> LabelPage:
    for number, page in enumerate(pages, 1):
        if image.strip().lower() in (page.name, str(number)):
            return page
    names = ", ".join(page.name or str(number) for number, page in enumerate(pages, 1))
    raise MaskError(f"{path}: has no channel {image!r}; there are {names[:200]}")


def _are_classes_and_ids(pages: list[LabelPage]) -> bool:
    """Whether the first page has 8 bits and the second one more: classes, and ids of the nuclei."""
    kinds = [page.dtype for page in pages[:2]]
    if len(kinds) < 2 or any(kind is None or kind.kind not in "bui" for kind in kinds):
        return False
    return kinds[0].itemsize == 1 < kinds[1].itemsize  # type: ignore[union-attr]


def _label_type(path: Path, page: LabelPage) -> np.dtype:
    if page.channels != 1:
        raise MaskError(f"{path}: is a picture of {page.channels} channels; export the labels, not their colours")
    if page.dtype is None or page.dtype.kind not in "bui":
        raise MaskError(f"{path}: labels are {page.dtype}; convert them to whole numbers (uint8 to uint32)")
    return page.dtype


class _PngLabels:
    """Labels in a PNG: grey values, or indices of a palette."""

    has_ids = False
    pixel_sizes: tuple[float, ...] = ()  # a PNG says how to print it

    def __init__(self, path: Path) -> None:
        self._path = path
        self._indices = palette_indices(path) if _png_kind(path)[1] == _PALETTE else None
        if self._indices is not None:
            (self.height, self.width), self.dtype = self._indices.shape, self._indices.dtype
            return
        image = self._open()
        self.width, self.height, self.dtype = image.width, image.height, np.dtype(_TYPES[image.format])

    def _open(self) -> Any:
        import pyvips

        try:
            image = pyvips.Image.pngload(str(self._path), access="sequential", fail_on="error")
        except pyvips.Error as error:
            raise _unreadable(self._path, error) from None
        if image.bands != 1:
            raise MaskError(
                f"{self._path}: is a picture of {image.bands} channels; export the labels, not their colours"
            )
        return image

    def bands(self) -> Iterator[Labels]:
        if self._indices is not None:
            for y in range(0, self.height, YIELDED_ROWS):
                yield Labels(self._indices[y : y + YIELDED_ROWS])
            return
        yield from self._decoded()

    def _decoded(self) -> Iterator[Labels]:
        import pyvips

        image, step = self._open(), _GREY_STEPS.get(_png_kind(self._path)[0], 1)
        # A region stays where it is in the file; crops would each begin with the strip that the last one ended in.
        region = pyvips.Region.new(image)
        try:
            for y in range(0, self.height, YIELDED_ROWS):
                shape = min(YIELDED_ROWS, self.height - y), self.width
                rows = np.frombuffer(region.fetch(0, y, *reversed(shape)), self.dtype).reshape(shape)
                yield Labels(rows if step == 1 else rows // np.uint8(step))
        except pyvips.Error as error:
            raise _unreadable(self._path, error) from None


def _is_png(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"\x89PNG"


def _png_kind(path: Path) -> tuple[int, int]:
    """Bits of a value and type of colour, which stand in the header of a PNG."""
    with open(path, "rb") as file:
        header = file.read(26)
    return (header[24], header[25]) if len(header) == 26 else (8, 0)


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


def read_table(path: Path, stem: str) -> dict[int, str]:
    """Classes by id from a CSV or JSON file; of a JSON of several images the part called `stem`."""
    try:
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise MaskError(f"{path}: has more than {MAX_TABLE_BYTES >> 20} MB; give the table of one image")
        text = read_text(path)
        table = _json_table(json.loads(text), stem) if text.lstrip()[:1] in ("{", "[") else _csv_table(text)
        return {int(key): _class_text(value) for key, value in table.items()}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, csv.Error) as error:
        reason = " ".join(str(error).split())[:200]
        raise MaskError(f"{path}: is no table of ids and classes ({reason}); write the columns id,class") from None


def _json_table(data: Any, stem: str) -> Mapping[Any, Any]:
    if isinstance(data, list):
        if not all(isinstance(item, dict) for item in data):
            raise ValueError("its entries are no maps of id and class")
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
        return _columns(rows, 0, 1)
    key = next(header.index(name) for name in _ID_COLUMNS if name in header) if set(header) & set(_ID_COLUMNS) else None
    kind = next((header.index(name) for name in _CLASS_COLUMNS if name in header), None)
    if key is None or kind is None:
        raise ValueError(f"its columns are {', '.join(header)[:80]}")
    return _columns(rows, key, kind, first=1)


def _columns(rows: list[list[str]], key: int, kind: int, first: int = 0) -> dict[str, str]:
    """Ids and classes of the rows; ValueError for a row that ends before them."""
    for number, row in enumerate(rows[first:], first + 1):
        if len(row) <= max(key, kind):
            raise ValueError(f"row {number} has {len(row)} of {len(rows[0])} columns")
    return {row[key]: row[kind] for row in rows[first:]}


def _first(item: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next(item[name] for name in (*names, *item) if name in item)


def _class_text(value: Any) -> str:
    if isinstance(value, dict):
        value = _first(value, _CLASS_COLUMNS)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return UNCLASSIFIED
    return str(value).strip() or UNCLASSIFIED
