"""COCO instances: one picture, one annotation a nucleus; holes are cut open by a slit, as COCO's polygons have none."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType

import numpy as np

from wsigen.masks.classes import ClassTable
from wsigen.masks.exporters.writing import Nucleus, OutlineWriter
from wsigen.masks.source import MaskSource
from wsigen.version import __version__


class CocoWriter(OutlineWriter):
    """Categories are the classes with their numbers; tissue has no place in the format."""

    def __init__(self, path: Path, mask: MaskSource, classes: ClassTable) -> None:
        super().__init__(path, mask, classes)
        image = {"id": 1, "file_name": mask.path.name, "width": mask.width, "height": mask.height}
        head = {
            "info": {"description": f"nuclei of a synthetic slide, wsigen {__version__}", "mpp": mask.mpp},
            "images": [image],
            "categories": categories(classes),
        }
        self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)
        self._file.write(json.dumps(head)[:-1] + ', "annotations": [')
        self._separator = "\n"

    def add(self, nuclei: list[Nucleus]) -> None:
        """Write annotations."""
        for nucleus in nuclei:
            entry = annotation(nucleus.identifier, 1, nucleus.kind.index, nucleus.polygons, nucleus.area)
            self._file.write(self._separator + json.dumps(entry, separators=(",", ":")))
            self._separator = ",\n"

    def add_regions(self, polygons: list[list[np.ndarray]]) -> None:
        """Leave them out."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._file.write("\n]}\n")
        self._file.close()


def categories(classes: ClassTable) -> list[dict[str, object]]:
    """COCO's list of categories."""
    return [{"id": entry.index, "name": entry.name, "supercategory": "nucleus"} for entry in classes]


def annotation(
    identifier: int, image: int, category: int, polygons: list[list[np.ndarray]], area: int
) -> dict[str, object]:
    """One annotation; polygons as rings (n, 2) of whole coordinates, outer first, then holes."""
    corners = np.concatenate([ring for polygon in polygons for ring in polygon])
    left, top = (int(v) for v in corners.min(0))
    right, bottom = (int(v) for v in corners.max(0))
    return {
        "id": identifier,
        "image_id": image,
        "category_id": category,
        "segmentation": [_with_slits(polygon).reshape(-1).tolist() for polygon in polygons],
        "area": area,
        "bbox": [left, top, right - left, bottom - top],
        "iscrowd": 0,
    }


def _with_slits(polygon: list[np.ndarray]) -> np.ndarray:
    """One ring for an outline with holes: there and back along a line from the outline to each hole."""
    ring = polygon[0]
    for hole in polygon[1:]:
        distance = ((ring[:, None] - hole[None]) ** 2).sum(2)
        at, to = np.unravel_index(int(distance.argmin()), distance.shape)
        around = np.concatenate([hole[to:], hole[: to + 1]])
        ring = np.concatenate([ring[: at + 1], around, ring[at:]])
    return ring
