"""Where patches are cut, and which side of the split each stands on.

Patches lie on a grid inside regions; a region stands on one side as a whole and patches never reach over its border, so
no pixel is both trained on and tested with. With several slides, a slide can be the region.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from wsigen.errors import DataError

SplitBy = Literal["region", "slide"]
LARGEST_REGION = 2048
ENOUGH_REGIONS = 10


@dataclass(frozen=True)
class Place:
    """One patch: slide number, upper left pixel at level 0, and side of the split."""

    slide: int
    x: int
    y: int
    region: str
    split: str


def parse_split(text: str) -> dict[str, float]:
    """Shares of the sides, such as "train=0.8,val=0.2"; they must add up to 1. Raises DataError."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.partition("=")
        try:
            shares[name.strip()] = float(share)
        except ValueError:
            raise DataError(f"split {text!r}: write shares such as train=0.8,val=0.2") from None
    if not all(name.isidentifier() for name in shares) or abs(sum(shares.values()) - 1) > 1e-6:
        raise DataError(f"split {text!r}: names must be plain and shares add up to 1, such as train=0.8,val=0.2")
    if any(share < 0 for share in shares.values()):
        raise DataError(f"split {text!r}: shares must be 0 to 1")
    return shares


def default_region(sizes: Sequence[tuple[int, int]], patch: int) -> int:
    """LARGEST_REGION, halved where the slides would have fewer than ENOUGH_REGIONS, but never below a patch."""
    region = max(LARGEST_REGION, patch)
    while region // 2 >= patch and sum((w // region) * (h // region) for w, h in sizes) < ENOUGH_REGIONS:
        region //= 2
    return region


def places(
    sizes: Sequence[tuple[int, int]],
    patch: int,
    stride: int,
    region: int,
    shares: Mapping[str, float],
    split_by: SplitBy,
    seed: int,
) -> Iterator[Place]:
    """All places on the slides, in reading order of regions and patches.

    sizes: (width, height) of each slide. patch, stride, region: px. The sides follow from the seed and the names of the
    regions alone, each as near to its share of the regions as whole ones allow.
    """
    if stride < 1 or not 0 < patch <= region:
        raise DataError(f"patches of {patch} px every {stride} px in regions of {region} px: no patch fits")
    regions = [
        (slide, x, y, min(x + region, width), min(y + region, height))
        for slide, (width, height) in enumerate(sizes)
        for y in range(0, height, region)
        for x in range(0, width, region)
    ]
    regions = [r for r in regions if r[3] - r[1] >= patch and r[4] - r[2] >= patch]
    if not regions:
        raise DataError(f"no patch of {patch} px fits the slides; choose smaller patches with --patch")
    units = sorted({_unit(r, split_by) for r in regions})
    side = _sides(units, shares, seed)
    for r in regions:
        slide, left, top, right, bottom = r
        name = f"slide{slide}_x{left}_y{top}"
        for y in range(top, bottom - patch + 1, stride):
            for x in range(left, right - patch + 1, stride):
                yield Place(slide, x, y, name, side[_unit(r, split_by)])


def _unit(region: tuple[int, int, int, int, int], split_by: SplitBy) -> str:
    slide, x, y, _, _ = region
    return f"slide{slide}" if split_by == "slide" else f"slide{slide}_x{x}_y{y}"


def _sides(units: Sequence[str], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    wanted = [name for name, share in shares.items() if share > 0]
    if len(units) < len(wanted):
        raise DataError(
            f"{len(units)} parts cannot be split into {', '.join(wanted)}; use smaller regions (--region) or patches, "
            "or more slides"
        )
    shuffled = sorted(units, key=lambda unit: hashlib.sha256(f"{seed} {unit}".encode()).digest())
    # One for each side first, then each unit to the side that misses most of its share.
    counts = dict.fromkeys(wanted, 0)
    side: dict[str, str] = {}
    for index, unit in enumerate(shuffled):
        most = max(wanted, key=lambda name: shares[name] * (index + 1) - counts[name])
        remaining = len(shuffled) - index
        empty = [name for name in wanted if counts[name] == 0]
        chosen = empty[0] if len(empty) >= remaining else most
        counts[chosen] += 1
        side[unit] = chosen
    return side
