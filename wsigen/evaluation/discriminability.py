"""Discriminability: how well a linear probe, or a small network, tells painted from real patches, and where it looks.

The strictest measure of all: one statistic that painting misses is enough. Both sets must have the same JPEG history.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from wsigen.evaluation.features import to_images
from wsigen.evaluation.material import LabelledPatches
from wsigen.evaluation.probe import auc, cross_validated_auc, folds_of
from wsigen.masks.conditions import instance_edges
from wsigen.models.stain import optical_density

RINGS = 24
NETWORK_STEPS, NETWORK_BATCH, NETWORK_FOLDS = 400, 32, 3


def radial_spectrum(patches: np.ndarray) -> np.ndarray:
    """Log power of the grey level over RINGS rings of spatial frequency, lowest first: (N, W, W, 3) -> (N, RINGS)."""
    side = min(patches.shape[1:3])
    grey = optical_density(patches[:, :side, :side]).mean(3)
    ramp = np.hanning(side)
    power = np.abs(np.fft.rfft2((grey - grey.mean((1, 2), keepdims=True)) * ramp[:, None] * ramp)) ** 2
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    ring = np.clip((frequency / 0.5 * RINGS).astype(int), 0, RINGS)  # beyond: the corners, which are left out
    sums = np.stack([power[:, ring == index].mean(1) for index in range(RINGS)], 1)
    return np.log(sums + 1e-12)


def colour_moments(patches: np.ndarray) -> np.ndarray:
    """Mean, deviation and correlation of optical density by channel: (N, W, W, 3) -> (N, 9)."""
    density = optical_density(patches).reshape(len(patches), -1, 3).astype(np.float64)
    mean, deviation = density.mean(1), density.std(1) + 1e-6
    z = (density - mean[:, None]) / deviation[:, None]
    pairs = [(z[..., i] * z[..., j]).mean(1) for i, j in ((0, 1), (0, 2), (1, 2))]
    return np.concatenate([mean, deviation, np.stack(pairs, 1)], 1)


def nuclear_sharpness(patches: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Gradient of grey density at the edges of nuclei, elsewhere, and their ratio: (N, 3); ``edges`` (N, W, W) bool."""
    grey = optical_density(patches).mean(3)
    gradient = np.hypot(np.gradient(grey, axis=1), np.gradient(grey, axis=2))
    at = np.array([g[e].mean() if e.any() else 0.0 for g, e in zip(gradient, edges)])
    elsewhere = np.array([g[~e].mean() if (~e).any() else 0.0 for g, e in zip(gradient, edges)])
    return np.stack([at, elsewhere, at / (elsewhere + 1e-6)], 1)


def discriminate(
    painted: LabelledPatches, real: LabelledPatches, scales: tuple[np.ndarray, np.ndarray], seed: int = 0
) -> list[dict[str, object]]:
    """AUC of probes on several views of painted and real patches; ``scales`` are their multi-scale features (N, M).

    Patches of one source image stand on one side of each cross-validation split, painted and real.
    """
    labels = np.repeat([True, False], [len(painted), len(real)])
    groups = np.array(painted.groups + real.groups)
    edges = [np.stack([instance_edges(ids) > 0 for ids in part.instances]) for part in (painted, real)]
    views = {
        "multi-scale features": scales,
        "frequency spectrum": tuple(radial_spectrum(part.images) for part in (painted, real)),
        "colour": tuple(colour_moments(part.images) for part in (painted, real)),
        "edges of nuclei": tuple(nuclear_sharpness(p.images, e) for p, e in zip((painted, real), edges)),
    }
    return [
        {"view": name, "AUC": cross_validated_auc(np.concatenate(view), labels, groups, seed)}
        for name, view in views.items()
    ]


def network_auc(
    painted: LabelledPatches, real: LabelledPatches, device: torch.device, steps: int = NETWORK_STEPS, seed: int = 0
) -> float:
    """AUC of a small convolutional network that learns from pixels, on source images that it did not see."""
    images = np.concatenate([painted.images, real.images])
    labels = np.repeat([True, False], [len(painted), len(real)])
    values, weights = [], []
    for inside in folds_of(np.array(painted.groups + real.groups), NETWORK_FOLDS, seed):
        held = labels[inside]
        if held.all() or not held.any() or labels[~inside].all() or not labels[~inside].any():
            continue
        scores = _train_and_score(images[~inside], labels[~inside], images[inside], device, steps, seed)
        values.append(auc(scores, held))
        weights.append(len(held))
    return float(np.average(values, weights=weights)) if values else float("nan")


def _train_and_score(
    images: np.ndarray, labels: np.ndarray, unseen: np.ndarray, device: torch.device, steps: int, seed: int
) -> np.ndarray:
    """Train on (N, W, W, 3) and (N,) bool, half of each batch of either kind; log-odds (M,) of the unseen ones."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        widths = (3, 24, 48, 96)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU(), nn.AvgPool2d(2)]
        network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 1)).to(device)
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.05)
    rng = np.random.default_rng(seed)
    kinds = [np.flatnonzero(labels), np.flatnonzero(~labels)]
    target = torch.tensor([1.0, 0.0], device=device).repeat_interleave(NETWORK_BATCH // 2)
    for _ in range(steps):
        chosen = np.concatenate([rng.choice(kind, NETWORK_BATCH // 2) for kind in kinds])
        batch = np.rot90(images[chosen], int(rng.integers(4)), (1, 2))
        batch = batch[:, :, ::-1] if rng.integers(2) else batch
        loss = F.binary_cross_entropy_with_logits(network(to_images(batch, device))[:, 0], target)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    with torch.inference_mode():
        parts = [network(to_images(part, device))[:, 0] for part in np.array_split(unseen, -(-len(unseen) // 64))]
    return torch.cat(parts).cpu().numpy()
