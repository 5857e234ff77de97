"""What an importer reads: a source of outlines, or a source of label images, and how a file's damage is reported."""

from __future__ import annotations

import gzip
import lzma
import sqlite3
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import IO, BinaryIO, Self

import ijson
import numpy as np

from wsigen.errors import MaskError
from wsigen.system.folders import is_dropping
from wsigen.system.reporting import Reporter


class Kind(IntEnum):
    """What an object claims to be. Annotations are regions where a file also has nuclei, else nuclei."""

    NUCLEUS = 0
    ANNOTATION = 1
    REGION = 2  # never a nucleus: a core of a tissue microarray


@dataclass(frozen=True)
class SourceObject:
    """One object of a source.

    name: its class as the source calls it. polygons: each a list of rings (N, 2) float64, x and y, first the outline,
    then holes; open or closed. separate: each polygon is an object of its own. complete: False where more polygons of
    this object follow; its last part gives name, kind and `separate`.
    """

    name: str
    polygons: list[list[np.ndarray]]
    kind: Kind = Kind.NUCLEUS
    separate: bool = False
    complete: bool = True


@dataclass(frozen=True)
class Head:
    """The beginning of a file, by which its format is recognised; never by its name.

    Attributes:
        path: the file or folder.
        data: first bytes of the content, unpacked; none of a folder.
        text: ``data`` as text, without a byte-order mark; what is no text gives none that matters.
        root: name of the outermost element of XML, empty where it does not show; None where it is no XML.
        keys: keys of the outermost map of JSON, up to one that tells the format; None where it is no such map.
    """

    path: Path
    data: bytes = b""
    text: str = ""
    root: str | None = None
    keys: frozenset[str] | None = None


class OutlineSource(ABC):
    """A file of outlines. `size`, `mpp`, `names` and `not_polygons` are known once `objects` has been read through.

    format: its name for people. title: the files of this kind, for people; empty: as ``format``. telling: keys of JSON
    that tell the format. built_in: class maps that the format implies. pixel_centres: outlines run through the
    centres of the border pixels, as OpenCV draws them, and not along the pixels' edges. size: (width, height) in px.
    mpp: microns per pixel of the coordinates. names: class numbers -> names. not_polygons: objects without an area
    (points, lines). hint: what to do where no object has an outline. from_bounds: coordinates are counted from the
    corner of a slide's bounds (see ``wsigen.masks.origin``).
    """

    format: str
    title: str = ""
    telling: frozenset[str] = frozenset()
    built_in: tuple[str, ...] = ()
    pixel_centres: bool = False
    from_bounds: bool = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size: tuple[int, int] | None = None
        self.mpp: float | None = None
        self.names: Mapping[str, str] = {}
        self.not_polygons = 0
        self.hint = ""

    @classmethod
    @abstractmethod
    def recognises(cls, head: Head) -> bool:
        """Whether a file is of this format."""

    @classmethod
    def open(cls, path: Path, table: Path | None, image: str | None) -> Self:
        """Open a file that is recognised. MaskError for a ``table`` of classes, which goes with a label image."""
        if table is not None:
            raise MaskError(f"{table}: a table goes with a label image; {path} has its classes inside")
        return cls(path)

    @abstractmethod
    def objects(self, progress: Reporter) -> Iterator[SourceObject | None]:
        """Read the file once; None stands for an object that could not be read as an outline."""


@dataclass(frozen=True)
class Labels:
    """Rows of a label image: (h, w) values, and ids where the image has them beside its values."""

    values: np.ndarray
    ids: np.ndarray | None = None


class LabelSource(ABC):
    """A label image, read by rows.

    kind: "class" where a value is a class, "instance" where it is the id of a nucleus. class_of: value (class or id)
    -> the source's name of its class; values that are missing are named by their number ("class") or `unclassified`.
    pixel_sizes: width and height of a pixel in microns, as far as the source gives them. format, title, telling and
    built_in: as of `OutlineSource`.
    """

    format: str
    title: str = ""
    telling: frozenset[str] = frozenset()
    built_in: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        self.width = self.height = 0
        self.pixel_sizes: tuple[float, ...] = ()
        self.kind = "class"
        self.class_of: Mapping[int, str] = {}
        self.has_ids = False

    @classmethod
    @abstractmethod
    def recognises(cls, head: Head) -> bool:
        """Whether a file is of this format."""

    @classmethod
    def open(cls, path: Path, table: Path | None, image: str | None) -> Self:
        """Open a file that is recognised; ``table`` names classes, ``image`` one of several images."""
        return cls(path)

    @abstractmethod
    def bands(self) -> Iterator[Labels]:
        """Bands of whole rows from top to bottom; may be asked for again."""

    def close(self) -> None:
        """Let go of the file."""
        return


@contextmanager
def damage_is_one_line(path: Path, kind: str) -> Iterator[None]:
    """Turn what libraries raise on malformed files into one line that names the file."""
    try:
        yield
    except MaskError:
        raise
    except (
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        ArithmeticError,
        NotImplementedError,
        EOFError,
        OSError,
        RuntimeError,
        MemoryError,
        struct.error,
        zlib.error,
        lzma.LZMAError,
        zipfile.BadZipFile,
        sqlite3.Error,
        ijson.JSONError,
    ) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise MaskError(f"{path}: cannot be read as {kind} ({reason}); copy or export it again") from error


def zipped_files(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The files in an archive, without those that macOS adds."""
    return [
        item
        for item in archive.infolist()
        if not item.is_dir() and not item.filename.startswith("__MACOSX/") and not is_dropping(item.filename)
    ]


class CountedFile:
    """A file that reports how much of it has been read, and unpacks gzip and one-file zip on the way."""

    def __init__(self, path: Path, progress: Reporter) -> None:
        self._path, self._progress = path, progress
        self._raw: BinaryIO = open(path, "rb")  # noqa: SIM115 (closed by __exit__)
        self._size = max(1, path.stat().st_size)
        magic = self._raw.read(4)
        self._raw.seek(0)
        self._stream: IO[bytes] = self._unpacked(magic)

    def _unpacked(self, magic: bytes) -> IO[bytes]:
        if magic[:2] == b"\x1f\x8b":
            return gzip.GzipFile(fileobj=self._raw)  # type: ignore[return-value]
        if magic == b"PK\x03\x04":
            archive = zipfile.ZipFile(self._raw)
            members = zipped_files(archive)
            if len(members) != 1:
                raise MaskError(f"{self._path}: holds {len(members)} files; unpack it and give one of them")
            return archive.open(members[0])
        return self._raw

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes of the unpacked content."""
        data = self._stream.read(size)
        self._progress("reading", min(1.0, self._raw.tell() / self._size))
        return data

    def __enter__(self) -> CountedFile:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stream.close()
        self._raw.close()
