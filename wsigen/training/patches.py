"""Random labelled crops, cut on the device: every training pixel lives in its memory, so no loader can be slow.

Crops lie wholly inside available pixels. They are drawn in proportion to what they hold, so that rare classes are
seen; each is flipped and turned at random (the eight symmetries of the square, exact on pixels).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from wsigen.conditions.contract import Crops
from wsigen.errors import DataError, ModelError
from wsigen.models.stain import StainStyle, measure_style
from wsigen.training.data.manifest import (
    Manifest,
    TrainingImage,
    facts_of_groups,
    image_path,
    instance_path,
    label_path,
    read_label,
    read_rgb,
)
from wsigen.training.fields import PixelFields, nucleus_depth, pixel_fields
from wsigen.training.settings import TrainSettings

NAMES = ("red", "green", "blue", "classes", "edges", "class_edges", "tissue", "near_nuclei", "glass")  # as PixelFields
DEPTH = "depth"  # one more where asked for
PRESENT_PIXELS = 40  # a class counts as present in a crop from this many pixels: about a third of a lymphocyte


class Labels(NamedTuple):
    """What decides where crops may be cut, and how often: classes and known, both (H, W) uint8, as in PixelFields."""

    classes: np.ndarray
    known: np.ndarray


@dataclass(frozen=True)
class CropTable:
    """Where crops of one window size may be cut: (N,) image index, x, y and cumulative sampling weight."""

    image: Tensor
    x: Tensor
    y: Tensor
    cumulative: Tensor


class PatchBank:
    """All images of one split, on a device.

    ``split`` is "train" or "val". Stain styles are measured by group, and the manifest's facts kept by group. ``depth``
    adds a plane that tells nuclei of a network that learns to find them: see `nucleus_depth`.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        split: str,
        settings: TrainSettings,
        device: torch.device,
        depth: bool = False,
    ):
        self._choose(folder, manifest, split, settings, device)
        with ThreadPoolExecutor(8) as pool:
            loaded = list(pool.map(lambda entry: _load(folder, entry, manifest.mpp), self.entries))
            depths = pool.map(lambda entry: _depth(folder, entry), self.entries) if depth else iter(())
            self.groups, self.styles = _group_styles(self.entries, loaded, pool)
        self._fields = [Labels(fields.classes, fields.known) for _, fields in loaded]
        packed = (np.dstack(_parts(*image, *([next(depths)] if depth else []))) for image in loaded)
        self._store([rgb.shape[:2] for rgb, _ in loaded], (*NAMES, *((DEPTH,) if depth else ())), packed)
        facts = facts_of_groups(folder, self.entries)
        self.facts: list[Mapping[str, str]] = [facts[group] for group in self.groups]
        index_of = {group: index for index, group in enumerate(self.groups)}
        self.group = torch.tensor([index_of[entry.group] for entry in self.entries], device=device)

    def _choose(
        self, folder: Path, manifest: Manifest, split: str, settings: TrainSettings, device: torch.device
    ) -> None:
        """Take the images of a split."""
        self.settings, self.device, self.split = settings, device, split
        self.entries = [entry for entry in manifest.images if entry.split == split]
        if split == "train" and settings.folds:
            self.entries = without_fold(self.entries, settings.folds, settings.fold)
        if not self.entries:
            raise DataError(f"{folder}: the manifest lists no image of split {split!r}; hold out or add some")
        self.class_count = len(manifest.classes)
        self._tables: dict[int, CropTable] = {}

    def _store(self, shapes: list[tuple[int, ...]], names: tuple[str, ...], images: Iterable[np.ndarray]) -> None:
        """Lay images, (H, W, planes) uint8 with a name for each plane, out on the device, one after the other."""
        self.names, planes = names, len(names)
        sizes = np.array([height * width for height, width in shapes], np.int64)
        self.offset = torch.tensor(np.concatenate([[0], np.cumsum(sizes)[:-1]]), device=self.device)
        self.width = torch.tensor([width for _, width in shapes], device=self.device)
        self.pixels = torch.empty((int(sizes.sum()), planes), dtype=torch.uint8, device=self.device)
        for start, image in zip(self.offset.tolist(), images):
            flat = torch.from_numpy(image.reshape(-1, planes))
            self.pixels[start : start + len(flat)] = flat.to(self.device)

    def table(self, window: int) -> CropTable:
        """Crops of one size with their sampling weights; DataError when no image can hold one."""
        if window not in self._tables:
            self._tables[window] = self._build_table(window)
        return self._tables[window]

    def sample(self, window: int, batch: int, generator: torch.Generator) -> Crops:
        """Draw ``batch`` crops of ``window`` px, with random flips and right-angle turns."""
        image, x, y, turn = self._drawn(window, batch, generator)
        return self.cut(image, x, y, window, turn)

    def _drawn(self, window: int, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw image, x, y and turn of crops, (B,) each."""
        table = self.table(window)
        draw = torch.rand(batch, generator=generator, device=self.device, dtype=torch.float64)
        row = torch.searchsorted(table.cumulative, draw).clamp(max=len(table.image) - 1)
        turn = torch.randint(0, 8, (batch,), generator=generator, device=self.device)
        return table.image[row], table.x[row], table.y[row], turn

    def cut(self, image: Tensor, x: Tensor, y: Tensor, window: int, turn: Tensor) -> Crops:
        """Cut crops at (x, y) of images; ``turn`` (B,) 0..7 picks a symmetry: bit 0 mirrors x, 1 y, 2 transposes."""
        steps = torch.arange(window, device=self.device)
        rows, columns = steps[None, :, None], steps[None, None, :]
        turn = turn[:, None, None]
        down = torch.where(turn & 4 > 0, columns, rows)
        across = torch.where(turn & 4 > 0, rows, columns)
        across = torch.where(turn & 1 > 0, window - 1 - across, across)
        down = torch.where(turn & 2 > 0, window - 1 - down, down)
        index = self.offset[image][:, None, None] + (y[:, None, None] + down) * self.width[image][:, None, None]
        index = index + x[:, None, None] + across
        return Crops(self.pixels[index].permute(0, 3, 1, 2), self.names, self.group[image])

    def _build_table(self, window: int) -> CropTable:
        parts = []
        for index, (entry, fields) in enumerate(zip(self.entries, self._fields)):
            x, y, weight = self._crops_of(entry, fields, window)
            parts.append((np.full(len(x), index), x, y, weight))
        image, x, y, weight = (np.concatenate(column) for column in zip(*parts))
        if len(image) == 0:
            raise DataError(f"no image of the split holds {window} x {window} available pixels; take a smaller window")
        cumulative = np.cumsum(weight, dtype=np.float64)
        arrays = (image, x, y, cumulative / cumulative[-1])
        return CropTable(*(torch.from_numpy(array).to(self.device) for array in arrays))

    def _crops_of(self, entry: TrainingImage, fields: Labels, window: int) -> tuple[np.ndarray, ...]:
        """Crop positions of one image and their weights: 1, plus the weight of every class that a crop holds."""
        height, width = fields.classes.shape
        if height < window or width < window:
            empty = np.empty(0, np.int64)
            return empty, empty, np.empty(0)
        ys = np.unique(np.append(np.arange(0, height - window + 1, self.settings.crop_stride), height - window))
        xs = np.unique(np.append(np.arange(0, width - window + 1, self.settings.crop_stride), width - window))
        full = _window_sums(fields.known, ys, xs, window) == window * window
        weight = np.ones(full.shape)
        for index, extra in enumerate(self.settings.rare_class_weight):
            weight += extra * (_window_sums(fields.classes == index + 1, ys, xs, window) >= PRESENT_PIXELS)
        if entry.label_quality == "machine":
            weight *= self.settings.machine_label_weight
        rows, columns = np.nonzero(full)
        return xs[columns].astype(np.int64), ys[rows].astype(np.int64), weight[rows, columns]


def without_fold(entries: list[TrainingImage], folds: int, fold: int) -> list[TrainingImage]:
    """Leave out every ``folds``-th source image, counted by name from number ``fold``: for cross-validation."""
    if not 0 <= fold < folds:
        raise DataError(f"fold {fold}: must lie in 0..{folds - 1}, as there are {folds} folds")
    left_out = set(sorted({entry.group for entry in entries})[fold::folds])
    return [entry for entry in entries if entry.group not in left_out]


def _window_sums(plane: np.ndarray, ys: np.ndarray, xs: np.ndarray, window: int) -> np.ndarray:
    """Sum of a plane over windows with their upper left corner at every (y, x), through an integral image."""
    integral = np.zeros((plane.shape[0] + 1, plane.shape[1] + 1), np.int64)
    integral[1:, 1:] = plane.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    low, high, left, right = ys[:, None], ys[:, None] + window, xs[None], xs[None] + window
    return integral[high, right] - integral[low, right] - integral[high, left] + integral[low, left]


def _parts(rgb: np.ndarray, fields: PixelFields, *more: np.ndarray) -> list[np.ndarray]:
    """Planes of an image in the order of NAMES."""
    return [rgb, *(getattr(fields, name) for name in NAMES[3:]), *more]


def _load(folder: Path, entry: TrainingImage, mpp: float) -> tuple[np.ndarray, PixelFields]:
    rgb = read_rgb(image_path(folder, entry.name))
    labels = read_label(label_path(folder, entry.name))
    instances = read_label(instance_path(folder, entry.name))
    return rgb, pixel_fields(rgb, labels, instances, mpp)


def _depth(folder: Path, entry: TrainingImage) -> np.ndarray:
    return nucleus_depth(read_label(instance_path(folder, entry.name)))


def _group_styles(
    entries: list[TrainingImage], loaded: list[tuple[np.ndarray, PixelFields]], pool: Executor
) -> tuple[list[str], list[StainStyle]]:
    """Measure one stain style a group; a group with too little tissue takes the mean of the others."""
    images: dict[str, list[tuple[np.ndarray, PixelFields]]] = {}
    for entry, image in zip(entries, loaded):
        images.setdefault(entry.group, []).append(image)
    styles = dict(zip(images, pool.map(_style_of, images.items())))
    measured = [style for style in styles.values() if style is not None]
    if not measured:
        raise DataError("no group of images shows enough tissue to measure a stain style")
    mean = tuple(float(v) for v in np.mean([style.vector for style in measured], axis=0))
    filled = [style or replace(StainStyle(group), vector=mean) for group, style in styles.items()]
    return list(styles), filled


def _style_of(group: tuple[str, list[tuple[np.ndarray, PixelFields]]]) -> StainStyle | None:
    """Stain style of the known pixels of a group's images; None where they show too little tissue."""
    name, images = group
    known = [fields.known > 0 for _, fields in images]
    rgb = np.concatenate([rgb[there] for (rgb, _), there in zip(images, known)])
    glass = np.concatenate([fields.glass[there] > 0 for (_, fields), there in zip(images, known)])
    try:
        return measure_style(rgb, glass, name)
    except ModelError:
        return None
