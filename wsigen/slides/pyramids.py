"""Pyramids that libvips writes besides .svs: plain tiled TIFF, OME-TIFF, and Deep Zoom.

All are JPEG, from one pass over the rows, and say in their metadata that they are synthetic, what painted them, and
their scale (Deep Zoom in `slide.json` among the tiles: the format itself has no place for it).
"""

from __future__ import annotations

import json
from pathlib import Path
from xml.sax.saxutils import quoteattr

import pyvips

from wsigen.slides.metadata import SlideMetadata, aperio_description, aperio_header, xmp_packet
from wsigen.slides.row_stream import RowReader, RowsDone, encode_rows

TILE = 256
DZI_TILE, DZI_OVERLAP = 254, 1


def write_tiff(
    path: Path, width: int, height: int, read_rows: RowReader, metadata: SlideMetadata, quality: int, progress: RowsDone
) -> None:
    """Write a generic tiled pyramid: what OpenSlide calls generic-tiff and every TIFF library reads."""

    def encode(image: pyvips.Image) -> None:
        _save_tiff(image, path, metadata, plain_description(metadata, width, height, quality), quality, subifd=False)

    encode_rows(width, height, read_rows, encode, progress)


def write_ome_tiff(
    path: Path, width: int, height: int, read_rows: RowReader, metadata: SlideMetadata, quality: int, progress: RowsDone
) -> None:
    """Write an OME-TIFF with its levels as sub-resolutions (SubIFDs), as Bio-Formats and QuPath read them."""

    def encode(image: pyvips.Image) -> None:
        _save_tiff(image, path, metadata, ome_xml(metadata, width, height, quality), quality, subifd=True)

    encode_rows(width, height, read_rows, encode, progress)


def write_dzi(
    path: Path, width: int, height: int, read_rows: RowReader, metadata: SlideMetadata, quality: int, progress: RowsDone
) -> None:
    """Write NAME.dzi and NAME_files/ for web viewers such as OpenSeadragon; `path` ends in .dzi."""

    def encode(image: pyvips.Image) -> None:
        image.dzsave(
            str(path.with_suffix("")), suffix=f".jpg[Q={quality}]", tile_size=DZI_TILE, overlap=DZI_OVERLAP,
            depth="onepixel",
        )  # fmt: skip

    encode_rows(width, height, read_rows, encode, progress)
    facts = {"synthetic": True, "mpp": metadata.mpp, "objective_power": metadata.objective_power}
    tiles = path.with_name(path.stem + "_files")
    (tiles / "slide.json").write_text(json.dumps(facts | dict(metadata.provenance), indent=1) + "\n", encoding="utf-8")


def plain_description(metadata: SlideMetadata, width: int, height: int, quality: int) -> str:
    """The items of an Aperio description under a first line by which no reader takes the file for Aperio's."""
    described = aperio_description(metadata, width, height, TILE, quality)
    return "Synthetic whole-slide image" + described.removeprefix(aperio_header(metadata))


def ome_xml(metadata: SlideMetadata, width: int, height: int, quality: int) -> str:
    """OME-XML of one RGB image; the provenance stands in its description."""
    size = f'SizeX="{width}" SizeY="{height}" SizeC="3" SizeZ="1" SizeT="1"'
    scale = " ".join(f'PhysicalSize{axis}="{metadata.mpp:.10g}" PhysicalSize{axis}Unit="µm"' for axis in "XY")
    # The last separator keeps the tags that follow out of the last item; items unquote what XML reserves.
    described = plain_description(metadata, width, height, quality) + "|"
    described = described.replace("&", "%26").replace("<", "%3C").replace(">", "%3E")
    return (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        f"Creator={quoteattr('wsigen ' + metadata.provenance.get('version', ''))}>"
        f'<Instrument ID="Instrument:0"><Objective ID="Objective:0" '
        f'NominalMagnification="{metadata.objective_power:.10g}"/></Instrument>'
        f'<Image ID="Image:0" Name="synthetic slide"><Description>{described}</Description>'
        f'<InstrumentRef ID="Instrument:0"/><ObjectiveSettings ID="Objective:0"/>'
        f'<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" Interleaved="true" {size} {scale}>'
        '<Channel ID="Channel:0:0" SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="1"/></Pixels></Image></OME>'
    )


def _described(image: pyvips.Image, metadata: SlideMetadata, description: str) -> pyvips.Image:
    image = image.copy(xres=1000 / metadata.mpp, yres=1000 / metadata.mpp)
    image.set_type(pyvips.GValue.gstr_type, "image-description", description)
    image.set_type(pyvips.GValue.blob_type, "xmp-data", xmp_packet())
    return image


def _save_tiff(
    image: pyvips.Image, path: Path, metadata: SlideMetadata, description: str, quality: int, subifd: bool
) -> None:
    _described(image, metadata, description).tiffsave(
        str(path), compression="jpeg", Q=quality, tile=True, tile_width=TILE, tile_height=TILE, pyramid=True,
        subifd=subifd, region_shrink="mean", bigtiff=True, resunit="cm", xres=1000 / metadata.mpp,
        yres=1000 / metadata.mpp,
    )  # fmt: skip
