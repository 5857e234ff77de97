"""Masks that are painted, and the styles that they are painted in.

The styles are those of source images and of the model, and designed ones around them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from wsigen.conditions.contract import Crops
from wsigen.errors import DataError
from wsigen.models.config import ModelConfig
from wsigen.models.stain import StainStyle
from wsigen.models.stain_response import NUMBERS
from wsigen.training.data import manifest as folder_format
from wsigen.training.patches import PatchBank
from wsigen.training.settings import TrainSettings

SPREAD = 0.15  # variance that designed styles have in every direction, beside what the sources show


@dataclass
class JoinedGroups:
    """Groups of the pictures of several banks, one bank's after the other's: see `Groups`."""

    device: torch.device
    styles: list[StainStyle]
    facts: list[Mapping[str, str]]


@dataclass(frozen=True)
class Masks:
    """Windows whose masks are painted."""

    crops: Crops
    groups: JoinedGroups
    sources: np.ndarray  # (N,) names of their source images
    held_out: np.ndarray  # (N,) bool: of the validation side

    def without(self, source: str) -> np.ndarray:
        """Which are not of this source image, (N,) bool."""
        return self.sources != source


@dataclass(frozen=True)
class Source:
    """A source image, or a named style of the model: its style as measured, and whether it is held out."""

    name: str
    style: StainStyle
    held_out: bool


def read_masks(data: Path, count: int, window: int, device: torch.device) -> tuple[Masks, list[Source]]:
    """About ``count`` windows of a training folder, half of each side of the split, and its source images' styles.

    Of a side each source image gives as many, from all over it. A folder without training pictures gives those of the
    validation side alone. Raises DataError where no picture holds a window.
    """
    manifest = folder_format.load(data)
    crops, names, held_out, sources = [], [], [], []
    groups = JoinedGroups(device, [], [])
    sides = [side for side in ("val", "train") if any(entry.split == side for entry in manifest.images)]
    for side in sides:
        bank = PatchBank(data, manifest, side, TrainSettings(crop_stride=max(1, window // 4)), device)
        drawn = {entry.group for entry in bank.entries if entry.label_quality == "manual"}
        pairs = zip(bank.groups, bank.styles, strict=True)
        sources += [Source(name, style, side == "val") for name, style in pairs if name in drawn]
        for name, places in _places(bank, window, drawn, count // len(sides)):
            image, x, y = (torch.from_numpy(column).to(device) for column in places)
            cut = bank.cut(image, x, y, window, torch.zeros_like(image))
            crops.append(replace(cut, group=cut.group + len(groups.styles)))
            names += [name] * len(image)
            held_out += [side == "val"] * len(image)
        groups.styles.extend(bank.styles)
        groups.facts.extend(bank.facts)
    if not any(held_out):
        raise DataError(f"{data}: no held-out picture holds a window of {window} px; take a smaller --window")
    if len(set(names)) < 2:
        raise DataError(f"{data}: one source image alone holds windows of {window} px; a fit needs two or more")
    return Masks(_joined(crops), groups, np.array(names), np.array(held_out)), sources


def _joined(parts: Sequence[Crops]) -> Crops:
    """Crops of several banks as one."""
    planes, group = (torch.cat(list(tensors)) for tensors in zip(*((part.planes, part.group) for part in parts)))
    return Crops(planes, parts[0].names, group)


def _places(bank: PatchBank, window: int, drawn: set[str], wanted: int) -> list[tuple[str, list[np.ndarray]]]:
    """Image index, x and y of windows by source image: as many of each, evenly from all it holds."""
    try:
        table = bank.table(window)
    except DataError:  # no picture of this side holds one: the other side may
        return []
    image, x, y = (column.cpu().numpy() for column in (table.image, table.x, table.y))
    groups = np.array([entry.group for entry in bank.entries])[image]
    rows = {name: np.flatnonzero(groups == name) for name in sorted(drawn & set(groups.tolist()))}
    if len(rows) > wanted:
        names = list(rows)
        rows = {names[i]: rows[names[i]] for i in np.linspace(0, len(names) - 1, wanted).astype(int)}
    each = max(1, wanted // max(1, len(rows)))
    found = []
    for name, of_name in rows.items():
        chosen = of_name[np.linspace(0, len(of_name) - 1, min(each, len(of_name))).astype(int)]
        found.append((name, [image[chosen], x[chosen], y[chosen]]))
    return found


def with_named(config: ModelConfig, sources: Sequence[Source]) -> list[Source]:
    """The sources, and the model's named styles in place of the training images that they are of."""
    named = [Source(f"style {style.name}", style, False) for style in config.styles]
    vectors = [np.array(source.style.vector) for source in named]

    def is_named(source: Source) -> bool:
        return any(np.allclose(source.style.vector, vector, atol=1e-4) for vector in vectors)

    kept = [source for source in sources if source.held_out or not is_named(source)]
    return [source for source in kept if source.held_out] + named + [s for s in kept if not s.held_out]


def choose_styles(config: ModelConfig, sources: Sequence[Source], count: int) -> list[tuple[np.ndarray, str]]:
    """Inputs to paint with, (6,) each, and whose style each is: "" for designed ones.

    All held-out sources and named styles, training images for up to half of ``count``; the rest are designed:
    quasi-random (Sobol) normal points about the sources, which vary as these do and a little in every direction,
    clamped as inputs are.
    """
    from scipy.stats import norm, qmc

    limits = config.style_range
    always = sum(source.held_out for source in sources) + len(config.styles)  # these come first
    first, training = list(sources[:always]), sources[always:]
    room = min(len(training), max(0, count // 2 - always))
    first += [training[i] for i in np.linspace(0, len(training) - 1, room).astype(int)] if room else []
    chosen = [(limits.normalise(np.array(source.style.vector)), source.name) for source in first]
    known = np.array([limits.normalise(np.array(source.style.vector)) for source in sources], np.float64)
    covariance = (np.cov(known.T) if len(known) > NUMBERS else np.eye(NUMBERS)) + SPREAD * np.eye(NUMBERS)
    draws = qmc.Sobol(NUMBERS, rng=0).random_base2(max(1, int(np.ceil(np.log2(max(2, count))))))
    points = norm.ppf(np.clip(draws, 1e-3, 1 - 1e-3)) @ np.linalg.cholesky(covariance).T + known.mean(axis=0)
    designed = np.clip(points[: max(0, count - len(chosen))], -limits.clamp, limits.clamp)
    return [*chosen, *((row.astype(np.float32), "") for row in designed)]
