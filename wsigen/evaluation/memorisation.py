"""Memorisation: whether painted patches are copies of training patches.

Every painted patch is looked up among the training patches, in features and over the eight symmetries of the square;
so are real patches that were held out. A near-copy is a patch that lies nearer to a training patch than all but
CONTROL_SHARE of the held-out real ones do. The most suspicious pairs are then compared pixel by pixel, at every shift.

``TrainingIndex`` keeps features alone, no pixels, and is small enough to ship with a model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from wsigen.errors import DataError, ModelError, SettingsError
from wsigen.evaluation.features import describe
from wsigen.evaluation.material import LabelledPatches, jpeg_history, real_patches
from wsigen.networks.measuring import WEIGHTS_ROOT, FeatureNetwork
from wsigen.system.devices import choose_device
from wsigen.system.reporting import Reporter, silent

CONTROL_SHARE = 0.01
WINDOW = 128  # px: what features are compared over
JPEG_QUALITY = 87  # as slides are written
SHIPPED_INDEX = WEIGHTS_ROOT / "colon-index"
INDEX_FILE, DESCRIPTION_FILE = "index.safetensors", "index.json"
Tick = Callable[[int], None]


def symmetries(patches: np.ndarray) -> list[np.ndarray]:
    """The eight turns and mirrors of (N, W, W, ...) patches."""
    turned = [np.rot90(patches, quarter, (1, 2)) for quarter in range(4)]
    return turned + [turn[:, :, ::-1] for turn in turned]


def centre(patches: np.ndarray, side: int) -> np.ndarray:
    """The middle ``side`` px of (N, W, W, ...) patches, which must be as large."""
    width = patches.shape[1]
    if width < side:
        raise DataError(f"patches of {width} px: give {side} px or more to look them up among training patches")
    start = (width - side) // 2
    return patches[:, start : start + side, start : start + side]


def template_side(window: int) -> int:
    """Side of what pixels are compared over: half a window, so that it fits at every shift that the grid leaves."""
    return window // 2


@dataclass(frozen=True)
class TrainingIndex:
    """Features of training patches, and how near held-out real patches come to them."""

    features: np.ndarray  # (M, D) float16, standardised
    mean: np.ndarray  # (D,)
    deviation: np.ndarray  # (D,)
    held_out: np.ndarray  # (H,) distances of held-out real patches to their nearest, sorted
    network: str  # name of the feature network
    window: int
    stride: int

    @property
    def near(self) -> float:
        """Distance below which a patch counts as a near-copy."""
        return float(np.quantile(self.held_out, CONTROL_SHARE))

    @classmethod
    def built(
        cls,
        network: FeatureNetwork,
        training: LabelledPatches,
        held_out: LabelledPatches,
        stride: int,
        device: torch.device,
        tick: Tick = lambda n: None,
    ) -> TrainingIndex:
        """Index ``training`` patches of WINDOW px, and look up the held-out ones."""
        features = describe(network, training.images, device, tick).features
        mean, deviation = features.mean(0), features.std(0) + 1e-4
        normal = ((features - mean) / deviation).astype(np.float16)
        name = network.config.name
        index = cls(normal, mean, deviation, np.zeros(1, np.float32), name, training.images.shape[1], stride)
        distances, _ = index.nearest(network, held_out.images, device, tick)
        return cls(normal, mean, deviation, np.sort(distances), name, index.window, stride)

    def nearest(
        self, network: FeatureNetwork, patches: np.ndarray, device: torch.device, tick: Tick = lambda n: None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Distance (N,) to the nearest training patch over all symmetries, and its number (N,).

        Root mean square of the differences of standardised features.
        """
        patches = centre(patches, self.window)
        table = torch.from_numpy(self.features.astype(np.float32)).to(device)
        best = torch.full((len(patches),), torch.inf)
        which = torch.zeros(len(patches), dtype=torch.long)
        for turned in symmetries(patches):
            features = describe(network, turned, device).features
            query = torch.from_numpy((features - self.mean) / self.deviation).float().to(device)
            for start in range(0, len(query), 256):
                distance, number = torch.cdist(query[start : start + 256], table).min(1)
                distance, number = distance.cpu() / table.shape[1] ** 0.5, number.cpu()
                part = slice(start, start + 256)
                closer = distance < best[part]
                which[part] = torch.where(closer, number, which[part])
                best[part] = torch.minimum(best[part], distance)
        tick(len(patches))
        return best.numpy(), which.numpy()

    def save(self, folder: Path) -> None:
        """Write two files, without pixels, to ``folder``."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        arrays = {
            "features": self.features,
            "mean": self.mean.astype(np.float32),
            "deviation": self.deviation.astype(np.float32),
            "held_out": self.held_out.astype(np.float32),
        }
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, Path(folder) / INDEX_FILE)
        described = {key: value for key, value in asdict(self).items() if key not in arrays}
        (Path(folder) / DESCRIPTION_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> TrainingIndex:
        """Read what ``save`` wrote; ModelError where it is missing or damaged."""
        try:
            described = json.loads((Path(folder) / DESCRIPTION_FILE).read_text(encoding="utf-8"))
            values: dict[str, Any] = {**load_file(Path(folder) / INDEX_FILE), **described}
            return cls(**values)
        except Exception as error:  # OSError, ValueError, TypeError, and safetensors' own
            raise ModelError(
                f"{folder}: no readable index of training patches ({error}); `wsigen evaluate index` writes one"
            ) from error


def write_index(
    data: Path,
    out: Path,
    features: str,
    stride: int,
    device: str = "auto",
    overwrite: bool = False,
    progress: Reporter = silent,
) -> TrainingIndex:
    """Index the training side of a training folder, controlled by its held-out side; write it to ``out``.

    Pictures are stored as JPEG once before, as those of the slides that will be looked up are. Raises SettingsError
    where ``out`` is in the way, DataError where data cannot be used.
    """
    out = Path(out)
    if out.exists() and not (overwrite and (not any(out.iterdir()) or (out / DESCRIPTION_FILE).is_file())):
        raise SettingsError(f"{out}: exists; replace an index with --overwrite, or choose another folder with -o")
    where = torch.device(choose_device(device).device)
    network = FeatureNetwork.from_pretrained(features).to(where)
    parts = []
    for split in ("train", "val"):
        patches = real_patches(data, split, WINDOW, 1 << 30, where, machine=True, stride=stride).patches
        parts.append(patches.with_images(jpeg_history(patches.images, JPEG_QUALITY)))
    total, done = len(parts[0]), 0

    def tick(n: int) -> None:
        nonlocal done
        done += n
        progress("training patches", done, total)

    index = TrainingIndex.built(network, parts[0], parts[1], stride, where, tick)
    index.save(out)
    return index


def correlation(template: np.ndarray, region: np.ndarray) -> float:
    """Largest normalised correlation of grey ``template`` (h, w) with any part of grey ``region`` (H, W): -1 to 1."""
    height, width = template.shape
    centred = template.astype(np.float64) - template.mean()
    spread = np.sqrt((centred**2).sum())
    region = region.astype(np.float64) - region.mean()
    shape = region.shape
    overlap = np.fft.irfft2(np.fft.rfft2(region) * np.conj(np.fft.rfft2(centred, shape)), shape)
    integral = [np.pad(part.cumsum(0).cumsum(1), ((1, 0), (1, 0))) for part in (region, region**2)]
    sums, squares = (
        part[height:, width:] - part[:-height, width:] - part[height:, :-width] + part[:-height, :-width]
        for part in integral
    )
    deviation = np.sqrt(np.clip(squares - sums**2 / (height * width), 1e-9, None))
    valid = overlap[: shape[0] - height + 1, : shape[1] - width + 1]
    return float((valid / (deviation * max(spread, 1e-9))).max())


def pixel_similarity(patch: np.ndarray, candidate: np.ndarray) -> float:
    """Largest correlation of a patch's middle with a training patch, over shifts and symmetries; (W, W, 3) uint8."""
    grey = candidate.mean(2)
    middles = (centre(turn, template_side(len(patch)))[0].mean(2) for turn in symmetries(patch[None]))
    return max(correlation(middle, grey) for middle in middles)
