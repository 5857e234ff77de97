"""Where windows are read from: the contract of a source, and the two kinds that are files.

A model's conditions name the kind of source that they are read from. For a new kind write a class like those below and
name it in SOURCES.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self

import numpy as np

from wsigen.errors import StoreError
from wsigen.layouts.decoded import DecodedMask
from wsigen.layouts.decoding import Decoder
from wsigen.layouts.layout import REGIONS, Layout, LayoutWindow, cells_of
from wsigen.layouts.mask_code import BLANK, MaskCode
from wsigen.masks.conditions import HALO, Surroundings, read_surroundings
from wsigen.masks.resampling import resampled_to
from wsigen.masks.slide_mask import SlideMask
from wsigen.models.config import ModelConfig
from wsigen.painting.canvas import CACHE_BYTES, Canvas, CanvasPanels, write_json
from wsigen.painting.grid import Rectangle, bounding

STAGE_FILE = "stage.json"


class WindowData(Protocol):
    """What was read for one window: arrays by name, as conditions take them (see `WindowBatch`)."""

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """Arrays by name; those of all windows of one size have the same shapes."""

    def is_glass(self, part: tuple[slice, slice]) -> bool:
        """Whether a part of the window, (rows, columns), is known to be clear glass."""


class Source(Protocol):
    """What the windows of a slide are painted from; of one slide, ``width`` x ``height`` px at the painted scale.

    Threads may share it.
    """

    width: int
    height: int

    @classmethod
    def open(cls, path: str | Path, config: ModelConfig, mpp: float, cache_bytes: int = CACHE_BYTES) -> Self:
        """Open the source of a slide that is painted at ``mpp`` microns per pixel, for a model of ``config``."""

    @classmethod
    def example(cls, config: ModelConfig, side: int) -> WindowData:
        """A window of ``side`` px with some content, to try a painter with."""

    def read(self, extents: Sequence[Rectangle]) -> list[WindowData]:
        """What lies in windows that are near each other, and around them; they may reach beyond the slide."""

    def close(self) -> None:
        """Let the file go."""


class MaskWindows:
    """A mask of nuclei, at the painted scale; gives "classes", "labels" and "tissue": see `Surroundings`."""

    def __init__(self, mask: SlideMask | DecodedMask, mpp: float) -> None:
        self.mask, self.mpp = mask, mpp
        self._scaled = resampled_to(mask, mpp)
        self.width, self.height = self._scaled.width, self._scaled.height

    @classmethod
    def open(cls, path: str | Path, config: ModelConfig, mpp: float, cache_bytes: int = CACHE_BYTES) -> Self:
        """Open a mask file, or the canvas of a stage that paints one; MaskError says what is wrong with it."""
        if Path(path).is_dir():
            return cls(open_painted_mask(Path(path), cache_bytes), mpp)
        return cls(SlideMask.open(path, len(config.classes), cache_bytes), mpp)

    @classmethod
    def example(cls, config: ModelConfig, side: int) -> WindowData:
        """Two nuclei in tissue, and glass beside it."""
        classes = np.zeros((side + 2 * HALO, side + 2 * HALO), np.uint8)
        classes[HALO : HALO + 20, HALO : HALO + 20], classes[-40:-10, -40:-10] = 1, len(config.classes)
        tissue = np.ones_like(classes)
        tissue[:, side // 2 :] = 0
        return Surroundings(classes, classes.astype(np.int32), tissue)

    def read(self, extents: Sequence[Rectangle]) -> list[WindowData]:
        """Read the mask once for all: many small reads cost more than a large one."""
        whole = bounding(extents)
        around = read_surroundings(self._scaled, *whole, self.mpp)
        return [around.part(extent.x - whole.x, extent.y - whole.y, *extent[2:]) for extent in extents]

    def close(self) -> None:
        """Close the file."""
        self.mask.close()


class DensityWindows:
    """A layout; gives "cells": see `LayoutWindow`."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.width, self.height = layout.width, layout.height

    @classmethod
    def open(cls, path: str | Path, config: ModelConfig, mpp: float, cache_bytes: int = CACHE_BYTES) -> Self:
        """Open a layout file; MaskError says what is wrong with it."""
        return cls(Layout.open(path))

    @classmethod
    def example(cls, config: ModelConfig, side: int) -> WindowData:
        """Some nuclei of every class everywhere."""
        cells = cells_of(side)
        return LayoutWindow(np.full((len(config.classes) + len(REGIONS), cells, cells), 60, np.uint8))

    def read(self, extents: Sequence[Rectangle]) -> list[WindowData]:
        """Read the cells of each window."""
        return [self.layout.read(*extent) for extent in extents]

    def close(self) -> None:
        """Let the file go."""


def open_painted_mask(canvas: Path, cache_bytes: int = CACHE_BYTES) -> DecodedMask:
    """The mask that a stage paints on a canvas, decoded where it is read. ``canvas`` says so: see `note_stage`."""
    try:
        stage = json.loads((canvas / STAGE_FILE).read_text(encoding="utf-8"))
        layout, config = Layout.open(stage["layout"]), ModelConfig.load(Path(stage["model"]))
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{canvas}: not the canvas of a mask that is painted ({error}); start the run anew") from error
    panels = CanvasPanels(Canvas.open(canvas, cache_bytes), BLANK, cached=True)
    return DecodedMask(canvas, panels, layout, Decoder(MaskCode.of(config.classes), config.limits))


def note_stage(canvas: Path, layout: Path, model: Path) -> None:
    """Note in a mask's canvas what is needed to read it as a mask: the layout, and the folder of the model."""
    write_json(canvas / STAGE_FILE, {"layout": str(layout.resolve()), "model": str(model.resolve())})


SOURCES: Mapping[str, type[Source]] = {"mask": MaskWindows, "density": DensityWindows}
