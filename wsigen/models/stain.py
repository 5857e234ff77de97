"""Stain style: the colour of a slide as six numbers, one vector for a whole slide.

Optical density is ``OD = -log10((I + 1) / 256)`` per channel (Beer-Lambert; Ruifrok and Johnston 2001). A style is
the mean and the standard deviation of OD over the slide's tissue pixels, and the glass white that surrounds them.
Statistics are taken over a slide, never over a window: those follow the window's content.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsigen.errors import ModelError, SlideError
from wsigen.system.pictures import load_picture

if TYPE_CHECKING:
    import openslide

STYLE_NUMBERS = ("mean red", "mean green", "mean blue", "deviation red", "deviation green", "deviation blue")
TISSUE_MIN_OD = 0.06  # mean optical density above which a pixel counts as tissue; glass lies near 0.02
MIN_GLASS_PIXELS = 1_000
SAMPLE_TILES = 64
SAMPLE_TILE = 512  # px
SMOOTHING_PX = 4.0  # 2 um at 0.5 mpp
GLASS_MARGIN_OD = 0.032  # above the picture's own glass; pale stroma starts near 0.04
MIN_GLASS_PX = 600  # smaller clear spots belong to the tissue (vacuoles, cracks)
MIN_TISSUE_PX = 300
MIN_TISSUE_PIXELS = 10_000


@dataclass(frozen=True)
class StyleRange:
    """Normalisation of style vectors.

    Attributes:
        mean: means of the six numbers over the training slides.
        std: their standard deviations.
        clamp: largest normalised value, in standard deviations.
    """

    mean: tuple[float, ...] = (0.22, 0.40, 0.18, 0.14, 0.18, 0.10)
    std: tuple[float, ...] = (0.07, 0.09, 0.06, 0.04, 0.05, 0.03)
    clamp: float = 2.5

    def normalise(self, vector: np.ndarray) -> np.ndarray:
        """Map (..., 6) optical-density statistics to zero mean and unit deviation, clamped to the training range."""
        return np.clip(self.scaled(vector), -self.clamp, self.clamp).astype(np.float32)

    def scaled(self, vector: np.ndarray) -> np.ndarray:
        """Map (..., 6) optical-density statistics to zero mean and unit deviation, float64, not clamped."""
        return (np.asarray(vector, np.float64) - np.asarray(self.mean)) / np.asarray(self.std)

    def unscaled(self, normalised: np.ndarray) -> np.ndarray:
        """Inverse of ``scaled``: optical-density statistics (..., 6), float64."""
        return np.asarray(normalised, np.float64) * np.asarray(self.std) + np.asarray(self.mean)

    @classmethod
    def from_config(cls, data: dict[str, Any]) -> StyleRange:
        """Build from the JSON form."""
        return cls(tuple(data["mean"]), tuple(data["std"]), float(data["clamp"]))


@dataclass(frozen=True)
class StainStyle:
    """The colour of a slide.

    Attributes:
        name: name of the style.
        vector: mean (red, green, blue) and standard deviation (red, green, blue) of optical density over tissue.
        glass_rgb: colour of the glass, 0 to 255.
        description: a line for people.
    """

    name: str
    vector: tuple[float, ...] = (0.22, 0.40, 0.18, 0.14, 0.18, 0.10)
    glass_rgb: tuple[int, int, int] = (243, 242, 244)
    description: str = ""

    def to_config(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "name": self.name,
            "vector": [round(float(v), 5) for v in self.vector],
            "glass_rgb": list(self.glass_rgb),
            "description": self.description,
        }

    @classmethod
    def from_config(cls, data: dict[str, Any]) -> StainStyle:
        """Build from the JSON form; ModelError if it is not one."""
        vector, glass = tuple(map(float, data["vector"])), tuple(map(int, data["glass_rgb"]))
        if len(vector) != len(STYLE_NUMBERS) or len(glass) != 3:
            raise ModelError(f"style {data.get('name')!r} needs {len(STYLE_NUMBERS)} vector values and 3 glass values")
        return cls(str(data["name"]), vector, (glass[0], glass[1], glass[2]), str(data.get("description", "")))


def optical_density(rgb: np.ndarray) -> np.ndarray:
    """Convert uint8 intensities to optical density, float32, 0 for white to 2.4 for black."""
    table = -np.log10((np.arange(256, dtype=np.float64) + 1.0) / 256.0)
    return table.astype(np.float32)[rgb]


def tissue_pixels(density: np.ndarray) -> np.ndarray:
    """Which pixels of optical density (..., 3) count as tissue in a stain style: bool (...)."""
    return density.mean(axis=-1) > TISSUE_MIN_OD


def measure_style(rgb: np.ndarray, glass: np.ndarray, name: str, known: np.ndarray | None = None) -> StainStyle:
    """Measure the stain style of ``rgb`` (..., 3) uint8, over the pixels where ``known`` (...) is true.

    ``glass`` (...) bool says where clear glass lies, for its white: see ``tissue_from_density``.

    Raises ModelError when fewer than 10,000 pixels look like tissue.
    """
    od = optical_density(rgb.reshape(-1, 3) if known is None else rgb[known])
    tissue = tissue_pixels(od)
    if int(tissue.sum()) < MIN_TISSUE_PIXELS:
        raise ModelError(
            f"only {int(tissue.sum())} pixels look like tissue; a stain style needs {MIN_TISSUE_PIXELS} or more"
        )
    od_tissue = od[tissue].astype(np.float64)
    vector = (*od_tissue.mean(axis=0), *od_tissue.std(axis=0))
    return StainStyle(name, tuple(float(v) for v in vector), _glass_white(rgb[glass]))


def _glass_white(glass: np.ndarray) -> tuple[int, int, int]:
    """Median colour of glass pixels (N, 3); a neutral white where a picture shows none."""
    if len(glass) < MIN_GLASS_PIXELS:
        return StainStyle("").glass_rgb
    red, green, blue = (int(v) for v in np.median(glass, axis=0))
    return red, green, blue


def tissue_from_density(
    rgb: np.ndarray, nuclei: np.ndarray | None = None, known: np.ndarray | None = None
) -> np.ndarray:
    """Tissue (1) and glass (0) of ``rgb`` (H, W, 3) uint8 at about 0.5 um per pixel, from smoothed optical density.

    ``nuclei`` (H, W) bool are tissue; so are pixels that are not ``known``.
    """
    from scipy import ndimage  # a third of a second of a start, of which few need it

    nuclei = np.zeros(rgb.shape[:2], bool) if nuclei is None else nuclei
    known = np.ones(rgb.shape[:2], bool) if known is None else known
    density = optical_density(rgb).mean(axis=2)
    density[~known] = 0.2
    smooth = ndimage.gaussian_filter(density, SMOOTHING_PX)
    glass_level = min(float(np.percentile(smooth[known], 0.5)) if known.any() else 0.0, 0.03)
    tissue = (smooth > glass_level + GLASS_MARGIN_OD) | ndimage.binary_dilation(nuclei, iterations=3) | ~known
    tissue = ~_drop_small(~tissue, MIN_GLASS_PX)
    return (_drop_small(tissue, MIN_TISSUE_PX) | nuclei).astype(np.uint8)


def _drop_small(region: np.ndarray, least: int) -> np.ndarray:
    from scipy import ndimage

    labels, count = ndimage.label(region)
    if count == 0:
        return region
    sizes = np.bincount(labels.ravel())
    keep = sizes >= least
    keep[0] = False
    return keep[labels]


def measure_style_file(path: Path, mpp: float = 0.5) -> StainStyle:
    """Measure the stain style of a slide, or of a picture at about ``mpp`` microns per pixel.

    Of a slide, up to SAMPLE_TILES tiles are read on a regular grid from the level nearest to ``mpp``: deviations of
    optical density are smaller at coarser levels. Raises SlideError or ModelError.
    """
    import openslide
    import pyvips

    path = Path(path)
    if not path.is_file():
        raise SlideError(f"{path}: no such style reference; give a named style, a picture or a slide")
    try:
        if openslide.OpenSlide.detect_format(str(path)):
            with openslide.OpenSlide(str(path)) as slide:
                rgb = _sample_slide(slide, mpp)
        else:
            rgb = load_picture(path).colourspace("srgb")[:3].cast("uchar").numpy()
    except (openslide.OpenSlideError, pyvips.Error) as error:
        raise SlideError(f"{path} cannot be read as a picture or a slide ({str(error).splitlines()[0]})") from error
    try:
        return measure_style(rgb, tissue_from_density(rgb) == 0, path.stem)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _sample_slide(slide: openslide.OpenSlide, mpp: float) -> np.ndarray:
    """Tiles from all over a slide, one below the other: (N * TILE, TILE, 3) uint8."""
    own = float(slide.properties.get("openslide.mpp-x", mpp))
    level = slide.get_best_level_for_downsample(max(1.0, mpp / own) * 1.01)
    scale, (width, height) = slide.level_downsamples[level], slide.level_dimensions[level]
    side = math.isqrt(SAMPLE_TILES)
    xs, ys = (
        np.unique(np.linspace(0, max(0, size - SAMPLE_TILE), min(side, math.ceil(size / SAMPLE_TILE))).astype(int))
        for size in (width, height)  # a small slide is read once, not over and over
    )
    tiles = []
    for y, x in itertools.product(ys, xs):
        size = (min(SAMPLE_TILE, width), min(SAMPLE_TILE, height))
        rgba = np.asarray(slide.read_region((int(x * scale), int(y * scale)), level, size))
        tiles.append(np.where(rgba[..., 3:] > 0, rgba[..., :3], 255).astype(np.uint8))
    return np.concatenate(tiles)
