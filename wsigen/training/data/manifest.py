"""The training folder: what `wsigen data prepare` writes and `wsigen train` reads.

A training folder holds `manifest.json` beside `images/NAME.webp` (RGB), `labels/NAME.png` (uint8: class, 255 where a
pixel is not available) and `instances/NAME.png` (uint16: nucleus ids, 0 background). The manifest says which images
there are, which source image each was cut from and on which side of the split that source image stands: pictures of one
source image never stand on both sides. The readers take pyvips where it can be imported and Pillow otherwise, so that a
training machine needs neither library in particular.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from wsigen.errors import DataError, MaskError
from wsigen.masks.palettes import palette_indices
from wsigen.system.pictures import load_picture
from wsigen.system.text_files import read_text

VERSION = 1
FILE_NAME = "manifest.json"
UNAVAILABLE = 255  # label of a pixel that the picture does not show

Split = Literal["train", "val"]
_SPLITS = ("train", "val")
_QUALITIES = ("manual", "machine")


@dataclass(frozen=True)
class TrainingImage:
    """One picture of a training folder."""

    name: str  # file name without ending, unique in the folder
    source: str  # data set that it came from, for example "lizard"
    group: str  # source image: the unit of splitting
    split: Split
    width: int  # px
    height: int  # px
    label_quality: Literal["manual", "machine"]  # who drew the labels
    facts: Mapping[str, str] = field(default_factory=dict)  # what else is known of the slide, such as its organ


@dataclass(frozen=True)
class Manifest:
    """What a training folder holds."""

    mpp: float  # microns per pixel of every picture
    classes: tuple[dict[str, Any], ...]  # {index, name, colour}: what `ClassTable.from_config` reads
    images: tuple[TrainingImage, ...]

    def of_split(self, split: Split) -> tuple[TrainingImage, ...]:
        """Return the pictures of one side of the split."""
        return tuple(image for image in self.images if image.split == split)

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the data sets that the pictures came from, sorted."""
        return tuple(sorted({image.source for image in self.images}))


def facts_of_groups(folder: str | Path, images: Sequence[TrainingImage]) -> dict[str, dict[str, str]]:
    """What is known of each group: the facts of all its pictures together.

    Raises:
        DataError: two pictures of a group contradict each other.
    """
    known: dict[str, dict[str, str]] = {}
    for image in images:
        facts = known.setdefault(image.group, {})
        for name, value in image.facts.items():
            if facts.setdefault(name, value) != value:
                raise DataError(
                    f"{Path(folder) / FILE_NAME}: group {image.group!r} has {name} {facts[name]!r} and {value!r}; "
                    "give all pictures of a group the same facts"
                )
    return known


def image_path(folder: str | Path, name: str) -> Path:
    """Return where the RGB picture `name` of a training folder lies."""
    return Path(folder) / "images" / f"{name}.webp"


def label_path(folder: str | Path, name: str) -> Path:
    """Return where the class labels of `name` lie."""
    return Path(folder) / "labels" / f"{name}.png"


def instance_path(folder: str | Path, name: str) -> Path:
    """Return where the nucleus ids of `name` lie."""
    return Path(folder) / "instances" / f"{name}.png"


def save(manifest: Manifest, folder: str | Path) -> None:
    """Write `manifest.json` into `folder`."""
    data = {"version": VERSION, **asdict(manifest)}
    (Path(folder) / FILE_NAME).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def load(folder: str | Path) -> Manifest:
    """Read and check the manifest of a training folder.

    Raises:
        DataError: no such file, not a manifest, a source image on both sides of the split, or a missing picture.
    """
    path = Path(folder) / FILE_NAME
    manifest = _parse(path, _read_json(path))
    _check(path, manifest)
    return manifest


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(read_text(path))
    except FileNotFoundError:
        raise DataError(f"{path}: not found; `wsigen data prepare` makes a training folder") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); prepare the folder again") from None
    if not isinstance(data, dict) or data.get("version") != VERSION:
        version = data.get("version") if isinstance(data, dict) else None
        raise DataError(f"{path}: version is {version!r}, expected {VERSION}; prepare the folder again")
    return data


