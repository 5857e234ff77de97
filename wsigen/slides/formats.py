"""The formats a slide is written in, by name, and the export of a slide that exists.

A format writes to a path of its own: a file, or a folder (OME-Zarr, DICOM), or both (Deep Zoom: NAME.dzi with
NAME_files/). Nothing appears there before it is whole.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pyvips

from wsigen.errors import SlideError
from wsigen.slides.info import SlideInfo
from wsigen.slides.metadata import SlideMetadata
from wsigen.slides.reading import opened_slide
from wsigen.slides.row_stream import RowReader, RowsDone
from wsigen.slides.svs import check_settings, last_line, write_svs
from wsigen.system.folders import is_dropping
from wsigen.system.reporting import Reporter, silent


@dataclass(frozen=True)
class SlideFormat:
    """One format: its name, the ending of its paths (a DICOM folder has none of its own), and what it is for people."""

    name: str
    ending: str
    title: str
    lossless: bool = False


FORMATS = {
    entry.name: entry
    for entry in (
        SlideFormat("svs", ".svs", "Aperio-style BigTIFF, for every slide viewer"),
        SlideFormat("ome.tiff", ".ome.tiff", "OME-TIFF with sub-resolutions, for QuPath, OMERO and Bio-Formats"),
        SlideFormat("tiff", ".tiff", "plain tiled pyramid"),
        SlideFormat("dzi", ".dzi", "Deep Zoom, for web viewers"),
        SlideFormat("ome.zarr", ".ome.zarr", "OME-Zarr 0.5, without loss", lossless=True),
        SlideFormat("dicom", ".dicom", "folder of DICOM instances, for archives"),
    )
}


def format_of(path: Path, name: str | None = None) -> SlideFormat:
    """The format `name`, else that of the ending of `path`; SlideError where there is none, or they contradict."""
    if name is not None and name not in FORMATS:
        raise SlideError(f"format {name!r} is not known; there are {', '.join(FORMATS)}")
    by_ending = [entry for entry in FORMATS.values() if path.name.lower().endswith(entry.ending)]
    by_ending.sort(key=lambda entry: -len(entry.ending))
    if name is None:
        if not by_ending:
            endings = ", ".join(entry.ending for entry in FORMATS.values())
            raise SlideError(f"{path}: its ending stands for no format; name it with one of {endings}")
        return by_ending[0]
    if name != "dicom" and (not by_ending or by_ending[0].name != name):
        raise SlideError(f"{path}: format {name} is written as {FORMATS[name].ending}; name it so")
    return FORMATS[name]


def stem_of(slide: str | os.PathLike[str]) -> str:
    """Name of a slide without the ending of its format: what the names of all that lies beside it begin with."""
    name = Path(slide).name
    endings = [entry.ending for entry in FORMATS.values() if name.lower().endswith(entry.ending)]
    return name[: -max(map(len, endings))] if endings else name


def write_slide(
    path: str | os.PathLike[str],
    width: int,
    height: int,
    read_rows: RowReader,
    metadata: SlideMetadata,
    format: SlideFormat,
    jpeg_quality: int = 90,
    progress: RowsDone | None = None,
    overwrite: bool = False,
    patient_id: str = "",
) -> None:
    """Write a slide in any format; the arguments are those of `write_svs`. patient_id: for DICOM only.

    Raises SlideError for a bad argument, an existing target without `overwrite`, a full disk, or a library that is
    missing. What `read_rows` or `progress` raises comes out as itself.
    """
    target = Path(path)
    report: RowsDone = progress if progress is not None else lambda rows: None
    if format.name == "svs":
        write_svs(target, width, height, read_rows, metadata, jpeg_quality, report, overwrite)
        return
    check_settings(target, width, height, jpeg_quality)
    check_target(target, format, overwrite)
    write = _writer(format.name, patient_id)
    _appearing(target, lambda partial: write(partial, width, height, read_rows, metadata, jpeg_quality, report))


def _writer(name: str, patient_id: str) -> Callable[..., None]:
    if name == "dicom":
        from functools import partial

        from wsigen.slides.dicom import write_dicom

        return partial(write_dicom, patient_id=patient_id)
    if name == "ome.zarr":
        from wsigen.slides.ome_zarr import write_ome_zarr

        return write_ome_zarr
    from wsigen.slides.pyramids import write_dzi, write_ome_tiff, write_tiff

    return {"tiff": write_tiff, "ome.tiff": write_ome_tiff, "dzi": write_dzi}[name]


def check_target(target: Path, format: SlideFormat, overwrite: bool) -> None:
    """Refuse a target that is in the way; with `overwrite` too where it is a folder of something else."""
    if not target.parent.is_dir():
        raise SlideError(f"{target}: the folder {target.parent} does not exist; make it first")
    for path in (target, _tiles_of(target)):
        if not path.exists():
            continue
        if not overwrite:
            raise SlideError(f"{path}: exists already; replace it with --overwrite, or choose another name")
        if path == target and path.is_dir() != (format.name in ("ome.zarr", "dicom")):
            raise SlideError(f"{path}: is in the way; choose another name")
        if path == target and path.is_dir() and not _is_ours(path, format):
            raise SlideError(f"{path}: holds something else than a slide in this format; choose another name")


def _is_ours(folder: Path, format: SlideFormat) -> bool:
    if format.name == "ome.zarr":
        return (folder / "zarr.json").is_file()
    return all(path.suffix == ".dcm" or is_dropping(path.name) for path in folder.iterdir())


def _tiles_of(target: Path) -> Path:
    """The folder of tiles beside a .dzi file; for other formats the target itself."""
    return target.with_name(target.stem + "_files") if target.suffix == ".dzi" else target


def _appearing(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside the target, then move what it made into place, tiles before the file."""
    try:
        folder = tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise SlideError(f"{target}: cannot write to folder {target.parent} ({error.strerror})") from error
    with folder as name:
        partial = Path(name) / target.name
        try:
            write(partial)
            for made, place in ((_tiles_of(partial), _tiles_of(target)), (partial, target)):
                if made.exists():
                    if place.is_dir():
                        shutil.rmtree(place)
                    os.replace(made, place)
        except (pyvips.Error, OSError) as error:
            raise SlideError(f"{target}: could not be written ({last_line(error)}); is the disk full?") from error


