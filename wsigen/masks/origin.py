"""Where the coordinates of outlines begin on a slide that was scanned in part.

Some scanners state the bounds of the scanned area within a larger picture (OpenSlide's `openslide.bounds-x`, ..).
QuPath shows the bounds alone and counts from their corner. OpenSlide and most other tools count from the corner of the
whole picture, and so does a mask.
"""

from __future__ import annotations

from enum import StrEnum

ORIGIN_HELP = "Corner that outlines count from, on a slide with bounds: auto is the bounds for QuPath, else the slide."


class Origin(StrEnum):
    """The corner that outlines are counted from.

    Attributes:
        AUTO: as is usual for the format: QuPath's GeoJSON counts from the bounds, others from the slide's corner.
        BOUNDS: the corner of the slide's bounds.
        SLIDE: the corner of the whole picture.
    """

    AUTO = "auto"
    BOUNDS = "bounds"
    SLIDE = "slide"

    def offset(self, bounds: tuple[int, int] | None, of_format: bool) -> tuple[int, int]:
        """Return what to add to coordinates of outlines so that they count from the slide's corner.

        Args:
            bounds: corner of the bounds in px; None if the slide states no bounds.
            of_format: whether the format counts from the bounds.
        """
        from_bounds = of_format if self is Origin.AUTO else self is Origin.BOUNDS
        return bounds if from_bounds and bounds is not None else (0, 0)
