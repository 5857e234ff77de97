"""Aperio ImageScope's XML, in which MoNuSeg and others publish: Annotation / Regions / Region / Vertices / Vertex.

A class is a region's text, else its layer's name. A region with NegativeROA="1" is cut out of the regions of its layer.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from wsigen.masks.importers.class_maps import UNCLASSIFIED
from wsigen.masks.importers.sources import CountedFile, Head, OutlineSource, SourceObject
from wsigen.masks.importers.xml_stream import CHUNK_BYTES, read_elements
from wsigen.system.reporting import Reporter, silent
from wsigen.system.scale import plausible_mpp

ELLIPSE_POINTS = 64
_ELLIPSE = "2"
_NEGATIVE = re.compile(rb"NegativeROA\s*=\s*[\"'][^0\"']")


class ImageScopeSource(OutlineSource):
    """Regions of an ImageScope XML file."""

    format = "ImageScope XML"

    @classmethod
    def recognises(cls, head: Head) -> bool:
        """See `OutlineSource`."""
        return head.root in ("Annotations", "")  # where no element shows, the reader says what is damaged

    def objects(self, progress: Reporter) -> Iterator[SourceObject | None]:
        """Read the regions of all layers."""
        holes = self._holes()
        reader = _Regions(self)
        for _ in read_elements(self.path, reader, progress):
            for layer, label, points in reader.finished:
                yield None if points is None else SourceObject(label, _without(points, holes.get(layer)))
            reader.finished.clear()

    def _holes(self) -> dict[int, Any]:
        """Negative regions by layer, in search trees; they may stand behind those that they are cut out of."""
        import shapely

        holes: defaultdict[int, list[Any]] = defaultdict(list)
        if self._may_have_holes():
            reader = _Regions(self, negative=True)
            for _ in read_elements(self.path, reader, silent):
                for layer, _, points in reader.finished:
                    if points is not None and _has_area(points):
                        holes[layer].append(shapely.make_valid(shapely.Polygon(points)))
                reader.finished.clear()
        return {layer: shapely.STRtree(areas) for layer, areas in holes.items()}

    def _may_have_holes(self) -> bool:
        """Whether the bytes of the file speak of negative regions, which is much sooner told than parsed."""
        kept = b""
        with CountedFile(self.path, silent) as file:
            while chunk := file.read(CHUNK_BYTES):
                if _NEGATIVE.search(kept + chunk) or b"\0" in chunk:  # UTF-16 is not searched
                    return True
                kept = chunk[-100:]
        return False


class _Regions:
    """Collects regions from the elements of the document: layer, label, and points (None for unreadable ones).

    negative: collect the negative regions, else the others.
    """

    def __init__(self, source: ImageScopeSource, negative: bool = False) -> None:
        self.finished: list[tuple[int, str, np.ndarray | None]] = []
        self._source, self._negative = source, negative
        self._layer, self._layer_name, self._text, self._shape = -1, "", "", ""
        self._vertices: list[tuple[float, float]] | None = None
        self._sound = True

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """An element begins."""
        if name == "Annotations":
            self._source.mpp = plausible_mpp(_number(attributes.get("MicronsPerPixel")))
        elif name == "Annotation":
            self._layer, self._layer_name = self._layer + 1, attributes.get("Name", "")
        elif name == "Region":
            self._text, self._shape = attributes.get("Text", ""), attributes.get("Type", "")
            negative = attributes.get("NegativeROA", "0").strip().lower() in ("1", "true")
            self._vertices, self._sound = [] if negative is self._negative else None, True
        elif name == "Vertex" and self._vertices is not None:
            try:
                self._vertices.append((float(attributes["X"]), float(attributes["Y"])))
            except (KeyError, ValueError):
                self._sound = False

    def end(self, name: str) -> None:
        """An element ends."""
        if name != "Region" or self._vertices is None:
            return
        points = np.array(self._vertices, np.float64).reshape(-1, 2)
        if self._shape == _ELLIPSE and len(points) in (2, 4):
            points = _ellipse(points)
        label = self._text.strip() or self._layer_name.strip() or UNCLASSIFIED
        self.finished.append((self._layer, label, points if self._sound and len(points) else None))
        self._vertices = None


def _without(points: np.ndarray, holes: Any) -> list[list[np.ndarray]]:
    """Polygons of a region without the negative regions (a search tree, or None) that reach into it."""
    import shapely

    if holes is None or not _has_area(points):
        return [[points]]
    region = shapely.make_valid(shapely.Polygon(points))
    cut = holes.geometries[holes.query(region, predicate="intersects")]
    if not len(cut):
        return [[points]]
    rest = shapely.difference(region, shapely.union_all(cut))
    return [
        [shapely.get_coordinates(ring) for ring in (part.exterior, *part.interiors)]
        for part in shapely.get_parts(rest)
        if part.geom_type == "Polygon" and not part.is_empty
    ]


def _has_area(points: np.ndarray) -> bool:
    return len(points) >= 3 and bool(np.isfinite(points).all())


def _ellipse(corners: np.ndarray) -> np.ndarray:
    centre, radius = (corners.min(0) + corners.max(0)) / 2, np.ptp(corners, axis=0) / 2
    angle = np.linspace(0, 2 * np.pi, ELLIPSE_POINTS, endpoint=False)
    return centre + radius * np.stack([np.cos(angle), np.sin(angle)], 1)


def _number(text: str | None) -> float | None:
    try:
        return float(text or 0)
    except ValueError:
        return None
