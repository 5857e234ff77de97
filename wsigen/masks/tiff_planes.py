"""The planes of a mask TIFF, found, checked and decoded one segment (strip or tile) at a time.

tifffile parses the file and decodes single segments; this module decides which page is which plane, refuses what
cannot be a mask with one line that says how to mend it, and cuts uncompressed strips into short ones, so that even
a file that is one huge raw strip is read by window.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree

import numpy as np
import tifffile

from wsigen.errors import MaskError
from wsigen.masks.scale import MICRONS_PER_UNIT, plausible_sizes, square_mpp
from wsigen.system.cores import available_cores

PLANE_NAMES = ("class", "instance", "tissue")
LABEL = "label"  # stands for the name of a plane that is read as labels of any kind
MAX_SEGMENT_BYTES = 1 << 30
RAW_STRIP_BYTES = 1 << 20
_JPEG_COMPRESSIONS = (6, 7, 34892, 33007)
_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_RETILE = "rewrite it tiled, for example with `vips tiffsave IN OUT --tile --compression deflate --bigtiff`"

# tifffile reports damage to its logger before raising; the one line of our own error is enough.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Plane:
    """Where the segments of one plane lie in the file, and how to decode one.

    Segments are numbered row by row, `across` in a row, each `segment_height` x `segment_width` pixels, those at
    the right and lower border cropped. `offsets` and `byte_counts` are in bytes; a byte count of 0 is a segment of
    zeros. `decode(data, index)` returns the cropped (h, w) pixels.
    """

    name: str
    width: int
    height: int
    dtype: np.dtype
    segment_width: int
    segment_height: int
    offsets: np.ndarray
    byte_counts: np.ndarray
    decode: Callable[[bytes, int], np.ndarray]

    @property
    def across(self) -> int:
        """Segments side by side."""
        return math.ceil(self.width / self.segment_width)

    @property
    def segment_bytes(self) -> int:
        """Decoded bytes of a whole segment."""
        return self.segment_width * self.segment_height * self.dtype.itemsize

    def segment_shape(self, index: int) -> tuple[int, int]:
        """Height and width of a segment, cropped at the border of the plane."""
        row, column = divmod(index, self.across)
        return (
            min(self.segment_height, self.height - row * self.segment_height),
            min(self.segment_width, self.width - column * self.segment_width),
        )


@dataclass(frozen=True)
class MaskFile:
    """What a mask TIFF holds: its planes by name, and microns per pixel (mean of x and y; None where not given)."""

    planes: dict[str, Plane]
    mpp: float | None


def open_mask_file(path: Path, stream: BinaryIO) -> MaskFile:
    """Find and check the planes of the TIFF in `stream`; every refusal is a `MaskError` of one line."""
    size = os.fstat(stream.fileno()).st_size
    tif = _parse(path, stream, size)
    pages = [page for page in tif.pages if isinstance(page, tifffile.TiffPage)]
    if not pages:
        raise MaskError(f"{path}: the TIFF holds no image ({size} bytes: truncated?); copy or export it again")
    names, ome_sizes = _ome(pages[0].description)
    chosen = _choose_planes(path, pages, {index: name for index, name in names.items() if name in PLANE_NAMES})
    planes = {name: _plane(path, name, page, size) for name, page in chosen.items()}
    return MaskFile(planes, square_mpp(path, ome_sizes or _tag_sizes(tif, pages[0])))


@dataclass(frozen=True)
class LabelPage:
    """A page of a TIFF that may hold labels: its index among the pages, its name in OME-XML ("" without), its kind."""

    index: int
    name: str
    width: int
    height: int
    dtype: np.dtype | None  # None: of a kind that cannot be read
    channels: int


def label_pages(path: Path) -> tuple[list[LabelPage], tuple[float, ...]]:
    """The pages of a TIFF at full size, and width and height of a pixel in microns as far as the file gives them.

    OME-XML comes before the resolution tags. Raises `MaskError` for a file that is damaged or no TIFF.
    """
    with open_stream(path) as stream:
        tif = _parse(path, stream, os.fstat(stream.fileno()).st_size)
        pages = [page for page in tif.pages if isinstance(page, tifffile.TiffPage)]
        if not pages:
            raise MaskError(f"{path}: the TIFF holds no image; copy or export it again")
        names, sizes = _ome(pages[0].description)
        found = [
            LabelPage(
                index, names.get(index, ""), page.imagewidth, page.imagelength,
                np.dtype(page.dtype) if page.dtype else None, page.samplesperpixel,
            )
            for index, page in enumerate(pages)
            if not index or not page.is_reduced
        ]  # fmt: skip
        full = [page for page in found if (page.width, page.height) == (found[0].width, found[0].height)]
        return full, sizes or _tag_sizes(tif, pages[0])


def open_stream(path: Path) -> BinaryIO:
    """Open the file for reading; a `MaskError` where it is missing, a folder, or may not be read."""
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise MaskError(f"{path}: no such file; check the path of the mask") from None
    except IsADirectoryError:
        raise MaskError(f"{path}: is a directory; give the mask's TIFF file inside it") from None
    except OSError as error:
        raise MaskError(f"{path}: cannot be opened ({error.strerror}); check its permissions") from None


def page_rows(path: Path, index: int) -> Iterator[np.ndarray]:
    """Rows of one page of labels, (h, width), from the top down, decoded in threads; single bits as 0 and 255."""
    with open_stream(path) as stream, ThreadPoolExecutor(available_cores(8), "wsigen-labels") as pool:
        size = os.fstat(stream.fileno()).st_size
        page = _parse(path, stream, size).pages[index]
        assert isinstance(page, tifffile.TiffPage)
        plane = _plane(path, LABEL, page, size)
        for first in range(0, math.ceil(plane.height / plane.segment_height) * plane.across, plane.across):
            decoded = []
            for segment in range(first, first + plane.across):
                stream.seek(int(plane.offsets[segment]))
                data = stream.read(int(plane.byte_counts[segment]))
                decoded.append(pool.submit(_pixels, plane, data, segment))
            rows = [future.result() for future in decoded]
            if any(part.shape[0] != len(rows[0]) for part in rows) or sum(p.shape[1] for p in rows) != plane.width:
                raise MaskError(f"{path}: a segment of the labels is damaged; copy or export it again")
            labels = np.concatenate(rows, axis=1)
            yield labels if plane.dtype != np.bool_ else labels * np.uint8(255)


def _pixels(plane: Plane, data: bytes, segment: int) -> np.ndarray:
    height, width = plane.segment_shape(segment)
    return plane.decode(data, segment)[:height, :width] if data else np.zeros((height, width), plane.dtype)


def _parse(path: Path, stream: BinaryIO, size: int) -> tifffile.TiffFile:
    magic = stream.read(4)
    stream.seek(0)
    if size == 0:
        raise MaskError(f"{path}: is empty (0 bytes); copy or export the mask again")
    if magic not in _MAGIC:
        raise MaskError(f"{path}: is not a TIFF (it begins with {magic!r}); convert the mask to TIFF")
    try:
        tif = tifffile.TiffFile(stream)
        list(tif.pages)
    except Exception as error:  # tifffile raises many kinds on damaged files; each means the same to the user
        reason = " ".join(str(error).split())
        raise MaskError(f"{path}: the TIFF is truncated or damaged ({reason}); copy or export it again") from None
    return tif


def _choose_planes(path: Path, pages: list[tifffile.TiffPage], names: dict[int, str]) -> dict[str, tifffile.TiffPage]:
    chosen: dict[str, tifffile.TiffPage] = {}
    unnamed: list[tuple[int, tifffile.TiffPage]] = []
    for index, page in enumerate(pages):
        name = names.get(index)
        if name is None:
            unnamed.append((index, page))
        elif name in chosen:
            raise MaskError(f"{path}: two planes are named {name!r} (page {index}); name each plane once")
        else:
            chosen[name] = page
    if "class" not in chosen:
        if not unnamed or unnamed[0][0] != 0:
            raise MaskError(f"{path}: has no class plane, only {', '.join(chosen)}; name the plane of classes 'class'")
        chosen["class"] = unnamed.pop(0)[1]
    first = chosen["class"]
    for name, page in chosen.items():
        _check_same_size(path, name, page, first)
    for index, page in unnamed:
        if _is_reduced(page, [first, *chosen.values()]):
            continue
        _check_same_size(path, f"page {index}", page, first)
        if "instance" in chosen or page.dtype not in (np.uint16, np.uint32) or page.samplesperpixel != 1:
            raise MaskError(
                f"{path}: page {index} ({page.dtype}) is a plane without a name; name it 'class', 'instance' or "
                "'tissue' in the OME-XML, or remove it"
            )
        chosen["instance"] = page
    return chosen


def _is_reduced(page: tifffile.TiffPage, planes: list[tifffile.TiffPage]) -> bool:
    """Whether an unnamed page is a smaller copy of a plane: flagged so, or like it but for one common factor."""
    if page.is_reduced:
        return True
    for plane in planes:
        if page.dtype != plane.dtype or min(page.imagewidth, page.imagelength) < 1:
            continue
        factor = plane.imagewidth / page.imagewidth
        height = plane.imagelength / factor
        if factor >= 1.5 and abs(page.imagelength - height) <= 1 + height / page.imagewidth:
            return True
    return False


def _check_same_size(path: Path, name: str, page: tifffile.TiffPage, first: tifffile.TiffPage) -> None:
    size, expected = (page.imagewidth, page.imagelength), (first.imagewidth, first.imagelength)
    if size != expected:
        raise MaskError(
            f"{path}: planes differ in size: {name} is {size[0]} x {size[1]}, class is {expected[0]} x {expected[1]}; "
            "write all planes at the size of the slide"
        )


def _plane(path: Path, name: str, page: tifffile.TiffPage, file_size: int) -> Plane:
    _check_kind(path, name, page)
    dtype = np.dtype(page.dtype)
    width, height = page.imagewidth, page.imagelength
    tiled = page.is_tiled
    segment_width = page.tilewidth if tiled else width
    segment_height = page.tilelength if tiled else page.rowsperstrip
    if not all(isinstance(size, int) and size > 0 for size in (segment_width, segment_height)):
        raise MaskError(f"{path}: the TIFF is damaged (segments of the {name} plane have no size); export it again")
    segment_height = segment_height if tiled else min(segment_height, height)
    count = math.ceil(width / segment_width) * math.ceil(height / segment_height)
    offsets = np.asarray(page.dataoffsets[:count], np.int64)
    byte_counts = np.asarray(page.databytecounts[:count], np.int64)
    if len(offsets) < count or len(byte_counts) < count:
        raise MaskError(
            f"{path}: the TIFF is truncated or damaged ({min(len(offsets), len(byte_counts))} of {count} segments of "
            f"the {name} plane are listed); copy or export it again"
        )
    end = int((offsets + byte_counts).max())
    if end > file_size:
        raise MaskError(
            f"{path}: the TIFF is truncated (the {name} plane reaches to byte {end}, the file ends at {file_size}); "
            "copy or export it again"
        )
    if not tiled and page.compression == 1 and page.predictor == 1 and page.fillorder == 1 and page.bitspersample >= 8:
        return _raw_strips(path, name, page, segment_height, offsets, byte_counts)
    plane = Plane(
        name, width, height, dtype, segment_width, segment_height, offsets, byte_counts, _decoder(path, name, page)
    )
    if plane.segment_bytes > MAX_SEGMENT_BYTES:
        raise MaskError(
            f"{path}: a {'tile' if tiled else 'strip'} of the {name} plane is {segment_width} x {segment_height} "
            f"pixels ({plane.segment_bytes / 1e9:.1f} GB decoded), too large to read by window; {_RETILE}"
        )
    return plane


def _check_kind(path: Path, name: str, page: tifffile.TiffPage) -> None:
    if page.imagewidth < 1 or page.imagelength < 1:
        raise MaskError(f"{path}: the {name} plane is {page.imagewidth} x {page.imagelength} pixels; export it again")
    if page.samplesperpixel != 1:
        kind = "RGB" if page.photometric == 2 else "several values per pixel"
        raise MaskError(
            f"{path}: the {name} plane is an image of {page.samplesperpixel} channels ({kind}); a mask has one value "
            "per pixel: export the labels, not their colours"
        )
    if page.dtype == np.bool_ and name == "class":
        raise MaskError(
            f"{path}: the class plane has 1 bit per pixel; it looks like a tissue mask: write it as the plane "
            "'tissue' beside a class plane of uint8"
        )
    kinds = "bui" if name == LABEL else ""  # a label may be any whole number; its range is checked as it is read
    if page.dtype not in (np.bool_, np.uint8, np.uint16, np.uint32) and np.dtype(page.dtype or "V").kind not in kinds:
        given = page.dtype or f"{page.bitspersample} bits of an unknown kind"
        wanted = "uint16 or uint32" if name == "instance" else "uint8"
        raise MaskError(f"{path}: the {name} plane is {given}; convert it to {wanted}")
    if page.compression in _JPEG_COMPRESSIONS:
        raise MaskError(
            f"{path}: the {name} plane is JPEG-compressed, which changes labels; export it again with deflate or LZW"
        )


def _decoder(path: Path, name: str, page: tifffile.TiffPage) -> Callable[[bytes, int], np.ndarray]:
    try:
        decode_segment = page.decode
    except (ValueError, NotImplementedError, ImportError) as error:
        raise MaskError(f"{path}: the {name} plane cannot be decoded ({error}); export it with deflate") from None

    def decode(data: bytes, index: int) -> np.ndarray:
        try:
            pixels = decode_segment(data, index)[0]
        except Exception as error:  # every codec has errors of its own
            reason = " ".join(str(error).split())
            raise MaskError(
                f"{path}: segment {index} of the {name} plane cannot be decoded ({reason}); copy or export it again, "
                "compressed with deflate"
            ) from None
        return np.asarray(pixels)[0, :, :, 0]

    return decode


def _raw_strips(
    path: Path, name: str, page: tifffile.TiffPage, strip_height: int, offsets: np.ndarray, byte_counts: np.ndarray
) -> Plane:
    """Cut uncompressed strips into short ones: the bytes of a row lie where arithmetic says."""
    width, height = page.imagewidth, page.imagelength
    stored = np.dtype(page.dtype).newbyteorder(page.parent.byteorder)
    row_bytes = width * stored.itemsize
    whole = np.minimum(strip_height, height - np.arange(len(offsets)) * strip_height) * row_bytes
    if ((byte_counts > 0) & (byte_counts < whole)).any():
        raise MaskError(
            f"{path}: the TIFF is truncated (a strip of the {name} plane is short); copy or export it again"
        )
    rows = max(1, RAW_STRIP_BYTES // row_bytes)
    if strip_height > rows and strip_height < height:
        rows = max(d for d in range(1, rows + 1) if strip_height % d == 0)  # so that no short strip spans two strips
    rows = min(rows, strip_height)
    starts = np.arange(0, height, rows, dtype=np.int64)
    strip, inside = starts // strip_height, starts % strip_height
    counts = np.minimum(rows, height - starts) * row_bytes
    present = byte_counts[strip] > 0

    def decode(data: bytes, index: int) -> np.ndarray:
        return np.frombuffer(data, stored).reshape(-1, width).astype(stored.newbyteorder("="), copy=False)

    return Plane(
        name,
        width,
        height,
        stored.newbyteorder("="),
        width,
        rows,
        offsets[strip] + inside * row_bytes,
        np.where(present, counts, 0),
        decode,
    )


def _ome(description: str) -> tuple[dict[int, str], tuple[float, ...]]:
    """Names in lower case by page index, and the sides of a pixel in microns, from OME-XML; else nothing."""
    if "<OME" not in description[:4096]:
        return {}, ()
    try:
        return _read_ome(ElementTree.fromstring(description.lstrip("\ufeff")))
    except (ElementTree.ParseError, ValueError):
        return {}, ()


def _read_ome(root: ElementTree.Element) -> tuple[dict[int, str], tuple[float, ...]]:
    names: dict[int, str] = {}
    sizes: tuple[float, ...] = ()
    page = 0
    for image in root.iter():
        pixels = next((child for child in image if _local(child) == "Pixels"), None)
        if _local(image) != "Image" or pixels is None:
            continue
        labels = _ome_labels(image, pixels)
        blocks = [child for child in pixels if _local(child) == "TiffData"]
        first = int(blocks[0].get("IFD", page)) if blocks else page
        names |= {first + offset: label for offset, label in enumerate(labels) if label}
        page = first + len(labels)
        sizes = sizes or _ome_sizes(pixels)
    return names, sizes


def _ome_labels(image: ElementTree.Element, pixels: ElementTree.Element) -> list[str]:
    """One lower-case name per page of an image: the channel's, else (one page) the image's."""
    channels = [(child.get("Name") or "").strip().lower() for child in pixels if _local(child) == "Channel"]
    count = math.prod(int(pixels.get(axis, 1)) for axis in ("SizeC", "SizeZ", "SizeT"))
    labels = (channels + [""] * count)[:count]
    if count == 1 and labels[0] not in PLANE_NAMES:
        labels = [(image.get("Name") or "").strip().lower()]
    return [label[:-1] if label == "instances" else "class" if label == "classes" else label for label in labels]


def _local(element: ElementTree.Element) -> str:
    return str(element.tag).rsplit("}", 1)[-1]


def _ome_sizes(pixels: ElementTree.Element) -> tuple[float, ...]:
    sizes = []
    for axis in "XY":
        try:
            value = float(pixels.get(f"PhysicalSize{axis}", "nan"))
        except ValueError:
            continue
        sizes.append(value * MICRONS_PER_UNIT.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"), math.nan))
    return plausible_sizes(sizes)


def _tag_sizes(tif: tifffile.TiffFile, page: tifffile.TiffPage) -> tuple[float, ...]:
    """The sides of a pixel in microns from the resolution tags (inch, cm, or ImageJ's own unit)."""
    unit = {2: 25_400.0, 3: 10_000.0}.get(int(page.tags.valueof(296, 2)))
    if unit is None:
        imagej = tif.imagej_metadata if tif.is_imagej else None
        unit = MICRONS_PER_UNIT.get(str((imagej or {}).get("unit", "")).replace("\\u00B5", "µ"))
    if unit is None:
        return ()
    sizes = []
    for tag in (282, 283):
        numerator, denominator = page.tags.valueof(tag, (0, 1))
        if numerator > 0 and denominator > 0:
            sizes.append(unit * denominator / numerator)
    return plausible_sizes(sizes)
