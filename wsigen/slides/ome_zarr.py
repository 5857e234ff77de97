"""OME-Zarr 0.5: the slide without loss, as a Zarr 3 group of (c, y, x) levels, each the 2 x 2 means of the last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from wsigen.slides.metadata import DIGITAL_SOURCE_TYPE, SlideMetadata
from wsigen.slides.pyramid import halve
from wsigen.slides.row_stream import RowReader, RowsDone, checked_rows
from wsigen.system.zarr_levels import CHUNK, LevelWriter, create_level

SMALLEST_LEVEL = 512
WHITE = 255


def write_ome_zarr(
    path: Path, width: int, height: int, read_rows: RowReader, metadata: SlideMetadata, quality: int, progress: RowsDone
) -> None:
    """Write the group `path`; `quality` has no meaning here."""
    import zarr

    root = zarr.open_group(str(path), mode="w", zarr_format=3)
    levels = [
        create_level(root, str(index), (3, h, w), np.uint8, "cyx", fill=WHITE)
        for index, (w, h) in enumerate(_sizes(width, height))
    ]
    with LevelWriter(levels, halve) as writer:
        for y0 in range(0, height, CHUNK):
            y1 = min(y0 + CHUNK, height)
            writer.add(checked_rows(read_rows, y0, y1, width))
            progress(y1)
    # Written last: a group without them is no image, so a part of one is not taken for a whole.
    root.attrs["ome"] = _metadata(metadata, len(levels))
    root.attrs["wsigen"] = {
        "synthetic": True,
        "digital_source_type": DIGITAL_SOURCE_TYPE,
        "objective_power": metadata.objective_power,
        **dict(metadata.provenance),
    }


def _sizes(width: int, height: int) -> list[tuple[int, int]]:
    sizes = [(width, height)]
    while max(sizes[-1]) > SMALLEST_LEVEL and min(sizes[-1]) > 1:
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    return sizes


def _metadata(metadata: SlideMetadata, levels: int) -> dict[str, Any]:
    datasets = [
        {
            "path": str(index),
            "coordinateTransformations": [{"type": "scale", "scale": [1.0, *([metadata.mpp * 2**index] * 2)]}],
        }
        for index in range(levels)
    ]
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    window = {"start": 0, "end": 255, "min": 0, "max": 255}
    channels = [
        {"label": name, "color": colour, "window": window, "active": True}
        for name, colour in (("red", "FF0000"), ("green", "00FF00"), ("blue", "0000FF"))
    ]
    return {
        "version": "0.5",
        "multiscales": [{"name": "synthetic slide", "axes": axes, "datasets": datasets, "type": "mean"}],
        "omero": {"name": "synthetic slide", "channels": channels, "rdefs": {"model": "color"}},
    }
