"""The bowel wall of a fragment: its layers from the luminal surface down, and the epithelium of the surface."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wsigen.masks.demo.drawing import EPITHELIAL, EPITHELIUM, MUSCLE, OUTSIDE, PROPRIA, SUBMUCOSA, Drawing, Nucleus
from wsigen.masks.demo.geometry import Wave, along, unit


@dataclass(frozen=True)
class Layers:
    """Mean heights of the layers of a fragment in µm, counted from its top; thinner where there is little room."""

    surface: float
    muscle: float
    submucosa: float
    bottom: float
    side: float  # glass to the left and right

    @classmethod
    def fitting(cls, width: float, height: float, rng: np.random.Generator) -> Layers:
        """Random layers that fit a fragment of this size in µm."""
        margin = min(rng.uniform(32, 45), 0.09 * height)
        bottom = height - min(rng.uniform(28, 40), 0.08 * height)
        room = bottom - margin
        mucosa = min(rng.uniform(410, 480), 0.66 * room)
        muscle = min(rng.uniform(32, 42), 0.08 * room)
        return cls(margin, margin + mucosa, margin + mucosa + muscle, bottom, min(rng.uniform(28, 42), 0.08 * width))


@dataclass(frozen=True)
class Wall:
    """Where the borders of the layers run: the layers' heights, and a wave that each border follows."""

    width: float  # µm, of the fragment
    layers: Layers
    surface_wave: Wave
    muscle_wave: Wave
    bottom_wave: Wave

    @classmethod
    def drawn(cls, width: float, height: float, rng: np.random.Generator) -> Wall:
        """A random wall for a fragment of this size in µm."""
        layers = Layers.fitting(width, height, rng)
        waves = ((9.0, (90, 420)), (14.0, (220, 700)), (12.0, (120, 500)))
        return cls(width, layers, *(Wave.drawn(rng, amplitude, lengths) for amplitude, lengths in waves))

    def surface(self, x: np.ndarray) -> np.ndarray:
        """Height of the luminal surface at x, in µm; it is rounded off towards both sides."""
        inset = np.minimum(x - self.layers.side, self.width - self.layers.side - x)
        corner = min(60.0, 0.2 * self.width)
        rounding = corner * (1 - np.sqrt(1 - np.clip(1 - inset / corner, 0, 1) ** 2))
        return self.layers.surface + self.surface_wave(x) + rounding

    def muscle(self, x: np.ndarray) -> np.ndarray:
        """Height of the muscularis mucosae's upper border at x, in µm."""
        return self.layers.muscle + self.muscle_wave(x)

    def bottom(self, x: np.ndarray) -> np.ndarray:
        """Height of the tissue's lower border at x, in µm; it rises towards both sides."""
        inset = np.minimum(x, self.width - x) - self.layers.side
        corner = min(70.0, 0.2 * self.width)
        return self.layers.bottom + self.bottom_wave(x) - 0.8 * corner * np.clip(1 - inset / corner, 0, 1) ** 2

    def surface_at(self, x: float) -> float:
        """`surface` at one x."""
        return float(self.surface(np.array([x]))[0])

    def muscle_at(self, x: float) -> float:
        """`muscle` at one x."""
        return float(self.muscle(np.array([x]))[0])


def draw_layers(drawing: Drawing, wall: Wall) -> None:
    """Draw the zones column by column: each layer lies between two waves."""
    x = (np.arange(drawing.width) + 0.5) * drawing.mpp
    y = (np.arange(drawing.height)[:, None] + 0.5) * drawing.mpp
    bottom, muscle = wall.bottom(x), wall.muscle(x)
    thickness = wall.layers.submucosa - wall.layers.muscle
    # From the top down, each layer is drawn over all that lies below its upper border.
    for zone, border in (
        (PROPRIA, wall.surface(x)),
        (MUSCLE, muscle),
        (SUBMUCOSA, muscle + thickness),
        (OUTSIDE, bottom),
    ):
        drawing.zones[y >= border] = zone
    side = Wave.drawn(drawing.rng, 7.0, (80, 300))
    # 777 µm further along the same wave, so that the two sides differ.
    left, right = wall.layers.side + side(y), wall.width - wall.layers.side + side(y + 777.0)
    drawing.zones[(x[None, :] < left) | (x[None, :] > right)] = OUTSIDE


def draw_surface(drawing: Drawing, wall: Wall, mouths: Sequence[tuple[float, float]]) -> None:
    """Draw the surface epithelium: a row of columnar nuclei, except where crypts open (mouths: from x to x, µm)."""
    rng = drawing.rng
    x = np.arange(wall.layers.side + 4, wall.width - wall.layers.side - 4, 1.0)
    if len(x) < 3:
        return
    line = np.stack([x, wall.surface(x)], 1)
    normal = unit(np.stack([-np.gradient(line[:, 1]), np.gradient(line[:, 0])], 1))  # into the tissue
    path = line + 15.5 * normal
    drawing.fill(np.concatenate([line - 1.0, (line + 23.0 * normal)[::-1]]), EPITHELIUM, only=PROPRIA)
    for k in along(path, lambda: rng.uniform(5.1, 6.5), closed=False):
        angle = math.atan2(normal[k, 1], normal[k, 0]) + rng.normal(0, 0.12)
        centre = path[k] + rng.normal(0, 1.1) * normal[k]
        if drawing.zone(centre) == EPITHELIUM and not any(low < centre[0] < high for low, high in mouths):
            drawing.add(Nucleus(EPITHELIAL, centre, rng.uniform(3.8, 5.0), rng.uniform(2.1, 2.6), angle, 0.05))
