"""The demo mask: a grid of fragments, drawn row by row."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from wsigen.errors import MaskError
from wsigen.masks.demo.crypts import draw_crypt_nuclei, draw_sheath, placed_crypts
from wsigen.masks.demo.drawing import EPITHELIUM, LUMEN, SUBMUCOSA, VESSEL, Drawing
from wsigen.masks.demo.stroma import (
    draw_follicles,
    draw_muscle,
    draw_propria,
    draw_submucosa,
    draw_vessel_wall,
    placed_vessels,
)
from wsigen.masks.demo.wall import Wall, draw_layers, draw_surface
from wsigen.masks.window import MaskWindow
from wsigen.masks.writer import write_slide_mask

FRAGMENT_WIDTH_UM, FRAGMENT_HEIGHT_UM = 3000.0, 900.0


def demo_mask(width: int, height: int, seed: int, mpp: float = 0.5) -> MaskWindow:
    """The whole mask, with instance ids 1, 2, ... and a tissue plane of 0 and 1; see `demo_bands` for large ones."""
    bands = list(demo_bands(width, height, seed, mpp))
    classes = np.concatenate([band.classes for band in bands])
    instances = np.concatenate([band.instances for band in bands if band.instances is not None])
    return MaskWindow(classes, instances, np.concatenate([band.tissue for band in bands if band.tissue is not None]))


def demo_bands(width: int, height: int, seed: int, mpp: float = 0.5) -> Iterator[MaskWindow]:
    """The mask in bands of whole rows, top to bottom, each one row of fragments; equal for equal arguments.

    Raises `MaskError` for a size below 1 pixel or an mpp that is not positive.
    """
    if width < 1 or height < 1 or not mpp > 0:
        raise MaskError(f"demo mask: {width} x {height} pixels at {mpp} µm makes no mask; give positive numbers")
    columns = _cuts(width, FRAGMENT_WIDTH_UM / mpp)
    rows = _cuts(height, FRAGMENT_HEIGHT_UM / mpp)
    next_id = 1
    for row, (top, bottom) in enumerate(pairwise(rows)):
        shape = (bottom - top, width)
        band = MaskWindow(np.zeros(shape, np.uint8), np.zeros(shape, np.uint32), np.zeros(shape, np.uint8))
        for column, (left, right) in enumerate(pairwise(columns)):
            rng = np.random.default_rng([seed, row, column])
            drawn = Drawing(right - left, bottom - top, mpp, rng, next_id)
            _draw(drawn)
            next_id = drawn.next_id
            band.classes[:, left:right] = drawn.classes
            band.instances[:, left:right] = drawn.instances  # type: ignore[index]
            band.tissue[:, left:right] = drawn.tissue()  # type: ignore[index]
        yield band


def write_demo_mask(
    path: str | os.PathLike[str], width: int, height: int, seed: int, mpp: float = 0.5, overwrite: bool = False
) -> None:
    """Write a demo mask with instance and tissue planes; raises `MaskError` as `write_slide_mask` does."""
    write_slide_mask(path, width, height, mpp, demo_bands(width, height, seed, mpp), True, True, overwrite)


def _cuts(size: int, piece: float) -> list[int]:
    count = max(1, round(size / piece))
    return [size * k // count for k in range(count + 1)]


def _draw(fragment: Drawing) -> None:
    """Draw the zones, then the nuclei; those drawn first keep their whole shape.

    All draw from one generator of random numbers, so that the order is part of the mask.
    """
    wall = Wall.drawn(fragment.width_um, fragment.height_um, fragment.rng)
    draw_layers(fragment, wall)
    crypts = placed_crypts(wall, fragment.rng)
    for crypt in crypts:
        fragment.fill(crypt.grown(1.5), EPITHELIUM)
    vessels = placed_vessels(wall, fragment.rng)
    for vessel in vessels:
        fragment.fill(vessel.outline, VESSEL, only=SUBMUCOSA)
    for crypt in crypts:
        if crypt.lumen_is_glass:
            fragment.fill(crypt.lumen, LUMEN)
    for crypt in crypts:
        draw_crypt_nuclei(fragment, crypt)
    draw_surface(fragment, wall, [crypt.mouth for crypt in crypts if crypt.mouth is not None])
    for crypt in crypts:
        draw_sheath(fragment, crypt)
    for vessel in vessels:
        draw_vessel_wall(fragment, vessel)
    draw_follicles(fragment, wall)
    draw_muscle(fragment, wall)
    draw_propria(fragment)
    draw_submucosa(fragment)
