"""Fit the response of the network to what was painted, and ask with it for the styles of held-out source images.

A response is tried on source images that it has not seen: neither their style nor their masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from wsigen.evaluation.asked_stain.painting import Bench, pooled
from wsigen.evaluation.asked_stain.styles import Masks, Source
from wsigen.models.stain import StyleRange
from wsigen.models.stain_response import StainResponse, fit_response

Candidate = tuple[int, float]  # degree and ridge of a fit

CANDIDATES: tuple[Candidate, ...] = tuple((degree, ridge) for degree in (1, 2) for ridge in (0.03, 0.1, 0.3, 1.0, 3.0))
GOOD = 1.05  # of the least error: what a stronger ridge may have
FIRST_FIT: Candidate = (1, 1.0)  # of the fit that says what to paint in the second round


@dataclass(frozen=True)
class Measured:
    """What was painted: inputs (K, 6), whose style each is ("" for a designed one), and sums (K, N, 7)."""

    told: np.ndarray
    of_source: np.ndarray
    sums: np.ndarray
    masks: Masks
    range: StyleRange

    def painted(self, windows: np.ndarray | None = None) -> np.ndarray:
        """Normalised numbers (K, 6) over these windows, all for None."""
        return self.range.scaled(pooled(self.sums if windows is None else self.sums[:, windows]))

    def with_more(self, told: np.ndarray, sums: np.ndarray) -> Measured:
        """With what was painted of other inputs (S, 6) for the styles of the source images, in their order."""
        names = self.of_source[self.of_source != ""]
        return replace(
            self,
            told=np.concatenate([self.told, told]),
            of_source=np.concatenate([self.of_source, names]),
            sums=np.concatenate([self.sums, sums]),
        )

    def fit(self, degree: int, ridge: float, without: str = "") -> StainResponse:
        """The response, of what has nothing to do with one source image: neither its style nor its masks."""
        kept = (self.of_source != without) | (self.of_source == "")
        windows = self.masks.without(without)
        return fit_response(self.told[kept], self.painted(windows)[kept], degree, ridge)

    def left_out_errors(self, degree: int, ridge: float) -> np.ndarray:
        """What responses that have not seen a source image say of its inputs, less what was painted: (S, 6).

        Both over the masks of the other source images; each has the input of its style, and that of the second round.
        """
        errors = []
        for number in np.flatnonzero(self.of_source != ""):
            name = str(self.of_source[number])
            painted = self.painted(self.masks.without(name))[number]
            errors.append(self.fit(degree, ridge, name).painted(self.told[number]) - painted)
        return np.array(errors)


def inverse_styles(measured: Measured, sources: Sequence[Source]) -> np.ndarray:
    """What a first fit, without the source image itself, tells the network for each of the styles painted: (S, 6)."""
    vectors = {source.name: measured.range.scaled(np.array(source.style.vector)) for source in sources}
    names = measured.of_source[measured.of_source != ""].tolist()
    fits = [measured.fit(*FIRST_FIT, name) for name in names]
    told = [fit.told(vectors[name], measured.range.clamp) for fit, name in zip(fits, names, strict=True)]
    return np.array(told, np.float32)


def ridge_errors(measured: Measured) -> dict[Candidate, np.ndarray]:
    """Root mean square errors (6,) of each candidate on source images left out, in the training slides' deviations."""
    return {
        candidate: np.sqrt(np.square(measured.left_out_errors(*candidate)).mean(axis=0)) for candidate in CANDIDATES
    }


def choose_ridges(errors: Mapping[Candidate, np.ndarray]) -> dict[int, float]:
    """The ridge of each degree: the strongest of those that predict about best what source images left out paint.

    The inverse goes furthest where the fit is least certain, so that a weaker ridge must earn its place.
    """
    ridges = {}
    for degree in dict.fromkeys(degree for degree, _ in errors):
        of_degree = {ridge: root_mean_square(error) for (one, ridge), error in errors.items() if one == degree}
        ridges[degree] = max(ridge for ridge, error in of_degree.items() if error <= GOOD * min(of_degree.values()))
    return ridges


@dataclass(frozen=True)
class Asked:
    """Styles that were asked for, (S, 6) each: asked, told, expected of it, and painted over some masks or all."""

    names: tuple[str, ...]
    asked: np.ndarray
    told: np.ndarray
    expected: np.ndarray
    before: np.ndarray  # sums (S, N, 7), without a response
    after: np.ndarray

    def error(self, limits: StyleRange) -> float:
        """Root mean square of what is painted less what is asked, in deviations of the training slides."""
        return root_mean_square(limits.scaled(pooled(self.after)) - limits.scaled(self.asked))


def ask(bench: Bench, sources: Sequence[Source], degree: int, ridge: float, measured: Measured) -> Asked:
    """Paint held-out styles, each as the response tells that has not seen its source image."""
    responses = [measured.fit(degree, ridge, source.name) for source in sources]
    limits = measured.range
    asked = np.array([source.style.vector for source in sources])
    own = [int(np.flatnonzero(measured.of_source == source.name)[0]) for source in sources]
    pairs = list(zip(responses, asked, strict=True))
    told = np.array([response.told(limits.scaled(vector), limits.clamp) for response, vector in pairs])
    expected = limits.unscaled(np.array([r.painted(row) for r, row in zip(responses, told, strict=True)]))
    after = bench.measure(f"painting held-out styles, degree {degree}", told, np.arange(len(measured.masks.sources)))
    names = tuple(source.name for source in sources)
    return Asked(names, asked, told, expected, measured.sums[own], after)


def choose_degree(tried: Mapping[int, Asked], limits: StyleRange) -> int:
    """The degree with which what is painted of held-out styles is nearest to what is asked.

    That a polynomial predicts well does not suffice: its inverse picks the inputs where it promises most.
    """
    return min(tried, key=lambda degree: tried[degree].error(limits))


def root_mean_square(values: np.ndarray) -> float:
    """Root mean square of an array."""
    return float(np.sqrt(np.square(values).mean()))


def slopes(asked: np.ndarray, painted: np.ndarray) -> list[float | None]:
    """Slope of each painted number over the asked one, (S, 6) both; None where there are not two different ones."""
    centred = asked - asked.mean(axis=0)
    spread = np.square(centred).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (centred * painted).sum(axis=0) / spread
    return [float(value) if enough else None for value, enough in zip(found, spread > 1e-12)]
