"""QuPath GeoJSON: a FeatureCollection of detections, with name and colour of every class (QuPath wants both)."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType

import numpy as np

from wsigen.masks.classes import ClassTable
from wsigen.masks.exporters.writing import Nucleus, OutlineWriter, identifier_of
from wsigen.masks.source import MaskSource

TISSUE_COLOUR = [150, 150, 150]


class QuPathWriter(OutlineWriter):
    """One detection a nucleus, one annotation a tissue region."""

    def __init__(self, path: Path, mask: MaskSource, classes: ClassTable) -> None:
        super().__init__(path, mask, classes)
        self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)
        self._file.write('{"type":"FeatureCollection","features":[')
        self._separator = "\n"
        self._regions = 0
        self._properties = {entry.name: _properties("detection", entry.name, list(entry.rgb)) for entry in classes}

    def add(self, nuclei: list[Nucleus]) -> None:
        """Write detections."""
        for nucleus in nuclei:
            properties = self._properties[nucleus.kind.name]
            self._write(f"nucleus {nucleus.identifier}", _geometry(nucleus.polygons), properties)

    def add_regions(self, polygons: list[list[np.ndarray]]) -> None:
        """Write annotations of the class Tissue."""
        for polygon in polygons:
            self._regions += 1
            properties = _properties("annotation", "Tissue", TISSUE_COLOUR)
            self._write(f"tissue {self._regions}", _geometry([polygon]), properties)

    def _write(self, name: str, geometry: str, properties: str) -> None:
        identifier = identifier_of(name)
        self._file.write(
            f'{self._separator}{{"type":"Feature","id":"{identifier}","geometry":{geometry},"properties":{properties}}}'
        )
        self._separator = ",\n"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._file.write("\n]}\n")
        self._file.close()


def _properties(kind: str, name: str, colour: list[int]) -> str:
    return json.dumps({"objectType": kind, "classification": {"name": name, "color": colour}}, separators=(",", ":"))


def _geometry(polygons: list[list[np.ndarray]]) -> str:
    parts = ["[" + ",".join(_ring(ring) for ring in polygon) + "]" for polygon in polygons]
    if len(parts) == 1:
        return f'{{"type":"Polygon","coordinates":{parts[0]}}}'
    return f'{{"type":"MultiPolygon","coordinates":[{",".join(parts)}]}}'


def _ring(ring: np.ndarray) -> str:
    points = ring.tolist()
    points.append(points[0])
    return str(points).replace(" ", "")
