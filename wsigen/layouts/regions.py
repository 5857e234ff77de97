"""The layout that a real mask follows: what training shows the model, and where variations of a mask begin.

Regions are told from nuclei and tissue alone, by the same local rule for pictures and for whole slides.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt

from wsigen.layouts.layout import CELL, REGIONS, Layout, packed
from wsigen.masks.classes import ClassTable
from wsigen.masks.conditions import tissue_near_nuclei
from wsigen.masks.source import MaskSource
from wsigen.masks.window import GLASS, MaskWindow

COARSE = 4  # px; regions are told at this scale
CLOSING_UM = 40.0  # lumina up to twice as wide belong to the gland around them
MARGIN_UM = 5.0  # of a gland around its nuclei
LUMEN_UM = 10.0  # from the nearest nucleus of the gland
EPITHELIAL = ("epithelial", "neoplastic", "tumour", "tumor")
GLASS_ZONE, STROMA, GLAND, LUMEN = range(len(REGIONS))
TILE = 2048
HALO = 256  # px; more than two closings, and whole nuclei


def epithelial_classes(classes: ClassTable | tuple[str, ...]) -> tuple[int, ...]:
    """Indices of the classes that glands are made of."""
    names = classes.names if isinstance(classes, ClassTable) else classes
    return tuple(i + 1 for i, name in enumerate(names) if any(word in name.lower() for word in EPITHELIAL))


def region_plane(classes: np.ndarray, tissue: np.ndarray, epithelial: tuple[int, ...], mpp: float) -> np.ndarray:
    """Which of REGIONS each pixel lies in: (H, W) uint8.

    A gland is what epithelial nuclei close around, as far as they are nearer than others; its lumen is where they are
    far. ``tissue``: (H, W), 0 glass.
    """
    height, width = classes.shape
    pad = (0, -height % COARSE), (0, -width % COARSE)
    coarse = np.pad(classes, pad, mode="edge").reshape(-(-height // COARSE), COARSE, -1, COARSE)
    glass = np.pad(tissue == GLASS, pad, mode="edge").reshape(coarse.shape).mean((1, 3)) > 0.5
    is_gland = np.asarray(np.isin(coarse, epithelial).any((1, 3)))
    is_other = np.asarray(((coarse > 0) & ~np.isin(coarse, epithelial)).any((1, 3)))
    scale = COARSE * mpp
    to_gland, to_other = _distance(is_gland) * scale, _distance(is_other) * scale
    closed = (to_gland <= MARGIN_UM) | (_distance(to_gland > CLOSING_UM) * scale > CLOSING_UM - MARGIN_UM)
    closed &= to_gland <= to_other
    zone = np.where(glass, GLASS_ZONE, STROMA).astype(np.uint8)
    zone[closed] = GLAND
    zone[closed & (to_gland > LUMEN_UM)] = LUMEN
    return zone.repeat(COARSE, 0).repeat(COARSE, 1)[:height, :width]


def _distance(there: np.ndarray) -> np.ndarray:
    """Distance to the nearest pixel of a plane; far where there is none."""
    return distance_transform_edt(~there) if there.any() else np.full(there.shape, 1e6)


def mark_plane(classes: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """One pixel for each nucleus, near its middle, with its class: (H, W) uint8, 0 elsewhere."""
    marks = np.zeros(classes.shape, np.uint8)
    rows, columns = np.nonzero(instances)
    if len(rows):
        _, label = np.unique(instances[rows, columns], return_inverse=True)
        area = np.bincount(label)
        dy = rows - (np.bincount(label, rows) / area)[label]
        dx = columns - (np.bincount(label, columns) / area)[label]
        order = np.lexsort((dy * dy + dx * dx, label))
        first = order[np.concatenate([[0], np.cumsum(area)[:-1]])]
        marks[rows[first], columns[first]] = classes[rows[first], columns[first]]
    return marks


def layout_of_mask(mask: MaskSource, classes: ClassTable, mpp: float) -> Layout:
    """The layout of a whole mask, read tile by tile; densities are smoothed over neighbouring cells.

    Raises MaskError where the mask has no instance plane: without one touching nuclei cannot be counted.
    """
    from wsigen.errors import MaskError

    if not mask.has_instances:
        raise MaskError(f"{mask.path}: has no instance plane; nuclei cannot be counted without one")
    rows, columns = -(-mask.height // CELL), -(-mask.width // CELL)
    planes = np.zeros((len(classes) + len(REGIONS), rows, columns))
    for y in range(0, mask.height, TILE):
        for x in range(0, mask.width, TILE):
            w, h = min(TILE, columns * CELL - x), min(TILE, rows * CELL - y)
            read = _read_padded(mask, x - HALO, y - HALO, w + 2 * HALO, h + 2 * HALO)
            planes[:, y // CELL : (y + h) // CELL, x // CELL : (x + w) // CELL] = _cells_of(read, classes, mpp)
    for axis in (1, 2):
        planes[: len(classes)] = blurred(planes[: len(classes)], axis)
    return Layout(packed(planes, len(classes)), classes.names, mask.width, mask.height, mpp)


def _read_padded(mask: MaskSource, x: int, y: int, w: int, h: int) -> MaskWindow:
    """Read a rectangle with nothing beyond the slide, where a reflection would repeat nuclei."""
    left, top = max(0, x), max(0, y)
    right, bottom = min(mask.width, x + w), min(mask.height, y + h)
    read = mask.read(left, top, right - left, bottom - top)
    margins = (top - y, y + h - bottom), (left - x, x + w - right)

    def padded(plane: np.ndarray | None) -> np.ndarray | None:
        return None if plane is None else np.pad(plane, margins)

    return MaskWindow(np.pad(read.classes, margins), padded(read.instances), padded(read.tissue))


def layout_of_picture(
    classes: np.ndarray,
    instances: np.ndarray,
    tissue: np.ndarray,
    known: np.ndarray,
    table: ClassTable,
    mpp: float,
) -> Layout:
    """The layout of a training picture, (H, W) each; what cells hold is divided by how much of them is ``known``."""
    height, width = classes.shape
    pad = (0, -height % CELL), (0, -width % CELL)
    zone = np.pad(region_plane(classes, tissue, epithelial_classes(table), mpp), pad)
    marks, known = np.pad(mark_plane(classes, instances), pad), np.pad(known, pad)
    held = [marks == index + 1 for index in range(len(table))]
    held += [(zone == index) & known for index in range(len(REGIONS))]
    rows, columns = (side // CELL for side in zone.shape)
    cells = np.stack([plane.reshape(rows, CELL, columns, CELL).sum((1, 3)) for plane in [*held, known]]).astype(float)
    for axis in (1, 2):
        cells = blurred(cells, axis)
    mean = cells.sum((1, 2), keepdims=True) / max(cells[-1].sum(), 1)
    # A cell of which nothing is known takes the picture's mean.
    share = (cells[:-1] + mean[:-1]) / (cells[-1] + 1)
    share[: len(table)] *= CELL * CELL
    return Layout(packed(share, len(table)), table.names, width, height, mpp)


def _cells_of(read: MaskWindow, classes: ClassTable, mpp: float) -> np.ndarray:
    tissue = tissue_near_nuclei(read.classes, mpp) if read.tissue is None else read.tissue
    zone = region_plane(read.classes, tissue, epithelial_classes(classes), mpp)
    assert read.instances is not None
    marks = mark_plane(read.classes, read.instances)
    inner = slice(HALO, -HALO)
    shape = (read.shape[0] - 2 * HALO) // CELL, CELL, (read.shape[1] - 2 * HALO) // CELL, CELL
    zone, marks = (plane[inner, inner].reshape(shape) for plane in (zone, marks))
    counts = [(marks == index + 1).sum((1, 3)) for index in range(len(classes))]
    shares = [(zone == index).mean((1, 3)) for index in range(len(REGIONS))]
    return np.stack([*counts, *shares])


def blurred(cells: np.ndarray, axis: int) -> np.ndarray:
    """Weighted mean over three neighbouring cells of an axis, 1 2 1; the outermost are repeated."""
    first, last = np.take(cells, [0], axis), np.take(cells, [-1], axis)
    wide = np.concatenate([first, cells, last], axis)
    count = cells.shape[axis]
    left, middle, right = (np.take(wide, np.arange(k, k + count), axis) for k in range(3))
    return (left + 2 * middle + right) / 4
