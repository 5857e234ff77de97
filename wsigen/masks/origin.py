"""Where the coordinates of outlines begin on a slide that was scanned in part.

Some scanners state the bounds of what they scanned within a larger picture (OpenSlide's `openslide.bounds-x`, ..).
QuPath shows the bounds alone and counts from their corner; OpenSlide, and most other tools, count from the corner of
the whole picture, as a mask does.
"""

from __future__ import annotations

from enum import StrEnum

ORIGIN_HELP = "Corner that outlines count from, on a slide with bounds: auto is the bounds for QuPath, else the slide."


class Origin(StrEnum):
    """The corner that outlines are counted from."""

    AUTO = "auto"  # as the format has it: QuPath's GeoJSON from the bounds, the others from the slide's corner
    BOUNDS = "bounds"
    SLIDE = "slide"

    def offset(self, bounds: tuple[int, int] | None, of_format: bool) -> tuple[int, int]:
        """What to add to coordinates of outlines to count from the slide's corner.

        bounds: corner of the bounds, None where the slide states none. of_format: the format counts from the bounds.
        """
        from_bounds = of_format if self is Origin.AUTO else self is Origin.BOUNDS
        return bounds if from_bounds and bounds is not None else (0, 0)
