"""TIAToolbox's annotation store, with the tables, the spatial index and the packing that `SQLiteStore` expects."""

from __future__ import annotations

import json
import sqlite3
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from wsigen.masks.classes import ClassTable
from wsigen.masks.exporters.writing import Nucleus, OutlineWriter, identifier_of
from wsigen.masks.source import MaskSource

STORE_VERSION = "1.0.1"
PACKING_LEVEL = 6
_SCHEMA = """
CREATE TABLE metadata(key TEXT UNIQUE, value TEXT);
CREATE VIRTUAL TABLE rtree USING rtree_i32(id, min_x, max_x, min_y, max_y);
CREATE TABLE annotations(
    id INTEGER PRIMARY KEY, key TEXT UNIQUE, objtype TEXT, cx INTEGER NOT NULL, cy INTEGER NOT NULL,
    geometry BLOB, properties TEXT, area INTEGER NOT NULL
);
"""


class AnnotationStoreWriter(OutlineWriter):
    """One annotation a nucleus, with its class under `type` and the id in the mask under `id`."""

    def __init__(self, path: Path, mask: MaskSource, classes: ClassTable) -> None:
        super().__init__(path, mask, classes)
        self._connection = sqlite3.connect(path)
        self._connection.executescript(_SCHEMA)
        facts = {"version": STORE_VERSION, "compression": "zlib", "compression_level": PACKING_LEVEL}
        rows = [(key, json.dumps(value)) for key, value in facts.items()]
        self._connection.executemany("INSERT INTO metadata VALUES(?, ?)", rows)
        self._count = 0
        self._regions = 0

    def add(self, nuclei: list[Nucleus]) -> None:
        """Write annotations of type = class."""
        items: list[tuple[str, list[list[np.ndarray]], dict[str, Any], int]] = [
            (f"nucleus {n.identifier}", n.polygons, {"type": n.kind.name, "id": n.identifier}, n.area) for n in nuclei
        ]
        self._insert(items)

    def add_regions(self, polygons: list[list[np.ndarray]]) -> None:
        """Write annotations of type Tissue."""
        items: list[tuple[str, list[list[np.ndarray]], dict[str, Any], int]] = []
        for polygon in polygons:
            self._regions += 1
            items.append((f"tissue {self._regions}", [polygon], {"type": "Tissue"}, 0))
        self._insert(items)

    def _insert(self, items: list[tuple[str, list[list[np.ndarray]], dict[str, Any], int]]) -> None:
        import shapely

        shapes = _shapes([item[1] for item in items])
        bounds = shapely.bounds(shapes).astype(int).tolist()
        inside = shapely.point_on_surface(shapes)
        places = np.stack([shapely.get_x(inside), shapely.get_y(inside)], 1).astype(int).tolist()
        areas = shapely.area(shapes).astype(int).tolist()
        rows, boxes = [], []
        for (name, polygons, properties, pixels), wkb, (left, top, right, bottom), (x, y), area in zip(
            items, shapely.to_wkb(shapes), bounds, places, areas
        ):
            self._count += 1
            key = identifier_of(name)
            text = json.dumps(properties, separators=(",", ":"))
            kind = "Polygon" if len(polygons) == 1 else "MultiPolygon"
            rows.append((self._count, key, kind, x, y, zlib.compress(wkb, PACKING_LEVEL), text, pixels or area))
            boxes.append((self._count, left, right, top, bottom))
        self._connection.executemany("INSERT INTO annotations VALUES(?, ?, ?, ?, ?, ?, ?, ?)", rows)
        self._connection.executemany("INSERT INTO rtree VALUES(?, ?, ?, ?, ?)", boxes)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._connection.commit()
        self._connection.close()


def _shapes(objects: list[list[list[np.ndarray]]]) -> np.ndarray:
    """Shapely geometries; those of one ring, nearly all, are made at once."""
    import shapely

    shapes = np.empty(len(objects), object)
    plain = [i for i, polygons in enumerate(objects) if len(polygons) == 1 and len(polygons[0]) == 1]
    if plain:
        rings = [objects[i][0][0] for i in plain]
        of = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
        shapes[plain] = shapely.polygons(shapely.linearrings(np.concatenate(rings), indices=of))
    for i in sorted(set(range(len(objects))) - set(plain)):
        parts = [shapely.Polygon(polygon[0], polygon[1:]) for polygon in objects[i]]
        shapes[i] = parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
    return shapes
