"""A small slide of Leica's format, the simplest one that states bounds: 200 x 160 px at (50, 40) of 400 x 300 px."""

from pathlib import Path

import numpy as np
import tifffile

SIZE, CORNER = (400, 300), (50, 40)


def _image(name: str, pixels: tuple[int, int], ifd: int, view: tuple[int, int, int, int], objective: str) -> str:
    width, height, x, y = (500 * value for value in view)  # nanometres; a pixel of the slide is 0.5 um
    return (
        f'<image name="{name}" uuid="urn:uuid:1"><creationDate>2012-06-25T09:53:18.6Z</creationDate>'
        f'<device model="Leica SCN400" version="1.5"/><pixels sizeX="{pixels[0]}" sizeY="{pixels[1]}">'
        f'<dimension sizeX="{pixels[0]}" sizeY="{pixels[1]}" r="0" ifd="{ifd}"/></pixels>'
        f'<view sizeX="{width}" sizeY="{height}" offsetX="{x}" offsetY="{y}" spacingZ="0"/><scanSettings>'
        f"<objectiveSettings><objective>{objective}</objective></objectiveSettings><illuminationSettings>"
        "<numericalAperture>0.4</numericalAperture><illuminationSource>brightfield</illuminationSource>"
        "</illuminationSettings></scanSettings></image>"
    )


def write_slide_with_bounds(path: Path) -> Path:
    """Write the slide, white where it was scanned."""
    described = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        '<collection name="c" uuid="urn:uuid:0" sizeX="200000" sizeY="150000"><barcode>MQ==</barcode>'
        + _image("macro", (100, 75), 0, (*SIZE, 0, 0), "0.6")
        + _image("main", (200, 160), 1, (200, 160, *CORNER), "20")
        + "</collection></scn>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        for (width, height), text in (((100, 75), described), ((200, 160), None)):
            white = np.full((height, width, 3), 255, np.uint8)
            tif.write(
                white, tile=(32, 32), photometric="rgb", compression="jpeg", description=text, metadata=None,
                resolution=(20_000, 20_000), resolutionunit="CENTIMETER",
            )  # fmt: skip
    return path
