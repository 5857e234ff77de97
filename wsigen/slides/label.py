"""Draw the label and the macro picture of a slide, with an own bitmap font.

A label that says SYNTHETIC must not depend on the fonts of the machine (pango finds none in a bare container and then
draws empty boxes), and the same slide must have the same bytes everywhere: so 5 x 7 capitals are all we need.
"""

import numpy as np
import pyvips

from wsigen.slides.metadata import SlideMetadata

LABEL_SIDE = 432
MACRO_SHAPE = (LABEL_SIDE, 1280)  # a slide of 75 x 25 mm
SHORT_HASH = 12
_MARGIN = 18
_PAPER, _INK, _WARNING = (252, 251, 246), (28, 30, 36), (176, 24, 48)
_GLASS, _GLASS_EDGE = (228, 234, 236), (168, 180, 184)

# Seven rows per character from the top, five bits each, the highest bit at the left.
_GLYPHS = {
    "A": "0E 11 11 1F 11 11 11", "B": "1E 11 11 1E 11 11 1E", "C": "0E 11 10 10 10 11 0E", "D": "1E 11 11 11 11 11 1E",
    "E": "1F 10 10 1E 10 10 1F", "F": "1F 10 10 1E 10 10 10", "G": "0E 11 10 17 11 11 0F", "H": "11 11 11 1F 11 11 11",
    "I": "0E 04 04 04 04 04 0E", "J": "07 02 02 02 02 12 0C", "K": "11 12 14 18 14 12 11", "L": "10 10 10 10 10 10 1F",
    "M": "11 1B 15 15 11 11 11", "N": "11 11 19 15 13 11 11", "O": "0E 11 11 11 11 11 0E", "P": "1E 11 11 1E 10 10 10",
    "Q": "0E 11 11 11 15 12 0D", "R": "1E 11 11 1E 14 12 11", "S": "0F 10 10 0E 01 01 1E", "T": "1F 04 04 04 04 04 04",
    "U": "11 11 11 11 11 11 0E", "V": "11 11 11 11 11 0A 04", "W": "11 11 11 15 15 15 0A", "X": "11 11 0A 04 0A 11 11",
    "Y": "11 11 11 0A 04 04 04", "Z": "1F 01 02 04 08 10 1F", "0": "0E 11 13 15 19 11 0E", "1": "04 0C 04 04 04 04 0E",
    "2": "0E 11 01 02 04 08 1F", "3": "1F 02 04 02 01 11 0E", "4": "02 06 0A 12 1F 02 02", "5": "1F 10 1E 01 01 11 0E",
    "6": "06 08 10 1E 11 11 0E", "7": "1F 01 02 04 08 08 08", "8": "0E 11 11 0E 11 11 0E", "9": "0E 11 11 0F 01 02 0C",
    ".": "00 00 00 00 00 0C 0C", ",": "00 00 00 00 0C 04 08", ":": "00 0C 0C 00 0C 0C 00", "-": "00 00 00 1F 00 00 00",
    "_": "00 00 00 00 00 00 1F", "/": "00 01 02 04 08 10 00", "+": "00 04 04 1F 04 04 00", "=": "00 00 1F 00 1F 00 00",
    "(": "02 04 08 08 08 04 02", ")": "08 04 02 02 02 04 08", "#": "0A 0A 1F 0A 1F 0A 0A", "%": "18 19 02 04 08 13 03",
    "@": "0E 11 01 0D 15 15 0E", "*": "00 04 15 0E 15 04 00", "'": "0C 04 08 00 00 00 00", "?": "0E 11 01 02 04 00 04",
    " ": "00 00 00 00 00 00 00",
}  # fmt: skip


def draw_label(metadata: SlideMetadata, width: int, height: int) -> np.ndarray:
    """(LABEL_SIDE, LABEL_SIDE, 3) uint8: SYNTHETIC, what painted the slide from what, its scale and size."""
    origin = metadata.provenance
    known = [(name, origin.get(key, "")) for name, key in (("MODEL", "model"), ("STYLE", "style"), ("SEED", "seed"))]
    known.append(("MASK", origin.get("mask_sha256", "")[:SHORT_HASH]))
    lines = [
        f"WSIGEN {origin.get('version', '')}",
        *(f"{name} {value}" for name, value in known if value),
        f"{metadata.mpp:.4g} UM/PX  {metadata.objective_power:.4g}X",
        f"{width} X {height} PX",
    ]
    label = np.full((LABEL_SIDE, LABEL_SIDE, 3), _PAPER, np.uint8)
    label[:96] = _WARNING
    _write(label, "SYNTHETIC", 24, scale=7, colour=_PAPER)
    for row, line in enumerate(lines):
        _write(label, line, 116 + 34 * row, scale=3, colour=_INK)
    label[-54:] = _WARNING
    _write(label, "NOT FOR DIAGNOSIS", LABEL_SIDE - 38, scale=3, colour=_PAPER)
    return label


def draw_macro(label: np.ndarray, thumbnail: np.ndarray) -> np.ndarray:
    """(432, 1280, 3) uint8: a glass slide with its label at the left and the painted picture on the glass.

    label: (LABEL_SIDE, LABEL_SIDE, 3) uint8; thumbnail: (h, w, 3) uint8, scaled down to fit the glass, never up.
    """
    macro = np.full((*MACRO_SHAPE, 3), _GLASS, np.uint8)
    macro[:, :LABEL_SIDE] = label
    for border in (macro[:3], macro[-3:], macro[:, -3:], macro[:, LABEL_SIDE : LABEL_SIDE + 3]):
        border[:] = _GLASS_EDGE
    rows, columns = MACRO_SHAPE[0] - 2 * _MARGIN, MACRO_SHAPE[1] - LABEL_SIDE - 2 * _MARGIN
    picture = pyvips.Image.new_from_array(np.ascontiguousarray(thumbnail), interpretation="srgb")
    picture = picture.thumbnail_image(columns, height=rows, size="down").numpy()
    top = (MACRO_SHAPE[0] - picture.shape[0]) // 2
    left = LABEL_SIDE + (MACRO_SHAPE[1] - LABEL_SIDE - picture.shape[1]) // 2
    macro[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return macro


def text_bitmap(text: str) -> np.ndarray:
    """(7, 6 n - 1) bool for n characters; letters become capitals, unknown characters '?'."""
    rows = np.array([[int(row, 16) for row in _GLYPHS.get(c, _GLYPHS["?"]).split()] for c in text.upper()])
    bits = (rows[:, :, None] >> np.arange(5, -1, -1)) & 1
    return bits.transpose(1, 0, 2).reshape(7, -1).astype(bool)[:, 1:]


def _write(picture: np.ndarray, text: str, y: int, scale: int, colour: tuple[int, int, int]) -> None:
    """Write one line at row `y`; a long one in letters two thirds as big, then cut."""
    room = LABEL_SIDE - 2 * _MARGIN
    if len(text) * 6 * scale > room + scale:
        scale = max(2, scale - 1)
        text = text[: (room + scale) // (6 * scale)]
    bitmap = np.kron(text_bitmap(text), np.ones((scale, scale), bool))
    picture[y : y + bitmap.shape[0], _MARGIN : _MARGIN + bitmap.shape[1]][bitmap] = colour
