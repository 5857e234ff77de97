"""Mask fidelity: what a segmentation network finds in a picture, against the mask that the picture was painted from.

Scores of a painted picture stand between those of the real picture of the same mask (the ceiling: what the network can
find at all) and those of other masks (the floor). Panoptic quality matches nuclei above an intersection over union of
0.5, where a match is unique (Kirillov et al. 2019), over all pictures together, as in the CoNIC challenge.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import ndimage

from wsigen.evaluation.features import to_images
from wsigen.networks.measuring import SegmentationNetwork

CORE = 0.55  # depth above which a pixel belongs to the core of a nucleus: above the valley between touching ones
SMALLEST = 12  # px, 3 um²: smaller finds are noise
MATCH = 0.5
BATCH = 16


@dataclass(frozen=True)
class Found:
    """Nuclei found in a picture: ids (H, W) int32 from 1, class of each id (index 0: background), class by pixel."""

    instances: np.ndarray
    classes: np.ndarray
    plane: np.ndarray


@torch.inference_mode()
def find_nuclei(network: SegmentationNetwork, patches: np.ndarray, device: torch.device) -> list[Found]:
    """Find the nuclei of ``patches`` (N, H, W, 3) uint8, whose sides may be any."""
    found = []
    height, width = patches.shape[1:3]
    multiple = network.size_multiple
    padded = np.pad(patches, ((0, 0), (0, -height % multiple), (0, -width % multiple), (0, 0)), mode="edge")
    for start in range(0, len(patches), BATCH):
        logits, depth = network(to_images(padded[start : start + BATCH], device))
        probability = logits.softmax(1)[:, :, :height, :width].cpu().numpy()
        depths = depth[:, :height, :width].cpu().numpy()
        found += [separate(p, d) for p, d in zip(probability, depths)]
    return found


def separate(probability: np.ndarray, depth: np.ndarray) -> Found:
    """Nuclei from class probabilities (C + 1, H, W) and depth (H, W).

    Cores are connected pixels of great depth; they grow over the foreground, deepest pixels first (watershed), so that
    touching nuclei part in the valley between them. A nucleus has the class of the largest probability over its pixels.
    """
    foreground = probability[0] < 0.5
    cores, count = ndimage.label(foreground & (depth > CORE))
    # Foreground without a core (thin or faint nuclei) is a nucleus of its own.
    pieces, _ = ndimage.label(foreground)
    with_core = np.unique(pieces[cores > 0])
    lone = foreground & ~np.isin(pieces, with_core)
    more, extra = ndimage.label(lone)
    markers = np.where(lone, more + count, cores).astype(np.int32)
    if count + extra == 0:
        empty = np.zeros(foreground.shape, np.int32)
        return Found(empty, np.zeros(1, np.int64), empty.astype(np.uint8))
    height = np.clip((1 - depth) * 200, 0, 254).astype(np.uint8)
    height[~foreground] = 255
    markers[~foreground] = -1
    grown = ndimage.watershed_ift(height, markers)
    grown = np.where(foreground & (grown > 0), grown, 0)
    sizes = np.bincount(grown.ravel(), minlength=count + extra + 1)
    kept = sizes >= SMALLEST
    kept[0] = False
    instances = np.where(kept, np.cumsum(kept), 0).astype(np.int32)[grown]
    number = int(instances.max())
    sums = np.stack([np.bincount(instances.ravel(), plane.ravel(), number + 1) for plane in probability[1:]])
    classes = sums.argmax(0) + 1
    classes[0] = 0
    return Found(instances, classes, classes[instances].astype(np.uint8))


def instances_of(classes: np.ndarray) -> np.ndarray:
    """Ids for a class plane (H, W) that has none: connected pixels of one class, (H, W) int32 from 1."""
    ids = np.zeros(classes.shape, np.int32)
    for index in np.unique(classes[classes > 0]):
        labels, _ = ndimage.label(classes == index)
        ids[labels > 0] = labels[labels > 0] + ids.max()
    return ids


def relabelled(instances: np.ndarray) -> np.ndarray:
    """The same nuclei with ids 1, 2, ... without gaps: (H, W) int32."""
    ids, flat = np.unique(instances, return_inverse=True)
    return (flat.reshape(instances.shape) + (0 if ids[0] == 0 else 1)).astype(np.int32)


@dataclass(frozen=True)
class Nucleus:
    """One nucleus of a mask and what was found of it; ``x``, ``y`` are its centre in the picture, px."""

    id: int
    kind: int
    x: float
    y: float
    area: int
    iou: float
    found_kind: int  # 0: nothing with an intersection over union of 0.5 or more


@dataclass(frozen=True)
class Matching:
    """Nuclei of a mask with their finds, and the finds that match none."""

    nuclei: list[Nucleus]
    unmatched: list[tuple[int, float, float]]  # class, x, y


def match(classes: np.ndarray, instances: np.ndarray, found: Found) -> Matching:
    """Match the nuclei of a mask, ids (H, W) and classes (H, W), with those found in its picture.

    A nucleus is matched with the find of the largest intersection over union, if that is above 0.5.
    """
    ids = relabelled(instances)
    count, number = int(ids.max()), int(found.instances.max())
    shared = np.bincount(
        (ids.astype(np.int64) * (number + 1) + found.instances).ravel(), minlength=(count + 1) * (number + 1)
    )
    shared = shared.reshape(count + 1, number + 1)
    areas, found_areas = shared.sum(1), shared.sum(0)
    original = np.zeros(count + 1, np.int64)
    original[ids] = instances
    kinds = np.zeros(count + 1, np.int64)
    kinds[ids] = classes
    centres = _centres(ids, count)
    nuclei, taken = [], np.zeros(number + 1, bool)
    for index in range(1, count + 1):
        best, iou = 0, 0.0
        if number:
            overlap = shared[index, 1:]
            ratio = overlap / (areas[index] + found_areas[1:] - overlap)
            best = int(ratio.argmax()) + 1
            iou = float(ratio[best - 1])
        matched = iou > MATCH
        taken[best] |= matched
        x, y = centres[index - 1]
        kind = int(found.classes[best]) if matched else 0
        nuclei.append(Nucleus(int(original[index]), int(kinds[index]), x, y, int(areas[index]), iou, kind))
    found_centres = _centres(found.instances, number)
    loose = [
        (int(found.classes[index]), *found_centres[index - 1])
        for index in range(1, number + 1)
        if found_areas[index] and not taken[index]
    ]
    return Matching(nuclei, loose)


def _centres(ids: np.ndarray, count: int) -> list[tuple[float, float]]:
    """Mean (x, y) of the pixels of ids 1..count; (0, 0) for an id that has none."""
    rows, columns = np.nonzero(ids)
    which = ids[rows, columns]
    number = np.maximum(np.bincount(which, minlength=count + 1), 1)
    x, y = (np.bincount(which, place, count + 1) / number for place in (columns, rows))
    return [(float(x[index]), float(y[index])) for index in range(1, count + 1)]


@dataclass
class FidelityScores:
    """Sums over pictures, from which the scores follow; index 0 of each array is nuclei of any class."""

    class_count: int
    overlap: np.ndarray = field(init=False)
    pixels: np.ndarray = field(init=False)  # of mask and finds together
    hits: np.ndarray = field(init=False)
    iou: np.ndarray = field(init=False)  # sum over hits
    missed: np.ndarray = field(init=False)
    extra: np.ndarray = field(init=False)
    nuclei: np.ndarray = field(init=False)
    count_error: np.ndarray = field(init=False)  # sum over pictures of |found - there|

    def __post_init__(self) -> None:
        for name in ("overlap", "pixels", "hits", "iou", "missed", "extra", "nuclei", "count_error"):
            setattr(self, name, np.zeros(self.class_count + 1))

    def add_pixels(self, classes: np.ndarray, plane: np.ndarray) -> None:
        """Count class planes (H, W) of mask and finds."""
        for index in range(self.class_count + 1):
            truth, guess = (classes > 0, plane > 0) if index == 0 else (classes == index, plane == index)
            self.overlap[index] += np.count_nonzero(truth & guess)
            self.pixels[index] += np.count_nonzero(truth) + np.count_nonzero(guess)

    def add_matching(self, matching: Matching) -> None:
        """Count nuclei. A nucleus found with another class is a hit of class 0 only: a miss here and an extra there."""
        there, found = np.zeros(self.class_count + 1), np.zeros(self.class_count + 1)
        for nucleus in matching.nuclei:
            there[[0, nucleus.kind]] += 1
            if nucleus.found_kind:
                self.hits[0] += 1
                self.iou[0] += nucleus.iou
                found[[0, nucleus.found_kind]] += 1
            else:
                self.missed[0] += 1
            if nucleus.found_kind == nucleus.kind:
                self.hits[nucleus.kind] += 1
                self.iou[nucleus.kind] += nucleus.iou
            else:
                self.missed[nucleus.kind] += 1
                if nucleus.found_kind:
                    self.extra[nucleus.found_kind] += 1
        for kind, _, _ in matching.unmatched:
            self.extra[[0, kind]] += 1
            found[[0, kind]] += 1
        self.nuclei += there
        self.count_error += np.abs(found - there)

    def rows(self, names: Iterable[str]) -> list[dict[str, float | str | None]]:
        """One row for all nuclei, one a class: Dice, panoptic quality (PQ = SQ x RQ), count error. None: no nuclei."""
        rows: list[dict[str, float | str | None]] = []
        for index, name in enumerate(["nuclei of any class", *names]):
            hits, wrong = self.hits[index], 0.5 * (self.missed[index] + self.extra[index])
            quality, recognised = _ratio(self.iou[index], hits), _ratio(hits, hits + wrong)
            rows.append(
                {
                    "class": name,
                    "nuclei": int(self.nuclei[index]),
                    "dice": _ratio(2 * self.overlap[index], self.pixels[index]),
                    "pq": _ratio(self.iou[index], hits + wrong),
                    "sq": quality,
                    "rq": recognised,
                    "count error": _ratio(self.count_error[index], self.nuclei[index]),
                }
            )
        return rows


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole > 0 else None


def score(
    found: list[Found], classes: np.ndarray, instances: np.ndarray, class_count: int
) -> tuple[FidelityScores, list[Matching]]:
    """Score finds in N pictures against their masks, classes and ids (N, H, W)."""
    scores = FidelityScores(class_count)
    matchings = []
    for finds, plane, ids in zip(found, classes, instances, strict=True):
        scores.add_pixels(plane, finds.plane)
        matchings.append(match(plane, ids, finds))
        scores.add_matching(matchings[-1])
    return scores, matchings


def shuffled(count: int, seed: int = 0) -> np.ndarray:
    """An order of ``count`` in which nothing stands where it stood (one cycle): (N,) int64."""
    order = np.random.default_rng(seed).permutation(count)
    places = np.empty(count, np.int64)
    places[order] = np.roll(order, 1)
    return places
