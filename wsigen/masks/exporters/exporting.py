"""Trace the nuclei of a mask, hand them to the writer of a format, and put the result in place when it is whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from wsigen.errors import MaskError
from wsigen.masks.classes import ClassTable, NucleusClass
from wsigen.masks.exporters.nuclei import Runs, finished_nuclei, finished_tissue
from wsigen.masks.outline import trace_runs
from wsigen.masks.slide_mask import MaskSource, SlideMask

# name -> ending of its files. The folder of OME-Zarr labels is written by a module of its own.
FORMATS = {"geojson": ".geojson", "db": ".db", "coco": ".json", "ome.zarr": ".ome.zarr"}


@dataclass(frozen=True)
class Nucleus:
    """One nucleus: its id in the mask, its class, and its polygons as rings (n, 2) int64 along pixel edges, in px."""

    identifier: int
    kind: NucleusClass
    polygons: list[list[np.ndarray]]
    area: int


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote."""

    out: Path
    nuclei: int
    regions: int


class OutlineWriter(ABC):
    """Writes nuclei and tissue regions to a file; a context manager that completes the file."""

    def __init__(self, path: Path, mask: MaskSource, classes: ClassTable) -> None:
        self.path, self.mask, self.classes = path, mask, classes

    @abstractmethod
    def add(self, nuclei: list[Nucleus]) -> None:
        """Write some nuclei."""

    @abstractmethod
    def add_regions(self, polygons: list[list[np.ndarray]]) -> None:
        """Write tissue regions, where the format has a place for them."""

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def export_mask(
    mask: str | os.PathLike[str],
    out: str | os.PathLike[str],
    classes: ClassTable,
    format: str | None = None,
    overwrite: bool = False,
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> ExportReport:
    """Write the nuclei of a slide mask to `out`, a file or (OME-Zarr) a folder; it appears there when it is whole.

    format: one of `FORMATS`; None: by the ending of `out`. progress(what, share) is called now and then.

    Raises `MaskError` for an ending or format that is not known, an existing target without `overwrite`, or a bad mask.
    """
    target = Path(out)
    name = format or format_of(target)
    if name not in FORMATS:
        raise MaskError(f"{target}: format {name!r} is not known; there are {', '.join(FORMATS)}")
    _check_target(target, overwrite)
    with (
        SlideMask.open(mask, len(classes)) as opened,
        tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder,
    ):
        partial = Path(folder) / target.name
        if name == "ome.zarr":
            from wsigen.masks.exporters.ome_zarr import write_label_zarr

            nuclei, regions = write_label_zarr(partial, opened, classes, progress), 0
        else:
            nuclei, regions = _write_outlines(name, partial, opened, classes, progress)
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(partial, target)
    return ExportReport(target, nuclei, regions)


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
    name: str, path: Path, mask: MaskSource, classes: ClassTable, progress: Callable[[str, float], None]
) -> tuple[int, int]:
    count = regions = 0
    with _writer(name)(path, mask, classes) as writer:
        for runs in finished_nuclei(mask, lambda share: progress("tracing", share)):
            nuclei = list(traced(runs, classes))
            writer.add(nuclei)
            count += len(nuclei)
        if mask.has_tissue:
            for runs in finished_tissue(mask):
                polygons = [polygon for _, pieces in _polygons(runs) for polygon in pieces]
                writer.add_regions(polygons)
                regions += len(polygons)
    return count, regions


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
