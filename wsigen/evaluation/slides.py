"""Level-0 pixels of a slide, for what is measured on slides."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np

from wsigen.errors import SlideError


class SlidePixels:
    """A slide that OpenSlide opens, read by rectangle; transparent pixels are white. Raises SlideError."""

    def __init__(self, path: str | Path) -> None:
        import openslide

        self.path = Path(path)
        if not self.path.is_file():
            raise SlideError(f"{self.path}: no such slide; give an .svs that wsigen render wrote, or any slide")
        try:
            self._slide = openslide.OpenSlide(str(self.path))
        except openslide.OpenSlideError as error:
            raise SlideError(f"{self.path}: cannot be read as a slide ({str(error).splitlines()[0]})") from error
        self.width, self.height = self._slide.dimensions
        stored = self._slide.properties.get("openslide.mpp-x")
        self.mpp = float(stored) if stored else None

    def read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Pixels (height, width, 3) uint8 of level 0 from (x, y)."""
        import openslide

        try:
            rgba = np.asarray(self._slide.read_region((x, y), 0, (width, height)))
        except openslide.OpenSlideError as error:
            raise SlideError(f"{self.path}: cannot be read at {x}, {y} ({str(error).splitlines()[0]})") from error
        return np.where(rgba[..., 3:] > 0, rgba[..., :3], np.uint8(255))

    def __enter__(self) -> SlidePixels:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._slide.close()
