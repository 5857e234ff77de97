"""Layouts: how dense nuclei of each class are, and where tissue, glands and lumina lie, in cells of 32 x 32 pixels.

A layout controls the mask model as a mask controls the painter. It is small, a thousandth of the pixels, and its file
is read by window. Values are interpolated between the centres of cells, so that borders of cells are not visible.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tifffile

from wsigen.errors import MaskError, SettingsError
from wsigen.masks.window import GLASS, TISSUE
from wsigen.system.replacing import written_whole

CELL = 32  # px
REGIONS = ("glass", "stroma", "gland", "lumen")
FORMAT = "wsigen layout 1"
# Bytes of density grow with the root of nuclei a cell, so that a rare class has a scale too: 8 nuclei a cell are 254.
DENSITY_SCALE = 90.0


@dataclass(frozen=True)
class LayoutWindow:
    """What the mask model is told about a window: the cells around it.

    cells: (K, n, n) uint8, planes as in Layout; the first cell is the one whose middle lies left of and above the
    window's first pixel.
    """

    cells: np.ndarray

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What a batch stacks, by name."""
        return {"cells": self.cells}

    def is_glass(self, _part: tuple[slice, slice]) -> bool:
        """Whether the window is glass: all of it, since its cells are far larger than a border's width."""
        return bool((self.cells[-len(REGIONS)] == 255).all())


