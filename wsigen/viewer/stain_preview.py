"""What a slide will roughly look like before it is painted: its mask in the tone of the stain, plainly marked.

Tissue has the style's colour, nuclei that of their class mixed with the style's darker tone, and all of it bears fine
oblique lines, so that nobody takes it for a painted slide.
"""

from __future__ import annotations

import numpy as np

from wsigen.masks.classes import NucleusClass
from wsigen.masks.window import TISSUE, UNKNOWN
from wsigen.models.stain import StainStyle
from wsigen.viewer.overlays import MaskOverlay

STROMA_OD = -0.5  # deviations from the style's mean optical density
NUCLEUS_OD = 1.1
CLASS_SHARE = 0.5  # of a class's colour in its nuclei
LINE_PERIOD, LINE_WIDTH, LINE_LIGHT = 24, 3, 0.35


def preview_pixels(
    overlay: MaskOverlay, style: StainStyle, level: int, x: int, y: int, width: int, height: int
) -> np.ndarray:
    """The preview of a region of a level, in its pixels: uint8 (height, width, 3)."""
    classes, nuclei, tissue = overlay.charted(level, x, y, width, height)
    if overlay.near(level):
        step = 1 << level
        read = overlay.mask.read(x * step, y * step, width * step, height * step)
        middle = slice(step // 2, None, step)
        classes = read.classes[middle, middle]
        nuclei = np.where(classes > 0, np.uint8(255), np.uint8(0))
        if read.tissue is not None:
            plane = read.tissue[middle, middle]
            tissue = np.where(plane == TISSUE, 255, np.where(plane == UNKNOWN, 128, 0)).astype(np.uint8)
    glass, stroma = np.array(style.glass_rgb, np.float32), stain_rgb(style, STROMA_OD)
    share = tissue[..., None] / np.float32(255)
    pixels = glass + share * (stroma - glass)
    share = nuclei[..., None] / np.float32(255)
    pixels += share * (nucleus_colours(overlay.classes, style)[classes] - pixels)
    lines = ((np.arange(x, x + width) + np.arange(y, y + height)[:, None]) % LINE_PERIOD < LINE_WIDTH)[..., None]
    pixels += lines * LINE_LIGHT * (255 - pixels)
    return pixels.astype(np.uint8)


def stain_rgb(style: StainStyle, deviations: float) -> np.ndarray:
    """Colour of so many deviations from the style's mean optical density: (3,) float32."""
    density = np.array(style.vector[:3]) + deviations * np.array(style.vector[3:])
    return (255 * 10 ** -np.maximum(density, 0)).astype(np.float32)


def nucleus_colours(classes: tuple[NucleusClass, ...], style: StainStyle) -> np.ndarray:
    """Colours by class index, 0 for none: (n + 1, 3) float32."""
    dark = stain_rgb(style, NUCLEUS_OD)
    own = [np.array(entry.rgb, np.float32) for entry in classes]
    return np.stack([np.zeros(3, np.float32), *(CLASS_SHARE * rgb + (1 - CLASS_SHARE) * dark for rgb in own)])
