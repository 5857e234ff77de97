"""Trace the nuclei of a mask, write them in a format, and move the result to its place when it is complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from wsigen.errors import MaskError
from wsigen.masks.classes import ClassTable
from wsigen.masks.exporters.nuclei import Runs, finished_nuclei, finished_tissue
from wsigen.masks.exporters.writing import Nucleus, OutlineWriter
from wsigen.masks.origin import Origin
from wsigen.masks.outline import trace_runs
from wsigen.masks.slide_mask import SlideMask
from wsigen.masks.source import MaskSource
from wsigen.system.folders import temporary_beside
from wsigen.system.reporting import Reporter, silent

# name -> ending of its files. The folder of OME-Zarr labels is written by a module of its own.
# These hold outlines by themselves, so they may count from a slide's bounds; the others describe the whole picture.
COUNTED_FROM_BOUNDS = {"geojson": True, "db": False}  # name -> whether its readers count so
FORMATS = {"geojson": ".geojson", "db": ".db", "coco": ".json", "ome.zarr": ".ome.zarr"}


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        out: file or folder of the nuclei.
        nuclei: number of nuclei.
        regions: number of tissue regions.
        offset: corner of the slide's bounds, if coordinates count from there; else (0, 0).
    """

    out: Path
    nuclei: int
    regions: int
    offset: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Target:
    """The slide that nuclei are exported for.

    Attributes:
        path: the slide.
        size: width and height in px.
        bounds: corner of the slide's bounds in px; None if it states no bounds.
    """

    path: Path
    size: tuple[int, int]
    bounds: tuple[int, int] | None


def export_mask(
    mask: str | os.PathLike[str],
    out: str | os.PathLike[str],
    classes: ClassTable,
    format: str | None = None,
    overwrite: bool = False,
    progress: Reporter = silent,
    slide: Target | None = None,
    origin: Origin = Origin.AUTO,
) -> ExportReport:
    """Write the nuclei of a slide mask for another tool. The file appears under its name when it is complete.

    Args:
        mask: the slide mask.
        out: the file to write, or the folder for OME-Zarr.
        classes: names and colours of the classes, such as ``ModelConfig.classes``.
        format: one of `wsigen.choices.LABEL_FORMATS`. None: by the ending of ``out``.
        overwrite: replace an existing file.
        progress: called with what is being done and the share of it that is done, 0 to 1.
        slide: the slide that the nuclei will be shown on; QuPath counts from the corner of its bounds.
        origin: the corner that outlines are counted from.

    Raises:
        MaskError: the format is unknown, ``out`` exists already, or the mask cannot be read or has another size than
            the slide.
    """
    target = Path(out)
    name = format or format_of(target)
    if name not in FORMATS:
        raise MaskError(f"{target}: format {name!r} is not known; there are {', '.join(FORMATS)}")
    _check_target(target, overwrite)
    offset = _offset(target, name, slide, origin)
    with SlideMask.open(mask, len(classes)) as opened, temporary_beside(target, MaskError) as folder:
        if slide is not None and (opened.width, opened.height) != slide.size:
            sizes = f"{opened.width} x {opened.height} px, {slide.path} {slide.size[0]} x {slide.size[1]}"
            raise MaskError(f"{opened.path}: is {sizes}; give the slide of this mask")
        partial = folder / target.name
        if name == "ome.zarr":
            from wsigen.masks.exporters.ome_zarr import write_label_zarr

            nuclei, regions = write_label_zarr(partial, opened, classes, progress), 0
        else:
            nuclei, regions = _write_outlines(name, partial, opened, classes, progress, offset)
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(partial, target)
    return ExportReport(target, nuclei, regions, offset)


def _offset(target: Path, name: str, slide: Target | None, origin: Origin) -> tuple[int, int]:
    """The corner of the slide that coordinates of a format count from."""
    if origin is Origin.BOUNDS and name not in COUNTED_FROM_BOUNDS:
        raise MaskError(
            f"{target}: origin bounds is for {', '.join(COUNTED_FROM_BOUNDS)}; {name} is of the whole slide"
        )
    if origin is Origin.BOUNDS and (slide is None or slide.bounds is None):
        raise MaskError(f"{target}: origin bounds needs a slide that states its bounds; name one with --like")
    return origin.offset(None if slide is None else slide.bounds, COUNTED_FROM_BOUNDS.get(name, False))


def format_of(path: Path) -> str:
    """The format that an ending stands for; raises `MaskError` where it stands for none."""
    for name, ending in FORMATS.items():
        if path.name.lower().endswith(ending):
            return name
    endings = ", ".join(FORMATS.values())
    raise MaskError(f"{path}: its ending stands for no format; name it with one of {endings}, or give --format")


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.parent.is_dir():
        raise MaskError(f"{target}: the folder {target.parent} does not exist; create it first")
    if not target.exists():
        return
    if not overwrite:
        raise MaskError(f"{target}: already exists; replace it with --overwrite, or choose another name")
    if target.is_dir() and not (target / "zarr.json").is_file():
        raise MaskError(f"{target}: is a folder that no export wrote; choose another name")


def _write_outlines(
    name: str,
    path: Path,
    mask: MaskSource,
    classes: ClassTable,
    progress: Reporter,
    offset: tuple[int, int],
) -> tuple[int, int]:
    count = regions = 0
    with _writer(name)(path, mask, classes) as writer:
        for runs in finished_nuclei(mask, progress):
            nuclei = [_moved(nucleus, offset) for nucleus in traced(runs, classes)]
            writer.add(nuclei)
            count += len(nuclei)
        if mask.has_tissue:
            for runs in finished_tissue(mask):
                polygons = [[ring - offset for ring in polygon] for _, pieces in _polygons(runs) for polygon in pieces]
                writer.add_regions(polygons)
                regions += len(polygons)
    return count, regions


def _moved(nucleus: Nucleus, offset: tuple[int, int]) -> Nucleus:
    """A nucleus as it is counted from another corner."""
    if offset == (0, 0):
        return nucleus
    return replace(nucleus, polygons=[[ring - offset for ring in polygon] for polygon in nucleus.polygons])


def traced(runs: Runs, classes: ClassTable) -> Iterator[Nucleus]:
    """Nuclei of whole runs, in the order of their ids."""
    order = np.argsort(runs.owner, kind="stable")
    owner = runs.owner[order]
    first = np.nonzero(np.diff(owner, prepend=-1))[0]
    area = np.add.reduceat((runs.right - runs.left)[order], first) if len(first) else first
    value = runs.value[order][first]
    table = tuple(classes)
    for (identifier, polygons), pixels, kind in zip(_polygons(runs), area.tolist(), value.tolist()):
        yield Nucleus(identifier, table[kind - 1], polygons, pixels)


def _polygons(runs: Runs) -> Iterator[tuple[int, list[list[np.ndarray]]]]:
    return trace_runs(runs.owner, runs.row, runs.left, runs.right).polygons()


def _writer(name: str) -> type[OutlineWriter]:
    from wsigen.masks.exporters.coco import CocoWriter
    from wsigen.masks.exporters.qupath import QuPathWriter
    from wsigen.masks.exporters.tiatoolbox import AnnotationStoreWriter

    return {"geojson": QuPathWriter, "db": AnnotationStoreWriter, "coco": CocoWriter}[name]
