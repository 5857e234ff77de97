"""XML read in pieces, with documents refused that declare a document type: so entities cannot be declared, let alone
expand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol
from xml.parsers import expat

from wsigen.errors import MaskError
from wsigen.masks.importers.sources import CountedFile
from wsigen.system.reporting import Reporter

CHUNK_BYTES = 1 << 20


class Elements(Protocol):
    """What is told of every element."""

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """An element begins."""
        ...

    def end(self, name: str) -> None:
        """An element ends."""
        ...


def read_elements(path: Path, reader: Elements, progress: Reporter) -> Iterator[None]:
    """Parse a document, and yield after every piece of it. ValueError where it is no XML, MaskError where unsafe."""
    with CountedFile(path, progress) as file:
        parser = _parser(path)
        parser.StartElementHandler, parser.EndElementHandler = reader.start, reader.end
        while True:
            chunk = file.read(CHUNK_BYTES)
            try:
                parser.Parse(chunk, not chunk)
            except expat.ExpatError as error:
                raise ValueError(str(error)) from None
            yield
            if not chunk:
                return


def root_of(path: Path, head: bytes) -> str:
    """Name of the outermost element, from the first bytes of a document; empty where they do not show it."""
    names: list[str] = []
    parser = _parser(path)
    parser.StartElementHandler = lambda name, attributes: names.append(name)
    with suppress(expat.ExpatError):  # behind the first element, or in a damaged document: the reader says so
        parser.Parse(head, False)
    return names[0] if names else ""


def _parser(path: Path) -> expat.XMLParserType:
    def refuse(*_: object) -> None:
        raise MaskError(f"{path}: declares a document type, which is refused as unsafe; remove the line")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    return parser
