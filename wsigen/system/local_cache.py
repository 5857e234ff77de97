"""What this machine keeps between runs, under the user's cache folder: verdicts of checks, and locks between processes.

Nothing here is needed: a folder that cannot be written costs the time to find things out again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from wsigen.errors import SlideError
from wsigen.system.replacing import replacing


def cache_folder() -> Path:
    """`WSIGEN_CACHE`, else `wsigen` in `XDG_CACHE_HOME` or `~/.cache`."""
    if chosen := os.environ.get("WSIGEN_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wsigen"


def recall(name: str) -> Any:
    """Read what `remember` kept under a name; None if there is nothing, or nothing that can be read."""
    with suppress(OSError, ValueError):
        return json.loads((cache_folder() / f"{name}.json").read_text(encoding="utf-8"))
    return None


def remember(name: str, value: Any) -> None:
    """Keep plain data under a name, whole or not at all."""
    file = cache_folder() / f"{name}.json"
    with suppress(OSError, SlideError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file, overwrite=True) as partial:
            partial.write_text(json.dumps(value, indent=1), encoding="utf-8")


@contextmanager
def one_process_at_a_time(name: str) -> Iterator[None]:
    """Let other processes of this user wait until this one is through; no lock where the system has none."""
    with ExitStack() as stack:
        with suppress(ImportError, OSError):
            import fcntl

            folder = cache_folder()
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((folder / f"{name}.lock").open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
