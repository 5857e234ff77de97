"""QuPath's GeoJSON, and what others write in its manner (CellViT's cells.geojson, GeoPandas).

A FeatureCollection, a bare array of features, one feature, or one geometry; coordinates in pixels of level 0, which
QuPath counts from the corner of a slide's bounds. Cells may have a `nucleusGeometry`, which is then what counts. The
kind of an object stands in `objectType`, before QuPath 0.3 in `id` ("PathAnnotationObject"). Classes occur as {"name",
"color"}, as {"names": [..]} for derived classes, with "colorRGB" up to QuPath 0.3, as plain text, and as any of these
written as JSON text. Schema: qupath-core's `QuPathTypeAdapters`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from wsigen.masks.importers.class_maps import UNCLASSIFIED, class_name
from wsigen.masks.importers.json_stream import MAX_DEPTH, JsonStream
from wsigen.masks.importers.sources import CountedFile, Head, Kind, OutlineSource, SourceObject
from wsigen.system.reporting import Reporter

POLYGONS_HELD = 4096
# A core of a tissue microarray holds nuclei; the root holds everything.
_KINDS = {"annotation": Kind.ANNOTATION, "tile": Kind.ANNOTATION, "tmacore": Kind.REGION, "root": Kind.REGION}
_OLD_KIND = re.compile(r"(?:Path)?(\w+?)Object")
_FLAT = "the coordinates of a Polygon are a list of rings: [[[x, y], ..]]"


class GeoJsonSource(OutlineSource):
    """Features of a GeoJSON file.

    A MultiPolygon is one nucleus in pieces, but in an annotation each polygon is a nucleus: CellViT writes all cells
    of a class so. The polygons of a GeometryCollection are one nucleus.
    """

    format = "GeoJSON"
    title = "GeoJSON of QuPath or CellViT"
    telling = frozenset({"features", "geometry", "coordinates", "geometries"})  # of a collection, a feature, a geometry
    from_bounds = True

    @classmethod
    def recognises(cls, head: Head) -> bool:
        """See `OutlineSource`."""
        if head.keys is None:
            return head.text.startswith("[")
        return bool(head.keys & cls.telling) or "FeatureCollection" in head.text[:2000]

    def objects(self, progress: Reporter) -> Iterator[SourceObject | None]:
        """Read all features, those inside `childObjects` too."""
        with CountedFile(self.path, progress) as file:
            stream = JsonStream(file)
            event, _ = stream.next()
            if event == "start_array":
                yield from self._features(stream, 0)
            elif event == "start_map":
                yield from self._feature(stream, 0, outermost=True)
            else:
                raise ValueError("it is neither a map nor an array")
            self.not_polygons = stream.not_polygons

    def _features(self, stream: JsonStream, depth: int) -> Iterator[SourceObject | None]:
        if depth > MAX_DEPTH:
            raise ValueError(f"objects are nested deeper than {MAX_DEPTH}")
        for event, _ in stream.items():
            if event == "start_map":
                yield from self._feature(stream, depth)
            else:
                stream.skip(event)
                yield None

    def _feature(self, stream: JsonStream, depth: int, outermost: bool = False) -> Iterator[SourceObject | None]:
        """The object of a feature; outermost: it may also be a collection of features, or a geometry."""
        polygons: list[list[np.ndarray]] = []
        nucleus: list[list[np.ndarray]] = []
        found = _Properties()
        old_kind: Kind | None = None
        points_before, damaged_before = stream.not_polygons, stream.damaged
        flushed, is_object = False, not outermost
        for key in stream.members():
            if key == "geometry" or (outermost and key in ("coordinates", "geometries")):
                is_object = True
                for polygon in self._geometry(stream) if key == "geometry" else _coordinates(stream, key, 0):
                    polygons.append(polygon)
                    if len(polygons) == POLYGONS_HELD:
                        yield SourceObject("", polygons, complete=False)
                        polygons, flushed = [], True
            elif key == "nucleusGeometry":
                nucleus = list(self._geometry(stream))
            elif key == "properties":
                if stream.expect("start_map"):
                    self._properties(stream, depth, found)
            elif key == "id":
                old_kind = _kind_of_id(stream.value())
            elif outermost and key == "features":
                if stream.expect("start_array"):
                    yield from self._features(stream, depth)
            else:
                stream.skip()
        if stream.damaged > damaged_before and not flushed:
            polygons = nucleus = []
        if nucleus and not flushed:
            polygons = nucleus
        kind = next((kind for kind in (found.kind, old_kind) if kind is not None), Kind.NUCLEUS)
        if polygons or flushed:
            yield SourceObject(found.name, polygons, kind, separate=kind is Kind.ANNOTATION)
        elif is_object and stream.not_polygons == points_before:
            yield None
        yield from found.children

    def _properties(self, stream: JsonStream, depth: int, found: _Properties) -> None:
        for key in stream.members():
            if key == "classification":
                found.name = class_name(stream.value())
            elif key in ("objectType", "object_type"):
                found.kind = _KINDS.get(str(stream.value()).lower(), Kind.NUCLEUS)
            elif key == "childObjects" and stream.expect("start_array"):
                found.children.extend(self._features(stream, depth + 1))
            elif key != "childObjects":
                stream.skip()

    def _geometry(self, stream: JsonStream) -> Iterator[list[np.ndarray]]:
        """The polygons of a geometry. A polygon that is written as a line counts as damaged, not as a line."""
        if not stream.expect("start_map"):
            return
        before = stream.not_polygons
        claims_area = False
        for key in stream.members():
            if key in ("coordinates", "geometries"):
                yield from _coordinates(stream, key, 0)
            elif key == "type":
                claims_area = stream.value() in ("Polygon", "MultiPolygon")
            else:
                stream.skip()
        if claims_area and stream.not_polygons > before:
            stream.not_polygons -= 1
            stream.damaged += 1
            self.hint = _FLAT


@dataclass
class _Properties:
    """What the properties of a feature say of it."""

    name: str = UNCLASSIFIED
    kind: Kind | None = None
    children: list[SourceObject | None] = field(default_factory=list)


def _coordinates(stream: JsonStream, key: str, depth: int) -> Iterator[list[np.ndarray]]:
    """The polygons in `coordinates`, or in the `geometries` of a collection."""
    if key == "coordinates":
        yield from stream.polygons()
    elif stream.expect("start_array"):
        if depth > MAX_DEPTH:
            raise ValueError(f"geometries are nested deeper than {MAX_DEPTH}")
        for event, _ in stream.items():
            if event != "start_map":
                stream.skip(event)
                continue
            for member in stream.members():
                if member in ("coordinates", "geometries"):
                    yield from _coordinates(stream, member, depth + 1)
                else:
                    stream.skip()


def _kind_of_id(value: object) -> Kind | None:
    """The kind of an object where its id names it, as before QuPath 0.3."""
    named = _OLD_KIND.fullmatch(value) if isinstance(value, str) else None
    return None if named is None else _KINDS.get(named[1].lower(), Kind.NUCLEUS)
