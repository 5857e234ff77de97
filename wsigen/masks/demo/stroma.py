"""What lies between and below the crypts: cells of the stroma, muscle, lymphoid aggregates and vessels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from wsigen.masks.demo.crypts import ring
from wsigen.masks.demo.drawing import (
    CONNECTIVE,
    EOSINOPHIL,
    LYMPHOCYTE,
    MUSCLE,
    NEUTROPHIL,
    PLASMA,
    PROPRIA,
    SUBMUCOSA,
    VESSEL,
    Drawing,
    Nucleus,
)
from wsigen.masks.demo.geometry import Wave, along
from wsigen.masks.demo.wall import Wall

# Nuclei of the stroma: class, share, long and short half-axis in µm, roughness of the outline.
Cells = tuple[tuple[int, float, float, float, float], ...]
_PROPRIA_CELLS: Cells = (
    (PLASMA, 0.36, 2.75, 2.15, 0.05),
    (LYMPHOCYTE, 0.33, 2.4, 2.05, 0.04),
    (CONNECTIVE, 0.21, 4.4, 1.5, 0.08),
    (EOSINOPHIL, 0.08, 3.0, 2.5, 0.07),
    (NEUTROPHIL, 0.02, 2.75, 2.2, 0.10),
)
_SUBMUCOSA_CELLS: Cells = (
    (CONNECTIVE, 0.80, 4.8, 1.45, 0.08),
    (LYMPHOCYTE, 0.13, 2.4, 2.05, 0.04),
    (PLASMA, 0.05, 2.75, 2.15, 0.05),
    (EOSINOPHIL, 0.02, 3.0, 2.5, 0.07),
)
_ARTERY_RADIUS_UM = 18  # vessels below it are arteries, larger ones veins


@dataclass(frozen=True)
class Vessel:
    """A vessel cut across: its outline and the direction to its middle at each point, (N, 2) µm."""

    outline: np.ndarray
    inward: np.ndarray
    artery: bool


def draw_propria(drawing: Drawing) -> None:
    """Cells of the lamina propria, one in 7.4 µm; fibres run up and down."""
    _draw_cells(drawing, PROPRIA, 7.4, _PROPRIA_CELLS)


def draw_submucosa(drawing: Drawing) -> None:
    """Cells of the submucosa, one in 23 µm; fibres run along the wall."""
    _draw_cells(drawing, SUBMUCOSA, 23.0, _SUBMUCOSA_CELLS)


def draw_muscle(drawing: Drawing, wall: Wall) -> None:
    """Spindle nuclei in rows along the muscularis mucosae."""
    rng = drawing.rng
    for centre in drawing.grid(11.0, MUSCLE):
        if rng.random() < 0.42:
            slope = np.diff(wall.muscle(np.array([centre[0] - 4, centre[0] + 4])))[0] / 8
            angle = math.atan(slope) + rng.normal(0, 0.1)
            drawing.add(Nucleus(CONNECTIVE, centre, rng.uniform(5.2, 7.6), rng.uniform(1.3, 1.65), angle, 0.05))


def draw_follicles(drawing: Drawing, wall: Wall) -> None:
    """Now and then a lymphoid aggregate at the base of the mucosa: lymphocytes shoulder to shoulder."""
    rng = drawing.rng
    for _ in range(rng.poisson(wall.width / 2500)):
        x = rng.uniform(0.15, 0.85) * wall.width
        centre = np.array([x, wall.muscle_at(x) + rng.uniform(35, 70)])
        radius = rng.uniform(35, 70)
        for point in drawing.grid(5.7, SUBMUCOSA, jitter=0.3):
            if np.hypot(*((point - centre) / (1.3, 0.8))) < radius * rng.uniform(0.85, 1.05):
                drawing.add(Nucleus(LYMPHOCYTE, point, rng.uniform(2.2, 2.7), rng.uniform(1.95, 2.4), 0.0, 0.04))


def placed_vessels(wall: Wall, rng: np.random.Generator) -> list[Vessel]:
    """Veins and arteries of the submucosa, where there is room; their middles lie 110 µm apart at least."""
    layers = wall.layers
    room = layers.bottom - layers.submucosa - 45
    vessels: list[Vessel] = []
    if room < 40:
        return vessels
    taken: list[tuple[float, float]] = []
    for _ in range(max(2, rng.poisson(wall.width * room / 45_000))):
        radius = rng.uniform(9, min(34, 0.32 * room))
        x = rng.uniform(layers.side + 60, max(layers.side + 61, wall.width - layers.side - 60))
        y = wall.muscle_at(x) + layers.submucosa - layers.muscle
        y += rng.uniform(radius + 15, max(radius + 16, room - radius))
        if any(math.hypot(x - u, y - v) < 110 for u, v in taken):
            continue
        taken.append((x, y))
        artery = bool(radius < _ARTERY_RADIUS_UM)
        circle = ring(rng, float(x), float(y), radius)
        squeezed = (circle.outline - (x, y)) * (1.25, 0.95 if artery else 0.7) + (x, y)  # a vein is flatter
        vessels.append(Vessel(squeezed, circle.inward, artery))
    return vessels


def draw_vessel_wall(drawing: Drawing, vessel: Vessel) -> None:
    """Flat endothelium on the lumen; around an artery also rings of smooth muscle."""
    rng = drawing.rng
    for layer in (0.2, 6.0, 11.0) if vessel.artery else (0.2,):
        path = vessel.outline - layer * vessel.inward
        tangent = np.roll(path, -1, 0) - np.roll(path, 1, 0)
        for k in along(path, lambda: rng.uniform(14, 24), closed=True):
            if drawing.zone(path[k]) in (SUBMUCOSA, VESSEL):
                angle = math.atan2(tangent[k, 1], tangent[k, 0])
                drawing.add(Nucleus(CONNECTIVE, path[k], rng.uniform(4.0, 5.6), rng.uniform(1.2, 1.5), angle, 0.05))


def _draw_cells(drawing: Drawing, zone: int, pitch: float, cells: Cells) -> None:
    """Cells on a jittered grid wherever the zone allows it; fibres run along a slowly turning direction."""
    rng = drawing.rng
    grid = drawing.grid(pitch, zone)
    shares = np.array([cell[1] for cell in cells])
    chosen = rng.choice(len(cells), len(grid), p=shares / shares.sum())
    flow = Wave.drawn(rng, 0.35 if zone == SUBMUCOSA else 1.5, (90, 400))
    for centre, index in zip(grid, chosen):
        kind, _, long, short, rough = cells[index]
        scale = rng.uniform(0.82, 1.2)
        if kind == CONNECTIVE:
            angle = float(flow(centre[:1] + 0.7 * centre[1:])[0]) + rng.normal(0, 0.3)
            angle += math.pi / 2 * (zone == PROPRIA)
        else:
            angle = rng.uniform(0, math.pi)
        drawing.add(Nucleus(kind, centre, long * scale, short * scale * rng.uniform(0.92, 1.05), angle, rough))
