"""Microns per pixel as files state them: units, values that no microscope has, and pixels that are not square."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wsigen.errors import MaskError

# Slides are scanned between these; 72, 96 or 300 dots per inch are a printer's resolution, not a scanner's.
MIN_PLAUSIBLE_MPP, MAX_PLAUSIBLE_MPP = 0.01, 50.0
SQUARE_TOLERANCE = 0.05  # as two scales that differ by this much count as one
MICRONS_PER_UNIT = {
    **{"µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0},
    **{"nm": 1e-3, "nanometer": 1e-3, "nanometre": 1e-3},
    **{"mm": 1e3, "millimeter": 1e3, "millimetre": 1e3, "cm": 1e4, "centimeter": 1e4, "centimetre": 1e4},
    **{"m": 1e6, "meter": 1e6, "metre": 1e6, "inch": 25_400.0, "in": 25_400.0},
}


def plausible_mpp(value: float | None) -> float | None:
    """Return the scale; None if it is missing or outside of the range of slides."""
    return value if value is not None and MIN_PLAUSIBLE_MPP <= value <= MAX_PLAUSIBLE_MPP else None


def plausible_sizes(sizes: Sequence[float]) -> tuple[float, ...]:
    """Keep the sides of a pixel (width, then height, in µm) that are within the range of slides."""
    return tuple(size for size in sizes if plausible_mpp(size) is not None)


def are_square(sizes: Sequence[float]) -> bool:
    """Whether the known sides of a pixel are equal, up to 5 %."""
    return not sizes or max(sizes) <= min(sizes) * (1 + SQUARE_TOLERANCE)


def square_mpp(path: Path, sizes: Sequence[float]) -> float | None:
    """Microns per pixel from the sides of a pixel, None where none is known; MaskError for pixels that are not square.

    A mask has one scale: nuclei of pixels twice as wide as high would come out squeezed.
    """
    if not are_square(sizes):
        raise MaskError(
            f"{path}: its pixels are {sizes[0]:g} x {sizes[1]:g} um (width x height); resample it to square pixels"
        )
    return sum(sizes) / len(sizes) if sizes else None
