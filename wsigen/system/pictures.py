"""Reading picture files through libvips, as they are now."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load_picture(path: str | Path, **options: Any) -> Any:
    """Open a picture file as a pyvips.Image. Raises pyvips.Error for what is none.

    libvips remembers operations by their arguments, so a file that was rewritten since this process last opened it
    would show its old pixels. ``revalidate`` makes it look again.
    """
    import pyvips  # imported late: it loads a large library

    return pyvips.Image.new_from_file(str(path), revalidate=True, **options)
