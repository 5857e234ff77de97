"""Seams: whether pixels at the borders of windows differ from pixels elsewhere.

JPEG makes every multiple of 8 px special, and with chroma at half resolution every multiple of 16: a column at a border
is therefore compared only with columns at the same position modulo 16, a few blocks aside, in the same rows. The same
statistics of a real slide, with the borders drawn where the painter would have had them, say what chance gives.

A *site* is a stretch of SITE px along a border. Of each site a strip is read across the border, and strips of the same
size at its *controls*. Ratios are of sums over sites; their intervals come from resampling blocks of sites
(bootstrap).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wsigen.errors import SlideError
from wsigen.evaluation.probe import cross_validated_auc
from wsigen.models.stain import optical_density
from wsigen.painting.grid import Axis

SITE = 64  # px along the border
REACH = 16  # px to each side of it
MODULUS = 16  # of JPEG with chroma at half resolution
FARTHEST = 96  # px from border to control
CONTROLS = 4
BAND = 4  # px to each side in which blur is looked for
TISSUE_OD = 0.06  # sites paler than this show glass, where nothing is to be seen
BOOTSTRAPS = 400
BLOCK = 384  # px: sites of one block are drawn, and held out, together
NEIGHBOUR_PERIODS = 6

Reader = Callable[[int, int, int, int], np.ndarray]  # x, y, width, height -> (h, w, 3) uint8


@dataclass(frozen=True)
class Strips:
    """Optical density around the borders of sites: (S, SITE, 2 REACH, 3), the border between REACH - 1 and REACH.

    ``controls`` (S, CONTROLS, SITE, 2 REACH, 3) are the same around places without a border.
    """

    borders: np.ndarray
    controls: np.ndarray
    place: np.ndarray  # (S, 2) x and y of each site at level 0

    def blocks(self, side: int) -> np.ndarray:
        """Number of the block of ``side`` px that each site lies in: (S,)."""
        return (self.place // side) @ np.array([1, 1 << 20])


@dataclass(frozen=True)
class Estimate:
    """A value with the interval that holds 95 % of its bootstraps."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SeamScores:
    """Seam statistics; 1 is no seam for ratios, 0.5 for the AUC."""

    sites: int
    gradient_ratio: Estimate  # mean |difference| of optical density across the border
    laplacian_ratio: Estimate  # Laplacian energy within BAND px: below 1 is blur
    step_ratio: Estimate  # |difference of means| of the 16 px on either side
    period_ratio: float  # power of |difference| at the grid's period, against neighbouring periods
    classifier_auc: float  # of a linear classifier told to tell borders from controls, on sites it did not see

    def rows(self, of: str) -> list[dict[str, object]]:
        """Rows of a table, of the slide that ``of`` names."""
        ratios = (
            ("gradient ratio", self.gradient_ratio),
            ("Laplacian ratio", self.laplacian_ratio),
            ("step ratio", self.step_ratio),
        )
        rows: list[dict[str, object]] = [
            {"statistic": name, "of": of, "value": e.value, "low": e.low, "high": e.high} for name, e in ratios
        ]
        for name, value in (("power at the period", self.period_ratio), ("classifier AUC", self.classifier_auc)):
            rows.append({"statistic": name, "of": of, "value": value, "low": None, "high": None})
        return rows


def border_positions(length: int, window: int, overlap: int) -> np.ndarray:
    """Where, along one axis of the grid, pixels of an odd window alone begin and end: (n,) int64.

    In slides without blending windows are cut there; in those with it, bands end there on the side of the odd window.
    """
    axis = Axis(length, window, overlap)
    starts = (axis.held_start(i) for i in range(1, axis.count))
    return np.array([start for start in starts if 0 < start < length], np.int64)


