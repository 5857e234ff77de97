"""Write a slide mask in bands of rows; the whole mask is never in memory.

A TIFF stores one plane after the other, while each band has all planes. Compressed tiles are therefore kept in
temporary files, one per plane. The mask appears under its name only when it is complete.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import imagecodecs
import numpy as np
import tifffile

from wsigen.errors import MaskError
from wsigen.masks.window import MaskWindow
from wsigen.system.cores import available_cores
from wsigen.system.folders import temporary_beside

TILE = 512
# Offsets in a classic TIFF have 32 bits; the margin is for tags and rounding.
CLASSIC_TIFF_BYTES = 4_000_000_000

RowReader = Callable[[int, int], MaskWindow | None]


def write_slide_mask(
    path: str | os.PathLike[str],
    width: int,
    height: int,
    mpp: float | None,
    bands: Iterable[MaskWindow] | RowReader,
    instances: bool,
    tissue: bool,
    overwrite: bool = False,
) -> None:
    """Write a tiled, deflate-compressed mask TIFF with planes named in OME-XML; BigTIFF where it must be.

    Args:
        path: the file to write; its folder must exist.
        width: width of the slide in px.
        height: height of the slide in px.
        mpp: microns per pixel, or None for a mask without resolution.
        bands: either bands of whole rows from top to bottom, of any height, or a function that returns the rows
            y0 .. y1 - 1 (None for rows of background, id 0 and glass); asked once for each row, from top to bottom.
        instances: whether to write the instance plane; the bands must have it.
        tissue: whether to write the tissue plane; the bands must have it.
        overwrite: replace an existing file.

    Raises:
        MaskError: the file exists or cannot be replaced, its folder does not, or bands do not fit the size or the
            planes.
    """
    path = Path(path)
    if path.is_dir():
        raise MaskError(f"{path}: is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise MaskError(f"{path}: already exists; replace it with --overwrite, or choose another name")
    if not path.parent.is_dir():
        raise MaskError(f"{path}: the folder {path.parent} does not exist; create it first")
    if width < 1 or height < 1:
        raise MaskError(f"{path}: a mask of {width} x {height} pixels cannot be written; give a size of 1 or more")
    dtypes = (
        {"class": np.uint8} | ({"instance": np.uint32} if instances else {}) | ({"tissue": np.uint8} if tissue else {})
    )
    read_rows = bands if callable(bands) else rebuffered(path, bands, height)
    with ExitStack() as stack:
        folder = stack.enter_context(temporary_beside(path, MaskError))
        pool = stack.enter_context(ThreadPoolExecutor(available_cores(8), "wsigen-mask"))
        spools = {
            name: _TileSpool(stack.enter_context(open(folder / name, "w+b")), np.dtype(dtype), width, pool)
            for name, dtype in dtypes.items()
        }
        for y in range(0, height, TILE):
            rows = min(TILE, height - y)
            band = read_rows(y, y + rows)
            _check_band(path, band, width, rows, dtypes)
            for name, spool in spools.items():
                spool.add(None if band is None else _plane_of(band, name), rows)
        _assemble(folder / "mask.tif", spools, width, height, mpp)
        try:
            os.replace(folder / "mask.tif", path)
        except OSError as error:
            raise MaskError(f"{path}: could not be replaced ({error.strerror}); choose another name") from error


def _plane_of(band: MaskWindow, name: str) -> Any:
    return {"class": band.classes, "instance": band.instances, "tissue": band.tissue}[name]


def _check_band(path: Path, band: MaskWindow | None, width: int, rows: int, dtypes: dict[str, Any]) -> None:
    if band is None:
        return
    for name, dtype in dtypes.items():
        plane = _plane_of(band, name)
        if plane is None or plane.shape != (rows, width) or plane.dtype != dtype:
            given = "missing" if plane is None else f"{plane.dtype} {plane.shape}"
            wanted = f"{np.dtype(dtype)} {(rows, width)}"
            raise MaskError(f"{path}: the {name} plane of a band is {given}; it must be {wanted}")


def _deflated(data: Any) -> bytes:
    """Pack as zlib does; zlib-ng takes a tenth of its time for tiles that are mostly background."""
    encode = imagecodecs.zlibng_encode if imagecodecs.ZLIBNG.available else imagecodecs.zlib_encode
    return bytes(encode(data, level=6))


class _TileSpool:
    """Compressed tiles of one plane, in reading order, in a temporary file."""

    def __init__(self, file: IO[bytes], dtype: np.dtype, width: int, pool: ThreadPoolExecutor) -> None:
        self.dtype = dtype
        self._pool = pool
        self.sizes: list[int] = []
        self._file = file
        self._width = width
        self.digest = hashlib.sha256()
        self._empty = _deflated(bytes(TILE * TILE * dtype.itemsize))

    def add(self, plane: np.ndarray | None, rows: int) -> None:
        def packed(x: int) -> bytes:
            if plane is None or not (part := plane[:, x : x + TILE]).max():
                return self._empty
            tile = np.zeros((TILE, TILE), self.dtype.newbyteorder("<"))
            tile[:rows, : part.shape[1]] = part
            return _deflated(tile)

        for data in self._pool.map(packed, range(0, self._width, TILE)):
            self._file.write(data)
            self.digest.update(data)
            self.sizes.append(len(data))

    def tiles(self) -> Iterator[bytes]:
        self._file.seek(0)
        for size in self.sizes:
            yield self._file.read(size)


def _assemble(path: Path, spools: dict[str, _TileSpool], width: int, height: int, mpp: float | None) -> None:
    total = sum(sum(spool.sizes) + 16 * len(spool.sizes) for spool in spools.values())
    # A file's identifier made from its content: equal masks give equal files.
    digest = " ".join([f"{width} {height} {mpp}", *(spool.digest.hexdigest() for spool in spools.values())])
    identity = {"UUID": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, digest)}", "Creator": "wsigen"}
    physical: dict[str, Any] = {}
    if mpp is not None:
        physical = {"PhysicalSizeX": mpp, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": mpp, "PhysicalSizeYUnit": "µm"}
    with tifffile.TiffWriter(path, bigtiff=total > CLASSIC_TIFF_BYTES, byteorder="<", ome=True) as tif:
        for name, spool in spools.items():
            tif.write(
                spool.tiles(),
                shape=(height, width),
                dtype=spool.dtype,
                tile=(TILE, TILE),
                compression="zlib",
                photometric="minisblack",
                resolution=None if mpp is None else (10_000 / mpp, 10_000 / mpp),
                resolutionunit=None if mpp is None else "CENTIMETER",
                metadata={"Name": name, "axes": "YX", **physical, **identity},
            )


def rebuffered(path: Path, bands: Iterable[MaskWindow], height: int) -> Callable[[int, int], MaskWindow]:
    """Serve the rows y0 .. y1 - 1, in order, from bands of any height."""
    source = iter(bands)
    rest: MaskWindow | None = None

    def read_rows(y0: int, y1: int) -> MaskWindow:
        nonlocal rest
        parts: list[MaskWindow] = []
        y = y0
        while y < y1:
            band = rest or next(source, None)
            if band is None:
                raise MaskError(f"{path}: the bands end at row {y} of {height}; give all rows")
            parts.append(band.take(slice(0, y1 - y), slice(None)))
            rest = band.take(slice(y1 - y, None), slice(None)) if band.shape[0] > y1 - y else None
            y += parts[-1].shape[0]
        return parts[0] if len(parts) == 1 else _joined(parts)

    return read_rows


def _joined(bands: list[MaskWindow]) -> MaskWindow:
    def stack(planes: list[np.ndarray | None]) -> np.ndarray | None:
        present = [plane for plane in planes if plane is not None]
        return np.concatenate(present) if len(present) == len(planes) else None

    return MaskWindow(
        np.concatenate([band.classes for band in bands]),
        stack([band.instances for band in bands]),
        stack([band.tissue for band in bands]),
    )
