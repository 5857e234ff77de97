"""A synthetic mask of normal colon mucosa, drawn from a seed, to paint without any data.

A slide is a grid of fragments, each a piece of the bowel wall: glass, a luminal surface of columnar epithelium, crypts
(along one stretch cut lengthwise, as test tubes that open to the surface, along the next cut across, as rings), lamina
propria between them, muscularis mucosae, and submucosa with vessels. Anatomy is placed in microns: regions as polygons,
nuclei by rules for each region. A fragment is drawn whole and fragments do not touch, so memory grows with the width of
the slide, not with its area.

Sizes: crypts 70 to 100 µm across; nuclei as large as those that pathologists outlined in Lizard (Graham et al. 2021;
median half-axes lymphocyte 2.4 x 1.8 µm, plasma cell 2.6 x 2.0, epithelium 3.8 x 2.4, eosinophil 3.2 x 2.3, neutrophil
2.9 x 2.1, connective 3.4 x 1.8), which is less than textbooks give for tissue that was not shrunk by embedding.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from scipy.ndimage import label

from wsigen.errors import MaskError
from wsigen.masks.slide_mask import write_slide_mask
from wsigen.masks.window import GLASS, TISSUE, MaskWindow

# Class indices of the shipped model (the order of the Lizard data set).
NEUTROPHIL, EPITHELIAL, LYMPHOCYTE, PLASMA, EOSINOPHIL, CONNECTIVE = range(1, 7)

FRAGMENT_WIDTH_UM, FRAGMENT_HEIGHT_UM = 3000.0, 900.0
# A nucleus that loses more than this part of itself to its neighbours is left out.
MOST_CLIPPED = 0.35

_FOUR_NEIGHBOURS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])

# Zones of a fragment; they decide where nuclei of the stroma may lie.
_OUTSIDE, _PROPRIA, _EPITHELIUM, _LUMEN, _MUSCLE, _SUBMUCOSA, _VESSEL = range(7)

# Nuclei of the stroma: class, share, long and short half-axis in µm, roughness of the outline.
_PROPRIA_CELLS = (
    (PLASMA, 0.36, 2.75, 2.15, 0.05),
    (LYMPHOCYTE, 0.33, 2.4, 2.05, 0.04),
    (CONNECTIVE, 0.21, 4.4, 1.5, 0.08),
    (EOSINOPHIL, 0.08, 3.0, 2.5, 0.07),
    (NEUTROPHIL, 0.02, 2.75, 2.2, 0.10),
)
_SUBMUCOSA_CELLS = (
    (CONNECTIVE, 0.80, 4.8, 1.45, 0.08),
    (LYMPHOCYTE, 0.13, 2.4, 2.05, 0.04),
    (PLASMA, 0.05, 2.75, 2.15, 0.05),
    (EOSINOPHIL, 0.02, 3.0, 2.5, 0.07),
)


def demo_mask(width: int, height: int, seed: int, mpp: float = 0.5) -> MaskWindow:
    """The whole mask, with instance ids 1, 2, ... and a tissue plane of 0 and 1; see `demo_bands` for large ones."""
    bands = list(demo_bands(width, height, seed, mpp))
    classes = np.concatenate([band.classes for band in bands])
    instances = np.concatenate([band.instances for band in bands if band.instances is not None])
    return MaskWindow(classes, instances, np.concatenate([band.tissue for band in bands if band.tissue is not None]))


def demo_bands(width: int, height: int, seed: int, mpp: float = 0.5) -> Iterator[MaskWindow]:
    """The mask in bands of whole rows, top to bottom, each one row of fragments; equal for equal arguments.

    Raises `MaskError` for a size below 1 pixel or an mpp that is not positive.
    """
    if width < 1 or height < 1 or not mpp > 0:
        raise MaskError(f"demo mask: {width} x {height} pixels at {mpp} µm makes no mask; give positive numbers")
    columns = _cuts(width, FRAGMENT_WIDTH_UM / mpp)
    rows = _cuts(height, FRAGMENT_HEIGHT_UM / mpp)
    next_id = 1
    for row, (top, bottom) in enumerate(pairwise(rows)):
        shape = (bottom - top, width)
        band = MaskWindow(np.zeros(shape, np.uint8), np.zeros(shape, np.uint32), np.zeros(shape, np.uint8))
        for column, (left, right) in enumerate(pairwise(columns)):
            rng = np.random.default_rng([seed, row, column])
            drawn = _Fragment(right - left, bottom - top, mpp, rng, next_id).draw()
            next_id = drawn.next_id
            band.classes[:, left:right] = drawn.classes
            band.instances[:, left:right] = drawn.instances  # type: ignore[index]
            band.tissue[:, left:right] = drawn.zones_as_tissue()  # type: ignore[index]
        yield band


def write_demo_mask(
    path: str | os.PathLike[str], width: int, height: int, seed: int, mpp: float = 0.5, overwrite: bool = False
) -> None:
    """Write a demo mask with instance and tissue planes; raises `MaskError` as `write_slide_mask` does."""
    write_slide_mask(path, width, height, mpp, demo_bands(width, height, seed, mpp), True, True, overwrite)


def _cuts(size: int, piece: float) -> list[int]:
    count = max(1, round(size / piece))
    return [size * k // count for k in range(count + 1)]


@dataclass(frozen=True)
class _Layers:
    """Heights of the layers of a fragment in µm, counted from its top; thinner where there is little room."""

    surface: float
    muscle: float
    submucosa: float
    bottom: float
    side: float

    @classmethod
    def fitting(cls, width: float, height: float, rng: np.random.Generator) -> _Layers:
        margin = min(rng.uniform(32, 45), 0.09 * height)
        bottom = height - min(rng.uniform(28, 40), 0.08 * height)
        room = bottom - margin
        mucosa = min(rng.uniform(410, 480), 0.66 * room)
        muscle = min(rng.uniform(32, 42), 0.08 * room)
        return cls(margin, margin + mucosa, margin + mucosa + muscle, bottom, min(rng.uniform(28, 42), 0.08 * width))


@dataclass(frozen=True)
class _Crypt:
    """A crypt: its outline (the basement membrane), the way to its middle at each point, its lumen; (N, 2) µm."""

    outline: np.ndarray
    inward: np.ndarray
    lumen: np.ndarray
    lumen_is_glass: bool
    closed: bool


@dataclass
class _Fragment:
    """One piece of tissue, drawn in its own pixels; call `draw` once."""

    width: int
    height: int
    mpp: float
    rng: np.random.Generator
    next_id: int
    classes: np.ndarray = field(init=False)
    instances: np.ndarray = field(init=False)
    zones: np.ndarray = field(init=False)

    mouths: list[tuple[float, float]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        shape = (self.height, self.width)
        self.classes, self.zones = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
        self.instances = np.zeros(shape, np.uint32)
        self.width_um, self.height_um = self.width * self.mpp, self.height * self.mpp
        self.layers = _Layers.fitting(self.width_um, self.height_um, self.rng)
        self.surface = _Wave.drawn(self.rng, 9.0, (90, 420))
        self.muscle_wave = _Wave.drawn(self.rng, 14.0, (220, 700))
        self.bottom_wave = _Wave.drawn(self.rng, 12.0, (120, 500))

    def draw(self) -> _Fragment:
        """Draw the zones, then the nuclei; those drawn first keep their whole shape."""
        self._draw_layers()
        crypts = self._place_crypts()
        for crypt in crypts:
            self._fill(_grown(crypt.outline, crypt.inward, 1.5), _EPITHELIUM)
        vessels = self._place_vessels()
        for crypt in crypts:
            if crypt.lumen_is_glass:
                self._fill(crypt.lumen, _LUMEN)
        for crypt in crypts:
            self._draw_crypt_nuclei(crypt)
        self._draw_surface_nuclei()
        for crypt in crypts:
            self._draw_sheath(crypt)
        for vessel in vessels:
            self._draw_vessel_wall(vessel)
        self._draw_follicles()
        self._draw_muscle()
        self._draw_stroma(_PROPRIA, 7.4, _PROPRIA_CELLS)
        self._draw_stroma(_SUBMUCOSA, 23.0, _SUBMUCOSA_CELLS)
        return self

    def zones_as_tissue(self) -> np.ndarray:
        """Tissue plane: glass outside and in open lumina, but never under a nucleus."""
        glass = ((self.zones == _OUTSIDE) | (self.zones == _LUMEN) | (self.zones == _VESSEL)) & (self.classes == 0)
        return np.where(glass, np.uint8(GLASS), np.uint8(TISSUE))

    # Layers

    def _surface_y(self, x: np.ndarray) -> np.ndarray:
        """Luminal surface, rounded off towards both sides."""
        inset = np.minimum(x - self.layers.side, self.width_um - self.layers.side - x)
        corner = min(60.0, 0.2 * self.width_um)
        rounding = corner * (1 - np.sqrt(1 - np.clip(1 - inset / corner, 0, 1) ** 2))
        return self.layers.surface + self.surface(x) + rounding

    def _muscle_y(self, x: np.ndarray) -> np.ndarray:
        return self.layers.muscle + self.muscle_wave(x)

    def _draw_layers(self) -> None:
        """Zones column by column: each layer lies between two waves."""
        x = (np.arange(self.width) + 0.5) * self.mpp
        thickness = self.layers.submucosa - self.layers.muscle
        bottom = self.layers.bottom + self.bottom_wave(x)
        inset = np.minimum(x, self.width_um - x) - self.layers.side
        corner = min(70.0, 0.2 * self.width_um)
        bottom -= 0.8 * corner * np.clip(1 - inset / corner, 0, 1) ** 2
        edges = [self._surface_y(x), self._muscle_y(x), self._muscle_y(x) + thickness, bottom]
        y = (np.arange(self.height)[:, None] + 0.5) * self.mpp
        for zone, low in zip((_PROPRIA, _MUSCLE, _SUBMUCOSA, _OUTSIDE), edges):
            self.zones[y >= low] = zone
        self.zones[y >= bottom] = _OUTSIDE
        side = _Wave.drawn(self.rng, 7.0, (80, 300))
        left, right = self.layers.side + side(y), self.width_um - self.layers.side + side(y + 777.0)
        x_row = x[None, :]
        self.zones[(x_row < left) | (x_row > right)] = _OUTSIDE

    # Crypts

    def _place_crypts(self) -> list[_Crypt]:
        """Stretches of 300 to 700 µm, in turn with crypts cut lengthwise and cut across."""
        left, right = self.layers.side + 22, self.width_um - self.layers.side - 22
        lengthwise = self.rng.random() < 0.6
        crypts: list[_Crypt] = []
        while left < right:
            stop = left + self.rng.uniform(300, 460) if lengthwise else left + self.rng.uniform(320, 700)
            stop = right if right - stop < 160 else stop
            crypts += self._tubes(left, stop) if lengthwise else self._rings(left, stop)
            left, lengthwise = stop, not lengthwise
        return crypts

    def _tubes(self, left: float, right: float) -> list[_Crypt]:
        count = int((right - left) // 92)
        pitch = (right - left) / max(count, 1)
        lean = self.rng.normal(0, 0.03)
        return [self._tube(left + (k + 0.5) * pitch + self.rng.normal(0, 3), lean, pitch) for k in range(count)]

    def _tube(self, x: float, lean: float, pitch: float) -> _Crypt:
        """A test tube from the surface to just above the muscle; its walls bulge a little, its base is round."""
        rng = self.rng
        radius = min(rng.uniform(31, 37), 0.5 * pitch - 9)
        top = float(self._surface_y(np.array([x]))[0]) + 4
        end = float(self._muscle_y(np.array([x]))[0]) - rng.uniform(8, 28)
        bend = _Wave.drawn(rng, 5.0, (150, 400))
        bulge = _Wave.drawn(rng, 2.0, (60, 160))
        base = end - radius
        if base - top < 20:
            return self._ring(x, (top + end) / 2, max(12.0, min(radius, (end - top) / 2)))
        down = np.arange(top, base, 2.0)
        middle = x + lean * (down - top) + bend(down) - bend(np.array([top]))
        half = radius + bulge(down)
        flare = 1 + 0.12 * np.clip((down - top) / (base - top), 0, 1)
        turn = np.linspace(0, math.pi, 40)[1:-1]
        centre, foot = middle[-1], half[-1] * flare[-1]
        wall_right = np.stack([middle + half * flare, down], 1)
        arc = np.stack([centre + foot * np.cos(turn), down[-1] + radius * np.sin(turn)], 1)
        wall_left = np.stack([middle - half * flare, down], 1)[::-1]
        outline = np.concatenate([wall_right, arc, wall_left])
        axis = np.concatenate([np.stack([middle, down], 1), np.tile([[centre, down[-1]]], (len(arc), 1))])
        axis = np.concatenate([axis, np.stack([middle, down], 1)[::-1]])
        deep = max(2, int(len(down) * rng.uniform(0.45, 1.0)))
        reach = slice(None, deep)
        taper = np.clip((deep - np.arange(len(down))) / 12, 0, 1)
        gap = (1.6 + 1.5 * np.clip(bulge(down * 1.7), 0, 2)) * np.linspace(1.9, 0.75, len(down)) * taper
        self.mouths.append((middle[0] - half[0] + 3, middle[0] + half[0] - 3))
        mouth = np.array([[middle[0] + 9, top - 30], [middle[0] - 9, top - 30]])
        lumen = np.concatenate(
            [
                mouth[:1],
                np.stack([middle + gap, down], 1)[reach],
                np.stack([middle - gap, down], 1)[reach][::-1],
                mouth[1:],
            ]
        )
        return _Crypt(outline, _unit(axis - outline), lumen, True, closed=False)

    def _rings(self, left: float, right: float) -> list[_Crypt]:
        """A jittered hexagonal packing of crypts cut across, between the surface epithelium and the muscle."""
        columns = max(1, int((right - left) / self.rng.uniform(90, 97)))
        pitch = (right - left) / columns
        rings: list[_Crypt] = []
        x = np.array([(left + right) / 2])
        top, end = float(self._surface_y(x)[0]) + 28, float(self._muscle_y(x)[0]) - 2
        rows = max(1, int((end - top) / 86))
        step = (end - top) / rows
        for row in range(rows):
            shift = 0.23 if row % 2 else -0.23
            for column in range(columns):
                cx = left + (column + 0.5 + shift) * pitch + self.rng.normal(0, 3)
                cy = top + (row + 0.5) * step + self.rng.normal(0, 4)
                low, high = self._surface_y(np.array([cx]))[0] + 24, self._muscle_y(np.array([cx]))[0] - 4
                radius = min(self.rng.uniform(34, 43), cy - low, high - cy, 0.5 * pitch - 5)
                if radius > 22 or (rows == 1 and radius > 8):
                    rings.append(self._ring(float(cx), float(cy), float(radius)))
        return rings

    def _ring(self, cx: float, cy: float, radius: float) -> _Crypt:
        rng = self.rng
        angle = np.linspace(0, 2 * math.pi, 160, endpoint=False)
        stretch = rng.uniform(1.0, 1.11)
        wobble = 1 + self._harmonics(angle, {2: 0.022, 3: 0.022, 4: 0.022})
        local = np.stack([radius * stretch * np.cos(angle), radius / stretch * np.sin(angle)], 1) * wobble[:, None]
        local = local @ _rotation(rng.uniform(0, math.pi))
        ripple = 1 + self._harmonics(angle, {1: 0.22, 2: 0.11, 3: 0.07})
        lumen = local * (rng.uniform(0.09, 0.22) * np.maximum(ripple, 0.3))[:, None]
        along = np.roll(local, -1, 0) - np.roll(local, 1, 0)
        normal = _unit(np.stack([-along[:, 1], along[:, 0]], 1))
        normal *= np.sign((normal * -local).sum(1))[:, None]
        centre = np.array([cx, cy])
        return _Crypt(
            local + centre, _unit(normal + 0.4 * _unit(-local)), lumen + centre, rng.random() < 0.6, closed=True
        )

    def _harmonics(self, angle: np.ndarray, deviations: dict[int, float]) -> np.ndarray:
        rng = self.rng
        waves = [rng.normal(0, d) * np.cos(k * angle + rng.uniform(0, 2 * math.pi)) for k, d in deviations.items()]
        return np.sum(waves, axis=0)

    def _draw_crypt_nuclei(self, crypt: _Crypt) -> None:
        """Epithelial nuclei side by side at the base of the cells, long axis towards the lumen; few lymphocytes."""
        rng = self.rng
        inset = 6.6
        path = crypt.outline + inset * crypt.inward
        for k in _along(path, lambda: rng.uniform(5.2, 6.7), crypt.closed):
            direction = crypt.inward[k]
            depth = rng.normal(0, 0.8)
            if rng.random() < 0.10:
                depth += rng.uniform(2.5, 5)
            angle = math.atan2(direction[1], direction[0]) + rng.normal(0, 0.16)
            centre = path[k] + depth * direction
            if rng.random() < 0.025:
                self._nucleus(LYMPHOCYTE, centre + 2 * direction, 2.2, 2.0, 0.0, 0.04)
            else:
                self._nucleus(EPITHELIAL, centre, rng.uniform(3.4, 4.7), rng.uniform(2.15, 2.8), angle, 0.05)

    def _draw_sheath(self, crypt: _Crypt) -> None:
        """Flat fibroblasts around the crypt, just outside the basement membrane."""
        rng = self.rng
        path = crypt.outline - 2.6 * crypt.inward
        for k in _along(path, lambda: rng.uniform(17, 48), crypt.closed):
            angle = math.atan2(crypt.inward[k, 1], crypt.inward[k, 0]) + math.pi / 2 + rng.normal(0, 0.1)
            self._nucleus(CONNECTIVE, path[k], rng.uniform(4.2, 6.0), rng.uniform(1.2, 1.5), angle, 0.06)

    def _draw_surface_nuclei(self) -> None:
        """A row of columnar nuclei below the luminal surface, except where crypts open."""
        rng = self.rng
        x = np.arange(self.layers.side + 4, self.width_um - self.layers.side - 4, 1.0)
        if len(x) < 3:
            return
        line = np.stack([x, self._surface_y(x)], 1)
        normal = _unit(np.stack([-np.gradient(line[:, 1]), np.gradient(line[:, 0])], 1))
        path = line + 15.5 * normal
        self._fill(np.concatenate([line - 1.0, (line + 23.0 * normal)[::-1]]), _EPITHELIUM, only=_PROPRIA)
        for k in _along(path, lambda: rng.uniform(5.1, 6.5), closed=False):
            angle = math.atan2(normal[k, 1], normal[k, 0]) + rng.normal(0, 0.12)
            centre = path[k] + rng.normal(0, 1.1) * normal[k]
            if self._zone(centre) == _EPITHELIUM and not any(low < centre[0] < high for low, high in self.mouths):
                self._nucleus(EPITHELIAL, centre, rng.uniform(3.8, 5.0), rng.uniform(2.1, 2.6), angle, 0.05)

    # Stroma

    def _draw_stroma(self, zone: int, pitch: float, cells: tuple[tuple[int, float, float, float, float], ...]) -> None:
        """Cells on a jittered grid wherever the zone allows it; fibres run along a slowly turning direction."""
        rng = self.rng
        grid = self._grid(pitch, zone)
        shares = np.array([cell[1] for cell in cells])
        kinds = rng.choice(len(cells), len(grid), p=shares / shares.sum())
        flow = _Wave.drawn(rng, 0.35 if zone == _SUBMUCOSA else 1.5, (90, 400))
        for centre, kind in zip(grid, kinds):
            name, _, long, short, rough = cells[kind]
            scale = rng.uniform(0.82, 1.2)
            if name == CONNECTIVE:
                angle = float(flow(centre[:1] + 0.7 * centre[1:])[0]) + rng.normal(0, 0.3)
                angle += math.pi / 2 * (zone == _PROPRIA)
            else:
                angle = rng.uniform(0, math.pi)
            self._nucleus(name, centre, long * scale, short * scale * rng.uniform(0.92, 1.05), angle, rough)

    def _draw_muscle(self) -> None:
        """Spindle nuclei in rows along the muscularis mucosae."""
        rng = self.rng
        for centre in self._grid(11.0, _MUSCLE):
            if rng.random() < 0.42:
                slope = np.diff(self._muscle_y(np.array([centre[0] - 4, centre[0] + 4])))[0] / 8
                angle = math.atan(slope) + rng.normal(0, 0.1)
                self._nucleus(CONNECTIVE, centre, rng.uniform(5.2, 7.6), rng.uniform(1.3, 1.65), angle, 0.05)

    def _draw_follicles(self) -> None:
        """Now and then a lymphoid aggregate at the base of the mucosa: lymphocytes shoulder to shoulder."""
        rng = self.rng
        for _ in range(rng.poisson(self.width_um / 2500)):
            x = rng.uniform(0.15, 0.85) * self.width_um
            centre = np.array([x, self._muscle_y(np.array([x]))[0] + rng.uniform(35, 70)])
            radius = rng.uniform(35, 70)
            for point in self._grid(5.7, _SUBMUCOSA, jitter=0.3):
                if np.hypot(*((point - centre) / (1.3, 0.8))) < radius * rng.uniform(0.85, 1.05):
                    self._nucleus(LYMPHOCYTE, point, rng.uniform(2.2, 2.7), rng.uniform(1.95, 2.4), 0.0, 0.04)

    def _place_vessels(self) -> list[tuple[np.ndarray, np.ndarray, bool]]:
        """Veins and arteries of the submucosa, where there is room: outline, directions to the middle, is artery."""
        rng = self.rng
        room = self.layers.bottom - self.layers.submucosa - 45
        vessels: list[tuple[np.ndarray, np.ndarray, bool]] = []
        if room < 40:
            return vessels
        taken: list[tuple[float, float]] = []
        for _ in range(max(2, rng.poisson(self.width_um * room / 45_000))):
            radius = rng.uniform(9, min(34, 0.32 * room))
            x = rng.uniform(self.layers.side + 60, max(self.layers.side + 61, self.width_um - self.layers.side - 60))
            y = self._muscle_y(np.array([x]))[0] + self.layers.submucosa - self.layers.muscle
            y += rng.uniform(radius + 15, max(radius + 16, room - radius))
            if any(math.hypot(x - u, y - v) < 110 for u, v in taken):
                continue
            taken.append((x, y))
            ring = self._ring(float(x), float(y), radius)
            artery = bool(radius < 18)
            squeezed = (ring.outline - (x, y)) * (1.25, 0.7 if not artery else 0.95) + (x, y)
            self._fill(squeezed, _VESSEL, only=_SUBMUCOSA)
            vessels.append((squeezed, ring.inward, artery))
        return vessels

    def _draw_vessel_wall(self, vessel: tuple[np.ndarray, np.ndarray, bool]) -> None:
        """Flat endothelium on the lumen; around an artery also rings of smooth muscle."""
        outline, inward, artery = vessel
        rng = self.rng
        for layer in (0.2, 6.0, 11.0) if artery else (0.2,):
            path = outline - layer * inward
            tangent = np.roll(path, -1, 0) - np.roll(path, 1, 0)
            for k in _along(path, lambda: rng.uniform(14, 24), closed=True):
                if self._zone(path[k]) in (_SUBMUCOSA, _VESSEL):
                    angle = math.atan2(tangent[k, 1], tangent[k, 0])
                    self._nucleus(CONNECTIVE, path[k], rng.uniform(4.0, 5.6), rng.uniform(1.2, 1.5), angle, 0.05)

    # Drawing

    def _grid(self, pitch: float, zone: int, jitter: float = 0.42) -> np.ndarray:
        """Jittered points, (N, 2) µm, in random order, that lie in a zone."""
        x, y = np.meshgrid(np.arange(0, self.width_um, pitch), np.arange(0, self.height_um, pitch))
        x[1::2] += pitch / 2
        points = np.stack([x.ravel(), y.ravel()], 1)
        points += self.rng.uniform(-jitter * pitch, jitter * pitch, points.shape)
        column, row = (points / self.mpp).astype(int).T
        inside = (points > 0).all(1) & (column < self.width) & (row < self.height)
        points, column, row = points[inside], column[inside], row[inside]
        return self.rng.permutation(points[self.zones[row, column] == zone])

    def _zone(self, point: np.ndarray) -> int:
        column, row = int(point[0] / self.mpp), int(point[1] / self.mpp)
        return int(self.zones[row, column]) if 0 <= row < self.height and 0 <= column < self.width else _OUTSIDE

    def _fill(self, polygon: np.ndarray, zone: int, only: int | None = None) -> None:
        rows, columns, inside = _polygon_pixels(polygon / self.mpp, self.height, self.width)
        part = self.zones[rows, columns]
        part[inside & ((part != _OUTSIDE) if only is None else (part == only))] = zone

    def _nucleus(self, name: int, centre: np.ndarray, long: float, short: float, angle: float, rough: float) -> None:
        """Draw one nucleus, an ellipse with a wavy outline, in what its neighbours have left free.

        It must lie within the tissue; it is left out where too little of it would remain.
        """
        rng = self.rng
        waves = rng.normal(0, rough, 3), rng.uniform(0, 2 * math.pi, 3)
        cx, cy, long, short = centre[0] / self.mpp, centre[1] / self.mpp, long / self.mpp, short / self.mpp
        reach = math.ceil(1.3 * long) + 1
        x0, y0 = math.floor(cx) - reach, math.floor(cy) - reach
        x1, y1 = x0 + 2 * reach + 1, y0 + 2 * reach + 1
        if x0 < 0 or y0 < 0 or x1 > self.width or y1 > self.height:
            return
        dx, dy = np.arange(x0, x1)[None, :] + 0.5 - cx, np.arange(y0, y1)[:, None] + 0.5 - cy
        u = (dx * math.cos(angle) + dy * math.sin(angle)) / long
        v = (dy * math.cos(angle) - dx * math.sin(angle)) / short
        # The waves are cosines of 2, 3 and 4 times the direction: real parts of powers of a number on the unit circle.
        around = u + 1j * v
        turn = around / np.maximum(np.abs(around), 1e-9)
        second, third, fourth = waves[0] * np.exp(1j * waves[1])
        edge = 1 + (turn * turn * (second + turn * (third + turn * fourth))).real
        shape = u * u + v * v < edge * edge
        window = (slice(y0, y1), slice(x0, x1))
        free = shape & (self.instances[window] == 0) & (self.zones[window] != _OUTSIDE)
        if free.sum() < (1 - MOST_CLIPPED) * shape.sum():
            return
        pieces, count = label(free, _FOUR_NEIGHBOURS)
        if count > 1:
            free = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
        if free.sum() < max(4, (1 - MOST_CLIPPED) * shape.sum()):
            return
        self.classes[window][free] = name
        self.instances[window][free] = self.next_id
        self.next_id += 1


@dataclass(frozen=True)
class _Wave:
    """A smooth random curve: a sum of sines, so that it can be asked anywhere."""

    amplitudes: np.ndarray
    lengths: np.ndarray
    phases: np.ndarray

    @classmethod
    def drawn(cls, rng: np.random.Generator, amplitude: float, lengths: tuple[float, float], terms: int = 3) -> _Wave:
        size = rng.uniform(0.4, 1.0, terms)
        return cls(amplitude * size / size.sum(), rng.uniform(*lengths, terms), rng.uniform(0, 2 * math.pi, terms))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        waves = zip(self.amplitudes, self.lengths, self.phases)
        return np.asarray(sum(a * np.sin(2 * math.pi * x / length + p) for a, length, p in waves))


def _rotation(angle: float) -> np.ndarray:
    return np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.hypot(vectors[:, 0], vectors[:, 1]), 1e-9)[:, None]


def _grown(outline: np.ndarray, inward: np.ndarray, distance: float) -> np.ndarray:
    return outline - distance * inward


def _along(path: np.ndarray, spacing: Callable[[], float], closed: bool) -> Iterator[int]:
    """Indices of points along a path, each `spacing()` µm after the last."""
    steps = np.hypot(*np.diff(path, axis=0).T)
    total = np.concatenate([[0.0], np.cumsum(steps)])
    at = 0.3 * spacing()
    end = total[-1] - (2.0 if closed else 0.0)
    while at < end:
        yield int(np.searchsorted(total, at))
        at += spacing()


def _polygon_pixels(polygon: np.ndarray, height: int, width: int) -> tuple[slice, slice, np.ndarray]:
    """Pixels whose centre lies in a polygon ((N, 2) x, y in pixels; even-odd rule): rows, columns, and a bool array."""
    left, top = np.floor(polygon.min(0)).astype(int)
    right, bottom = np.ceil(polygon.max(0)).astype(int) + 1
    x0, x1 = (int(np.clip(v, 0, width)) for v in (left, right))
    y0, y1 = (int(np.clip(v, 0, height)) for v in (top, bottom))
    start, stop = polygon, np.roll(polygon, -1, 0)
    crossings = np.zeros((y1 - y0, x1 - x0 + 1), np.int32)
    for row in range(y0, y1):
        y = row + 0.5
        crossed = (start[:, 1] <= y) != (stop[:, 1] <= y)
        a, b = start[crossed], stop[crossed]
        x = a[:, 0] + (y - a[:, 1]) * (b[:, 0] - a[:, 0]) / (b[:, 1] - a[:, 1])
        np.add.at(crossings[row - y0], np.clip(np.ceil(x - 0.5).astype(int) - x0, 0, x1 - x0), 1)
    return slice(y0, y1), slice(x0, x1), np.cumsum(crossings, 1)[:, :-1] % 2 == 1
