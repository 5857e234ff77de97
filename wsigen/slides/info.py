"""Read what a slide says about itself, for any slide that OpenSlide opens, a folder of DICOM instances among them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import openslide
import tifffile

from wsigen.errors import SlideError
from wsigen.slides.metadata import SYNTHETIC_PATIENT, SYNTHETIC_SCANNER, parse_description
from wsigen.system.folders import is_dropping
from wsigen.system.scale import plausible_sizes


@dataclass(frozen=True)
class SlideLevel:
    """One level of a pyramid: size in its own pixels and level-0 pixels per pixel."""

    width: int
    height: int
    downsample: float


@dataclass(frozen=True)
class SlideInfo:
    """What `read_slide_info` found.

    width, height: level 0 in pixels. mpp: microns per pixel of level 0, mean of x and y, if known; a printer's
    resolution is none. pixel_sizes: width and height of a pixel in microns, as far as they are known. bounds: (x, y,
    width, height) of what was scanned, in pixels of level 0, where the slide states it.
    associated: size (width, height) of each picture beside the pyramid. tile: its size (width, height), if tiled.
    compression: of level 0 in a TIFF, as tifffile names it. synthetic: the slide says that it was painted by wsigen;
    provenance: then its items (version, model, seed, mask_sha256, ...).
    """

    path: Path
    width: int
    height: int
    levels: tuple[SlideLevel, ...]
    mpp: float | None
    objective_power: float | None
    vendor: str
    associated: Mapping[str, tuple[int, int]]
    tile: tuple[int, int] | None
    compression: str | None
    synthetic: bool
    provenance: Mapping[str, str]
    pixel_sizes: tuple[float, ...] = ()
    bounds: tuple[int, int, int, int] | None = None


def read_slide_info(path: str | os.PathLike[str]) -> SlideInfo:
    """Describe the slide at `path`. Raises SlideError for a file that is missing, damaged, or no slide."""
    file = Path(path)
    if not file.exists():
        raise SlideError(f"{file}: no such file")
    try:
        with openslide.OpenSlide(openslide_path(file)) as slide:
            return _describe(file, slide)
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise SlideError(f"{file}: not a slide that OpenSlide can read, or its start is damaged") from error
    except openslide.OpenSlideError as error:
        raise SlideError(f"{file}: damaged or cut off ({error}); write or copy it again") from error


def openslide_path(path: Path) -> Path:
    """What OpenSlide is to open for a slide: of a folder of DICOM instances one of them."""
    if not path.is_dir():
        return path
    instances = sorted(file for file in path.glob("*.dcm") if not is_dropping(file.name))
    if not instances:
        raise SlideError(f"{path}: is a folder without DICOM instances (*.dcm); name the slide's file in it")
    return instances[0]


def _describe(path: Path, slide: openslide.OpenSlide) -> SlideInfo:
    properties = slide.properties
    painted = parse_description(properties.get("tiff.ImageDescription", ""))
    stated = [value for axis in "xy" if (value := _number(properties.get(f"openslide.mpp-{axis}"))) is not None]
    sizes = plausible_sizes(stated)
    tile = [_number(properties.get(f"openslide.level[0].tile-{side}")) for side in ("width", "height")]
    return SlideInfo(
        path=path,
        width=slide.dimensions[0],
        height=slide.dimensions[1],
        levels=tuple(SlideLevel(*size, scale) for size, scale in zip(slide.level_dimensions, slide.level_downsamples)),
        mpp=sum(sizes) / len(sizes) if sizes else None,
        objective_power=_number(properties.get("openslide.objective-power")),
        vendor=properties.get("openslide.vendor", "unknown"),
        # Decoded, not only listed: in Aperio's format these stand last, so a file that was cut off shows here.
        associated={name: picture.size for name, picture in slide.associated_images.items()},
        tile=(int(tile[0]), int(tile[1])) if tile[0] and tile[1] else None,
        compression=_compression(path),
        synthetic=painted is not None
        or properties.get("aperio.ScanScope ID") == SYNTHETIC_SCANNER
        or properties.get("dicom.PatientName") == SYNTHETIC_PATIENT,
        provenance=dict(painted.provenance) if painted else _provenance_of_dicom(properties),
        pixel_sizes=sizes,
        bounds=_bounds(properties),
    )


def _bounds(properties: Mapping[str, str]) -> tuple[int, int, int, int] | None:
    stated = [_number(properties.get(f"openslide.bounds-{what}")) for what in ("x", "y", "width", "height")]
    x, y, width, height = (None if value is None else int(value) for value in stated)
    return None if x is None or y is None or width is None or height is None else (x, y, width, height)


def _provenance_of_dicom(properties: Mapping[str, str]) -> dict[str, str]:
    """What painted a slide, from the description that our DICOM instances carry: "..: model a, seed 1"."""
    if properties.get("dicom.PatientName") != SYNTHETIC_PATIENT:
        return {}
    items: dict[str, str] = {}
    for part in properties.get("dicom.DerivationDescription", "").partition(": ")[2].split(", "):
        name, space, value = part.partition(" ")
        if space and name.isidentifier():
            items[name] = value
        elif items:  # a value that holds a comma
            items[next(reversed(items))] += f", {part}"
    return items


def _compression(path: Path) -> str | None:
    """Compression of the first page, None for a slide that is no TIFF (a bad TIFF was refused before)."""
    try:
        with tifffile.TiffFile(path) as tiff:
            return tifffile.COMPRESSION(tiff.pages.first.compression).name
    except (tifffile.TiffFileError, OSError, ValueError):
        return None


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
