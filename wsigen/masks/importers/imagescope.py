"""Aperio ImageScope's XML, in which MoNuSeg and others publish: Annotation / Regions / Region / Vertices / Vertex.

A class is a region's text, else its layer's name. Documents with a DTD are refused, so entities cannot be declared, let
alone expand.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.parsers import expat

import numpy as np

from wsigen.errors import MaskError
from wsigen.masks.importers.class_maps import UNCLASSIFIED
from wsigen.masks.importers.sources import CountedFile, OutlineSource, Progress, SourceObject

CHUNK_BYTES = 1 << 20
ELLIPSE_POINTS = 64
_ELLIPSE = "2"


class ImageScopeSource(OutlineSource):
    """Regions of an ImageScope XML file."""

    format = "ImageScope XML"

    def objects(self, progress: Progress) -> Iterator[SourceObject | None]:
        """Read the regions of all layers."""
        reader = _Regions(self)
        with CountedFile(self.path, progress) as file:
            parser = expat.ParserCreate()
            parser.StartElementHandler = reader.start
            parser.EndElementHandler = reader.end
            parser.StartDoctypeDeclHandler = reader.refuse
            parser.EntityDeclHandler = reader.refuse
            while True:
                chunk = file.read(CHUNK_BYTES)
                try:
                    parser.Parse(chunk, not chunk)
                except expat.ExpatError as error:
                    raise ValueError(str(error)) from None
                yield from reader.finished
                reader.finished.clear()
                if not chunk:
                    return


class _Regions:
    """Collects regions from the elements of the document."""

    def __init__(self, source: ImageScopeSource) -> None:
        self.finished: list[SourceObject | None] = []
        self._source = source
        self._layer = self._text = self._shape = ""
        self._vertices: list[tuple[float, float]] | None = None
        self._sound = True

    def refuse(self, *_: object) -> None:
        """A document type or an entity is declared."""
        raise MaskError(f"{self._source.path}: declares a document type, which is refused as unsafe; remove the line")

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """An element begins."""
        if name == "Annotations":
            self._source.mpp = _positive(attributes.get("MicronsPerPixel"))
        elif name == "Annotation":
            self._layer = attributes.get("Name", "")
        elif name == "Region":
            self._text, self._shape = attributes.get("Text", ""), attributes.get("Type", "")
            self._vertices, self._sound = [], True
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
        label = self._text.strip() or self._layer.strip() or UNCLASSIFIED
        self.finished.append(SourceObject(label, [[points]]) if self._sound and len(points) else None)
        self._vertices = None


def _ellipse(corners: np.ndarray) -> np.ndarray:
    centre, radius = (corners.min(0) + corners.max(0)) / 2, np.ptp(corners, axis=0) / 2
    angle = np.linspace(0, 2 * np.pi, ELLIPSE_POINTS, endpoint=False)
    return centre + radius * np.stack([np.cos(angle), np.sin(angle)], 1)


def _positive(text: str | None) -> float | None:
    try:
        value = float(text or 0)
    except ValueError:
        return None
    return value if 0 < value <= 100 else None