def control_offsets(border: int, borders: np.ndarray, length: int) -> list[int]:
    """Up to CONTROLS distances from ``border`` to places like it, nearest first; fewer where there is no room."""
    fitting = []
    for distance in range(MODULUS, FARTHEST + 1, MODULUS):
        for offset in (distance, -distance):
            place = border + offset
            inside = REACH <= place <= length - REACH
            if inside and np.abs(borders - place).min() >= MODULUS:
                fitting.append(offset)
    far = [offset for offset in fitting if abs(offset) > MODULUS]
    return (far if len(far) >= CONTROLS else fitting)[:CONTROLS]


def sample_strips(read: Reader, width: int, height: int, window: int, overlap: int, sites: int, seed: int) -> Strips:
    """Read up to ``sites`` sites with tissue, of borders in both directions. Raises SlideError where there are none."""
    rng = np.random.default_rng(seed)
    todo = []
    for vertical, length, along in ((True, width, height), (False, height, width)):
        borders = border_positions(length, window, overlap)
        for border in borders:
            offsets = control_offsets(int(border), borders, length)
            if len(offsets) == CONTROLS and REACH <= border <= length - REACH:
                todo += [(vertical, int(border), start, offsets) for start in range(0, along - SITE + 1, SITE)]
    near, far, place = [], [], []
    for index in rng.permutation(len(todo)):
        vertical, border, start, offsets = todo[index]
        left = min(0, *offsets) + border - REACH
        span = max(0, *offsets) + border + REACH - left
        rgb = read(left, start, span, SITE) if vertical else read(start, left, SITE, span).transpose(1, 0, 2)
        density = optical_density(rgb)
        if density.mean() < TISSUE_OD:
            continue
        near.append(_around(density, border - left))
        far.append(np.stack([_around(density, border + offset - left) for offset in offsets]))
        place.append((border, start) if vertical else (start, border))
        if len(near) == sites:
            break
    if not near:
        raise SlideError(
            f"no border of windows of {window} px with overlap {overlap} crosses tissue in {width} x {height} px; "
            "give the slide's own --window and --overlap"
        )
    return Strips(np.stack(near), np.stack(far), np.array(place))


def _around(density: np.ndarray, border: int) -> np.ndarray:
    return density[:, border - REACH : border + REACH]


def seam_scores(
    read: Reader, width: int, height: int, window: int, overlap: int, sites: int = 2000, seed: int = 0
) -> SeamScores:
    """Measure the seams of a slide painted with these windows; ``read(x, y, w, h)`` gives level-0 pixels."""
    strips = sample_strips(read, width, height, window, overlap, sites, seed)
    rng = np.random.default_rng(seed)
    statistics = [_gradient, _laplacian, _step]
    ratios = [
        _ratio(statistic(strips.borders), statistic(strips.controls).mean(1), strips.blocks(BLOCK), rng)
        for statistic in statistics
    ]
    periods = [
        period_ratio(read, width, height, window, overlap),
        period_ratio(lambda x, y, w, h: read(y, x, h, w).transpose(1, 0, 2), height, width, window, overlap),
    ]
    found = [value for value in periods if value is not None]
    return SeamScores(
        len(strips.borders),
        ratios[0],
        ratios[1],
        ratios[2],
        float(np.mean(found)) if found else float("nan"),
        border_auc(strips, seed),
    )


def _gradient(strips: np.ndarray) -> np.ndarray:
    """(..., SITE, 2 REACH, 3) -> (...,): mean |difference| across the border."""
    return np.abs(strips[..., REACH, :] - strips[..., REACH - 1, :]).mean((-1, -2))


def _laplacian(strips: np.ndarray) -> np.ndarray:
    """Mean squared Laplacian within BAND px of the border."""
    middle = strips[..., REACH - BAND - 1 : REACH + BAND + 1, :]
    inner = middle[..., 1:-1, 1:-1, :]
    sides = middle[..., :-2, 1:-1, :] + middle[..., 2:, 1:-1, :] + middle[..., 1:-1, :-2, :] + middle[..., 1:-1, 2:, :]
    return ((sides - 4 * inner) ** 2).mean((-1, -2, -3))


