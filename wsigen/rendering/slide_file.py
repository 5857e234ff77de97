"""A slide's file and its picture, made in threads of their own while the slide is still being painted.

Rows of blocks are encoded as soon as they are finished. The picture shows painted windows as they come; once the slide
is whole, it is the exact mean of its pixels.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, Full, Queue

import numpy as np

from wsigen.painting.canvas import Canvas, CanvasPanels
from wsigen.painting.grid import Rectangle
from wsigen.painting.tasks import Task
from wsigen.slides.formats import FORMATS, SlideFormat, write_slide
from wsigen.slides.metadata import SlideMetadata
from wsigen.slides.preview import Preview

PICTURE_SECONDS = 2.0  # between refreshes of the picture
PICTURE_BACKLOG = 16  # tasks that wait to be shown; more are left out of the growing picture
POLL_SECONDS = 0.2


class Assembler:
    """Writes the slide of a region of a canvas (default: all of it) to ``path`` and its picture to ``picture``."""

    def __init__(
        self,
        canvas: Canvas,
        path: Path,
        picture: Path,
        metadata: SlideMetadata,
        glass_rgb: Sequence[int],
        jpeg_quality: int,
        region: Rectangle | None = None,
        format: SlideFormat = FORMATS["svs"],
        patient_id: str = "",
    ) -> None:
        self.path, self.picture, self.metadata, self.jpeg_quality = path, picture, metadata, jpeg_quality
        self.format, self.patient_id = format, patient_id
        self.panels = CanvasPanels(canvas, glass_rgb, region)
        self.rows_encoded = 0
        self._preview = Preview(self.panels.region.width, self.panels.region.height)
        self._growing = _GrowingPicture(canvas, picture, self.panels.region)
        self._gate = RowsReady()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="wsigen-assemble", daemon=True)
        self._thread.start()

    def painted(self, rows: int, ended: Task | None) -> None:
        """Tell that ``rows`` rows of the slide are finished from the top, and which task has ended.

        Raises what went wrong with the file meanwhile, such as SlideError for a full disk.
        """
        if self._error is not None:
            raise self._error
        self._gate.open(rows)
        if ended is not None:
            self._growing.show(ended)

    def ended(self) -> bool:
        """Tell that all is painted; whether the file is written, or will never be."""
        self._gate.open(self.panels.region.height)
        return not self._thread.is_alive()

    def finish(self, on_rows: Callable[[int], None]) -> None:
        """Tell that all is painted, and wait for the file; raises what went wrong. Can be interrupted."""
        self._growing.stop()
        self._gate.open(self.panels.region.height)
        while self._thread.is_alive():
            self._thread.join(POLL_SECONDS)
            on_rows(self.rows_encoded)
        if self._error is not None:
            raise self._error
        on_rows(self.rows_encoded)  # the last ones may have been written before anybody waited
        self._preview.write(self.picture)

    def stop(self) -> None:
        """Give up: no file is left behind."""
        self._growing.stop()
        self._gate.close()
        self._thread.join()

    def _run(self) -> None:
        try:
            if self.format.panels:
                self._write_panels()
            else:
                self._write_rows()
        except BaseException as error:
            self._error = error

    def _write_panels(self) -> None:
        width, height = self.panels.region[2:]
        self.format.write_panels(
            self.path,
            width,
            height,
            self._read,
            metadata=self.metadata,
            panel=self.panels.side,
            jpeg_quality=self.jpeg_quality,
            progress=self._encoded,
            overwrite=True,
        )

    def _write_rows(self) -> None:
        width, height = self.panels.region[2:]
        write_slide(
            self.path,
            width,
            height,
            lambda y0, y1: self._read(0, y0, width, y1 - y0),
            self.metadata,
            self.format,
            self.jpeg_quality,
            self._encoded,
            overwrite=True,
            patient_id=self.patient_id,
        )

    def _read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        self._gate.wait_for(y + height)
        pixels = self.panels(x, y, width, height)
        self._preview.add(x, y, pixels)
        return pixels

    def _encoded(self, rows: int) -> None:
        self.rows_encoded = rows


class RowsReady:
    """Holds readers back until the rows that they want are finished."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._rows = 0
        self._closed = False

    def open(self, rows: int) -> None:
        """Let readers of the first ``rows`` rows go on."""
        with self._changed:
            self._rows = max(self._rows, rows)
            self._changed.notify_all()

    def close(self) -> None:
        """Turn readers away."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait_for(self, rows: int) -> None:
        """Wait; raises InterruptedError once the gate is closed, or nobody is left to open it."""
        with self._changed:
            while self._rows < rows:
                if self._closed or not threading.main_thread().is_alive():
                    raise InterruptedError("the slide is not finished")
                self._changed.wait(1.0)


class _GrowingPicture:
    """The picture of a slide while it is painted, window by window; tasks are left out where it cannot keep up."""

    def __init__(self, canvas: Canvas, path: Path, region: Rectangle) -> None:
        self.canvas, self.path, self.region = Canvas(canvas.path, canvas.layout, canvas.run, 0), path, region
        self._preview = Preview(region.width, region.height)
        self._tasks: Queue[Task] = Queue(PICTURE_BACKLOG)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wsigen-picture", daemon=True)
        self._thread.start()

    def show(self, task: Task) -> None:
        with suppress(Full):
            self._tasks.put_nowait(task)

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        written = time.monotonic()
        while not self._stopped.is_set():
            try:
                self._add(self._tasks.get(timeout=POLL_SECONDS))
            except Empty:
                continue
            if time.monotonic() - written > PICTURE_SECONDS:
                self._preview.write(self.path)
                written = time.monotonic()

    def _add(self, task: Task) -> None:
        for chunk in task.chunks:
            shown = self.canvas.painted_samples(chunk, self.region, self._preview.sampled_every)
            if shown is not None:
                self._preview.sketch(*shown)
