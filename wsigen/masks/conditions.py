"""Condition planes of a window: classes, instance edges, tissue, and where glass is known.

Each is local and computed slide-wide: a window's planes equal that part of the whole slide's planes, whatever window
asks. For that, more of the mask is read than the window, by a halo, and what depends on the border of the halo is cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from wsigen.masks.source import MaskSource
from wsigen.masks.window import GLASS, TISSUE, UNKNOWN

GLASS_DEPTH = 8
TISSUE_WITHIN_UM = 12.0
UNKNOWN_WITHIN_UM = 60.0
HALO = GLASS_DEPTH + 1  # pixels around a window that its planes depend on


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


@dataclass(frozen=True)
class Surroundings:
    """What a window's conditions follow from: the mask of the window and of HALO pixels around it.

    classes: (H + 18, W + 18) uint8. labels: likewise int32, what differs between nuclei. tissue: likewise uint8, before
    nuclei are taken for tissue.
    """

    classes: np.ndarray
    labels: np.ndarray
    tissue: np.ndarray

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What a batch stacks, by name."""
        return {"classes": self.classes, "labels": self.labels, "tissue": self.tissue}

    def part(self, x: int, y: int, w: int, h: int) -> Surroundings:
        """Those of the (h, w) part at (x, y), counted from the window's corner: views."""
        place = slice(y, y + h + 2 * HALO), slice(x, x + w + 2 * HALO)
        return Surroundings(self.classes[place], self.labels[place], self.tissue[place])

    def is_glass(self, part: tuple[slice, slice]) -> bool:
        """Whether all of a part of the window, (rows, columns), is more than 8 px inside glass."""
        rows, columns = (range(*span.indices(size - 2 * HALO)) for span, size in zip(part, self.classes.shape))
        near = slice(rows.start + 1, rows.stop + 2 * HALO - 1), slice(columns.start + 1, columns.stop + 2 * HALO - 1)
        if not self.classes[near].any() and not self.tissue[near].any():
            return True
        inner = slice(rows.start + HALO, rows.stop + HALO), slice(columns.start + HALO, columns.stop + HALO)
        if self.classes[inner].any() or self.tissue[inner].any():
            return False
        return bool(derive_conditions(self).glass[part].all())  # tissue just outside: a disk decides


def read_surroundings(mask: MaskSource, x: int, y: int, w: int, h: int, mpp: float) -> Surroundings:
    """What the conditions of the (h, w) window at (x, y) follow from; see `read_conditions`."""
    tissue_halo = 0 if mask.has_tissue else math.ceil(UNKNOWN_WITHIN_UM / mpp)
    halo = tissue_halo + HALO
    read = mask.read(x - halo, y - halo, w + 2 * halo, h + 2 * halo)
    labels = read.classes.astype(np.int32) if read.instances is None else read.instances.view(np.int32)
    tissue = tissue_near_nuclei(read.classes, mpp) if read.tissue is None else read.tissue
    return Surroundings(*(_inner(plane, tissue_halo) for plane in (read.classes, labels, tissue)))


def read_conditions(mask: MaskSource, x: int, y: int, w: int, h: int, mpp: float) -> Conditions:
    """Condition planes of the (h, w) window at (x, y), which may reach outside the slide (reflected there).

    mpp: microns per pixel to take for distances where the mask has no tissue plane; give the same for a whole slide.
    A nucleus is tissue, whatever the tissue plane says. Raises `MaskError` where the mask's values are out of range.
    """
    return derive_conditions(read_surroundings(mask, x, y, w, h, mpp))


def derive_conditions(around: Surroundings) -> Conditions:
    """Condition planes of a window; `wsigen.conditions` does a batch with torch."""
    tissue = np.where(around.classes > 0, np.uint8(TISSUE), around.tissue)
    return Conditions(
        classes=np.ascontiguousarray(_inner(around.classes, HALO)),
        edges=np.ascontiguousarray(_inner(instance_edges(_inner(around.labels, HALO - 1)), 1)),
        tissue=np.ascontiguousarray(_inner(tissue, HALO)),
        glass=np.ascontiguousarray(_inner(deep_glass(tissue), HALO)),
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
    from scipy.ndimage import distance_transform_edt  # a third of a second of a start

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


def _inner(plane: np.ndarray, margin: int) -> np.ndarray:
    return plane if margin == 0 else plane[margin:-margin, margin:-margin]
