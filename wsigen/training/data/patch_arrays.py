"""Arrays of patches, as some data sets are published.

Arrays are mapped, never loaded whole, and only numbers are read: a file that holds Python objects is refused, since
opening one can run code.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from wsigen.errors import DataError

PatchArrays = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.int32]]  # RGB, classes, ids


def mapped_patches(path: Path, channels: int) -> np.ndarray:
    """An array of patches (N, S, S, channels) of numbers, mapped."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: not found; give the folder of the data set") from None
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: cannot be read ({reason}); arrays of objects are refused, fetch it again") from None
    if (
        not isinstance(array, np.ndarray)
        or array.ndim != 4
        or array.shape[3] != channels
        or array.dtype.kind not in "uif"
    ):
        shape = getattr(array, "shape", "an archive")
        raise DataError(f"{path}: is {shape}; expected (patches, side, side, {channels}) of numbers")
    return array


def check_equal_patches(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Raise DataError unless there are as many labels as images, of the same size."""
    if images.shape[:3] != labels.shape[:3]:
        raise DataError(f"{folder}: images are {images.shape[:3]}, labels {labels.shape[:3]}; fetch the set again")


def to_bytes(pixels: np.ndarray) -> npt.NDArray[np.uint8]:
    """RGB of one patch as bytes: PanNuke publishes its pictures as doubles of whole values."""
    return np.ascontiguousarray(np.clip(np.asarray(pixels), 0, 255).astype(np.uint8))
