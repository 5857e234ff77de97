"""Which format a file has, from its first bytes and the first keys of its JSON; never from its name."""

from __future__ import annotations

import gzip
import re
import zipfile
from functools import cache
from importlib import import_module
from pathlib import Path

from wsigen.errors import MaskError
from wsigen.masks.importers.json_stream import JsonStream
from wsigen.masks.importers.sources import (
    CountedFile,
    Head,
    LabelSource,
    OutlineSource,
    damage_is_one_line,
    zipped_files,
)
from wsigen.masks.importers.xml_stream import root_of
from wsigen.system.reporting import silent
from wsigen.system.text_files import UTF16_MARKS

HEAD_BYTES = 1 << 16
MAX_KEYS = 1000  # of JSON; what has more is no known format
_HDF5 = b"\x89HDF\r\n\x1a\n"
# The importers, in the order in which they are tried: "module:class". Each class says which files it recognises.
IMPORTERS = (
    "label_images:LabelImageSource",
    "matlab:MatlabSource",
    "ome_zarr:OmeZarrSource",
    "tiatoolbox:AnnotationStoreSource",
    "imagescope:ImageScopeSource",
    "asap:AsapSource",
    "qupath:GeoJsonSource",
    "coco:CocoSource",
    "hovernet:HoverNetSource",
    "hovernet:CellVitSource",
)


@cache
def importers() -> tuple[type[OutlineSource] | type[LabelSource], ...]:
    """The classes of all formats."""
    places = [place.split(":") for place in IMPORTERS]
    return tuple(getattr(import_module(f"wsigen.masks.importers.{module}"), name) for module, name in places)


def open_source(path: Path, table: Path | None, image: str | None) -> OutlineSource | LabelSource:
    """Recognise `path` and open it; raises `MaskError` for what is none of the known formats, or unsafe."""
    head = read_head(path)
    for importer in importers():
        if importer.recognises(head):
            return importer.open(path, table, image)
    raise _refusal(head)


def read_head(path: Path) -> Head:
    """What a file begins with; MaskError where it cannot be read."""
    if path.is_dir():
        return Head(path)
    data = _first_bytes(path)
    text = _text(data)
    root = root_of(path, data) if text.startswith("<") else None
    keys = _top_level_keys(path) if text.startswith("{") else None
    return Head(path, data, text, root, keys)


def known() -> str:
    """The formats that are read, for people."""
    return ", ".join(importer.title or importer.format for importer in importers())


def _text(head: bytes) -> str:
    """First characters of a text file, without a byte-order mark; what is no text gives none that matter."""
    encoding = "utf-16" if head.startswith(UTF16_MARKS) else "utf-8-sig"
    return head.decode(encoding, "replace").lstrip(" \t\r\n")


def _top_level_keys(path: Path) -> frozenset[str]:
    """Keys of the outermost map, up to one that tells the format."""
    telling = frozenset().union(*(importer.telling for importer in importers()))
    keys: set[str] = set()
    with damage_is_one_line(path, "JSON"), CountedFile(path, silent) as file:
        stream = JsonStream(file)
        stream.expect("start_map")
        for key in stream.members():
            keys.add(key)
            if key in telling or len(keys) > MAX_KEYS:
                break
            stream.skip()
    return frozenset(keys)


def _first_bytes(path: Path) -> bytes:
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


def _refusal(found: Head) -> MaskError:
    """The line that says what a file of no known format is."""
    path, head = found.path, found.data
    if path.is_dir():
        return MaskError(f"{path}: is a folder without OME-Zarr metadata; give a file of: {known()}")
    if found.root is not None:
        return MaskError(
            f"{path}: is XML of the kind {found.root[:40]!r}, which is not read; export it as one of: {known()}"
        )
    if found.keys is not None:
        listed = ", ".join(sorted(found.keys)[:8]) or "none"
        return MaskError(f"{path}: is JSON with the keys {listed}, no known format: {known()}")
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
    return MaskError(f"{path}: is none of the known formats ({known()}); it begins with {head[:8]!r}")
