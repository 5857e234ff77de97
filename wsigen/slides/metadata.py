"""What a slide says about itself: scale, magnification and, in every form a reader may look at, that it is synthetic.

The ImageDescription follows Aperio's: a first line with the library, a second with the size, then `|key = value` items.
OpenSlide shows the items as `aperio.<key>`, so the provenance of a slide can be read in any viewer.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

from wsigen.errors import SlideError

RESERVED = ("AppMag", "MPP", "ScanScope ID", "synthetic")
SYNTHETIC_SCANNER = "SYNTHETIC"
SYNTHETIC_PATIENT = "SYNTHETIC^WSIGEN"
DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
# Everything printable but '%' (the escape), '|' and '=' (the separators of the items).
_PLAIN = " !\"#$&'()*+,-./:;<>?@[\\]^_`{}~"


@dataclass(frozen=True)
class SlideMetadata:
    """Scale and origin of a slide.

    mpp: microns per pixel of level 0, > 0.
    objective_power: nominal magnification, > 0 (20 for 0.5 mpp).
    provenance: how to paint it again. `version`, `model`, `seed`, `mask_sha256` and `style` are shown on the label;
        other keys are free, but for those Aperio's format needs (RESERVED).
    Raises SlideError for values outside these ranges.
    """

    mpp: float
    objective_power: float
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("mpp", self.mpp), ("objective_power", self.objective_power)):
            if not (math.isfinite(value) and value > 0):
                raise SlideError(f"{name} = {value}: must be a number above 0")
        for key in self.provenance:
            if key in RESERVED or not key.strip():
                raise SlideError(f"provenance key {key!r}: not allowed; choose another name")


def aperio_header(metadata: SlideMetadata) -> str:
    """First line of every ImageDescription in the file; by it OpenSlide and tifffile know the format."""
    return f"Aperio Image Library, written by wsigen {metadata.provenance.get('version', '')}".rstrip()


def aperio_description(metadata: SlideMetadata, width: int, height: int, tile: int, jpeg_quality: int) -> str:
    """ImageDescription of level 0 in ASCII; `parse_description` reads it back."""
    items = {
        "AppMag": f"{metadata.objective_power:.10g}",
        "MPP": f"{metadata.mpp:.10g}",
        "ScanScope ID": SYNTHETIC_SCANNER,
        "synthetic": f"wsigen {metadata.provenance.get('version', '')}".rstrip(),
    }
    items |= {key: value for key, value in metadata.provenance.items() if key != "version"}
    size = f"{width}x{height} [0,0 {width}x{height}] ({tile}x{tile}) JPEG/RGB Q={jpeg_quality}"
    return f"{aperio_header(metadata)}\r\n{size}" + "".join(f"|{_escape(k)} = {_escape(v)}" for k, v in items.items())


def parse_description(description: str) -> SlideMetadata | None:
    """Scale and provenance from an ImageDescription; None if the slide was not painted by wsigen."""
    pairs = (
        item.split("=", 1)
        for item in description.split("|")[1:]
        if "=" in item and not item.startswith("</Description>")
    )
    items = {unquote(key.strip()): unquote(value.strip()) for key, value in pairs}
    maker, _, version = items.get("synthetic", "").partition(" ")
    if maker != "wsigen":
        return None
    provenance = ({"version": version} if version else {}) | {k: v for k, v in items.items() if k not in RESERVED}
    try:
        return SlideMetadata(float(items["MPP"]), float(items["AppMag"]), provenance)
    except (KeyError, ValueError, SlideError):
        return None


def xmp_packet() -> bytes:
    """XMP (TIFF tag 700) with IPTC's digital source type 'created by a trained algorithm'."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
        f' Iptc4xmpExt:DigitalSourceType="{DIGITAL_SOURCE_TYPE}"/>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    ).encode()


def _escape(text: str) -> str:
    return quote(str(text).strip(), safe=_PLAIN)
