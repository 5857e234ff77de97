"""ASAP's XML: ASAP_Annotations / Annotations / Annotation / Coordinates / Coordinate, in pixels of level 0.

The class of an annotation is its group. Polygons, splines and rectangles have an area; dots, sets of points and
measures are counted. Schema: ASAP's `annotation/XmlRepository.cpp`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from wsigen.masks.importers.class_maps import UNCLASSIFIED
from wsigen.masks.importers.sources import Head, OutlineSource, SourceObject
from wsigen.masks.importers.xml_stream import read_elements
from wsigen.system.reporting import Reporter

_AREAS = ("polygon", "spline", "rectangle")
_NO_GROUP = ("", "None")


class AsapSource(OutlineSource):
    """Annotations of an ASAP file."""

    format = "ASAP XML"

    @classmethod
    def recognises(cls, head: Head) -> bool:
        """See `OutlineSource`."""
        return head.root == "ASAP_Annotations"

    def objects(self, progress: Reporter) -> Iterator[SourceObject | None]:
        """Read all annotations."""
        reader = _Annotations(self)
        for _ in read_elements(self.path, reader, progress):
            yield from reader.finished
            reader.finished.clear()


class _Annotations:
    """Collects annotations from the elements of the document."""

    def __init__(self, source: AsapSource) -> None:
        self.finished: list[SourceObject | None] = []
        self._source = source
        self._group = self._shape = ""
        self._points: list[tuple[int, float, float]] | None = None  # order, x, y
        self._sound = True

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """An element begins."""
        if name == "Annotation":
            self._group, self._shape = attributes.get("PartOfGroup", ""), attributes.get("Type", "").lower()
            self._points, self._sound = [], True
        elif name == "Coordinate" and self._points is not None:
            try:
                order = int(attributes.get("Order", len(self._points)))
                self._points.append((order, float(attributes["X"]), float(attributes["Y"])))
            except (KeyError, ValueError):
                self._sound = False

    def end(self, name: str) -> None:
        """An element ends."""
        if name != "Annotation" or self._points is None:
            return
        points = np.array(sorted(self._points, key=lambda point: point[0]), np.float64).reshape(-1, 3)[:, 1:]
        self._points = None
        if self._shape not in _AREAS:
            self._source.not_polygons += 1
            return
        label = UNCLASSIFIED if self._group in _NO_GROUP else self._group
        self.finished.append(SourceObject(label, [[points]]) if self._sound and len(points) else None)
