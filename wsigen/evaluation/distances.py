"""Distances between two sets of pictures, from their features: Fréchet, kernel (KID), and the Inception Score.

All in float64, from (N, D) arrays of features of any network. A distance means nothing without its floor, the same
distance between two sets of real pictures of the same number: ``compare`` gives both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsigen.errors import DataError

Features = npt.NDArray[np.floating]
KID_SUBSETS, KID_SUBSET = 100, 1000
SPLITS = 5  # random halvings that floors are means of


def frechet_distance(first: Features, second: Features) -> float:
    """``|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^1/2)`` (Heusel et al. 2017) of (N, D) and (M, D) features.

    The trace of the root is taken from the eigenvalues of ``A C2 A`` with A the symmetric root of C1: real and stable
    where a covariance is singular, as it is for N < D. Raises DataError for fewer than two samples.
    """
    x, y = _checked(first, second)
    difference = x.mean(0) - y.mean(0)
    c1, c2 = np.atleast_2d(np.cov(x, rowvar=False)), np.atleast_2d(np.cov(y, rowvar=False))
    values, vectors = np.linalg.eigh(c1)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    inner = root @ c2 @ root
    shared = np.sqrt(np.clip(np.linalg.eigvalsh((inner + inner.T) / 2), 0, None)).sum()
    return float(difference @ difference + np.trace(c1) + np.trace(c2) - 2 * shared)


def kernel_distance(
    first: Features, second: Features, subset: int = KID_SUBSET, subsets: int = KID_SUBSETS, seed: int = 0
) -> tuple[float, float]:
    """KID (Binkowski et al. 2018): unbiased squared MMD with the kernel ``(x·y / D + 1)³``, mean over random subsets.

    Returns the mean and the standard deviation over subsets of min(``subset``, N, M) samples each. May be negative.
    """
    x, y = _checked(first, second)
    rng = np.random.default_rng(seed)
    size = min(subset, len(x), len(y))
    if size == len(x) == len(y):
        subsets = 1  # there is only one such subset
    values = []
    for _ in range(subsets):
        a, b = x[rng.permutation(len(x))[:size]], y[rng.permutation(len(y))[:size]]
        values.append(_mmd(a, b))
    return float(np.mean(values)), float(np.std(values))


def _mmd(x: np.ndarray, y: np.ndarray) -> float:
    n, dimension = x.shape
    within = [(k.sum() - np.trace(k)) / (n * (n - 1)) for k in (_kernel(x, x, dimension), _kernel(y, y, dimension))]
    return within[0] + within[1] - 2 * _kernel(x, y, dimension).mean()


def _kernel(x: np.ndarray, y: np.ndarray, dimension: int) -> np.ndarray:
    return (x @ y.T / dimension + 1) ** 3


def inception_score(logits: Features, splits: int = 10, seed: int = 0) -> tuple[float, float]:
    """``exp E KL(p(y|x) || p(y))`` (Salimans et al. 2016) of (N, classes) logits: mean and deviation over ``splits``.

    For tissue it lies near 2 to 3 whatever the quality; it is given because papers give it.
    """
    logits = np.asarray(logits, np.float64)
    if len(logits) < splits:
        raise DataError(f"inception score: {len(logits)} pictures; give at least {splits}")
    logits = logits[np.random.default_rng(seed).permutation(len(logits))]
    log_p = logits - logits.max(1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
    scores = []
    for part in np.array_split(log_p, splits):
        p = np.exp(part)
        scores.append(np.exp((p * (part - np.log(p.mean(0)))).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


@dataclass(frozen=True)
class Comparison:
    """Distances of painted from real pictures. ``half`` distances are between half of each set: equal N throughout."""

    n: int
    frechet: float  # all painted against all real ones
    frechet_half: float
    frechet_floor: float  # half of the real ones against the other half
    frechet_floor_images: float | None  # halves made of whole source images; None for a single source image
    kid: float
    kid_std: float
    kid_floor: float

    @property
    def excess(self) -> float:
        """Fréchet distance above what real pictures have among themselves, at the same N."""
        return self.frechet_half - self.frechet_floor


def compare(painted: Features, real: Features, groups: list[str] | None = None, seed: int = 0) -> Comparison:
    """Compare (N, D) features of painted with those of as many real pictures, in the same order of masks.

    Half distances and floors are means over SPLITS random halvings; a painted half is compared with the real half of
    the *other* masks, as the real halves are with each other. ``groups`` (N,) names each picture's source image.
    """
    painted, real = _checked(painted, real)
    if len(painted) != len(real):
        raise DataError(f"{len(painted)} painted and {len(real)} real pictures: floors need equal numbers")
    rng = np.random.default_rng(seed)
    halves, floors, kernel_floors, by_image = [], [], [], []
    for _ in range(SPLITS):
        order = rng.permutation(len(real))
        a, b = order[: len(real) // 2], order[len(real) // 2 : len(real) // 2 * 2]
        halves.append(frechet_distance(painted[a], real[b]))
        floors.append(frechet_distance(real[a], real[b]))
        kernel_floors.append(kernel_distance(real[a], real[b], subsets=10)[0])
        if groups is not None and len(set(groups)) > 1:
            by_image.append(_distance_between_images(real, groups, rng))
    kid, kid_std = kernel_distance(painted, real)
    return Comparison(
        len(real),
        frechet_distance(painted, real),
        float(np.mean(halves)),
        float(np.mean(floors)),
        float(np.mean(by_image)) if by_image else None,
        kid,
        kid_std,
        float(np.mean(kernel_floors)),
    )


def _distance_between_images(real: np.ndarray, groups: list[str], rng: np.random.Generator) -> float:
    """Fréchet distance between two parts of the real pictures that share no source image, about equally large."""
    names = np.array(groups)
    chosen: list[str] = []
    for name in rng.permutation(sorted(set(groups))):
        if np.isin(names, [*chosen, name]).sum() <= len(real) // 2 or not chosen:
            chosen.append(name)
    inside = np.isin(names, chosen)
    size = min(inside.sum(), (~inside).sum())
    if size < 2:
        return frechet_distance(real, real)
    parts = [rng.permutation(np.flatnonzero(part))[:size] for part in (inside, ~inside)]
    return frechet_distance(real[parts[0]], real[parts[1]])


def _checked(first: Features, second: Features) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise DataError(f"features of shapes {x.shape} and {y.shape}: give two sets of two or more of one length")
    return x, y
