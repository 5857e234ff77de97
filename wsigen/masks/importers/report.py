"""What an import did, with every object accounted for."""

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
    """Where the objects of a source went: `found` is the sum of all that follows `imported`, and of that.

    imported: (class, nuclei) for each class of the model. clipped, repaired: of the imported ones, those cut at the
    border of the slide, and those whose outlines crossed themselves. regions: drawn into the tissue plane. skipped:
    names that a map leaves out or that were unknown, with counts. invalid: without an area, or unreadable.
    not_polygons: points and lines. outside: beyond the slide. hidden: smaller than a pixel, or under others.
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

    @property
    def nuclei(self) -> int:
        """Nuclei in the mask."""
        return sum(count for _, count in self.imported)

    @property
    def accounted(self) -> int:
        """Objects whose fate is known; equal to `found`, or the importer has a defect."""
        left_out = self.regions + sum(self.skipped.values()) + self.invalid + self.not_polygons
        return self.nuclei + left_out + self.outside + self.hidden

    def describe(self) -> list[str]:
        """Lines for people: the mask, the classes, and what became of every object."""
        scale = f"{self.mpp:g} um/px" if self.mpp else "no scale stored (give --mpp or --like)"
        classes = ", ".join(f"{count:,} {name}" for name, count in self.imported if count)
        fates = [
            (self.regions, "drawn as tissue"),
            (sum(self.skipped.values()), f"left out by class ({_listed(self.skipped)})"),
            (self.invalid, "invalid (no area)"),
            (self.not_polygons, "points or lines"),
            (self.outside, "outside the slide"),
            (self.hidden, "smaller than a pixel or hidden under others"),
        ]
        remarks = [(self.clipped, "clipped at the border"), (self.repaired, "self-crossing, repaired")]
        noted = ", ".join(f"{count:,} {what}" for count, what in remarks if count)
        rest = ", ".join(f"{count:,} {what}" for count, what in fates if count)
        line = f"{self.nuclei:,} of {self.found:,} objects are nuclei of the mask" + (f" ({noted})" if noted else "")
        return [
            f"wrote {self.out}: {self.width:,} x {self.height:,} px, {scale}, from {self.format}",
            f"nuclei: {classes or 'none'}",
            f"{line}; the others: {rest or 'none'}",
        ]


def refuse_unknown(path: Path, unknown: Counter[str], classes: Sequence[str]) -> NoReturn:
    """Raise the line that lists the classes no map knows."""
    raise MaskError(
        f"{path}: classes without a counterpart: {_listed(unknown)}; map them to {', '.join(classes)}, tissue or skip "
        "with --class-map (a built-in map, a .toml file, or THEIRS=OURS), or give --unknown skip"
    )


def _listed(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{name[:60]} {count:,}" for name, count in ordered[:LISTED_NAMES])
    return listed + (f" and {len(ordered) - LISTED_NAMES} more" if len(ordered) > LISTED_NAMES else "")
