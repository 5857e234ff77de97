"""Proof that a slide is what its record says: some of its windows are painted again and compared.

JPEG changes pixels, so the painted ones are encoded with the slide's quality too; what then differs is rounding.
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
    """A window that was painted again, and the mean absolute difference of the slide's tile there, of 255."""

    window: Window
    difference: float

    @property
    def equal(self) -> bool:
        """Whether the slide holds the window's pixels, as far as JPEG lets one tell."""
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
    """Paint ``windows`` random windows of a slide again and compare; those with tissue first.

    ``record`` (default: the .json beside the slide) says how it was painted; ``settings`` override it, such as
    ``model`` or ``device``. ``seed`` chooses the windows. Raises SettingsError where mask, model or machine are not
    those of the record, so that pixels would differ anyway.
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
    """Compare the tile of the slide that holds the window's middle; tiles count from the slide's own corner."""
    held = generated.plan.grid.held(window)
    width, height = slide.dimensions
    middle = (held.x + held.width // 2 - origin[0], held.y + held.height // 2 - origin[1])
    x, y = (min(max(at, 0), size - 1) // TILE * TILE for at, size in zip(middle, (width, height)))
    w, h = min(TILE, width - x), min(TILE, height - y)
    painted = generated.pixels(0, origin[0] + x, origin[1] + y, w, h)
    stored = np.asarray(slide.read_region((x, y), 0, (w, h)).convert("RGB"))
    copy = jpeg.decode(jpeg.encode(painted))[:h, :w]
    return WindowCheck(window, float(np.abs(stored.astype(np.int16) - copy.astype(np.int16)).mean()))
