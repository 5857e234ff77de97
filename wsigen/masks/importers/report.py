"""What an import did with every object."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from wsigen.errors import MaskError

LISTED_NAMES = 12


@dataclass(frozen=True)
class ImportReport:
    """What an import did with each object: the counts of all outcomes add up to ``found``.

    Attributes:
        format: format of the source.
        out: the mask.
        width: width of the mask in px.
        height: height of the mask in px.
        mpp: µm per pixel of the mask, or None.
        found: objects in the source.
        imported: name of each class of the model, with the number of its nuclei.
        clipped: imported nuclei that were cut at the border of the slide.
        repaired: imported nuclei whose outlines crossed themselves.
        regions: objects that were drawn into the tissue plane.
        skipped: names of classes that were left out, with counts.
        invalid: objects without an area, or that could not be read.
        not_polygons: points and lines.
        outside: objects outside of the slide.
        hidden: objects smaller than a pixel, or below others.
        offset: what was added to the coordinates of the source, if they count from the corner of the slide's bounds.
    """

    format: str
    out: Path
    width: int
    height: int
    mpp: float | None
    found: int
    imported: tuple[tuple[str, int], ...]
    clipped: int = 0
    repaired: int = 0
    regions: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    invalid: int = 0
    not_polygons: int = 0
    outside: int = 0
    hidden: int = 0
    offset: tuple[int, int] = (0, 0)

    @property
    def nuclei(self) -> int:
        """Nuclei in the mask."""
        return sum(count for _, count in self.imported)

    @property
    def accounted(self) -> int:
        """Objects whose outcome is known; equal to `found`, unless the importer has a defect."""
        left_out = self.regions + sum(self.skipped.values()) + self.invalid + self.not_polygons
        return self.nuclei + left_out + self.outside + self.hidden

    def describe(self) -> list[str]:
        """Lines to print: the mask, the classes, and what was done with every object."""
        scale = f"{self.mpp:g} um/px" if self.mpp else "no scale stored (give --mpp or --like)"
        classes = ", ".join(f"{count:,} {name}" for name, count in self.imported if count)
        remarks = [(self.clipped, "clipped at the border"), (self.repaired, "self-crossing, repaired")]
        noted = ", ".join(f"{count:,} {what}" for count, what in remarks if count)
        line = f"{self.nuclei:,} of {self.found:,} objects are nuclei of the mask" + (f" ({noted})" if noted else "")
        return [
            f"wrote {self.out}: {self.width:,} x {self.height:,} px, {scale}, from {self.format}",
            *([counted_from_bounds("outlines", self.offset)] if self.offset != (0, 0) else []),
            f"nuclei: {classes or 'none'}",
            f"{line}; the others: {self.describe_others()}",
        ]

    def describe_others(self) -> str:
        """What was done with the objects that are no nuclei of the mask."""
        fates = [
            (self.regions, "drawn as tissue"),
            (sum(self.skipped.values()), f"left out by class ({listed(self.skipped)})"),
            (self.invalid, "invalid (no outline, or no area)"),
            (self.not_polygons, "points or lines"),
            (self.outside, "outside the slide"),
            (self.hidden, "smaller than a pixel or hidden under others"),
        ]
        return ", ".join(f"{count:,} {what}" for count, what in fates if count) or "none"


def counted_from_bounds(what: str, offset: tuple[int, int]) -> str:
    """The line that says that coordinates count from the corner of a slide's bounds, and how to change that."""
    return f"{what} count from the corner of the slide's bounds, ({offset[0]}, {offset[1]}); else: --origin slide"


def refuse_empty(path: Path, reason: str) -> NoReturn:
    """Raise the line of an import without nuclei."""
    raise MaskError(f"{path}: gives no nuclei ({reason}); nothing was written, --allow-empty writes an empty mask")


def refuse_unknown(path: Path, unknown: Counter[str], classes: Sequence[str]) -> NoReturn:
    """Raise the line that lists the classes no map knows."""
    raise MaskError(
        f"{path}: classes without a counterpart: {listed(unknown)}; map them to {', '.join(classes)}, tissue or skip "
        "with --class-map (a built-in map, a .toml file, or THEIRS=OURS), or give --unknown skip"
    )


def listed(counts: Mapping[str, int]) -> str:
    """Names with counts, the most frequent ones first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{name[:60]} {count:,}" for name, count in ordered[:LISTED_NAMES])
    return listed + (f" and {len(ordered) - LISTED_NAMES} more" if len(ordered) > LISTED_NAMES else "")
