"""OME-Zarr 0.5 labels: `classes` with names and colours, `nuclei` with ids, `tissue`; pyramids by nearest pixel.

The folder is a group `labels`, which may stand beside any OME-Zarr image of the same size, or in it.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from wsigen.masks.classes import ClassTable
from wsigen.masks.source import MaskSource
from wsigen.masks.summary import NucleusCount
from wsigen.masks.window import MaskWindow
from wsigen.system.reporting import Reporter
from wsigen.system.zarr_levels import CHUNK, LevelWriter, create_level

SMALLEST_LEVEL = 1024


def write_label_zarr(path: Path, mask: MaskSource, classes: ClassTable, progress: Reporter) -> int:
    """Write the planes of a mask as label images into the new folder `path`; returns the number of nuclei."""
    import zarr

    root = zarr.open_group(str(path), mode="w", zarr_format=3)
    names = {"class": "classes"}
    names |= {"instance": "nuclei"} if mask.has_instances else {}
    names |= {"tissue": "tissue"} if mask.has_tissue else {}
    labels = root.create_group("labels")
    labels.attrs["ome"] = {"version": "0.5", "labels": list(names.values())}
    properties = {"class": [{"label-value": e.index, "class": e.name} for e in classes]}
    properties["tissue"] = [{"label-value": 1, "class": "tissue"}, {"label-value": 255, "class": "unknown"}]
    colours = {"class": [{"label-value": e.index, "rgba": [*e.rgb, 255]} for e in classes]}
    count = NucleusCount(mask.class_count)
    with ExitStack() as stack:
        writers = {}
        for plane, name in names.items():
            dtype = np.uint32 if plane == "instance" else np.uint8
            levels = _pyramid(labels, name, mask, dtype, properties.get(plane), colours.get(plane))
            writers[plane] = stack.enter_context(LevelWriter(levels, _every_second))
        for y in range(0, mask.height, CHUNK):
            rows = min(CHUNK, mask.height - y)
            window = mask.read(0, y, mask.width, rows)
            count.add(window)
            for plane, writer in writers.items():
                writer.add(_plane(window, plane))
            progress("writing labels", (y + rows) / mask.height)
    return sum(count.counts())


def _plane(window: MaskWindow, name: str) -> np.ndarray:
    plane = {"class": window.classes, "instance": window.instances, "tissue": window.tissue}[name]
    assert plane is not None
    return plane


def _pyramid(
    labels: Any, name: str, mask: MaskSource, dtype: Any, properties: Any | None, colours: Any | None
) -> list[Any]:
    """Create the group of a label image and its arrays, largest first."""
    group = labels.create_group(name)
    arrays: list[Any] = []
    datasets = []
    width, height, step = mask.width, mask.height, 1
    while True:
        path = str(len(arrays))
        array = create_level(group, path, (height, width), dtype, "yx", fill=0)
        arrays.append(array)
        scale = [step * (mask.mpp or 1.0)] * 2
        datasets.append({"path": path, "coordinateTransformations": [{"type": "scale", "scale": scale}]})
        if max(width, height) <= SMALLEST_LEVEL or min(width, height) == 1:
            break
        width, height, step = width // 2, height // 2, 2 * step
    unit = {"unit": "micrometer"} if mask.mpp else {}
    axes = [{"name": axis, "type": "space", **unit} for axis in "yx"]
    label: dict[str, Any] = {"source": {"image": "../../"}}
    label |= {"properties": properties} if properties else {}
    label |= {"colors": colours} if colours else {}
    scales = [{"name": name, "axes": axes, "datasets": datasets, "type": "nearest"}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": scales, "image-label": label}
    return arrays


def _every_second(rows: np.ndarray) -> np.ndarray:
    """Nearest pixels of the next level; a copy, so that the rows themselves can go."""
    height, width = rows.shape
    return rows[: height // 2 * 2 : 2, : width // 2 * 2 : 2].copy()
