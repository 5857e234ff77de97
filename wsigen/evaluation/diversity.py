"""Diversity: how much paintings of one mask differ from seed to seed."""

from __future__ import annotations

import numpy as np


def diversity(features: np.ndarray, pixels: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Spread of S paintings of each of M masks: features (M, S, D), pixels (M, S, W, W, 3); ``real`` (N, D) features.

    ``share of variance`` is the variance between seeds of one mask over that between real patches, both by feature and
    then averaged: 0 where every seed gives the same picture. ``pixel deviation`` is between seeds, of 0..255.
    """
    between_seeds = features.var(axis=1, ddof=1).mean(0)
    between_patches = real.var(axis=0, ddof=1)
    told = between_patches > 1e-8
    return {
        "masks": len(features),
        "seeds": features.shape[1],
        "share of variance": float((between_seeds[told] / between_patches[told]).mean()),
        "pixel deviation": float(pixels.astype(np.float32).std(axis=1, ddof=1).mean()),
    }
