"""OME-Zarr 0.5: the slide without loss, as a Zarr 3 group of (c, y, x) levels, each the 2 x 2 means of the last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from wsigen.slides.metadata import DIGITAL_SOURCE_TYPE, SlideMetadata
from wsigen.slides.row_stream import Progress, RowReader, checked_rows

CHUNK = 512
SMALLEST_LEVEL = 512
BLOCK_CHUNKS = 8  # chunks side by side in a block of the smaller level


def write_ome_zarr(
    path: Path, width: int, height: int, read_rows: RowReader, metadata: SlideMetadata, quality: int, progress: Progress
) -> None:
    """Write the group `path`; `quality` has no meaning here."""
    import zarr

    root = zarr.open_group(str(path), mode="w", zarr_format=3)
    levels = [
        root.create_array(
            str(index),
            shape=(3, h, w),
            chunks=(3, CHUNK, CHUNK),
            dtype="uint8",
            dimension_names=["c", "y", "x"],
            fill_value=0,
        )
        for index, (w, h) in enumerate(_sizes(width, height))
    ]
    for y0 in range(0, height, CHUNK):
        y1 = min(y0 + CHUNK, height)
        levels[0][:, y0:y1] = checked_rows(read_rows, y0, y1, width).transpose(2, 0, 1)
        progress(y1)
    for index in range(1, len(levels)):
        _shrink(levels[index - 1], levels[index])
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


def _shrink(larger: Any, smaller: Any) -> None:
    """Means of 2 x 2, halves rounded up, in blocks of whole chunks."""
    _, height, width = smaller.shape
    for y in range(0, height, CHUNK):
        for x in range(0, width, BLOCK_CHUNKS * CHUNK):
            bottom, right = min(y + CHUNK, height), min(x + BLOCK_CHUNKS * CHUNK, width)
            block = larger[:, 2 * y : 2 * bottom, 2 * x : 2 * right].astype(np.uint16)
            sums = block[:, 0::2, 0::2] + block[:, 1::2, 0::2] + block[:, 0::2, 1::2] + block[:, 1::2, 1::2]
            smaller[:, y:bottom, x:right] = ((sums + 2) // 4).astype(np.uint8)


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
