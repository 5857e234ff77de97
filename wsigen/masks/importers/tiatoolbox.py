"""TIAToolbox's annotation store: an SQLite file of WKB geometries with JSON properties.

Tables `annotations(id, key, objtype, cx, cy, geometry, properties[, area])` and `metadata(key, value)`; geometries are
WKB, or WKT text, packed with zlib where metadata says so; NULL stands for a point. The file is opened for reading only
and nothing in it is trusted: no functions, views or pickled predicates run. Schema: TIAToolbox's
`annotation/storage.py`, class `SQLiteStore`.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import numpy as np

from wsigen.errors import MaskError
from wsigen.masks.importers.class_maps import UNCLASSIFIED, class_name
from wsigen.masks.importers.sources import Head, OutlineSource, SourceObject
from wsigen.system.reporting import Reporter

ROWS_BETWEEN_REPORTS = 5_000
MAX_GEOMETRY_BYTES = 1 << 26
MAX_PROPERTIES = 1 << 20
_CLASS_KEYS = ("type", "class", "classification", "class_name", "name", "label")


class AnnotationStoreSource(OutlineSource):
    """Polygons of an annotation store."""

    format = "TIAToolbox annotation store"
    title = "TIAToolbox .db"

    @classmethod
    def recognises(cls, head: Head) -> bool:
        """See `OutlineSource`."""
        return head.data.startswith(b"SQLite format 3\0")

    def objects(self, progress: Reporter) -> Iterator[SourceObject | None]:
        """Read all annotations in the order of their ids."""
        connection = sqlite3.connect(f"file:{quote(str(self.path.resolve()))}?mode=ro", uri=True)
        try:
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            kinds = dict(connection.execute("SELECT name, type FROM sqlite_master"))
            if kinds.get("annotations") != "table":
                raise MaskError(f"{self.path}: has no table of annotations, so it is no TIAToolbox store")
            packed = self._packing(connection) if kinds.get("metadata") == "table" else False
            total = max(1, int(connection.execute("SELECT COUNT(*) FROM annotations").fetchone()[0]))
            rows = connection.execute("SELECT geometry, properties FROM annotations ORDER BY id")
            for done, (blob, properties) in enumerate(rows, 1):
                yield from self._annotation(_geometry(blob, packed), properties)
                if done % ROWS_BETWEEN_REPORTS == 0:
                    progress("reading", min(1.0, done / total))
        finally:
            connection.close()

    def _packing(self, connection: sqlite3.Connection) -> bool:
        row = connection.execute("SELECT value FROM metadata WHERE key = 'compression'").fetchone()
        method = None if row is None else row[0]
        if isinstance(method, str) and method.startswith('"'):
            method = json.loads(method)
        if method not in (None, "zlib", "null", "None", ""):
            raise MaskError(f"{self.path}: geometries are packed with {str(method)[:40]!r}; save them with zlib")
        return method == "zlib"

    def _annotation(self, geometry: Any, properties: Any) -> Iterator[SourceObject | None]:
        """One object; None for bytes that are no geometry, nothing for points and lines, which are counted."""
        import shapely

        if geometry is None:
            yield None
        elif geometry.geom_type in ("Polygon", "MultiPolygon"):
            yield SourceObject(_class_name(properties), [_rings(part) for part in shapely.get_parts(geometry)])
        else:
            self.not_polygons += 1


def _geometry(blob: Any, packed: bool) -> Any:
    """A shapely geometry; a point where the store has NULL; None where the bytes are none."""
    import shapely

    if blob is None:
        return shapely.Point(0, 0)
    if isinstance(blob, bytes) and packed:
        unpacker = zlib.decompressobj()
        try:
            blob = unpacker.decompress(blob, MAX_GEOMETRY_BYTES)
        except zlib.error:
            return None
        if unpacker.unconsumed_tail:
            raise ValueError(f"a geometry has more than {MAX_GEOMETRY_BYTES} bytes")
    if isinstance(blob, str):
        return shapely.from_wkt(blob, on_invalid="ignore")
    return shapely.from_wkb(blob, on_invalid="ignore") if isinstance(blob, bytes) else None


def _rings(polygon: Any) -> list[np.ndarray]:
    import shapely

    return [shapely.get_coordinates(ring) for ring in (polygon.exterior, *polygon.interiors)]


def _class_name(text: Any) -> str:
    """Class in the JSON properties, under any of the names that are in use."""
    if not isinstance(text, str) or len(text) > MAX_PROPERTIES:
        return UNCLASSIFIED
    try:
        properties = json.loads(text)
    except (ValueError, RecursionError):
        return UNCLASSIFIED
    for key in _CLASS_KEYS:
        value = properties.get(key) if isinstance(properties, dict) else None
        name = str(value) if isinstance(value, int) else class_name(value)
        if name != UNCLASSIFIED:
            return name
    return UNCLASSIFIED
