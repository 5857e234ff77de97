"""Which format a file has, from its first bytes and the first keys of its JSON; never from its name."""

from __future__ import annotations

import gzip
import re
import zipfile
from pathlib import Path

from wsigen.errors import MaskError
from wsigen.masks.importers.sources import LabelSource, OutlineSource, damage_is_one_line, zipped_files
from wsigen.system.reporting import silent
from wsigen.system.text_files import UTF16_MARKS

HEAD_BYTES = 1 << 16
_HDF5 = b"\x89HDF\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_GEOJSON = {"features", "geometry", "coordinates", "geometries"}  # of a collection, a feature, a geometry
KNOWN = (
    "QuPath GeoJSON, HoVer-Net JSON or .mat, CellViT JSON or GeoJSON, TIAToolbox .db, Lizard or CoNSeP .mat, "
    "COCO JSON, ImageScope or ASAP XML, OME-Zarr labels, label TIFF or PNG"
)


def open_source(path: Path, table: Path | None, image: str | None) -> OutlineSource | LabelSource:
    """Recognise `path` and open it; raises `MaskError` for what is none of the known formats, or unsafe."""
    if path.is_dir():
        return _open_folder(path, image)
    head = _head(path)
    if head.startswith(_TIFF) or head.startswith(b"\x89PNG"):
        from wsigen.masks.importers.label_images import LabelImageSource

        return LabelImageSource(path, table, image)
    if head.startswith(b"MATLAB 5.0") or head[126:128] in (b"IM", b"MI"):
        from wsigen.masks.importers.matlab import MatlabSource

        return MatlabSource(path)
    if table is not None:
        raise MaskError(f"{table}: a table goes with a label image; {path} has its classes inside")
    return _open_outlines(path, head, image)


def _open_folder(path: Path, image: str | None) -> LabelSource:
    from wsigen.masks.importers.ome_zarr import OmeZarrSource, is_zarr

    if not is_zarr(path) and not (path / "labels").is_dir():
        raise MaskError(f"{path}: is a folder without OME-Zarr metadata; give a file of: {KNOWN}")
    return OmeZarrSource(path, image)


def _open_outlines(path: Path, head: bytes, image: str | None) -> OutlineSource:
    if head.startswith(b"SQLite format 3\0"):
        from wsigen.masks.importers.tiatoolbox import AnnotationStoreSource

        return AnnotationStoreSource(path)
    text = _text(head)
    if text.startswith("<"):
        return _open_xml(path, head)
    if text[:1] in ("{", "["):
        return _open_json(path, text, image)
    raise _refusal(path, head)


def _text(head: bytes) -> str:
    """First characters of a text file, without a byte-order mark; what is no text gives none that matter."""
    encoding = "utf-16" if head.startswith(UTF16_MARKS) else "utf-8-sig"
    return head.decode(encoding, "replace").lstrip(" \t\r\n")


def _open_xml(path: Path, head: bytes) -> OutlineSource:
    from wsigen.masks.importers.asap import AsapSource
    from wsigen.masks.importers.imagescope import ImageScopeSource
    from wsigen.masks.importers.xml_stream import root_of

    root = root_of(path, head)
    if root in ("Annotations", ""):  # where no element shows, the reader says what is damaged
        return ImageScopeSource(path)
    if root == "ASAP_Annotations":
        return AsapSource(path)
    raise MaskError(f"{path}: is XML of the kind {root[:40]!r}, which is not read; export it as one of: {KNOWN}")


def _open_json(path: Path, text: str, image: str | None) -> OutlineSource:
    from wsigen.masks.importers.coco import CocoSource
    from wsigen.masks.importers.hovernet import CellVitSource, HoverNetSource
    from wsigen.masks.importers.qupath import GeoJsonSource

    if text.startswith("["):
        return GeoJsonSource(path)
    keys = _top_level_keys(path)
    if keys & _GEOJSON or "FeatureCollection" in text[:2000]:
        return GeoJsonSource(path)
    if "annotations" in keys or {"images", "categories"} <= keys:
        return CocoSource(path, image)
    if "nuc" in keys:
        return HoverNetSource(path)
    if "cells" in keys:
        return CellVitSource(path)
    raise MaskError(f"{path}: is JSON with the keys {', '.join(sorted(keys)[:8]) or 'none'}, no known format: {KNOWN}")


def _top_level_keys(path: Path) -> set[str]:
    """Keys of the outermost map, up to one that tells the format."""
    from wsigen.masks.importers.json_stream import JsonStream
    from wsigen.masks.importers.sources import CountedFile

    telling = {*_GEOJSON, "annotations", "nuc", "cells"}
    keys: set[str] = set()
    with (
        damage_is_one_line(path, "JSON"),
        CountedFile(path, silent) as file,
    ):
        stream = JsonStream(file)
        stream.expect("start_map")
        for key in stream.members():
            keys.add(key)
            if key in telling or len(keys) > 1000:
                break
            stream.skip()
    return keys


def _head(path: Path) -> bytes:
    """First bytes of the content, unpacked."""
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except FileNotFoundError:
        raise MaskError(f"{path}: no such file; check its path") from None
    except OSError as error:
        raise MaskError(f"{path}: cannot be opened ({error.strerror}); check its permissions") from None
    if not head:
        raise MaskError(f"{path}: is empty (0 bytes); copy or export it again")
    with damage_is_one_line(path, "a packed file"):
        if head.startswith(b"\x1f\x8b"):
            with gzip.open(path, "rb") as file:
                return file.read(HEAD_BYTES)
        if head.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(path) as archive:
                members = zipped_files(archive)
                if len(members) != 1 or members[0].filename.endswith((".npy", ".pkl")):
                    raise MaskError(f"{path}: is an archive of {len(members)} files; unpack it and give one of them")
                with archive.open(members[0]) as file:
                    return file.read(HEAD_BYTES)
    return head


def _refusal(path: Path, head: bytes) -> MaskError:
    if re.match(rb"\x80[\x02-\x05]|\x78[\x01\x5e\x9c\xda]\x80?", head) or head.startswith(b"ZF"):
        return MaskError(
            f"{path}: is a pickled or joblib file, which can run code when it is opened and is refused; save it from "
            "TIAToolbox as an annotation store (.db) or GeoJSON"
        )
    if head.startswith(_HDF5):
        return MaskError(f"{path}: is HDF5 (MATLAB 7.3?); save it from MATLAB with -v7")
    if head.startswith(b"\x93NUMPY"):
        return MaskError(f"{path}: is a NumPy array; `wsigen data prepare` reads data sets of patches")
    if path.suffix.lower() == ".snappy":
        return MaskError(f"{path}: is packed with snappy; unpack it first (python -m snappy -d)")
    return MaskError(f"{path}: is none of the known formats ({KNOWN}); it begins with {head[:8]!r}")
