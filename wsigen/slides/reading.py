"""A slide in any format that wsigen writes, by rows: what an export reads.

OpenSlide reads most formats. Deep Zoom and OME-Zarr it does not; of these the ones that wsigen wrote are read, by the
facts that stand beside their pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import openslide
from PIL import Image

from wsigen.errors import MaskError, SlideError
from wsigen.slides.info import SlideInfo, SlideLevel, openslide_path, read_slide_info
from wsigen.slides.row_stream import RowReader
from wsigen.system.cores import available_cores
from wsigen.system.scale import plausible_mpp, square_mpp
from wsigen.system.text_files import read_text
from wsigen.system.zarr_levels import pixel_sizes

READ_COLUMNS = 2048  # columns that a thread decodes at once; whole tiles
MAX_FACTS_BYTES = 1 << 20
MAX_TILE = 8192
NOT_OURS = ("synthetic", "digital_source_type", "mpp", "objective_power")  # beside the provenance


@contextmanager
def opened_slide(path: Path) -> Iterator[tuple[SlideInfo, RowReader]]:
    """What a slide is, and its rows: (y0, y1) -> (y1 - y0, width, 3) uint8. SlideError where it cannot be read."""
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(available_cores(), "wsigen-read"))
        if (path / "zarr.json").is_file():
            yield _ome_zarr(path)
        elif path.suffix.lower() == ".dzi":
            yield _deep_zoom(path, pool)
        else:
            facts = read_slide_info(path)
            slide = stack.enter_context(openslide.OpenSlide(openslide_path(path)))
            yield facts, _OpenSlideRows(path, slide, facts.width, pool)


def describe_slide(path: Path) -> SlideInfo:
    """What a slide is, in any format that wsigen writes or OpenSlide opens. SlideError where it cannot be read."""
    with opened_slide(path) as (facts, _):
        return facts


class _OpenSlideRows:
    """Rows of level 0, decoded by all cores."""

    def __init__(self, path: Path, slide: openslide.OpenSlide, width: int, pool: ThreadPoolExecutor) -> None:
        self._path, self._slide, self._width, self._pool = path, slide, width, pool

    def __call__(self, y0: int, y1: int) -> np.ndarray:
        rows = np.empty((y1 - y0, self._width, 3), np.uint8)

        def decode(x: int) -> None:
            columns = min(READ_COLUMNS, self._width - x)
            rows[:, x : x + columns] = np.asarray(self._slide.read_region((x, y0), 0, (columns, y1 - y0)))[..., :3]

        try:
            for _ in self._pool.map(decode, range(0, self._width, READ_COLUMNS)):
                pass
        except openslide.OpenSlideError as error:
            raise SlideError(
                f"{self._path}: rows {y0} to {y1} are damaged ({error}); write or copy it again"
            ) from error
        return rows


def _facts(
    path: Path, vendor: str, sizes: list[tuple[int, int]], tile: int, mpp: Any, stated: Mapping[str, Any]
) -> SlideInfo:
    power = stated.get("objective_power")
    return SlideInfo(
        path=path,
        width=sizes[0][0],
        height=sizes[0][1],
        levels=tuple(SlideLevel(*size, float(2**k)) for k, size in enumerate(sizes)),
        mpp=plausible_mpp(float(mpp)) if isinstance(mpp, float | int) else None,
        objective_power=float(power) if isinstance(power, float | int) else None,
        vendor=vendor,
        associated={},
        tile=(tile, tile),
        compression=None,
        synthetic=stated.get("synthetic") is True,
        provenance={str(key): str(value) for key, value in stated.items() if key not in NOT_OURS},
    )


def _ome_zarr(path: Path) -> tuple[SlideInfo, RowReader]:
    import zarr

    try:
        group = zarr.open_group(str(path), mode="r", zarr_format=3)
        described: Any = group.attrs["ome"]
        datasets = described["multiscales"][0]["datasets"]
        levels: list[Any] = [group[str(dataset["path"])] for dataset in datasets]
        sizes = [(int(level.shape[2]), int(level.shape[1])) for level in levels]
        if levels[0].shape[0] != 3 or levels[0].dtype != np.uint8:
            raise ValueError(f"level 0 is {levels[0].shape} of {levels[0].dtype}")
        mpp = square_mpp(path, pixel_sizes(described["multiscales"][0], datasets[0]))
        stated: Any = group.attrs.get("wsigen", {})
        facts = _facts(path, "ome-zarr", sizes, levels[0].chunks[-1], mpp, stated)
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, MaskError) as error:
        raise SlideError(
            f"{path}: not an OME-Zarr slide that wsigen wrote ({_line(error)}); export it again"
        ) from error

    def read_rows(y0: int, y1: int) -> np.ndarray:
        try:
            return np.ascontiguousarray(np.moveaxis(levels[0][:, y0:y1], 0, 2))
        except (OSError, ValueError, RuntimeError) as error:
            raise SlideError(f"{path}: rows {y0} to {y1} are damaged ({_line(error)}); export it again") from error

    return facts, read_rows


def _deep_zoom(path: Path, pool: ThreadPoolExecutor) -> tuple[SlideInfo, RowReader]:
    tiles = path.with_name(path.stem + "_files")
    try:
        image = ElementTree.fromstring(_small_text(path))
        size = next(iter(image))
        width, height = int(size.attrib["Width"]), int(size.attrib["Height"])
        tile, overlap = int(image.attrib["TileSize"]), int(image.attrib["Overlap"])
        if min(width, height) < 1 or not 1 <= tile <= MAX_TILE or not 0 <= overlap <= tile:
            raise ValueError(f"its size is {width} x {height} in tiles of {tile}")
        stated = json.loads(_small_text(tiles / "slide.json")) if (tiles / "slide.json").is_file() else {}
        facts = _facts(path, "deep-zoom", _deep_zoom_levels(width, height), tile, stated.get("mpp"), stated)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration, ElementTree.ParseError) as error:
        raise SlideError(
            f"{path}: not a Deep Zoom slide that wsigen wrote ({_line(error)}); export it again"
        ) from error
    folder = tiles / str(math.ceil(math.log2(max(width, height))))
    return facts, _DeepZoomRows(folder, image.attrib.get("Format", "jpg"), (width, height), tile, overlap, pool)


def _deep_zoom_levels(width: int, height: int) -> list[tuple[int, int]]:
    """Sizes of the levels, each half of the last, rounded up, down to one pixel."""
    sizes = [(width, height)]
    while max(sizes[-1]) > 1:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


class _DeepZoomRows:
    """Rows from the tiles of the largest level; the last row of tiles is kept, as bands of rows end within one."""

    def __init__(
        self, folder: Path, ending: str, size: tuple[int, int], tile: int, overlap: int, pool: ThreadPoolExecutor
    ) -> None:
        self._folder, self._ending, self._pool = folder, ending, pool
        (self._width, self._height), self._tile, self._overlap = size, tile, overlap
        self._row, self._strip = -1, np.zeros((0, 0, 3), np.uint8)

    def __call__(self, y0: int, y1: int) -> np.ndarray:
        parts = []
        for row in range(y0 // self._tile, (y1 - 1) // self._tile + 1):
            if row != self._row:
                self._row, self._strip = row, self._decoded(row)
            top = row * self._tile
            parts.append(self._strip[max(0, y0 - top) : y1 - top])
        return np.concatenate(parts)

    def _decoded(self, row: int) -> np.ndarray:
        """One row of tiles without their overlap."""
        strip = np.empty((min(self._tile, self._height - row * self._tile), self._width, 3), np.uint8)

        def decode(column: int) -> None:
            left = column * self._tile
            width = min(self._tile, self._width - left)
            x, y = self._overlap * (column > 0), self._overlap * (row > 0)
            file = self._folder / f"{column}_{row}.{self._ending}"
            try:
                with Image.open(file) as picture:
                    if picture.width < x + width or picture.height < y + len(strip):
                        raise ValueError(f"{picture.width} x {picture.height} px are too few")
                    if max(picture.size) > MAX_TILE + 2 * self._overlap:
                        raise ValueError(f"{picture.width} x {picture.height} px are too many")
                    pixels = np.asarray(picture.convert("RGB"))
            except (OSError, ValueError, Image.DecompressionBombError) as error:
                raise SlideError(f"{file}: a tile is missing or damaged ({_line(error)}); export it again") from error
            strip[:, left : left + width] = pixels[y : y + len(strip), x : x + width]

        for _ in self._pool.map(decode, range(-(-self._width // self._tile))):
            pass
        return strip


def _small_text(path: Path) -> str:
    """Text of a small file that declares no entities."""
    if path.stat().st_size > MAX_FACTS_BYTES:
        raise ValueError(f"{path.name} has more than {MAX_FACTS_BYTES >> 20} MB")
    text = read_text(path)
    if path.suffix == ".dzi" and "<!" in text:
        raise ValueError("it declares a document type")
    return text


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
