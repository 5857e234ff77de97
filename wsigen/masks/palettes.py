"""Pictures with a palette, whose indices are labels: VOC and many annotation tools write label images so."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wsigen.errors import MaskError

MAX_PIXELS = 1 << 28  # such a picture is decoded whole


def palette_indices(path: Path) -> np.ndarray | None:
    """The indices (h, w) uint8 of a picture with a palette, None for other pictures; libvips gives its colours only.

    Raises `MaskError` where the picture is damaged, or too large to be decoded whole.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            if picture.mode != "P":
                return None
            if picture.width * picture.height > MAX_PIXELS:
                raise MaskError(
                    f"{path}: is a picture with a palette of {picture.width:,} x {picture.height:,} px; save its "
                    "indices as a grey PNG or TIFF"
                )
            return np.array(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())[:200]
        raise MaskError(f"{path}: cannot be read as a label image ({reason}); copy or export it again") from None
