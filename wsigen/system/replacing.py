"""Write a file or folder beside its target and move it there when it is whole, so that no reader sees half of one."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wsigen.errors import SlideError


@contextmanager
def replacing(path: str | os.PathLike[str], overwrite: bool) -> Iterator[Path]:
    """Yield an empty new file in the folder of `path`; it becomes `path` if the block ends well, else it is removed.

    Raises SlideError if `path` exists and `overwrite` is False, or if the folder cannot be written to. An exception
    of the block (KeyboardInterrupt too) comes out as itself.
    """
    target = Path(path)
    if target.is_dir():
        raise SlideError(f"{target}: is a folder; name a file in it")
    if target.exists() and not overwrite:
        raise SlideError(f"{target}: exists already; replace it with --overwrite, or choose another name")
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.touch(exist_ok=False)
    except OSError as error:
        raise SlideError(f"{target}: cannot write to folder {target.parent} ({error.strerror})") from error
    try:
        yield partial
        try:
            os.replace(partial, target)
        except OSError as error:
            raise SlideError(f"{target}: could not be replaced ({error.strerror}); choose another name") from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield `<path>.partial`; the file or folder that the block writes there becomes `path` if the block ends well.

    A file at `path` is replaced; a folder there must be removed by the block. What an earlier process left under the
    name is removed first, and so is what the block wrote if it fails. Errors of the system come out as themselves.
    """
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    _remove(partial)
    try:
        yield partial
        os.replace(partial, target)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    """Remove a file or a folder, as far as possible; nothing need be there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