def _parse(path: Path, data: dict[str, Any]) -> Manifest:
    names = {entry.name for entry in fields(TrainingImage)} - {"facts"}
    try:
        images = tuple(
            TrainingImage(**{key: item[key] for key in names}, facts=dict(item.get("facts", {})))
            for item in data["images"]
        )
        classes = tuple({key: item[key] for key in ("index", "name", "colour")} for item in data["classes"])
        return Manifest(float(data["mpp"]), classes, images)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: an entry is missing or malformed ({error}); prepare the folder again") from None


def _check(path: Path, manifest: Manifest) -> None:
    sides: dict[str, str] = {}
    seen: set[str] = set()
    for image in manifest.images:
        if image.split not in _SPLITS or image.label_quality not in _QUALITIES:
            value = image.split if image.split not in _SPLITS else image.label_quality
            raise DataError(f"{path}: image {image.name!r} has {value!r}, expected one of {_SPLITS} or {_QUALITIES}")
        if image.name in seen:
            raise DataError(f"{path}: image {image.name!r} is listed twice; give each picture its own name")
        seen.add(image.name)
        if sides.setdefault(image.group, image.split) != image.split:
            raise DataError(f"{path}: group {image.group!r} is in train and in val; put it on one side")
        for file in (locate(path.parent, image.name) for locate in (image_path, label_path, instance_path)):
            if not file.is_file():
                raise DataError(f"{file}: not found, though {path.name} lists it; prepare the folder again")


def read_rgb(path: str | Path) -> npt.NDArray[np.uint8]:
    """Read a picture as (H, W, 3) uint8 in any format that the libraries know (WebP, PNG, JPEG, TIFF).

    Raises:
        DataError: the file cannot be read, or is no 8-bit picture.
    """
    pixels = _read(path, rgb=True)
    if pixels.dtype != np.uint8:
        raise DataError(f"{path}: pixels are {pixels.dtype}, expected 8-bit RGB; convert the picture")
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    return np.ascontiguousarray(pixels[..., :3])


def read_label(path: str | Path) -> npt.NDArray[Any]:
    """Read labels or instance ids as (H, W) uint8 or uint16 (as stored).

    Raises:
        DataError: the file cannot be read, or has several bands.
    """
    pixels = _read(path, rgb=False)
    if pixels.ndim == 3 and pixels.shape[2] in (3, 4):  # the colours of a palette, whose indices are the labels
        try:
            indices = palette_indices(Path(path))
        except MaskError as error:
            raise DataError(str(error)) from None
        pixels = pixels if indices is None else indices
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim != 2 or pixels.dtype not in (np.uint8, np.uint16):
        raise DataError(
            f"{path}: shape {pixels.shape} of {pixels.dtype}, expected one band of 8 or 16 bit; save as PNG"
        )
    return np.ascontiguousarray(pixels)


def _read(path: str | Path, rgb: bool) -> npt.NDArray[Any]:
    if not Path(path).is_file():
        raise DataError(f"{path}: not found; add the file or prepare the folder again")
    try:
        import pyvips
    except (ImportError, OSError):
        return _read_pillow(path, rgb)
    try:
        return load_picture(path).numpy()
    except pyvips.Error as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())}); replace the file") from None


def _read_pillow(path: str | Path, rgb: bool) -> npt.NDArray[Any]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            if rgb:
                return np.asarray(image.convert("RGB"))
            pixels = np.asarray(image)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())}); replace the file") from None
    # Older Pillow opens a 16-bit greyscale PNG as 32-bit integers.
    return pixels.astype(np.uint16) if pixels.dtype == np.int32 else pixels
