"""Condition planes of a window: classes, instance edges, tissue, and where glass is known.

Each is local and computed slide-wide: a window's planes equal that part of the whole slide's planes, whatever window
asks. For that, more of the mask is read than the window, by a halo, and what depends on the border of the halo is cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt

from wsigen.masks.slide_mask import MaskSource
from wsigen.masks.window import GLASS, TISSUE, UNKNOWN, MaskWindow

GLASS_DEPTH = 8
TISSUE_WITHIN_UM = 12.0
UNKNOWN_WITHIN_UM = 60.0
_GLASS_HALO = GLASS_DEPTH + 1


@dataclass(frozen=True)
class Conditions:
    """What the denoiser is told about a window.

    classes: (H, W) uint8, 0 background, then the model's classes.
    edges: (H, W) uint8 {0, 1}, pixels with a 4-neighbour of another nucleus (or of none).
    tissue: (H, W) uint8, 0 glass, 1 tissue, 255 unknown.
    glass: (H, W) bool, more than 8 px inside glass: not painted, but known to be glass.
    """

    classes: np.ndarray
    edges: np.ndarray
    tissue: np.ndarray
    glass: np.ndarray


def read_conditions(mask: MaskSource, x: int, y: int, w: int, h: int, mpp: float) -> Conditions:
    """Condition planes of the (h, w) window at (x, y), which may reach outside the slide (reflected there).

    mpp: microns per pixel to take for distances where the mask has no tissue plane; give the same for a whole slide.
    A nucleus is tissue, whatever the tissue plane says. Raises `MaskError` where the mask's values are out of range.
    """
    tissue_halo = 0 if mask.has_tissue else math.ceil(UNKNOWN_WITHIN_UM / mpp)
    halo = tissue_halo + _GLASS_HALO
    read = mask.read(x - halo, y - halo, w + 2 * halo, h + 2 * halo)
    labels = read.classes if read.instances is None else read.instances
    tissue = _tissue(read, mpp)
    tissue = _inner(tissue, tissue_halo)
    return Conditions(
        classes=np.ascontiguousarray(_inner(read.classes, halo)),
        edges=np.ascontiguousarray(_inner(instance_edges(_inner(labels, halo - 1)), 1)),
        tissue=np.ascontiguousarray(_inner(tissue, _GLASS_HALO)),
        glass=np.ascontiguousarray(_inner(deep_glass(tissue), _GLASS_HALO)),
    )


def instance_edges(labels: np.ndarray) -> np.ndarray:
    """Mark both sides of each border between two labels: (H, W) any integer -> (H, W) uint8 {0, 1}.

    NASDM's edge plane: a pixel is an edge where one of its four neighbours has another label. Outside the array there
    is no neighbour.
    """
    edges = np.zeros(labels.shape, np.uint8)
    across = labels[:, 1:] != labels[:, :-1]
    along = labels[1:] != labels[:-1]
    edges[:, 1:] |= across
    edges[:, :-1] |= across
    edges[1:] |= along
    edges[:-1] |= along
    return edges


def tissue_near_nuclei(classes: np.ndarray, mpp: float) -> np.ndarray:
    """Tissue guessed from nuclei: 1 within 12 µm of one (Euclidean), 255 to 60 µm, 0 beyond; (H, W) uint8."""
    if not classes.any():
        return np.zeros(classes.shape, np.uint8)
    distance = distance_transform_edt(classes == 0)
    tissue = np.where(distance * mpp <= UNKNOWN_WITHIN_UM, UNKNOWN, GLASS).astype(np.uint8)
    tissue[distance * mpp <= TISSUE_WITHIN_UM] = TISSUE
    return tissue


def deep_glass(tissue: np.ndarray) -> np.ndarray:
    """Glass pixels whose distance to the nearest pixel that is not glass is more than 8; (H, W) bool.

    That is, glass eroded by a disk. Its rows are runs, so it is done with runs: some times faster than distances.
    """
    solid = tissue != GLASS
    if solid.all() or not solid.any():
        return ~solid
    near = _widened(solid, GLASS_DEPTH)
    for dy in range(1, min(GLASS_DEPTH, len(solid) - 1) + 1):
        run = _widened(solid, math.isqrt(GLASS_DEPTH**2 - dy**2))
        near[dy:] |= run[:-dy]
        near[:-dy] |= run[dy:]
    return ~near


def _widened(plane: np.ndarray, radius: int) -> np.ndarray:
    """Whether a pixel of the row within `radius` is set; the reach grows threefold with each step."""
    reach = 0
    while reach < radius:
        step = min(radius - reach, 2 * reach + 1)
        wider = plane.copy()
        wider[:, step:] |= plane[:, :-step]
        wider[:, :-step] |= plane[:, step:]
        plane, reach = wider, reach + step
    return plane.copy() if radius == 0 else plane


def _tissue(read: MaskWindow, mpp: float) -> np.ndarray:
    if read.tissue is None:
        return tissue_near_nuclei(read.classes, mpp)
    return np.where(read.classes > 0, np.uint8(TISSUE), read.tissue)


def _inner(plane: np.ndarray, margin: int) -> np.ndarray:
    return plane if margin == 0 else plane[margin:-margin, margin:-margin]
