"""Crypts of a fragment: tubes that open to the surface where cut lengthwise, rings where cut across."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from wsigen.masks.demo.drawing import CONNECTIVE, EPITHELIAL, LYMPHOCYTE, Drawing, Nucleus
from wsigen.masks.demo.geometry import Wave, along, harmonics, rotation, unit
from wsigen.masks.demo.wall import Wall


@dataclass(frozen=True)
class Crypt:
    """A crypt: its outline (the basement membrane), the way to its middle at each point, its lumen; (N, 2) µm."""

    outline: np.ndarray
    inward: np.ndarray
    lumen: np.ndarray
    lumen_is_glass: bool
    mouth: tuple[float, float] | None = None  # from x to x, µm, where it opens to the surface; None: cut across

    @property
    def closed(self) -> bool:
        """Whether the outline runs all round."""
        return self.mouth is None

    def grown(self, distance: float) -> np.ndarray:
        """The outline moved outwards by so many µm, inwards where it is negative."""
        return self.outline - distance * self.inward


def placed_crypts(wall: Wall, rng: np.random.Generator) -> list[Crypt]:
    """Stretches of 300 to 700 µm, in turn with crypts cut lengthwise and cut across."""
    left, right = wall.layers.side + 22, wall.width - wall.layers.side - 22
    lengthwise = rng.random() < 0.6
    crypts: list[Crypt] = []
    while left < right:
        stop = left + (rng.uniform(300, 460) if lengthwise else rng.uniform(320, 700))
        stop = right if right - stop < 160 else stop
        crypts += _tubes(wall, rng, left, stop) if lengthwise else _rings(wall, rng, left, stop)
        left, lengthwise = stop, not lengthwise
    return crypts


def ring(rng: np.random.Generator, cx: float, cy: float, radius: float) -> Crypt:
    """A round, slightly oval and uneven outline about a centre, with a small lumen; all in µm."""
    angle = np.linspace(0, 2 * math.pi, 160, endpoint=False)
    stretch = rng.uniform(1.0, 1.11)
    wobble = 1 + harmonics(rng, angle, {2: 0.022, 3: 0.022, 4: 0.022})
    local = np.stack([radius * stretch * np.cos(angle), radius / stretch * np.sin(angle)], 1) * wobble[:, None]
    local = local @ rotation(rng.uniform(0, math.pi))
    ripple = 1 + harmonics(rng, angle, {1: 0.22, 2: 0.11, 3: 0.07})
    lumen = local * (rng.uniform(0.09, 0.22) * np.maximum(ripple, 0.3))[:, None]
    # Cells stand square to the outline, leaning a little towards the middle.
    tangent = np.roll(local, -1, 0) - np.roll(local, 1, 0)
    normal = unit(np.stack([-tangent[:, 1], tangent[:, 0]], 1))
    normal *= np.sign((normal * -local).sum(1))[:, None]
    centre = np.array([cx, cy])
    return Crypt(local + centre, unit(normal + 0.4 * unit(-local)), lumen + centre, rng.random() < 0.6)


def draw_crypt_nuclei(drawing: Drawing, crypt: Crypt) -> None:
    """Epithelial nuclei side by side at the base of the cells, long axis towards the lumen; few lymphocytes."""
    rng = drawing.rng
    path = crypt.outline + 6.6 * crypt.inward
    for k in along(path, lambda: rng.uniform(5.2, 6.7), crypt.closed):
        direction = crypt.inward[k]
        depth = rng.normal(0, 0.8)
        if rng.random() < 0.10:
            depth += rng.uniform(2.5, 5)
        angle = math.atan2(direction[1], direction[0]) + rng.normal(0, 0.16)
        centre = path[k] + depth * direction
        if rng.random() < 0.025:
            drawing.add(Nucleus(LYMPHOCYTE, centre + 2 * direction, 2.2, 2.0, 0.0, 0.04))
        else:
            drawing.add(Nucleus(EPITHELIAL, centre, rng.uniform(3.4, 4.7), rng.uniform(2.15, 2.8), angle, 0.05))


def draw_sheath(drawing: Drawing, crypt: Crypt) -> None:
    """Flat fibroblasts around the crypt, just outside the basement membrane."""
    rng = drawing.rng
    path = crypt.grown(2.6)
    for k in along(path, lambda: rng.uniform(17, 48), crypt.closed):
        angle = math.atan2(crypt.inward[k, 1], crypt.inward[k, 0]) + math.pi / 2 + rng.normal(0, 0.1)
        drawing.add(Nucleus(CONNECTIVE, path[k], rng.uniform(4.2, 6.0), rng.uniform(1.2, 1.5), angle, 0.06))


def _tubes(wall: Wall, rng: np.random.Generator, left: float, right: float) -> list[Crypt]:
    count = int((right - left) // 92)
    pitch = (right - left) / max(count, 1)
    lean = rng.normal(0, 0.03)
    return [_tube(wall, rng, left + (k + 0.5) * pitch + rng.normal(0, 3), lean, pitch) for k in range(count)]


def _tube(wall: Wall, rng: np.random.Generator, x: float, lean: float, pitch: float) -> Crypt:
    """A test tube from the surface to just above the muscle; its walls bulge a little, its base is round."""
    radius = min(rng.uniform(31, 37), 0.5 * pitch - 9)
    top = wall.surface_at(x) + 4
    end = wall.muscle_at(x) - rng.uniform(8, 28)
    bend = Wave.drawn(rng, 5.0, (150, 400))
    bulge = Wave.drawn(rng, 2.0, (60, 160))
    base = end - radius  # where the walls end and the half circle of the base begins
    if base - top < 20:  # no room for a tube
        return ring(rng, x, (top + end) / 2, max(12.0, min(radius, (end - top) / 2)))
    # The axis runs down from the mouth in steps of 2 µm, leans with its neighbours and bends.
    down = np.arange(top, base, 2.0)
    middle = x + lean * (down - top) + bend(down) - bend(np.array([top]))
    half = radius + bulge(down)
    flare = 1 + 0.12 * np.clip((down - top) / (base - top), 0, 1)  # wider towards the base
    # The outline: down the right wall, round the base, up the left wall.
    turn = np.linspace(0, math.pi, 40)[1:-1]
    centre, foot = middle[-1], half[-1] * flare[-1]
    wall_right = np.stack([middle + half * flare, down], 1)
    arc = np.stack([centre + foot * np.cos(turn), down[-1] + radius * np.sin(turn)], 1)
    wall_left = np.stack([middle - half * flare, down], 1)[::-1]
    outline = np.concatenate([wall_right, arc, wall_left])
    # The point of the axis that each point of the outline looks at: its own height, at the base the arc's centre.
    axis = np.stack([middle, down], 1)
    looks_at = np.concatenate([axis, np.tile([[centre, down[-1]]], (len(arc), 1)), axis[::-1]])
    deep = max(2, int(len(down) * rng.uniform(0.45, 1.0)))  # steps down to where the lumen ends
    mouth = (middle[0] - half[0] + 3, middle[0] + half[0] - 3)
    return Crypt(outline, unit(looks_at - outline), _tube_lumen(axis, top, bulge, deep), True, mouth)


def _tube_lumen(axis: np.ndarray, top: float, bulge: Wave, deep: int) -> np.ndarray:
    """A narrow slit about the axis (N, 2), open above the surface, narrower downwards, to a point at step `deep`."""
    middle, down = axis.T
    taper = np.clip((deep - np.arange(len(down))) / 12, 0, 1)
    gap = (1.6 + 1.5 * np.clip(bulge(down * 1.7), 0, 2)) * np.linspace(1.9, 0.75, len(down)) * taper
    right, left = (np.stack([middle + way * gap, down], 1)[:deep] for way in (1, -1))
    return np.concatenate([[[middle[0] + 9, top - 30]], right, left[::-1], [[middle[0] - 9, top - 30]]])


def _rings(wall: Wall, rng: np.random.Generator, left: float, right: float) -> list[Crypt]:
    """A jittered hexagonal packing of crypts cut across, between the surface epithelium and the muscle."""
    columns = max(1, int((right - left) / rng.uniform(90, 97)))
    pitch = (right - left) / columns
    top, end = wall.surface_at((left + right) / 2) + 28, wall.muscle_at((left + right) / 2) - 2
    rows = max(1, int((end - top) / 86))
    step = (end - top) / rows
    rings: list[Crypt] = []
    for row in range(rows):
        shift = 0.23 if row % 2 else -0.23
        for column in range(columns):
            cx = left + (column + 0.5 + shift) * pitch + rng.normal(0, 3)
            cy = top + (row + 0.5) * step + rng.normal(0, 4)
            low, high = wall.surface_at(cx) + 24, wall.muscle_at(cx) - 4
            radius = min(rng.uniform(34, 43), cy - low, high - cy, 0.5 * pitch - 5)
            if radius > 22 or (rows == 1 and radius > 8):
                rings.append(ring(rng, float(cx), float(cy), float(radius)))
    return rings
