"""A file that is rewritten is read anew by a process that lives on: libvips remembers what it has opened."""

import ast
from pathlib import Path

import numpy as np
import pytest
import pyvips

from wsigen.masks.importers import ImportSettings, import_mask
from wsigen.masks.slide_mask import SlideMask
from wsigen.models.config import ModelConfig
from wsigen.models.stain import measure_style_file
from wsigen.rendering.layout_request import LayoutRequest
from wsigen.training.data.manifest import read_label

ROOT = Path(__file__).resolve().parents[1]
SIDE = 256
LOADERS = ("new_from_file", "load", "thumbnail")  # how the names of pyvips' readers of files end


def write(path: Path, *colours: tuple[int, int, int] | int) -> Path:
    """A picture of upright stripes."""
    bands = len(np.atleast_1d(colours[0]))
    stripes = np.repeat(np.array(colours, np.uint8).reshape(1, -1, bands), SIDE // len(colours), axis=1)
    pyvips.Image.new_from_array(np.repeat(stripes, SIDE, axis=0)).write_to_file(str(path))
    return path


def style_of(path):
    return measure_style_file(path).vector


def layout_of(path):
    return LayoutRequest(str(path), (1024, 1024)).resolve(ModelConfig.preset("tiny-mask")).sha256()


def imported(path):
    out = path.with_name("mask.tif")
    import_mask(path, out, ImportSettings(classes=ModelConfig.preset("tiny").classes.names, mpp=0.5), overwrite=True)
    with SlideMask.open(out, 6) as mask:
        return mask.read(0, 0, SIDE, SIDE).classes.tolist()


def label_of(path):
    return read_label(path).tolist()


PINK, VIOLET, GLASS = (230, 140, 190), (120, 60, 160), (243, 242, 244)


@pytest.mark.parametrize(
    ("read", "name", "first", "second"),
    [
        (style_of, "s.png", (PINK, GLASS), (VIOLET, GLASS)),
        (style_of, "s.tif", (PINK, GLASS), (VIOLET, GLASS)),
        (layout_of, "l.png", ((255, 255, 255), (230, 150, 190)), ((230, 150, 190), (230, 150, 190))),
        (imported, "i.png", (0, 2), (3, 0)),
        (imported, "i.tif", (0, 2), (3, 0)),
        (label_of, "t.png", (0, 2), (3, 0)),
    ],
)
def test_a_picture_that_was_rewritten_is_read_anew(tmp_path, read, name, first, second):
    before = read(write(tmp_path / name, *first))
    assert read(write(tmp_path / name, *second)) != before
    assert read(write(tmp_path / name, *first)) == before


def test_pictures_are_opened_by_the_function_that_reads_them_anew():
    opened = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "wsigen").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr.endswith(LOADERS) and ast.unparse(node.value) == "pyvips.Image"
    }
    # Label images are read row by row: libvips does not remember operations of such access.
    assert opened == {"wsigen/system/pictures.py", "wsigen/masks/importers/label_images.py"}, "call load_picture there"
