"""Sampled layouts: the architecture of slides of the colon, drawn from a seed.

A slide holds strips of bowel wall with glass around them: mucosa with crypts, muscularis mucosae, submucosa with
follicles, muscle; or carcinoma in its place. Which zone a point lies in is a function of the point, the size of the
slide and the seed, made of smooth noise and of jittered lattices whose values are hashes of their coordinates. So parts
may be computed by themselves, in any order. Lengths are in microns: textbook histology of the human colon.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from wsigen.choices import LAYOUT_PRESETS
from wsigen.errors import SettingsError
from wsigen.layouts.layout import CELL, REGIONS, Layout, packed
from wsigen.masks.classes import ClassTable
from wsigen.system.shipped import shipped_config

LOOKS = 4  # points a cell, each way
BAND = 32  # rows of cells that are computed at a time
STRIP_UM = 3000.0  # height of a piece of tissue
UNEVEN = 0.3  # deviation of the logarithm of densities over some hundred microns


@dataclass(frozen=True)
class Zone:
    """A kind of tissue: one of REGIONS, the nuclei of each class in a cell of 256 µm², and its colour in pictures."""

    name: str
    region: str
    nuclei: Mapping[str, float]
    rgb: tuple[int, int, int]


@lru_cache(maxsize=1)
def zones() -> tuple[Zone, ...]:
    """All zones, as configs/layouts.toml has them."""
    table = tomllib.loads(shipped_config("layouts.toml").read_text(encoding="utf-8"))["zones"]
    return tuple(
        Zone(name, entry.pop("region"), {k: v for k, v in entry.items() if k != "colour"}, _rgb(entry["colour"]))
        for name, entry in table.items()
    )


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def zone_planes(classes: ClassTable, mpp: float) -> np.ndarray:
    """What a cell full of each zone holds: (zones, K), nuclei of each class and shares of REGIONS.

    Raises SettingsError for a model that does not know the classes.
    """
    names = {name for zone in zones() for name in zone.nuclei}
    if missing := names - set(classes.names):
        raise SettingsError(
            f"layouts need the class {sorted(missing)[0]!r}, which the model has not; take the layout of a mask"
        )
    table = np.zeros((len(zones()), len(classes) + len(REGIONS)))
    for row, zone in zip(table, zones()):
        for name, count in zone.nuclei.items():
            row[classes.names.index(name)] = count * (mpp * CELL / 16.0) ** 2
        row[len(classes) + REGIONS.index(zone.region)] = 1
    return table


def sampled_layout(preset: str, width: int, height: int, seed: int, classes: ClassTable, mpp: float) -> Layout:
    """A layout of a preset for a slide of ``width`` x ``height`` px; SettingsError for one that does not exist."""
    bands = list(layout_bands(preset, width, height, seed, classes, mpp))
    return Layout(np.concatenate(bands, axis=1), classes.names, width, height, mpp)


def layout_bands(
    preset: str, width: int, height: int, seed: int, classes: ClassTable, mpp: float
) -> Iterator[np.ndarray]:
    """The planes of a layout, (K, rows, columns) uint8, in bands from top to bottom."""
    if preset not in LAYOUT_PRESETS:
        raise SettingsError(f"--layout {preset}: choose one of {', '.join(LAYOUT_PRESETS)}, a picture or a mask")
    tissue = Tissue(preset, width * mpp, height * mpp, seed)
    table, columns, rows = zone_planes(classes, mpp), -(-width // CELL), -(-height // CELL)
    step = CELL * mpp / LOOKS
    x = (np.arange(columns * LOOKS) + 0.5) * step
    for top in range(0, rows, BAND):
        count = min(BAND, rows - top)
        y = (np.arange(count * LOOKS) + 0.5 + top * LOOKS) * step
        index = tissue.zones(x, y).reshape(count, LOOKS, columns, LOOKS)
        planes = np.zeros((table.shape[1], count, columns))
        for number, row in enumerate(table):
            planes += row[:, None, None] * (index == number).mean((1, 3))
        middle_x, middle_y = x.reshape(-1, LOOKS).mean(1), y.reshape(-1, LOOKS).mean(1)
        for k in range(len(classes)):
            planes[k] *= np.exp(UNEVEN * tissue.noise(100 + k, middle_x, middle_y, 220.0) - UNEVEN**2 / 8)
        yield packed(planes, len(classes))


def layout_by_hand(pixels: np.ndarray, width: int, height: int, classes: ClassTable, mpp: float) -> Layout:
    """A layout painted by hand: pixels (H, W, 3) uint8, stretched over the slide; the nearest zone's colour counts."""
    table, rows, columns = zone_planes(classes, mpp), -(-height // CELL), -(-width // CELL)
    colours = np.array([zone.rgb for zone in zones()], np.int32)
    ys, xs = (
        ((np.arange(LOOKS * cells) + 0.5) * CELL / LOOKS / size * given).astype(int).clip(0, given - 1)
        for cells, size, given in zip((rows, columns), (height, width), pixels.shape)
    )
    planes = np.zeros((table.shape[1], rows, columns))
    for top in range(0, rows, BAND):
        part = pixels[ys[top * LOOKS : (top + BAND) * LOOKS]][:, xs].astype(np.int32)
        distance = np.stack([np.square(part - colour).sum(-1) for colour in colours])
        index = distance.argmin(0).reshape(-1, LOOKS, columns, LOOKS)
        for number, row in enumerate(table):
            planes[:, top : top + BAND] += row[:, None, None] * (index == number).mean((1, 3))
    return Layout(packed(planes, len(classes)), classes.names, width, height, mpp)


class Tissue:
    """Zones of a slide of a preset, ``width`` x ``height`` µm."""

    def __init__(self, preset: str, width: float, height: float, seed: int) -> None:
        self.preset, self.width, self.height, self.seed = preset, width, height, seed
        self.index = {zone.name: number for number, zone in enumerate(zones())}
        self.strip = height / max(1, round(height / STRIP_UM))

    def zones(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Number of the zone at each point of a grid: x (W,), y (H,) µm -> (H, W) uint8."""
        depth, top = self._depth(x, y)
        zone = np.full(depth.shape, self.index["glass"], np.uint8)
        paint: Callable[..., None] = {
            "normal-mucosa": self._wall,
            "inflamed": self._wall,
            "muscle": self._muscle_only,
            "adenocarcinoma": self._tumour_only,
            "mixed": self._mixed,
        }[self.preset]
        paint(zone, x, y, depth, top)
        zone[depth <= 0] = self.index["glass"]
        return zone

    def noise(self, stream: int, x: np.ndarray, y: np.ndarray, scale: float, octaves: int = 1) -> np.ndarray:
        """Smooth noise about 0, mostly within -1..1: (H, W). Finer octaves are half as strong each."""
        total = np.zeros((len(y), len(x)))
        for octave in range(octaves):
            u, v, part = x * 2**octave / scale, y * 2**octave / scale, stream + 1000 * octave
            # Two lattices, one in the middle of the other's cells: a single one shows its axes.
            both = self._lattice_noise(part, u, v) + self._lattice_noise(part + 500, u + 0.5, v + 0.5)
            total += 0.75 * both / 2**octave
        return total

    def _lattice_noise(self, stream: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        i, j = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
        columns, rows = np.arange(i.min(), i.max() + 2), np.arange(j.min(), j.max() + 2)
        values = 2 * hashed(self.seed, stream, columns[None, :], rows[:, None]) - 1
        fu, fv = _eased(u - i), _eased(v - j)
        left, right = values[:, i - columns[0]], values[:, i - columns[0] + 1]
        across = left + (right - left) * fu
        upper, lower = across[j - rows[0]], across[j - rows[0] + 1]
        return upper + (lower - upper) * fv[:, None]

    def _depth(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How deep points lie within their piece of tissue, below 0 in glass, and below its upper side: (H, W) µm."""
        margin = min(150.0, 0.06 * min(self.width, self.strip))
        local = y % self.strip
        half_w, half_h = self.width / 2 - margin, self.strip / 2 - margin
        corner = 0.5 * min(half_w, half_h, 900.0)
        dx = np.abs(x - self.width / 2) - half_w + corner
        dy = np.abs(local - self.strip / 2) - half_h + corner
        out = np.hypot(np.maximum(dx, 0)[None], np.maximum(dy, 0)[:, None])
        depth = corner - out - np.minimum(np.maximum(dx[None], dy[:, None]), 0)
        rough = min(90.0, 0.7 * margin)
        depth = depth + rough * self.noise(1, x, y, 700.0, 3)
        # Below the upper surface: what rounds the corners rounds the layers too, more gently.
        rounding = corner - np.sqrt(np.maximum(corner**2 - np.clip(dx, 0, corner) ** 2, 0))
        top = local[:, None] - margin - 0.6 * rounding[None] + rough * self.noise(2, x, y, 900.0, 2)
        return depth, top

    def _wall(self, zone: np.ndarray, x: np.ndarray, y: np.ndarray, depth: np.ndarray, top: np.ndarray) -> None:
        """Mucosa, muscularis mucosae, submucosa, and muscle where the piece is high enough."""
        inflamed = self.preset == "inflamed"
        room = 0.88 * self.strip
        mucosa = min(480.0, 0.5 * room) * (1 + 0.12 * self.noise(3, x, y, 600.0))
        sheet = mucosa + min(45.0, 0.06 * room)
        submucosa = sheet + (min(900.0, 0.3 * room) if room > 1800 else 10 * room)
        submucosa = submucosa * (1 + 0.15 * self.noise(4, x, y, 1100.0))
        zone[:] = self.index["muscle"]
        zone[top < submucosa] = self.index["submucosa"]
        zone[top < sheet] = self.index["muscle"]
        septa = np.abs(self.noise(5, x, y, 260.0, 2)) < 0.07
        zone[(top >= submucosa) & septa] = self.index["submucosa"]
        is_mucosa = top < mucosa
        zone[is_mucosa] = self.index["inflamed" if inflamed else "propria"]
        if inflamed:
            quiet = self.noise(6, x, y, 500.0) > 0.45
            zone[is_mucosa & quiet] = self.index["propria"]
        self._crypts(zone, x, y, is_mucosa, top, mucosa, inflamed)
        self._follicles(zone, x, y, (top > 0.5 * mucosa) & (top < submucosa), 800.0 if inflamed else 1400.0)
        surface = (depth < 22) & (top < 0.5 * mucosa)
        zone[surface] = self.index["gland"]

    def _crypts(
        self,
        zone: np.ndarray,
        x: np.ndarray,
        y: np.ndarray,
        inside: np.ndarray,
        top: np.ndarray,
        bottom: np.ndarray,
        inflamed: bool,
    ) -> None:
        """Crypts cut across, as rings, and by stretches lengthwise, as long ones."""
        pitch = 118.0 if inflamed else 94.0
        stretch = 1 + 2.2 * np.clip(3 * self.noise(7, x, y[:1] * 0, 800.0) - 0.6, 0, 1)
        distance, cell = self._nearest(8, np.broadcast_to(x, zone.shape), top / stretch, pitch, 0.17)
        radius = 31.0 + 8.0 * cell + (9.0 * self.noise(9, x, y, 300.0) if inflamed else 0.0)
        ring = inside & (distance < radius) & (top > 30) & (top < bottom - 12)
        zone[ring] = self.index["gland"]
        zone[ring & (distance < radius - 19)] = self.index["lumen"]
        if inflamed:
            zone[ring & (distance < radius - 19) & (cell > 0.7)] = self.index["abscess"]

    def _follicles(self, zone: np.ndarray, x: np.ndarray, y: np.ndarray, where: np.ndarray, pitch: float) -> None:
        distance, cell = self._nearest(
            10, np.broadcast_to(x, zone.shape), np.broadcast_to(y[:, None], zone.shape), pitch, 0.3
        )
        radius = (90.0 + 130.0 * cell) * (1 + 0.2 * self.noise(11, x, y, 120.0))
        zone[where & (cell > 0.4) & (distance < radius)] = self.index["follicle"]

    def _muscle_only(self, zone: np.ndarray, x: np.ndarray, y: np.ndarray, depth: np.ndarray, top: np.ndarray) -> None:
        """Bundles of muscle with septa between them."""
        zone[:] = self.index["muscle"]
        zone[np.abs(self.noise(5, x, y, 260.0, 2)) < 0.07] = self.index["submucosa"]
        zone[depth < 60 + 40 * self.noise(12, x, y, 300.0)] = self.index["submucosa"]

    def _tumour_only(self, zone: np.ndarray, x: np.ndarray, y: np.ndarray, depth: np.ndarray, top: np.ndarray) -> None:
        self._tumour(zone, x, y, np.ones(zone.shape, bool))

    def _tumour(self, zone: np.ndarray, x: np.ndarray, y: np.ndarray, where: np.ndarray) -> None:
        """Nests of glands with lumina, some with debris, in stroma with aggregates of lymphocytes."""
        crowd = 0.25 * self.noise(13, x, y, 1200.0)
        nests = self.noise(14, x, y, 170.0, 2) + crowd
        holes = self.noise(15, x, y, 75.0)
        zone[where] = self.index["desmoplasia"]
        zone[where & (nests < -0.75)] = self.index["submucosa"]
        zone[where & (nests > 0.0)] = self.index["tumour"]
        lumen = where & (nests > 0.25) & (holes > 0.3)
        zone[lumen] = self.index["lumen"]
        zone[lumen & (self.noise(16, x, y, 600.0) > 0.35)] = self.index["abscess"]
        self._follicles(zone, x, y, where & (nests < -0.1), 1500.0)

    def _mixed(self, zone: np.ndarray, x: np.ndarray, y: np.ndarray, depth: np.ndarray, top: np.ndarray) -> None:
        """A wall, into which a carcinoma grows."""
        self._wall(zone, x, y, depth, top)
        scale = min(3600.0, 0.7 * max(self.width, self.strip))
        grown = self.noise(17, x, y, scale) + 0.25 * self.noise(18, x, y, 350.0, 2)
        self._tumour(zone, x, y, grown > 0.08)
        self._follicles(zone, x, y, (grown > -0.12) & (grown < 0.0), 500.0)

    def _nearest(
        self, stream: int, u: np.ndarray, v: np.ndarray, pitch: float, jitter: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Distance to the nearest point of a jittered hexagonal lattice, and that point's own number in [0, 1)."""
        row_height = pitch * 0.866
        j0 = np.floor(v / row_height).astype(np.int64)
        best, number = np.full(u.shape, np.inf), np.zeros(u.shape)
        for dj in (-1, 0, 1):
            j = j0 + dj
            shift = 0.5 * (j & 1)
            i0 = np.floor(u / pitch - shift).astype(np.int64)
            for di in (0, 1, -1):
                i = i0 + di
                px = (i + shift + 0.5 + jitter * (2 * hashed(self.seed, stream, i, j) - 1)) * pitch
                py = (j + 0.5 + jitter * (2 * hashed(self.seed, stream + 1, i, j) - 1)) * row_height
                distance = np.hypot(u - px, v - py)
                nearer = distance < best
                best = np.where(nearer, distance, best)
                number = np.where(nearer, hashed(self.seed, stream + 2, i, j), number)
        return best, number


def _eased(t: np.ndarray) -> np.ndarray:
    return t * t * (3 - 2 * t)


def hashed(seed: int, stream: int, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each pair of integers: the finaliser of SplitMix64 over their mix."""
    with np.errstate(over="ignore"):
        key = np.uint64(seed % 2**64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(stream) * np.uint64(
            0xD1B54A32D192ED03
        )
        z = key ^ (i.astype(np.uint64) * np.uint64(0xBF58476D1CE4E5B9))
        z = _mixed(z) ^ (j.astype(np.uint64) * np.uint64(0x94D049BB133111EB))
        return (_mixed(z) >> np.uint64(11)) * 2.0**-53


def _mixed(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
