"""Settings of an import, and the checks that come before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wsigen.errors import MaskError, SettingsError
from wsigen.masks.origin import Origin
from wsigen.system.scale import MAX_PLAUSIBLE_MPP, MIN_PLAUSIBLE_MPP, plausible_mpp

MAX_SIDE = 500_000
MAX_PIXELS = 100_000_000_000


@dataclass(frozen=True)
class ImportSettings:
    """Settings of an import.

    Attributes:
        classes: names of the model's classes 1..n.
        class_maps: names of built-in maps, paths of TOML files, or ``THEIRS=OURS``; later ones take precedence.
        skip_unknown: leave out objects whose class no map contains; otherwise the import is refused.
        tissue: file of tissue outlines, or a tissue label image; may be the source itself.
        table: file with the classes of the ids of a label image.
        image: the picture to take, if the source describes several.
        pixel_centres: whether outlines run through the centres of border pixels. None: as is usual for the format.
        size: width and height of the slide in px. None: as the source states, else up to the last object.
        mpp: µm per pixel of the slide. None: as the source states.
        bounds: corner of the slide's bounds in px; None if the slide states no bounds.
        origin: the corner that outlines are counted from.
        allow_empty: write the mask even if it has no nuclei.

    Raises:
        SettingsError: ``mpp`` is not plausible, or ``origin`` is "bounds" and no bounds are given.
    """

    classes: Sequence[str]
    class_maps: Sequence[str] = ()
    skip_unknown: bool = False
    tissue: Path | None = None
    table: Path | None = None
    image: str | None = None
    pixel_centres: bool | None = None
    size: tuple[int, int] | None = None
    mpp: float | None = None
    bounds: tuple[int, int] | None = None
    origin: Origin = Origin.AUTO
    allow_empty: bool = False

    def __post_init__(self) -> None:
        if self.mpp is not None and plausible_mpp(self.mpp) is None:
            limits = f"{MIN_PLAUSIBLE_MPP:g} to {MAX_PLAUSIBLE_MPP:g}"
            raise SettingsError(f"mpp {self.mpp:g}: no slide has such pixels; give {limits} microns per pixel")
        if self.origin is Origin.BOUNDS and self.bounds is None:
            raise SettingsError("origin bounds: no slide that states its bounds is given; name one with --like")


def check_target(out: Path, overwrite: bool) -> None:
    """Refuse an existing target, or one in a folder that does not exist, before long work begins."""
    if out.is_dir():
        raise MaskError(f"{out}: is a folder; name a file in it")
    if out.exists() and not overwrite:
        raise MaskError(f"{out}: already exists; replace it with --overwrite, or choose another name")
    if not out.parent.is_dir():
        raise MaskError(f"{out}: the folder {out.parent} does not exist; create it first")


def check_size(path: Path, width: int, height: int) -> None:
    """Refuse a size that no slide has, before it takes memory or time."""
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE and width * height <= MAX_PIXELS):
        raise MaskError(f"{path}: a mask of {width:,} x {height:,} px is larger than any slide; check its coordinates")
