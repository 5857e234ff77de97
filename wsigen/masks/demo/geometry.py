"""Curves and shapes of a demo mask: random waves, points along a path, pixels of polygons and of ellipses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Wave:
    """A smooth random curve: a sum of sines, so that it has a value anywhere."""

    amplitudes: np.ndarray
    lengths: np.ndarray
    phases: np.ndarray

    @classmethod
    def drawn(cls, rng: np.random.Generator, amplitude: float, lengths: tuple[float, float], terms: int = 3) -> Wave:
        """A curve of at most `amplitude`, whose sines have periods within `lengths`."""
        size = rng.uniform(0.4, 1.0, terms)
        return cls(amplitude * size / size.sum(), rng.uniform(*lengths, terms), rng.uniform(0, 2 * math.pi, terms))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Value at each x, in the unit of the amplitude."""
        waves = zip(self.amplitudes, self.lengths, self.phases)
        return np.asarray(sum(a * np.sin(2 * math.pi * x / length + p) for a, length, p in waves))


def harmonics(rng: np.random.Generator, angle: np.ndarray, deviations: dict[int, float]) -> np.ndarray:
    """A random closed curve: a sum of cosines of k times the angle. deviations: k -> standard deviation."""
    waves = [rng.normal(0, d) * np.cos(k * angle + rng.uniform(0, 2 * math.pi)) for k, d in deviations.items()]
    return np.sum(waves, axis=0)


def rotation(angle: float) -> np.ndarray:
    """Matrix (2, 2) that turns row vectors (N, 2) by an angle in radians."""
    return np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (N, 2) made one long."""
    return vectors / np.maximum(np.hypot(vectors[:, 0], vectors[:, 1]), 1e-9)[:, None]


def along(path: np.ndarray, spacing: Callable[[], float], closed: bool) -> Iterator[int]:
    """Indices of points along a path (N, 2) in µm, each `spacing()` µm after the last."""
    steps = np.hypot(*np.diff(path, axis=0).T)
    total = np.concatenate([[0.0], np.cumsum(steps)])
    at = 0.3 * spacing()
    end = total[-1] - (2.0 if closed else 0.0)
    while at < end:
        yield int(np.searchsorted(total, at))
        at += spacing()


def polygon_pixels(polygon: np.ndarray, height: int, width: int) -> tuple[slice, slice, np.ndarray]:
    """Pixels whose centre lies in a polygon ((N, 2) x, y in pixels; even-odd rule): rows, columns, and a bool array."""
    left, top = np.floor(polygon.min(0)).astype(int)
    right, bottom = np.ceil(polygon.max(0)).astype(int) + 1
    x0, x1 = (int(np.clip(v, 0, width)) for v in (left, right))
    y0, y1 = (int(np.clip(v, 0, height)) for v in (top, bottom))
    start, stop = polygon, np.roll(polygon, -1, 0)
    # Each edge is counted at the first pixel to the right of where it crosses the row; a pixel with an odd number of
    # crossings to its left lies inside.
    crossings = np.zeros((y1 - y0, x1 - x0 + 1), np.int32)
    for row in range(y0, y1):
        y = row + 0.5
        crossed = (start[:, 1] <= y) != (stop[:, 1] <= y)
        a, b = start[crossed], stop[crossed]
        x = a[:, 0] + (y - a[:, 1]) * (b[:, 0] - a[:, 0]) / (b[:, 1] - a[:, 1])
        np.add.at(crossings[row - y0], np.clip(np.ceil(x - 0.5).astype(int) - x0, 0, x1 - x0), 1)
    return slice(y0, y1), slice(x0, x1), np.cumsum(crossings, 1)[:, :-1] % 2 == 1


def wavy_ellipse(u: np.ndarray, v: np.ndarray, amplitudes: np.ndarray, phases: np.ndarray) -> np.ndarray:
    """Points inside an ellipse with a wavy outline. u, v: coordinates along its axes, in half-axes.

    The waves are cosines of 2, 3 and 4 times the direction: real parts of powers of a number on the unit circle.
    """
    around = u + 1j * v
    turn = around / np.maximum(np.abs(around), 1e-9)
    second, third, fourth = amplitudes * np.exp(1j * phases)
    edge = 1 + (turn * turn * (second + turn * (third + turn * fourth))).real
    return u * u + v * v < edge * edge
