"""Check that a slide fits its record: some of its windows are painted again and compared.

JPEG changes pixels, so the new pixels are encoded with the slide's quality too. What remains is rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openslide

from wsigen.config import RenderSettings
from wsigen.errors import SettingsError, SlideError
from wsigen.painting.grid import Rectangle, Window
from wsigen.rendering.on_demand import GeneratedSlide
from wsigen.rendering.plan import plan_render
from wsigen.rendering.records import SlideRecord, record_of
from wsigen.slides.tiled_tiff import TILE, TileJpeg

TOLERANCE = 2.0  # of 255, on the mean absolute difference of a tile; decoders round differently, by less than 1


@dataclass(frozen=True)
class WindowCheck:
    """A window that was painted again.

    Attributes:
        window: the window.
        difference: mean absolute difference between the slide's tile there and the new pixels, in levels of 255.
    """

    window: Window
    difference: float

    @property
    def equal(self) -> bool:
        """Whether the difference is no larger than what JPEG can cause."""
        return self.difference <= TOLERANCE


def verify(
    slide: str | Path,
    mask: str | Path,
    *,
    record: str | Path | None = None,
    windows: int = 20,
    seed: int = 0,
    **settings: Any,
) -> list[WindowCheck]:
    """Paint random windows of a slide again, and compare them with the slide. Windows with tissue come first.

    Args:
        slide: the slide, in a format that OpenSlide reads.
        mask: the mask that the slide was painted from.
        record: record of the slide. None: the .json beside it.
        windows: how many windows to paint.
        seed: seed of the choice of windows.
        **settings: fields of `RenderSettings` that replace those of the record, such as ``model`` or ``device``.

    Returns:
        One entry for each window; ``equal`` says whether it agrees.

    Raises:
        SettingsError: the record is missing, or mask, model or machine differ from it, so that pixels would differ.
        SlideError: the slide cannot be opened, or has another size.
    """
    path = Path(record) if record else record_of(slide)
    if not path.is_file():
        raise SettingsError(f"{path}: the record of {slide} is missing; name it with --record")
    recorded = SlideRecord.read(path)
    rect = recorded.settings["rect"]
    model = settings.pop("model", None) or recorded.find_model()
    plan = plan_render(
        mask, None, RenderSettings.from_keywords({**recorded.settings, "rect": None, **settings, "model": model})
    )
    recorded.check(plan.run)
    x0, y0 = rect[:2] if rect else (0, 0)
    with _open(slide) as opened, GeneratedSlide(plan) as generated:
        expected_size = tuple(rect[2:]) if rect else generated.dimensions
        if opened.dimensions != expected_size:
            raise SlideError(f"{slide}: is {opened.dimensions}, its record and mask make {expected_size}")
        jpeg = TileJpeg(plan.jpeg_quality)
        chosen = _choose(generated, (x0, y0, *expected_size), windows, seed)
        return [_check(opened, generated, window, jpeg, (x0, y0)) for window in chosen]


def _open(slide: str | Path) -> openslide.OpenSlide:
    try:
        return openslide.OpenSlide(slide)
    except (openslide.OpenSlideError, OSError) as error:
        raise SlideError(f"{slide}: cannot be opened ({error})") from error


def _choose(generated: GeneratedSlide, rect: tuple[int, int, int, int], count: int, seed: int) -> list[Window]:
    """Random windows inside ``rect``, those with tissue before those of glass."""
    all_windows = list(generated.plan.grid.windows(Rectangle(*rect)))
    order = np.random.default_rng(seed).permutation(len(all_windows))
    shuffled = [all_windows[index] for index in order]
    occupied = generated.plan.occupied
    return sorted(shuffled, key=lambda window: not occupied[window.j, window.i])[:count]


def _check(
    slide: openslide.OpenSlide, generated: GeneratedSlide, window: Window, jpeg: TileJpeg, origin: tuple[int, int]
) -> WindowCheck:
    """Compare the tile of the slide that holds the window's middle; tiles are counted from the slide's corner."""
    held = generated.plan.grid.held(window)
    width, height = slide.dimensions
    middle = (held.x + held.width // 2 - origin[0], held.y + held.height // 2 - origin[1])
    x, y = (min(max(at, 0), size - 1) // TILE * TILE for at, size in zip(middle, (width, height)))
    w, h = min(TILE, width - x), min(TILE, height - y)
    painted = generated.pixels(0, origin[0] + x, origin[1] + y, w, h)
    stored = np.asarray(slide.read_region((x, y), 0, (w, h)).convert("RGB"))
    copy = jpeg.decode(jpeg.encode(painted))[:h, :w]
    return WindowCheck(window, float(np.abs(stored.astype(np.int16) - copy.astype(np.int16)).mean()))
