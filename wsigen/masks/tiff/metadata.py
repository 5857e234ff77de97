"""Names of pages and sizes of pixels, from OME-XML and from the resolution tags."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import tifffile

from wsigen.system.scale import MICRONS_PER_UNIT, plausible_sizes

PLANE_NAMES = ("class", "instance", "tissue")


def ome_metadata(description: str) -> tuple[dict[int, str], tuple[float, ...]]:
    """Names in lower case by page index, and the sides of a pixel in microns, from OME-XML; else nothing."""
    if "<OME" not in description[:4096]:
        return {}, ()
    try:
        return _read_ome(ElementTree.fromstring(description.lstrip("\ufeff")))
    except (ElementTree.ParseError, ValueError):
        return {}, ()


def tag_sizes(tif: tifffile.TiffFile, page: tifffile.TiffPage) -> tuple[float, ...]:
    """The sides of a pixel in microns from the resolution tags (inch, cm, or ImageJ's own unit)."""
    unit = {2: 25_400.0, 3: 10_000.0}.get(int(page.tags.valueof(296, 2)))
    if unit is None:
        imagej = tif.imagej_metadata if tif.is_imagej else None
        unit = MICRONS_PER_UNIT.get(str((imagej or {}).get("unit", "")).replace("\\u00B5", "µ"))
    if unit is None:
        return ()
    sizes = []
    for tag in (282, 283):
        numerator, denominator = page.tags.valueof(tag, (0, 1))
        if numerator > 0 and denominator > 0:
            sizes.append(unit * denominator / numerator)
    return plausible_sizes(sizes)


def _read_ome(root: ElementTree.Element) -> tuple[dict[int, str], tuple[float, ...]]:
    names: dict[int, str] = {}
    sizes: tuple[float, ...] = ()
    page = 0
    for image in root.iter():
        pixels = next((child for child in image if _local(child) == "Pixels"), None)
        if _local(image) != "Image" or pixels is None:
            continue
        labels = _ome_labels(image, pixels)
        blocks = [child for child in pixels if _local(child) == "TiffData"]
        first = int(blocks[0].get("IFD", page)) if blocks else page
        names |= {first + offset: label for offset, label in enumerate(labels) if label}
        page = first + len(labels)
        sizes = sizes or _ome_sizes(pixels)
    return names, sizes


def _ome_labels(image: ElementTree.Element, pixels: ElementTree.Element) -> list[str]:
    """One lower-case name per page of an image: the channel's, else (one page) the image's."""
    channels = [(child.get("Name") or "").strip().lower() for child in pixels if _local(child) == "Channel"]
    count = math.prod(int(pixels.get(axis, 1)) for axis in ("SizeC", "SizeZ", "SizeT"))
    labels = (channels + [""] * count)[:count]
    if count == 1 and labels[0] not in PLANE_NAMES:
        labels = [(image.get("Name") or "").strip().lower()]
    return [label[:-1] if label == "instances" else "class" if label == "classes" else label for label in labels]


def _local(element: ElementTree.Element) -> str:
    return str(element.tag).rsplit("}", 1)[-1]


def _ome_sizes(pixels: ElementTree.Element) -> tuple[float, ...]:
    sizes = []
    for axis in "XY":
        try:
            value = float(pixels.get(f"PhysicalSize{axis}", "nan"))
        except ValueError:
            continue
        sizes.append(value * MICRONS_PER_UNIT.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"), math.nan))
    return plausible_sizes(sizes)
