"""Discriminability: how well a linear probe tells painted from real patches, and where it looks.

The strictest measure of all: one statistic that painting misses is enough. Both sets must have the same JPEG history.
"""

from __future__ import annotations

import numpy as np

from wsigen.evaluation.material import LabelledPatches
from wsigen.evaluation.probe import cross_validated_auc
from wsigen.masks.conditions import instance_edges
from wsigen.models.stain import optical_density

RINGS = 24


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
