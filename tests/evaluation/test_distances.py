"""Distances between sets of features, against their definitions and other implementations."""

import numpy as np
import pytest

from wsigen.errors import DataError
from wsigen.evaluation.distances import compare, frechet_distance, inception_score, kernel_distance


def normal(seed, n=400, d=6, shift=0.0, scale=1.0):
    return np.random.default_rng(seed).standard_normal((n, d)) * scale + shift


def test_frechet_distance_of_normal_distributions_is_the_formula():
    x, y = normal(0, 60_000, 3), normal(1, 60_000, 3, shift=0.5, scale=2.0)
    assert frechet_distance(x, y) == pytest.approx(3 * (0.25 + (2 - 1) ** 2), rel=0.03)


def test_frechet_distance_equals_the_matrix_root():
    from scipy.linalg import sqrtm

    x, y = normal(0) @ normal(5, 6), normal(1, shift=0.3) @ normal(6, 6)
    c1, c2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    wanted = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    assert frechet_distance(x, y) == pytest.approx(wanted, rel=1e-8)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_is_finite_with_fewer_samples_than_features():
    x, y = normal(0, 20, 64), normal(1, 20, 64)
    assert 0 < frechet_distance(x, y) < 1e3
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-6)


def test_distances_agree_with_torchmetrics():
    torchmetrics = pytest.importorskip("torchmetrics.image.fid")
    import torch

    x, y = normal(0), normal(1, shift=0.4)
    mine = frechet_distance(x, y)
    theirs = torchmetrics._compute_fid(
        *(torch.from_numpy(a) for s in (x, y) for a in (s.mean(0), np.cov(s, rowvar=False)))
    )
    assert mine == pytest.approx(float(theirs), rel=1e-6)


def test_kernel_distance_is_unbiased():
    values = [kernel_distance(normal(2 * k, 50), normal(2 * k + 1, 50))[0] for k in range(60)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0  # which a biased one never is
    assert kernel_distance(normal(0), normal(1, shift=1.0))[0] > 10 * max(values)


def test_kernel_distance_is_the_formula():
    x, y = normal(0, 7, 2), normal(1, 7, 2)

    def mean(a, b, skip):
        terms = [(p @ q / 2 + 1) ** 3 for i, p in enumerate(a) for j, q in enumerate(b) if not (skip and i == j)]
        return np.mean(terms)

    wanted = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    assert kernel_distance(x, y)[0] == pytest.approx(wanted)


def test_inception_score_counts_confident_classes():
    confident = np.eye(5)[np.arange(1000) % 5] * 50
    assert inception_score(confident)[0] == pytest.approx(5, rel=0.04)  # ten parts, not quite balanced
    assert inception_score(np.zeros((100, 5)))[0] == pytest.approx(1)
    with pytest.raises(DataError, match="3 pictures"):
        inception_score(np.zeros((3, 5)))


def test_real_pictures_have_no_excess_over_their_floor():
    real = normal(0, 600, 8)
    same, other = compare(normal(1, 600, 8), real), compare(normal(1, 600, 8, shift=0.5), real)
    assert abs(same.excess) < 0.3 * same.frechet_floor < other.excess
    assert same.frechet_floor_images is None and same.n == 600


def test_the_floor_between_images_is_higher_where_images_differ():
    real = normal(0, 400, 4)
    groups = [f"slide {k % 4}" for k in range(400)]
    for k in range(400):
        real[k] += 2.0 * (k % 4)
    comparison = compare(real, real, groups)
    assert comparison.frechet_floor_images > 10 * comparison.frechet_floor


def test_sets_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="equal numbers"):
        compare(normal(0, 10), normal(1, 11))
    with pytest.raises(DataError, match="two sets"):
        frechet_distance(normal(0, 10, 3), normal(1, 10, 4))
