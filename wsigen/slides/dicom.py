"""DICOM whole-slide instances, through wsidicomizer, marked as synthetic so that no archive takes them for a patient.

SyntheticData is YES, the image type DERIVED, the patient SYNTHETIC^WSIGEN. Identifiers follow from the slide's
provenance, so exporting it again gives the same ones; so do dates, which are the epoch's.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wsigen.errors import SlideError
from wsigen.slides.metadata import SYNTHETIC_PATIENT, SlideMetadata
from wsigen.slides.row_stream import RowReader, RowsDone
from wsigen.slides.svs import write_svs

_DATE, _TIME = "19700101", "000000"
MAX_LONG_STRING, MAX_SHORT_TEXT = 64, 1024
COPIED_AT_ONCE = 1 << 22


def write_dicom(
    path: Path,
    width: int,
    height: int,
    read_rows: RowReader,
    metadata: SlideMetadata,
    quality: int,
    progress: RowsDone,
    patient_id: str = "",
) -> None:
    """Write one .dcm file a level and a picture into the new folder `path`; patient_id: default from the provenance."""
    require_wsidicomizer()
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        slide = Path(folder) / "slide.svs"
        write_svs(slide, width, height, read_rows, metadata, quality, progress)
        convert(slide, path, metadata, patient_id)


def convert(slide: Path, path: Path, metadata: SlideMetadata, patient_id: str = "") -> None:
    """Turn an .svs that wsigen wrote into DICOM; its JPEG tiles are taken over where libjpeg-turbo is installed."""
    require_wsidicomizer()
    from wsidicomizer import WsiDicomizer
    from wsidicomizer.wsidicomizer import SourceIdentifier

    key = run_key(metadata)
    _check_patient_id(patient_id)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        WsiDicomizer.convert(
            slide,
            folder,
            tile_size=256,
            workers=1,  # identifiers are given out in order
            uid_generator=_identifiers(key),
            preferred_source=None if _takes_tiles_over() else SourceIdentifier.OPENSLIDE,
        )
        path.mkdir()
        for file in Path(folder).glob("*.dcm"):
            _write_marked(file, path, metadata, patient_id or f"WSIGEN-{key[:12]}", key)


def require_wsidicomizer() -> None:
    """Raise the line that says how to install what DICOM needs, where it is missing."""
    try:
        import wsidicomizer  # noqa: F401
    except ImportError as error:
        raise SlideError(f'DICOM needs wsidicomizer ({error}); install it with pip install "wsigen[dicom]"') from None


def run_key(metadata: SlideMetadata) -> str:
    """Hash of what painted the slide."""
    facts = [metadata.mpp, metadata.objective_power, sorted(metadata.provenance.items())]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _takes_tiles_over() -> bool:
    try:
        from turbojpeg import TurboJPEG

        TurboJPEG()
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def _check_patient_id(patient_id: str) -> None:
    if len(patient_id) > MAX_LONG_STRING or "\\" in patient_id or not patient_id.isprintable():
        raise SlideError(
            f"patient id {patient_id!r}: must be up to {MAX_LONG_STRING} printable characters without '\\'"
        )


def _identifier(key: str, what: str) -> Any:
    """UID 2.25.N of one thing of a run."""
    from pydicom.uid import UID

    return UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_URL, f'wsigen:{key}:{what}').int}")


def _identifiers(key: str) -> Callable[[], Any]:
    """UIDs made from the run's hash and a counter."""
    count = itertools.count()
    return lambda: _identifier(key, str(next(count)))


def _write_marked(file: Path, folder: Path, metadata: SlideMetadata, patient_id: str, key: str) -> None:
    """Copy an instance with its marks; the pixels are copied as they are, without being held."""
    import pydicom

    with open(file, "rb") as source:
        dataset = pydicom.dcmread(source, stop_before_pixels=True)
        _mark(dataset, metadata, patient_id, key)
        with open(folder / f"{dataset.SOPInstanceUID}.dcm", "wb") as target:
            pydicom.dcmwrite(target, dataset)
            shutil.copyfileobj(source, target, COPIED_AT_ONCE)
    file.unlink()


def _mark(dataset: Any, metadata: SlideMetadata, patient_id: str, key: str) -> None:
    provenance = ", ".join(f"{name} {value}" for name, value in metadata.provenance.items())
    dataset.SyntheticData = "YES"
    dataset.ImageType = ["DERIVED", *dataset.ImageType[1:]]
    for group in dataset.get("SharedFunctionalGroupsSequence", []):
        for frame in group.get("WholeSlideMicroscopyImageFrameTypeSequence", []):
            frame.FrameType = list(dataset.ImageType)
    kind = f"{dataset.ImageType[2]} {dataset.TotalPixelMatrixColumns} x {dataset.TotalPixelMatrixRows}"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = _identifier(key, kind)
    dataset.PatientName, dataset.PatientID = SYNTHETIC_PATIENT, patient_id
    dataset.Manufacturer, dataset.ManufacturerModelName = "wsigen", "synthetic slide"
    dataset.SoftwareVersions = metadata.provenance.get("version", "unknown")[:MAX_LONG_STRING]
    dataset.DeviceSerialNumber = dataset.ContainerIdentifier = key[:16]
    dataset.SeriesDescription = "synthetic, painted by wsigen"
    dataset.DerivationDescription = f"painted by a generative model: {provenance}"[:MAX_SHORT_TEXT]
    dataset.ContentDate, dataset.ContentTime = _DATE, _TIME
