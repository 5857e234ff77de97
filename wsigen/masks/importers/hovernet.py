"""HoVer-Net's JSON of a slide or tile, and CellViT's cells.json: outlines as OpenCV draws them, around pixel centres.

HoVer-Net: {"mag": 40, "nuc": {id: {"bbox", "centroid", "contour": [[x, y], ..], "type_prob", "type"}}}, coordinates at
`mag`. CellViT: {"wsi_metadata", "type_map": {id: name}, "cells": [{"contour", "type", ..}]}, coordinates at level 0.
Schemas: HoVer-Net's `infer/wsi.py` and `infer/base.py`, CellViT's `inference_disk.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from wsigen.masks.importers.class_maps import UNCLASSIFIED
from wsigen.masks.importers.json_stream import JsonStream
from wsigen.masks.importers.sources import CountedFile, Head, OutlineSource, SourceObject
from wsigen.system.reporting import Reporter
from wsigen.system.scale import plausible_mpp

MPP_AT_1X = 10.0  # microns per pixel of a magnification of 1, by the convention of 0.25 at 40


class HoverNetSource(OutlineSource):
    """Nuclei of a HoVer-Net JSON file."""

    format = "HoVer-Net JSON"
    telling = frozenset({"nuc"})
    pixel_centres = True

    @classmethod
    def recognises(cls, head: Head) -> bool:
        """See `OutlineSource`."""
        return head.keys is not None and "nuc" in head.keys

    def objects(self, progress: Reporter) -> Iterator[SourceObject | None]:
        """Read the nuclei; `mag` gives the scale of the coordinates."""
        with CountedFile(self.path, progress) as file:
            stream = JsonStream(file)
            stream.expect("start_map")
            for key in stream.members():
                if key == "mag":
                    mag = stream.value()
                    self.mpp = plausible_mpp(MPP_AT_1X / mag) if isinstance(mag, float | int) and mag > 0 else None
                elif key == "nuc" and stream.expect("start_map"):
                    for _ in stream.members():
                        yield _nucleus(stream.value())
                elif key != "nuc":
                    stream.skip()


class CellVitSource(OutlineSource):
    """Cells of a CellViT cells.json file."""

    format = "CellViT JSON"
    telling = frozenset({"cells"})
    pixel_centres = True

    @classmethod
    def recognises(cls, head: Head) -> bool:
        """See `OutlineSource`."""
        return head.keys is not None and "cells" in head.keys

    def objects(self, progress: Reporter) -> Iterator[SourceObject | None]:
        """Read the cells; `type_map` names their classes."""
        with CountedFile(self.path, progress) as file:
            stream = JsonStream(file)
            stream.expect("start_map")
            for key in stream.members():
                if key == "type_map":
                    table = stream.value()
                    self.names = {str(k): str(v) for k, v in table.items()} if isinstance(table, dict) else {}
                elif key == "wsi_metadata":
                    self.mpp = _base_mpp(stream.value())
                elif key == "cells" and stream.expect("start_array"):
                    for item in stream.items():
                        cell = stream.value(item)
                        if isinstance(cell, dict) and "contour" not in cell:
                            self.hint = "its cells have no contours, only boxes and centres; give CellViT's cells.json"
                        yield _nucleus(cell)
                elif key != "cells":
                    stream.skip()


def _nucleus(entry: Any) -> SourceObject | None:
    """An entry's contour and type; None where it has no contour."""
    contour = entry.get("contour") if isinstance(entry, dict) else None
    if not isinstance(contour, list) or not contour:
        return None
    try:
        points = np.asarray(contour, np.float64)
    except (TypeError, ValueError):
        return None
    if points.ndim != 2 or points.shape[1] != 2:
        return None
    kind = entry.get("type")
    if isinstance(kind, float) and kind.is_integer():
        kind = int(kind)
    return SourceObject(UNCLASSIFIED if kind is None else str(kind), [[points]])


def _base_mpp(metadata: Any) -> float | None:
    value = metadata.get("base_mpp") if isinstance(metadata, dict) else None
    return plausible_mpp(float(value)) if isinstance(value, float | int) else None
