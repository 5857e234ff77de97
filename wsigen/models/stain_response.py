"""What a network paints of the stain style that it is told, and what to tell it so that it paints the one asked for.

A network follows its style input only in part: told a dark stain it paints one less dark. ``wsigen evaluate stain``
measures what is painted of many inputs and fits it. Painting solves the inverse: the input whose painting is nearest
to what is asked, by least squares within the range that the network was trained on. All numbers here are normalised
as by ``wsigen.models.stain.StyleRange``: 0 is the mean of the training slides, 1 is one standard deviation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from wsigen.models.stain import STYLE_NUMBERS

NUMBERS = len(STYLE_NUMBERS)  # of a style
AFFINE_TERMS = 1 + NUMBERS
QUADRATIC_TERMS = AFFINE_TERMS + NUMBERS * (NUMBERS + 1) // 2
# Inputs that paint nearly the same differ little in error: this weight picks the one nearest to the asked style, where
# the network has been trained.
PULL = 0.1
DECIMALS = 5  # of an input: finer differences are those of one linear algebra library to another


@dataclass(frozen=True)
class StainResponse:
    """Painted numbers as polynomials of the numbers told.

    rows: for each of the six painted numbers a coefficient for each term of ``terms``, 7 (first degree) or 28
    (second degree). Raises ValueError for other shapes and for numbers that are not finite.
    """

    rows: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        lengths = {len(row) for row in self.rows}
        if len(self.rows) != NUMBERS or lengths not in ({AFFINE_TERMS}, {QUADRATIC_TERMS}):
            raise ValueError(
                f"stain_response: needs {NUMBERS} rows of {AFFINE_TERMS} or {QUADRATIC_TERMS} numbers each, not "
                f"{len(self.rows)} of {sorted(lengths)}"
            )
        if not all(math.isfinite(value) for row in self.rows for value in row):
            raise ValueError("stain_response: every number must be finite")

    @property
    def degree(self) -> int:
        """Of the polynomials: 1 or 2."""
        return 1 if len(self.rows[0]) == AFFINE_TERMS else 2

    def painted(self, told: np.ndarray) -> np.ndarray:
        """What is painted (..., 6) of inputs (..., 6), float64."""
        return terms(told, self.degree) @ np.asarray(self.rows, np.float64).T

    def told(self, asked: np.ndarray, clamp: float) -> np.ndarray:
        """Inputs (..., 6) from -clamp to clamp that paint the asked numbers (..., 6), or what is nearest to them."""
        asked = np.asarray(asked, np.float64)
        solved = [self._solve(row, clamp) for row in asked.reshape(-1, NUMBERS)]
        return np.round(np.reshape(solved, asked.shape), DECIMALS)

    def _solve(self, asked: np.ndarray, clamp: float) -> np.ndarray:
        from scipy.optimize import least_squares

        start = np.clip(asked, -clamp, clamp)
        pull = PULL * np.eye(NUMBERS)

        def errors(told: np.ndarray) -> np.ndarray:
            return np.concatenate([self.painted(told) - asked, pull @ (told - start)])

        def slopes(told: np.ndarray) -> np.ndarray:
            return np.concatenate([np.asarray(self.rows) @ term_slopes(told, self.degree), pull])

        found = least_squares(errors, start * 0.99, slopes, (-clamp, clamp), xtol=1e-10, ftol=1e-10, gtol=1e-10)
        return np.clip(found.x, -clamp, clamp)


def terms(told: np.ndarray, degree: int) -> np.ndarray:
    """Terms of the polynomial of inputs (..., 6): 1, the six, of degree 2 the products of each two; (..., 7 or 28)."""
    told = np.asarray(told, np.float64)
    parts = [np.ones((*told.shape[:-1], 1)), told]
    if degree == 2:
        one, other = np.triu_indices(NUMBERS)
        parts.append(told[..., one] * told[..., other])
    return np.concatenate(parts, axis=-1)


def term_slopes(told: np.ndarray, degree: int) -> np.ndarray:
    """Derivatives of ``terms`` at one input (6,): (7 or 28, 6)."""
    parts = [np.zeros((1, NUMBERS)), np.eye(NUMBERS)]
    if degree == 2:
        one, other = np.triu_indices(NUMBERS)
        products = np.zeros((len(one), NUMBERS))
        row = np.arange(len(one))
        products[row, one] += told[other]
        products[row, other] += told[one]
        parts.append(products)
    return np.concatenate(parts)


def fit_response(told: np.ndarray, painted: np.ndarray, degree: int, ridge: float) -> StainResponse:
    """Fit a response to inputs (N, 6) and what was painted of them (N, 6), normalised both.

    ``ridge`` is the weight, in paintings, that holds the coefficients near those of a network that paints what it is
    told; the constants are free. Ridge regression (Hoerl and Kennard 1970) of the difference.
    """
    features = terms(told, degree)
    weight = np.eye(features.shape[1]) * ridge
    weight[0, 0] = 0.0
    change = np.linalg.solve(features.T @ features + weight, features.T @ (painted - told))
    faithful = np.zeros_like(change)
    faithful[1:AFFINE_TERMS] = np.eye(NUMBERS)
    return StainResponse(tuple(tuple(round(float(v), 6) for v in row) for row in (faithful + change).T))