@dataclass(frozen=True)
class Layout:
    """The layout of a slide of ``width`` x ``height`` pixels.

    planes: (K, rows, columns) uint8: for each class the density, then the share of each of REGIONS in the cell (255:
    all of it). classes: names in the order of their indices. mpp: microns per pixel of the slide.
    """

    planes: np.ndarray
    classes: tuple[str, ...]
    width: int
    height: int
    mpp: float
    path: Path | None = None

    def read(self, x: int, y: int, w: int, h: int) -> LayoutWindow:
        """The cells that decide the (h, w) window at (x, y); beyond the slide the outermost ones are repeated."""
        rows, columns = (
            _cells(start, count, size) for start, count, size in zip((y, x), (h, w), self.planes.shape[1:])
        )
        return LayoutWindow(np.ascontiguousarray(self.planes[:, rows][:, :, columns]))

    def tissue(self, x: int, y: int, w: int, h: int) -> np.ndarray:
        """Tissue plane of a rectangle, (h, w) uint8: 0 where more than half is glass."""
        glass = self.planes[len(self.classes)]
        rows, columns = (_cells(start, count, size) for start, count, size in zip((y, x), (h, w), glass.shape))
        part = glass[rows][:, columns].astype(np.int32)
        down = _weights(y, h, len(rows))
        across = _weights(x, w, len(columns))
        share = down @ part @ across.T  # in 64 x 64 times 255
        return np.where(2 * share > 64 * 64 * 255, np.uint8(GLASS), np.uint8(TISSUE))

    def density(self) -> np.ndarray:
        """Nuclei a cell by class: (C, rows, columns) float64."""
        return density_of(self.planes[: len(self.classes)])

    def expected(self) -> np.ndarray:
        """Nuclei of each class on the whole slide, (C,); cells at the border count as far as they are on it."""
        down, across = (
            np.minimum(CELL, size - CELL * np.arange(-(-size // CELL))) / CELL for size in (self.height, self.width)
        )
        return np.einsum("crk,r,k->c", self.density(), down, across)

    def picture(self) -> np.ndarray:
        """A picture to look at, one pixel for each cell: (rows, columns, 3) uint8."""
        shares = self.planes[len(self.classes) :].astype(np.float64) / 255
        colours = np.array([(255, 255, 255), (255, 200, 215), (60, 180, 75), (180, 220, 255)])
        crowd = np.clip(self.density().sum(0) / 6, 0, 1)[..., None]
        flat = np.einsum("rhw,rc->hwc", shares, colours)
        return np.clip(flat * (1 - 0.6 * crowd), 0, 255).astype(np.uint8)

    def more(self, factors: Mapping[str, float]) -> Layout:
        """The layout with the densities of some classes multiplied; SettingsError for a class that there is not."""
        planes = np.array(self.planes)
        for name, factor in factors.items():
            if name not in self.classes:
                raise SettingsError(f"--more {name}={factor:g}: no such class; there are {', '.join(self.classes)}")
            index = self.classes.index(name)
            planes[index] = density_bytes(density_of(planes[index]) * factor)
        return replace(self, planes=planes, path=None)

    def sha256(self) -> str:
        """Hash of the content."""
        digest = hashlib.sha256(json.dumps([self.classes, self.width, self.height, self.mpp]).encode())
        for row in range(0, self.planes.shape[1], 256):
            digest.update(np.ascontiguousarray(self.planes[:, row : row + 256]).tobytes())
        return digest.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> Layout:
        """Write a TIFF with a page for each plane, and return the layout in it."""
        path = Path(path)
        about = {"format": FORMAT, "classes": self.classes, "mpp": self.mpp, "size": [self.width, self.height]}
        text = json.dumps(about)
        with written_whole(path) as partial:
            tifffile.imwrite(partial, self.planes, photometric="minisblack", description=text, metadata=None)
        return Layout.open(path)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Layout:
        """Open what `save` wrote, mapped, not read. Raises MaskError for anything else."""
        path = Path(path)
        try:
            with tifffile.TiffFile(path) as tif:
                about = json.loads(tif.pages[0].description)  # type: ignore[union-attr]
            if about["format"] != FORMAT:
                raise ValueError(about["format"])
            planes = tifffile.memmap(path, mode="r")
            width, height = about["size"]
            return cls(planes, tuple(about["classes"]), int(width), int(height), float(about["mpp"]), path)
        except (OSError, ValueError, KeyError, TypeError, tifffile.TiffFileError) as error:
            raise MaskError(f"{path}: is no layout ({error}); `wsigen mask layout` writes one") from None


def is_layout(path: Path) -> bool:
    """Whether a file is a layout."""
    try:
        Layout.open(path)
    except MaskError:
        return False
    return True


def density_bytes(nuclei: np.ndarray) -> np.ndarray:
    """Nuclei a cell as bytes."""
    return np.clip(np.rint(DENSITY_SCALE * np.sqrt(nuclei)), 0, 255).astype(np.uint8)


def density_of(bytes_: np.ndarray) -> np.ndarray:
    """Nuclei a cell from bytes."""
    return np.square(np.asarray(bytes_, np.float64) / DENSITY_SCALE)


def share_bytes(shares: np.ndarray) -> np.ndarray:
    """Shares of REGIONS in cells, (4, rows, columns) in 0..1, as bytes."""
    return np.rint(255 * shares).astype(np.uint8)


def first_cell(start: int) -> int:
    """The cell whose middle is the last one left of (or at) the middle of pixel ``start``."""
    return (2 * start + 1 - CELL) // (2 * CELL)


def cells_of(count: int) -> int:
    """Cells that decide ``count`` pixels, wherever they begin."""
    return -(-count // CELL) + 2


def _cells(start: int, count: int, size: int) -> np.ndarray:
    return np.clip(np.arange(cells_of(count)) + first_cell(start), 0, size - 1)


def _weights(start: int, count: int, cells: int) -> np.ndarray:
    """How much each of the cells counts at each pixel, in 64ths: (count, cells) int32."""
    place = 2 * np.arange(start, start + count) + 1 - CELL - 2 * CELL * first_cell(start)
    return np.clip(64 - np.abs(place[:, None] - 2 * CELL * np.arange(cells)), 0, None).astype(np.int32)


def parse_more(given: Iterable[str]) -> dict[str, float]:
    """Factors of classes from "neutrophil=3"; SettingsError for anything else."""
    factors: dict[str, float] = {}
    for entry in given:
        name, _, text = entry.partition("=")
        try:
            factors[name] = float(text)
        except ValueError:
            factors[name] = -1.0
        if not 0 <= factors[name] <= 100:
            raise SettingsError(f"--more {entry}: give CLASS=FACTOR with a factor from 0 to 100, such as neutrophil=3")
    return factors


def packed(planes: np.ndarray, class_count: int) -> np.ndarray:
    """Bytes of nuclei a cell and of shares, (K, rows, columns)."""
    return np.concatenate([density_bytes(planes[:class_count]), share_bytes(planes[class_count:])])
