"""What training needs to know of each pixel, computed once an image: edges, tissue, glass.

The tissue plane comes from smoothed optical density, so that it is as coarse as one that a person or a tissue
detector draws. The derived one follows the rule for masks without a tissue plane.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from wsigen.masks.conditions import deep_glass, instance_edges, tissue_near_nuclei
from wsigen.models.stain import tissue_from_density
from wsigen.training.data.manifest import UNAVAILABLE


@dataclass(frozen=True)
class PixelFields:
    """Planes of one image, each (H, W) uint8, packed for the device by ``wsigen.training.patches.PatchBank``."""

    classes: np.ndarray  # 0 background, then classes
    edges: np.ndarray  # 1 where instances meet
    class_edges: np.ndarray  # 1 where classes meet
    tissue: np.ndarray  # 0 glass, 1 tissue
    near_nuclei: np.ndarray  # the same derived from nuclei: 0 glass, 1 tissue, 255 unknown
    glass: np.ndarray  # 1 where the painter pins glass
    known: np.ndarray  # 1 where pixels are available


def pixel_fields(rgb: np.ndarray, labels: np.ndarray, instances: np.ndarray, mpp: float) -> PixelFields:
    """Compute the planes of one image from its ``labels`` (255 = unavailable) and ``instances``."""
    known = labels != UNAVAILABLE
    classes = np.where(known, labels, 0).astype(np.uint8)
    tissue = tissue_from_density(rgb, classes > 0, known)
    return PixelFields(
        classes=classes,
        edges=instance_edges(instances),
        class_edges=instance_edges(classes),
        tissue=tissue,
        near_nuclei=tissue_near_nuclei(classes, mpp),
        glass=deep_glass(tissue).astype(np.uint8),
        known=known.astype(np.uint8),
    )


def nucleus_depth(instances: np.ndarray) -> np.ndarray:
    """How deep a pixel lies inside its nucleus: (H, W) ids -> (H, W) uint8, 0 outside, up to 255 at its core.

    The distance to the nearest pixel of another id, over the largest one of the nucleus. Touching nuclei are two hills
    with a valley between them, whatever their sizes; flips and right-angle turns do not change it.
    """
    inside = instances > 0
    if not inside.any():
        return np.zeros(instances.shape, np.uint8)
    border = instance_edges(instances) > 0
    distance = ndimage.distance_transform_edt(~(border & inside) & inside) + 1.0
    nuclei, nucleus = np.unique(instances[inside], return_inverse=True)
    deep = distance[inside]
    deepest = ndimage.maximum(deep, nucleus, np.arange(len(nuclei)))
    depth = np.zeros(instances.shape, np.uint8)
    depth[inside] = (deep / deepest[nucleus] * 255).round()
    return depth
