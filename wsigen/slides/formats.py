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
from importlib import import_module
from pathlib import Path
from typing import Any

import pyvips

from wsigen.errors import SlideError
from wsigen.slides.info import SlideInfo
from wsigen.slides.metadata import SlideMetadata
from wsigen.slides.reading import opened_slide
from wsigen.slides.row_stream import RowReader, RowsDone
from wsigen.slides.svs import PanelReader, check_settings, last_line
from wsigen.system.folders import is_dropping
from wsigen.system.reporting import Reporter, silent


def _nothing(path: Path) -> tuple[Path, ...]:
    return ()


def _tiles(path: Path) -> tuple[Path, ...]:
    return (path.with_name(path.stem + "_files"),)


def _is_zarr(folder: Path) -> bool:
    return (folder / "zarr.json").is_file()


def _is_dicom(folder: Path) -> bool:
    return all(path.suffix == ".dcm" or is_dropping(path.name) for path in folder.iterdir())


@dataclass(frozen=True)
class SlideFormat:
    """One format: all that the rest of wsigen asks of it.

    Attributes:
        name: what the command line calls it.
        ending: the ending of its paths.
        title: what it is, for people.
        writer: "module:function" that writes rows to a new path, imported when the first slide is written; see
            `wsigen.slides.pyramids`. It takes ``patient_id`` too where ``for_patients``.
        lossless: whether pixels are kept as they are.
        owns: of a format that is a folder: whether a folder holds a slide in this format, and nothing else.
        companions: paths that are written beside a path of this format.
        any_name: whether its paths may have any ending.
        for_patients: whether it holds the identifier of a patient.
        panels: "module:function" that takes panels from several threads, for large slides.
        copies: vendor, as OpenSlide calls it, and "module:function" that makes this format of such a slide's file
            without encoding it anew.
        needs: "module:function" that raises SlideError where a library is missing.
    """

    name: str
    ending: str
    title: str
    writer: str
    lossless: bool = False
    owns: Callable[[Path], bool] | None = None
    companions: Callable[[Path], tuple[Path, ...]] = _nothing
    any_name: bool = False
    for_patients: bool = False
    panels: str = ""
    copies: tuple[str, str] = ("", "")
    needs: str = ""

    @property
    def is_folder(self) -> bool:
        """Whether a slide is a folder."""
        return self.owns is not None

    def require(self) -> None:
        """Raise SlideError where a library is missing."""
        if self.needs:
            _function(self.needs)()

    def write(
        self,
        path: Path,
        width: int,
        height: int,
        read_rows: RowReader,
        metadata: SlideMetadata,
        jpeg_quality: int,
        progress: RowsDone,
        patient_id: str = "",
    ) -> None:
        """Write a slide to a path that does not exist yet; the arguments are those of `write_svs`."""
        write = _function(self.writer)
        more = {"patient_id": patient_id} if self.for_patients else {}
        write(path, width, height, read_rows, metadata, jpeg_quality, progress, **more)

    def write_panels(self, path: Path, width: int, height: int, read_panel: PanelReader, **options: Any) -> None:
        """Write a slide from panels, where ``panels`` says how; the arguments are those of `write_svs_panels`."""
        _function(self.panels)(path, width, height, read_panel, **options)


def _function(place: str) -> Callable[..., Any]:
    """The function that stands at "module:function"."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


FORMATS = {
    entry.name: entry
    for entry in (
        SlideFormat(
            "svs",
            ".svs",
            "Aperio-style BigTIFF, for every slide viewer",
            writer="wsigen.slides.svs:write_svs",
            panels="wsigen.slides.svs:write_svs_panels",
        ),
        SlideFormat(
            "ome.tiff",
            ".ome.tiff",
            "OME-TIFF with sub-resolutions, for QuPath, OMERO and Bio-Formats",
            writer="wsigen.slides.pyramids:write_ome_tiff",
        ),
        SlideFormat("tiff", ".tiff", "plain tiled pyramid", writer="wsigen.slides.pyramids:write_tiff"),
        SlideFormat(
            "dzi",
            ".dzi",
            "Deep Zoom, for web viewers",
            writer="wsigen.slides.pyramids:write_dzi",
            companions=_tiles,
        ),
        SlideFormat(
            "ome.zarr",
            ".ome.zarr",
            "OME-Zarr 0.5, without loss",
            writer="wsigen.slides.ome_zarr:write_ome_zarr",
            lossless=True,
            owns=_is_zarr,
        ),
        SlideFormat(
            "dicom",
            ".dicom",
            "folder of DICOM instances, for archives",
            writer="wsigen.slides.dicom:write_dicom",
            owns=_is_dicom,
            any_name=True,
            for_patients=True,
            copies=("aperio", "wsigen.slides.dicom:convert"),
            needs="wsigen.slides.dicom:require_wsidicomizer",
        ),
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
    if not FORMATS[name].any_name and (not by_ending or by_ending[0].name != name):
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
    check_settings(target, width, height, jpeg_quality)
    check_target(target, format, overwrite)
    _appearing(
        target,
        format,
        lambda partial: format.write(partial, width, height, read_rows, metadata, jpeg_quality, report, patient_id),
    )


def check_target(target: Path, format: SlideFormat, overwrite: bool) -> None:
    """Refuse a target that is in the way; with `overwrite` too where it is a folder of something else."""
    if not target.parent.is_dir():
        raise SlideError(f"{target}: the folder {target.parent} does not exist; make it first")
    for path in (target, *format.companions(target)):
        if not path.exists():
            continue
        if not overwrite:
            raise SlideError(f"{path}: exists already; replace it with --overwrite, or choose another name")
        if path == target and path.is_dir() != format.is_folder:
            raise SlideError(f"{path}: is in the way; choose another name")
        if path == target and path.is_dir() and format.owns is not None and not format.owns(path):
            raise SlideError(f"{path}: holds something else than a slide in this format; choose another name")


def _appearing(target: Path, format: SlideFormat, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside the target, then move what it made into place, the slide itself last."""
    try:
        folder = tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise SlideError(f"{target}: cannot write to folder {target.parent} ({error.strerror})") from error
    with folder as name:
        partial = Path(name) / target.name
        try:
            write(partial)
            for made, place in zip(
                (*format.companions(partial), partial), (*format.companions(target), target), strict=True
            ):
                if made.exists():
                    if place.is_dir():
                        shutil.rmtree(place)
                    os.replace(made, place)
        except SlideError as error:
            if str(partial) not in str(error):
                raise
            raise SlideError(str(error).replace(str(partial), str(target))) from error
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
        vendor, copier = chosen.copies
        if copier and facts.vendor == vendor:
            check_target(target, chosen, overwrite)
            _appearing(target, chosen, lambda partial: _function(copier)(source, partial, metadata, patient_id))
            progress("encoding", facts.height, facts.height)
        else:
            write_slide(
                target, facts.width, facts.height, read_rows, metadata, chosen, jpeg_quality,
                lambda rows: progress("encoding", rows, facts.height), overwrite, patient_id,
            )  # fmt: skip
    return replace(facts, path=target)
