"""A sampled mask's file, decoded and written in a thread of its own while its picture is still being painted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from wsigen.layouts.bands import DecodedBands
from wsigen.layouts.decoding import HALO, Decoder
from wsigen.layouts.layout import Layout
from wsigen.layouts.mask_code import BLANK
from wsigen.masks.window import MaskWindow
from wsigen.masks.writer import write_slide_mask
from wsigen.painting.canvas import Canvas, CanvasPanels
from wsigen.painting.grid import Rectangle
from wsigen.painting.tasks import Task
from wsigen.rendering.slide_file import POLL_SECONDS, RowsReady


class MaskWriter:
    """Writes the mask of a part of a canvas to ``path``, which it replaces; a `Writer`."""

    def __init__(self, canvas: Canvas, path: Path, layout: Layout, decoder: Decoder, part: Rectangle) -> None:
        self.path, self.layout, self.part = path, layout, part
        self.rows_encoded = 0
        self._height = canvas.grid.height
        self._panels = CanvasPanels(canvas, BLANK)
        self.bands = DecodedBands(self._read, layout, decoder, part)
        self._gate = RowsReady()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="wsigen-mask", daemon=True)
        self._thread.start()

    def painted(self, rows: int, ended: Task | None) -> None:
        """See `Writer`."""
        if self._error is not None:
            raise self._error
        self._gate.open(rows)

    def ended(self) -> bool:
        """See `Writer`."""
        self._gate.open(self._height + HALO)
        return not self._thread.is_alive()

    def finish(self, on_rows: Callable[[int], None]) -> None:
        """See `Writer`."""
        while not self.ended():
            self._thread.join(POLL_SECONDS)
            on_rows(self.rows_encoded)
        if self._error is not None:
            raise self._error
        on_rows(self.rows_encoded)  # the last ones may have been written before anybody waited

    def stop(self) -> None:
        """See `Writer`."""
        self._gate.close()
        self._thread.join()

    def _read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        self._gate.wait_for(y + height)
        return self._panels(x, y, width, height)

    def _run(self) -> None:
        try:
            size = self.part.width, self.part.height
            write_slide_mask(self.path, *size, self.layout.mpp, self._counted(), True, True, overwrite=True)
        except BaseException as error:
            self._error = error

    def _counted(self) -> Iterator[MaskWindow]:
        for band in self.bands:
            yield band
            self.rows_encoded += band.shape[0]