def export_slide(
    slide: str | os.PathLike[str],
    out: str | os.PathLike[str],
    format: str | None = None,
    jpeg_quality: int = 90,
    overwrite: bool = False,
    progress: Reporter = silent,
    patient_id: str = "",
) -> SlideInfo:
    """Write a slide that wsigen painted, in any of its formats, in another; returns what the slide is.

    Its JPEG is decoded and encoded anew (except to OME-Zarr, which keeps what was decoded, and to DICOM from .svs where
    libjpeg-turbo is installed). Rows done are reported.

    Raises SlideError for a slide that is not marked as painted by wsigen: every format we write says that it is
    synthetic, and a patient's slide is not.
    """
    source, target = Path(slide), Path(out)
    chosen = format_of(target, format)
    with opened_slide(source) as (facts, read_rows):
        if not facts.synthetic or facts.mpp is None:
            raise SlideError(
                f"{source}: is not marked as painted by wsigen; only synthetic slides are exported, marked so"
            )
        metadata = SlideMetadata(facts.mpp, facts.objective_power or 10 / facts.mpp, dict(facts.provenance))
        if chosen.name == "dicom" and facts.vendor == "aperio":
            from wsigen.slides.dicom import convert

            check_target(target, chosen, overwrite)
            _appearing(target, lambda partial: convert(source, partial, metadata, patient_id))
            progress("encoding", facts.height, facts.height)
        else:
            write_slide(
                target, facts.width, facts.height, read_rows, metadata, chosen, jpeg_quality,
                lambda rows: progress("encoding", rows, facts.height), overwrite, patient_id,
            )  # fmt: skip
    return replace(facts, path=target)
