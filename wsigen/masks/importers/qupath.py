"""QuPath's GeoJSON, and what others write in its manner (CellViT's cells.geojson).

A FeatureCollection, or a bare array of features, or one feature; coordinates in pixels of level 0. Cells may have a
`nucleusGeometry`, which is then what counts. Classes occur as {"name", "color"}, as {"names": [..]} for derived
classes, with "colorRGB" up to QuPath 0.3, and as plain text. Schema: qupath-core's `QuPathTypeAdapters`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from wsigen.masks.importers.class_maps import UNCLASSIFIED
from wsigen.masks.importers.json_stream import MAX_DEPTH, JsonStream
from wsigen.masks.importers.sources import CountedFile, Kind, OutlineSource, Progress, SourceObject

POLYGONS_HELD = 4096
_KINDS = {"annotation": Kind.ANNOTATION, "tile": Kind.ANNOTATION}


class GeoJsonSource(OutlineSource):
    """Features of a GeoJSON file.

    A MultiPolygon is one nucleus in pieces, but in an annotation each polygon is a nucleus: CellViT writes all cells
    of a class so.
    """

    format = "GeoJSON"

    def objects(self, progress: Progress) -> Iterator[SourceObject | None]:
        """Read all features, those inside `childObjects` too."""
        with CountedFile(self.path, progress) as file:
            stream = JsonStream(file)
            event, _ = stream.next()
            if event == "start_array":
                yield from self._features(stream, 0)
            elif event == "start_map":
                yield from self._collection(stream)
            else:
                raise ValueError("it is neither a map nor an array")
            self.not_polygons = stream.not_polygons

    def _collection(self, stream: JsonStream) -> Iterator[SourceObject | None]:
        found = False
        for key in stream.members():
            if key == "features" and stream.expect("start_array"):
                found = True
                yield from self._features(stream, 0)
            elif key in ("geometry", "properties") and not found:
                raise ValueError("it is a single feature; put it into a FeatureCollection")
            elif key != "features":
                stream.skip()

    def _features(self, stream: JsonStream, depth: int) -> Iterator[SourceObject | None]:
        if depth > MAX_DEPTH:
            raise ValueError(f"objects are nested deeper than {MAX_DEPTH}")
        for event, _ in stream.items():
            if event == "start_map":
                yield from self._feature(stream, depth)
            else:
                stream.skip(event)
                yield None

    def _feature(self, stream: JsonStream, depth: int) -> Iterator[SourceObject | None]:
        polygons: list[list[np.ndarray]] = []
        nucleus: list[list[np.ndarray]] = []
        name, kind = UNCLASSIFIED, Kind.NUCLEUS
        children: list[SourceObject | None] = []
        before = stream.not_polygons
        flushed = False
        for key in stream.members():
            if key == "geometry":
                for polygon in _geometry(stream):
                    polygons.append(polygon)
                    if len(polygons) == POLYGONS_HELD:
                        yield SourceObject("", polygons, complete=False)
                        polygons, flushed = [], True
            elif key == "nucleusGeometry":
                nucleus = list(_geometry(stream))
            elif key == "properties" and stream.expect("start_map"):
                name, kind = self._properties(stream, depth, children)
            elif key != "properties":
                stream.skip()
        if nucleus and not flushed:
            polygons = nucleus
        if polygons or flushed:
            yield SourceObject(name, polygons, kind, separate=kind is Kind.ANNOTATION)
        elif stream.not_polygons == before:
            yield None
        yield from children

    def _properties(self, stream: JsonStream, depth: int, children: list[SourceObject | None]) -> tuple[str, Kind]:
        name, kind = UNCLASSIFIED, Kind.NUCLEUS
        for key in stream.members():
            if key == "classification":
                name = _class_name(stream.value())
            elif key in ("objectType", "object_type"):
                kind = _KINDS.get(str(stream.value()).lower(), Kind.NUCLEUS)
            elif key == "childObjects" and stream.expect("start_array"):
                children.extend(self._features(stream, depth + 1))
            elif key != "childObjects":
                stream.skip()
        return name, kind


def _geometry(stream: JsonStream) -> Iterator[list[np.ndarray]]:
    if not stream.expect("start_map"):
        return
    for key in stream.members():
        if key == "coordinates":
            yield from stream.polygons()
        else:
            stream.skip()


def _class_name(value: Any) -> str:
    """Name of a class in any of QuPath's forms."""
    if isinstance(value, dict):
        names = value.get("names")
        value = ": ".join(str(name) for name in names) if isinstance(names, list) else value.get("name")
    return value.strip() or UNCLASSIFIED if isinstance(value, str) else UNCLASSIFIED
