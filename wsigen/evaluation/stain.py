"""Stain: the distribution of optical density over tissue, painted against real, and its variation over a slide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import wasserstein_distance

from wsigen.models.stain import optical_density, tissue_pixels

CHANNELS = ("red", "green", "blue")
SAMPLES = 200_000
BINS = np.linspace(0, 1.5, 76)


@dataclass(frozen=True)
class StainStatistics:
    """Optical density of tissue pixels by channel, and of patches among each other."""

    mean: np.ndarray  # (3,)
    deviation: np.ndarray  # (3,) over pixels
    correlation: np.ndarray  # (3,) of red-green, red-blue, green-blue
    between: np.ndarray  # (3,) deviation of patch means: the variation over a slide
    histogram: np.ndarray  # (3, 75) densities over BINS
    sample: np.ndarray  # (S, 3) pixels

    @classmethod
    def of(cls, patches: np.ndarray, seed: int = 0) -> StainStatistics:
        """Measure ``patches`` (N, H, W, 3) uint8; tissue is where mean density is above that of glass."""
        means, pixels = [], []
        share = max(1, SAMPLES // max(1, len(patches)))
        rng = np.random.default_rng(seed)
        for patch in patches:
            density = optical_density(patch).reshape(-1, 3)
            tissue = density[tissue_pixels(density)]
            if len(tissue) < len(density) // 10:
                continue
            means.append(tissue.mean(0))
            pixels.append(tissue[rng.integers(0, len(tissue), share)])
        sample = np.concatenate(pixels) if pixels else np.zeros((2, 3), np.float32)
        correlation = np.atleast_2d(np.corrcoef(sample.T + 1e-9 * rng.standard_normal((3, len(sample)))))
        return cls(
            sample.mean(0),
            sample.std(0),
            correlation[[0, 0, 1], [1, 2, 2]],
            np.std(means, axis=0) if means else np.zeros(3),
            np.stack([np.histogram(sample[:, channel], BINS, density=True)[0] for channel in range(3)]),
            sample,
        )

    def rows(self, real: StainStatistics) -> list[dict[str, object]]:
        """Rows of a table: each channel, painted beside real; the last column is the distance of the distributions."""
        return [
            {
                "channel": name,
                "mean": float(self.mean[i]),
                "real mean": float(real.mean[i]),
                "deviation": float(self.deviation[i]),
                "real deviation": float(real.deviation[i]),
                "between patches": float(self.between[i]),
                "real between patches": float(real.between[i]),
                "earth mover's distance": float(wasserstein_distance(self.sample[:, i], real.sample[:, i])),
            }
            for i, name in enumerate(CHANNELS)
        ]
