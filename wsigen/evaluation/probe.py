"""Linear probes: how well a linear classifier tells two sets apart, on samples that it did not see."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.stats import rankdata

from wsigen.errors import DataError

FOLDS = 5
PENALTY = 1.0  # squared length of the weights on standardised features; sets of a few hundred need it


@dataclass(frozen=True)
class LinearProbe:
    """A logistic regression on standardised features."""

    mean: np.ndarray
    deviation: np.ndarray
    weight: np.ndarray
    bias: float

    @classmethod
    def fitted(cls, features: np.ndarray, labels: np.ndarray, penalty: float = PENALTY) -> LinearProbe:
        """Fit (N, D) features to (N,) bool labels; both count the same, however many there are of each."""
        x = np.asarray(features, np.float64)
        mean, deviation = x.mean(0), x.std(0) + 1e-8
        z, sign = (x - mean) / deviation, np.where(labels, 1.0, -1.0)
        balance = np.where(labels, 0.5 / max(1, labels.sum()), 0.5 / max(1, (~labels).sum()))

        def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
            weight, bias = parameters[:-1], parameters[-1]
            margin = sign * (z @ weight + bias)
            slope = -sign * balance / (1 + np.exp(np.clip(margin, -500, 500)))
            value = (balance * np.logaddexp(0, -margin)).sum() + 0.5 * penalty / len(x) * weight @ weight
            return value, np.append(slope @ z + penalty / len(x) * weight, slope.sum())

        found = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 300})
        return cls(mean, deviation, found.x[:-1], float(found.x[-1]))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Log-odds (N,) of the label being true."""
        return (np.asarray(features, np.float64) - self.mean) / self.deviation @ self.weight + self.bias


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a true sample scores above a false one; ties count half."""
    true = int(labels.sum())
    false = len(labels) - true
    if not true or not false:
        raise DataError("an AUC needs samples of both kinds")
    return float((rankdata(scores)[labels].sum() - true * (true + 1) / 2) / (true * false))


def cross_validated_auc(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int = 0) -> float:
    """AUC over all samples, each scored by a probe that saw none of its group; (N, D), (N,) bool, (N,) any.

    Raises DataError where there are too few groups to hold some out.
    """
    # Ranks within a fold: the scales of two probes need not be the same.
    values = []
    for inside in folds_of(groups, FOLDS, seed):
        held, rest = labels[inside], labels[~inside]
        if held.all() or not held.any() or rest.all() or not rest.any():
            continue
        values.append((auc(LinearProbe.fitted(features[~inside], rest)(features[inside]), held), inside.sum()))
    if not values:
        raise DataError("a cross-validated AUC needs samples of both kinds in every part")
    return float(np.average([value for value, _ in values], weights=[size for _, size in values]))


def folds_of(groups: np.ndarray, folds: int, seed: int) -> list[np.ndarray]:
    """Split samples (N,) into at most ``folds`` parts of whole groups: (N,) bool, true inside the part, for each."""
    names = np.unique(groups)
    folds = min(folds, len(names))
    if folds < 2:
        raise DataError("a cross-validated AUC needs samples of two or more groups")
    places = np.random.default_rng(seed).permutation(len(names)) % folds
    fold = places[np.searchsorted(names, groups)]
    return [fold == index for index in range(folds)]
