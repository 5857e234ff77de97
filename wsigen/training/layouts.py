"""Labelled crops for the mask model: masks as pictures, and the layouts that they follow.

The layout of a crop is drawn anew each time: its cells begin anywhere, and are smoothed more or less, so that the model
serves layouts that were counted, sampled or painted by hand. Around the crop there may be nothing: a training picture
ends, or a part of it is not available. What a cell holds is therefore divided by how much of it is known.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from wsigen.conditions.contract import Crops
from wsigen.conditions.density import CUT, MARGIN, UNKNOWN
from wsigen.layouts.decoding import shapes
from wsigen.layouts.mask_code import MaskCode
from wsigen.layouts.regions import epithelial_classes, mark_plane, region_plane
from wsigen.masks.limits import NucleusLimits
from wsigen.models.stain import tissue_from_density
from wsigen.training.data.manifest import (
    UNAVAILABLE,
    Manifest,
    TrainingImage,
    image_path,
    instance_path,
    label_path,
    read_label,
    read_rgb,
)
from wsigen.training.patches import Labels, PatchBank
from wsigen.training.settings import TrainSettings

NAMES = ("red", "green", "blue", "marks", "zones")  # the picture of a mask, and what its layout is counted from
LIMIT_SHARES = (0.5, 99.5)  # percentiles of areas, fills and axes
LEAST_NUCLEI = 50  # of a class, to measure its limits
LEAST_AREA = 10  # px; smaller pieces are what the border of a part left of a nucleus


class MaskBank(PatchBank):
    """All masks of one split, on a device, with MARGIN unknown pixels around each. ``limits``: of whole nuclei."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        split: str,
        settings: TrainSettings,
        device: torch.device,
        code: MaskCode,
    ) -> None:
        self._choose(folder, manifest, split, settings, device)
        names = tuple(str(entry["name"]) for entry in manifest.classes)
        epithelial = epithelial_classes(names)
        with ThreadPoolExecutor(8) as pool:
            loaded = list(
                pool.map(lambda entry: _load_mask(folder, entry, code, epithelial, manifest.mpp), self.entries)
            )
        self._fields = [labels for labels, _, _ in loaded]
        sides = [tuple(side + 2 * MARGIN for side in labels.known.shape) for labels, _, _ in loaded]
        planes = (np.dstack([_widened(*plane) for plane in planes]) for _, planes, _ in loaded)
        self._store(sides, NAMES, planes)
        self.group = torch.zeros(len(self.entries), dtype=torch.int64, device=device)
        self.groups, self.styles, self.facts = ["all"], [], [{}]
        manual = [shape for entry, (_, _, shape) in zip(self.entries, loaded) if entry.label_quality == "manual"]
        self.limits = measured_limits(np.concatenate(manual) if manual else np.zeros((0, 4)), len(names))

    def sample(self, window: int, batch: int, generator: torch.Generator) -> Crops:
        """Draw crops of ``window`` px and MARGIN around each: (B, 5, W + 2 MARGIN, W + 2 MARGIN) uint8."""
        image, x, y, turn = self._drawn(window, batch, generator)
        return self.cut(image, x, y, window + 2 * MARGIN, turn)  # the margin shifts both corner and origin


def _widened(plane: np.ndarray, fill: int) -> np.ndarray:
    return np.pad(plane, MARGIN, constant_values=fill)


def _load_mask(
    folder: Path, entry: TrainingImage, code: MaskCode, epithelial: tuple[int, ...], mpp: float
) -> tuple[Labels, list[tuple[np.ndarray, int]], np.ndarray]:
    """Labels, planes in the order of NAMES with what surrounds them, and shapes of whole nuclei."""
    labels = read_label(label_path(folder, entry.name))
    known = labels != UNAVAILABLE
    classes = np.where(known, labels, 0).astype(np.uint8)
    instances = np.where(classes > 0, read_label(instance_path(folder, entry.name)).astype(np.int64), 0)
    tissue = tissue_from_density(read_rgb(image_path(folder, entry.name)), classes > 0, known)
    zones = np.where(known, region_plane(classes, tissue, epithelial, mpp), np.uint8(UNKNOWN))
    picture = code.encode(classes, instances)
    cut = cut_nuclei(instances, known)
    marks = mark_plane(classes, instances) | np.where(cut, np.uint8(CUT), np.uint8(0))
    planes = [(picture[..., 0], 0), (picture[..., 1], 0), (picture[..., 2], 0), (marks, 0), (zones, UNKNOWN)]
    return Labels(classes, known.astype(np.uint8)), planes, nucleus_shapes(classes, np.where(cut, 0, instances))


def cut_nuclei(instances: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Pixels of nuclei that go on where nothing is known: (H, W) bool."""
    inner = np.zeros(known.shape, bool)
    inner[1:-1, 1:-1] = known[1:-1, :-2] & known[1:-1, 2:] & known[:-2, 1:-1] & known[2:, 1:-1]
    return (instances > 0) & np.isin(instances, np.unique(instances[~inner]))


def nucleus_shapes(classes: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """Class, area, fill and longest half-axis of each nucleus, see NucleusLimits: (N, 4)."""
    rows, columns = np.nonzero(instances)
    if not len(rows):
        return np.zeros((0, 4))
    _, first, label = np.unique(instances[rows, columns], return_index=True, return_inverse=True)
    area, fill, axis = shapes(rows - rows[first][label], columns - columns[first][label], label)
    return np.stack([classes[rows[first], columns[first]], area, fill, axis], 1)


def measured_limits(nuclei: np.ndarray, class_count: int) -> tuple[NucleusLimits, ...]:
    """Limits of each class from the rows of `nucleus_shapes`; classes that are hardly there take those of all."""
    nuclei = nuclei[nuclei[:, 1] >= LEAST_AREA]
    limits = []
    for index in range(1, class_count + 1):
        mine = nuclei[nuclei[:, 0] == index]
        mine = mine if len(mine) >= LEAST_NUCLEI else nuclei
        if len(mine) < LEAST_NUCLEI:
            limits.append(NucleusLimits())
            continue
        low, high = np.percentile(mine[:, 1:], LIMIT_SHARES, axis=0)
        limits.append(
            NucleusLimits(*(round(float(value), 3) for value in (low[0], high[0], min(low[1], 0.85), high[2])))
        )
    return tuple(limits)