def _step(strips: np.ndarray) -> np.ndarray:
    """|Difference of means| of the two sides."""
    sides = strips[..., :REACH, :].mean((-2, -3)), strips[..., REACH:, :].mean((-2, -3))
    return np.abs(sides[1] - sides[0]).mean(-1)


def _ratio(borders: np.ndarray, controls: np.ndarray, blocks: np.ndarray, rng: np.random.Generator) -> Estimate:
    """Ratio of sums over sites (S,) with its interval; neighbouring sites are drawn together: they share tissue."""
    _, block = np.unique(blocks, return_inverse=True)
    sums = [np.bincount(block, values) for values in (borders, controls)]
    draws = rng.integers(0, len(sums[0]), (BOOTSTRAPS, len(sums[0])))
    low, high = np.percentile(sums[0][draws].sum(1) / sums[1][draws].sum(1), (2.5, 97.5))
    return Estimate(float(borders.sum() / controls.sum()), float(low), float(high))


def period_ratio(read: Reader, width: int, height: int, window: int, overlap: int, rows: int = 1024) -> float | None:
    """Power of column differences at the period of the grid, over that at periods a few blocks longer or shorter.

    The mean |difference| between columns, of up to ``rows`` rows, is folded at 2 (window - overlap) px after the mean
    of each position modulo 16 was taken away; the variance of the fold gathers the period and all its harmonics.
    None for slides of fewer than four periods.
    """
    period = 2 * (window - overlap)
    reach = NEIGHBOUR_PERIODS * MODULUS
    if width < 4 * (period + reach) or period <= reach:
        return None
    starts = np.unique(np.linspace(0, max(0, height - SITE), max(1, rows // SITE)).astype(int))
    profile = np.zeros(width - 1)
    for y in starts:
        density = optical_density(read(0, int(y), width, min(SITE, height))).mean(2)
        profile += np.abs(np.diff(density, axis=1)).mean(0)
    column = np.arange(1, width)
    for residue in range(MODULUS):
        profile[column % MODULUS == residue] -= profile[column % MODULUS == residue].mean()
    others = [period + MODULUS * k for k in range(-NEIGHBOUR_PERIODS, NEIGHBOUR_PERIODS + 1) if k]
    return _folded(profile, period) / float(np.mean([_folded(profile, other) for other in others]))


def _folded(profile: np.ndarray, period: int) -> float:
    """Variance of the profile's mean over repeats of ``period``, times the number of repeats."""
    repeats = len(profile) // period
    return float(repeats * profile[: repeats * period].reshape(repeats, period).mean(0).var())


def border_auc(strips: Strips, seed: int = 0) -> float:
    """AUC of a linear classifier that tells borders from controls on sites it did not see.

    It sees, for every column of a strip, the mean |difference| to the next, the mean |second difference| and the mean
    density: where along the strip anything special lies is for it to find.
    """
    controls = strips.controls[:, :2].reshape(-1, *strips.controls.shape[2:])
    features = np.concatenate([_profiles(strips.borders), _profiles(controls)])
    is_border = np.repeat([True, False], [len(strips.borders), len(controls)])
    # A site and its controls go to the same side, as do its neighbours: they share tissue.
    blocks = strips.blocks(BLOCK)
    if len(np.unique(blocks)) < 2:
        return float("nan")  # too small a slide to hold anything out
    return cross_validated_auc(features, is_border, np.concatenate([blocks, np.repeat(blocks, 2)]), seed)


def _profiles(strips: np.ndarray) -> np.ndarray:
    first, second = np.diff(strips, axis=2), np.diff(strips, n=2, axis=2)
    parts = [np.abs(first).mean((1, 3)), np.abs(second).mean((1, 3)), strips.mean((1, 3))]
    level = parts[0].mean(1, keepdims=True) + 1e-4  # busy and quiet tissue made alike
    return np.concatenate([parts[0] / level, parts[1] / level, (parts[2] - parts[2].mean(1, keepdims=True)) / level], 1)
