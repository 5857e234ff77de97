"""Folders as they are found: what file browsers leave in them, and whether they can be written to."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from wsigen.errors import WsigenError

_BROWSERS_FILES = {".ds_store", ".localized", "thumbs.db", "ehthumbs.db", "desktop.ini"}


def is_dropping(name: str) -> bool:
    """Whether a file of this name (a path will do) is a file browser's: .DS_Store, ._x.png, Thumbs.db, .."""
    last = PurePosixPath(name).name
    return last.startswith("._") or last.lower() in _BROWSERS_FILES


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but what file browsers leave."""
    return all(is_dropping(path.name) and path.is_file() for path in folder.iterdir())


@contextmanager
def temporary_beside(target: Path, error: type[WsigenError]) -> Iterator[Path]:
    """A temporary folder in the folder of `target`, which is being written; `error` where none can be made there."""
    try:
        folder = tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent)
    except OSError as reason:
        raise error(
            f"{target}: cannot write to folder {target.parent} ({reason.strerror}); choose another folder"
        ) from reason
    with folder as name:
        yield Path(name)
