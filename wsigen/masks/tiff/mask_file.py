"""The planes of a mask TIFF: which page holds classes, which nucleus ids, which tissue."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import tifffile

from wsigen.errors import MaskError
from wsigen.masks.tiff.metadata import PLANE_NAMES, ome_metadata, tag_sizes
from wsigen.masks.tiff.opening import parse_tiff
from wsigen.masks.tiff.plane import Plane, checked_plane
from wsigen.system.scale import square_mpp


@dataclass(frozen=True)
class MaskFile:
    """What a mask TIFF holds: its planes by name, and microns per pixel (mean of x and y; None where not given)."""

    planes: dict[str, Plane]
    mpp: float | None


def open_mask_file(path: Path, stream: BinaryIO) -> MaskFile:
    """Find and check the planes of the TIFF in `stream`; every refusal is a `MaskError` of one line."""
    size = os.fstat(stream.fileno()).st_size
    tif = parse_tiff(path, stream, size)
    pages = [page for page in tif.pages if isinstance(page, tifffile.TiffPage)]
    if not pages:
        raise MaskError(f"{path}: the TIFF holds no image ({size} bytes: truncated?); copy or export it again")
    names, ome_sizes = ome_metadata(pages[0].description)
    chosen = _choose_planes(path, pages, {index: name for index, name in names.items() if name in PLANE_NAMES})
    planes = {name: checked_plane(path, name, page, size) for name, page in chosen.items()}
    return MaskFile(planes, square_mpp(path, ome_sizes or tag_sizes(tif, pages[0])))


def _choose_planes(path: Path, pages: list[tifffile.TiffPage], names: dict[int, str]) -> dict[str, tifffile.TiffPage]:
    chosen: dict[str, tifffile.TiffPage] = {}
    unnamed: list[tuple[int, tifffile.TiffPage]] = []
    for index, page in enumerate(pages):
        name = names.get(index)
        if name is None:
            unnamed.append((index, page))
        elif name in chosen:
            raise MaskError(f"{path}: two planes are named {name!r} (page {index}); name each plane once")
        else:
            chosen[name] = page
    if "class" not in chosen:
        if not unnamed or unnamed[0][0] != 0:
            raise MaskError(f"{path}: has no class plane, only {', '.join(chosen)}; name the plane of classes 'class'")
        chosen["class"] = unnamed.pop(0)[1]
    first = chosen["class"]
    for name, page in chosen.items():
        _check_same_size(path, name, page, first)
    for index, page in unnamed:
        if _is_reduced(page, [first, *chosen.values()]):
            continue
        _check_same_size(path, f"page {index}", page, first)
        if "instance" in chosen or page.dtype not in (np.uint16, np.uint32) or page.samplesperpixel != 1:
            raise MaskError(
                f"{path}: page {index} ({page.dtype}) is a plane without a name; name it 'class', 'instance' or "
                "'tissue' in the OME-XML, or remove it"
            )
        chosen["instance"] = page
    return chosen


def _is_reduced(page: tifffile.TiffPage, planes: list[tifffile.TiffPage]) -> bool:
    """Whether an unnamed page is a smaller copy of a plane: flagged so, or like it but for one common factor."""
    if page.is_reduced:
        return True
    for plane in planes:
        if page.dtype != plane.dtype or min(page.imagewidth, page.imagelength) < 1:
            continue
        factor = plane.imagewidth / page.imagewidth
        height = plane.imagelength / factor
        if factor >= 1.5 and abs(page.imagelength - height) <= 1 + height / page.imagewidth:
            return True
    return False


def _check_same_size(path: Path, name: str, page: tifffile.TiffPage, first: tifffile.TiffPage) -> None:
    size, expected = (page.imagewidth, page.imagelength), (first.imagewidth, first.imagelength)
    if size != expected:
        raise MaskError(
            f"{path}: planes differ in size: {name} is {size[0]} x {size[1]}, class is {expected[0]} x {expected[1]}; "
            "write all planes at the size of the slide"
        )
