"""How much there is in a training folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wsigen.training.data.manifest import UNAVAILABLE, Split, TrainingImage, label_path, load, read_label
from wsigen.training.data.source import Labels


@dataclass(frozen=True)
class SourceSummary:
    """How much one data set gives to one side of the split."""

    source: str
    split: Split
    images: int
    groups: int
    pixels: int  # available ones
    class_pixels: tuple[int, ...]  # available pixels by class, background first
    windows: dict[int, int]  # window side in px -> windows on a grid of 32 px that are fully available


def summarise(folder: str | Path, windows: Sequence[int] = (128, 256), stride: int = 32) -> tuple[SourceSummary, ...]:
    """Measure a training folder, by data set and side of the split; reads every label file."""
    found = load(folder)
    rows = []
    for source in found.sources:
        for split in ("train", "val"):
            images = [image for image in found.of_split(split) if image.source == source]
            if images:
                rows.append(_summary(folder, source, split, images, len(found.classes), windows, stride))
    return tuple(rows)


def available_windows(labels: Labels, window: int, stride: int) -> npt.NDArray[np.int64]:
    """Return (N, 2) origins (x, y) of the windows on the grid of `stride` px in which every pixel is available."""
    height, width = labels.shape
    if height < window or width < window:
        return np.zeros((0, 2), np.int64)
    missing = np.pad((labels == UNAVAILABLE).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    y, x = np.arange(0, height - window + 1, stride)[:, None], np.arange(0, width - window + 1, stride)[None]
    count = missing[y + window, x + window] - missing[y, x + window] - missing[y + window, x] + missing[y, x]
    rows, columns = np.nonzero(count == 0)
    return np.stack([columns * stride, rows * stride], 1)


def _summary(
    folder: str | Path,
    source: str,
    split: Split,
    images: Sequence[TrainingImage],
    class_count: int,
    windows: Sequence[int],
    stride: int,
) -> SourceSummary:
    counts = np.zeros(256, np.int64)
    found = dict.fromkeys(windows, 0)
    for image in images:
        labels = read_label(label_path(folder, image.name))
        counts += np.bincount(labels.ravel(), minlength=256)
        for window in windows:
            found[window] += len(available_windows(labels, window, stride))
    by_class = tuple(int(count) for count in counts[: class_count + 1])
    return SourceSummary(
        source, split, len(images), len({image.group for image in images}), sum(by_class), by_class, found
    )
