"""JSON as tools write it, made into JSON as the standard has it, while it is read in pieces.

A byte-order mark is left out and UTF-16 becomes UTF-8. Bare NaN, Infinity and -Infinity become null: they are no JSON,
but QuPath before 0.5 and Python's `json` write them for measurements that have no value.
"""

from __future__ import annotations

import codecs
import re
from typing import Protocol

from wsigen.system.text_files import UTF16_MARKS

_WORDS = (b"NaN", b"Infinity")
_BARE = re.compile(b"-?(?:" + b"|".join(_WORDS) + b")")
# The end of a piece that may be the beginning of one of these words, or of an escape. Whole words count too: the last
# letter of NaN begins another one.
_BEGINNINGS = sorted((word[:n] for word in _WORDS for n in range(1, len(word) + 1)), key=len, reverse=True)
_UNFINISHED = re.compile(rb"(?:\\|-?(?:" + b"|".join(_BEGINNINGS) + rb")|-)\Z")
_ESCAPE = re.compile(rb"\\.", re.DOTALL)


class Readable(Protocol):
    """What can be read in pieces."""

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes; none at the end."""
        ...


class JsonText:
    """The content of a JSON file as standard JSON in UTF-8. Raises UnicodeDecodeError for damaged UTF-16."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._decoder: codecs.IncrementalDecoder | None = None
        self._began = self._ended = self._in_string = False
        self._held = b""  # read, but not yet given out

    def read(self, size: int = -1) -> bytes:
        """About `size` bytes; none at the end only."""
        while size != 0 and not self._ended:
            piece = self._next_piece(size)
            cut = self._complete(piece)
            self._held = piece[cut:]
            if cut:
                return self._standard(piece[:cut])
        return b""

    def _next_piece(self, size: int) -> bytes:
        data = self._file.read(size)
        self._ended = not data
        if not self._began:
            self._began = True
            while data and len(data) < len(codecs.BOM_UTF8) and (more := self._file.read(size)):
                data += more
            if data.startswith(UTF16_MARKS):
                self._decoder = codecs.getincrementaldecoder("utf-16")()
            data = data.removeprefix(codecs.BOM_UTF8)
        if self._decoder is not None:
            data = self._decoder.decode(data, self._ended).encode("utf-8")
        return self._held + data

    def _complete(self, piece: bytes) -> int:
        """Length of the piece without a word or an escape that may go on in the next one."""
        if self._ended:
            return len(piece)
        slashes = len(piece) - len(piece.rstrip(b"\\"))
        if slashes:
            return len(piece) - slashes % 2
        unfinished = _UNFINISHED.search(piece, max(0, len(piece) - 10))
        return len(piece) if unfinished is None else unfinished.start()

    def _standard(self, piece: bytes) -> bytes:
        """The piece with null for the bare words outside of strings."""
        if not any(word in piece for word in _WORDS):
            self._pass(piece)
            return piece
        parts, at = [], 0
        for match in _BARE.finditer(piece):
            before = piece[at : match.start()]
            self._pass(before)
            parts += [before, match.group() if self._in_string else b"null"]
            at = match.end()
        self._pass(piece[at:])
        return b"".join([*parts, piece[at:]])

    def _pass(self, part: bytes) -> None:
        """Take note of whether a string is open behind this part."""
        if b"\\" in part:
            part = _ESCAPE.sub(b"", part)
        self._in_string ^= part.count(b'"') % 2 == 1
