"""Nuclei over a slide, from masks and from outlines."""

import json

import numpy as np
import pytest
from scipy import ndimage
from served import read_all, write_mask

from wsigen.errors import MaskError
from wsigen.masks.conditions import instance_edges
from wsigen.masks.exporters import export_mask
from wsigen.masks.origin import Origin
from wsigen.masks.window import MaskWindow
from wsigen.models.config import ModelConfig
from wsigen.viewer.live.mask import read_mask
from wsigen.viewer.outlines import OutlineOverlay
from wsigen.viewer.overlays import MaskOverlay

TINY = ModelConfig.preset("tiny")
ALL = set(range(1, 7))


def open_mask(path) -> MaskOverlay:
    read = read_mask(path, TINY)
    return MaskOverlay(path, TINY.classes, read.facts.summary, read.chart)


@pytest.fixture(scope="module")
def content(demo_mask):
    return read_all(demo_mask)


@pytest.fixture(scope="module")
def overlay(demo_mask):
    opened = open_mask(demo_mask)
    yield opened
    opened.close()


def colours() -> np.ndarray:
    return np.array([(0, 0, 0), *(entry.rgb for entry in TINY.classes)], np.uint8)


def test_fill_has_the_colours_of_the_mask(overlay, content):
    tile = overlay.tile(0, 1, 0, "fill", ALL)
    classes = content.classes[:256, 256:512]
    assert np.array_equal(tile[..., 3] == 255, classes > 0)
    assert np.array_equal(tile[classes > 0, :3], colours()[classes[classes > 0]])


def test_outlines_are_the_nuclei_s_own_border_pixels(overlay, content):
    border = ndimage.binary_dilation(instance_edges(content.instances)) & (content.classes > 0)
    tile = overlay.tile(0, 0, 1, "outline", ALL)
    assert np.array_equal(tile[:-2, :, 3] > 0, border[256:498, :256])  # the last rows have reflected neighbours
    coarse = instance_edges(content.instances[1::2, 1::2]) & (content.classes[1::2, 1::2] > 0)
    assert np.array_equal(overlay.tile(1, 0, 0, "outline", ALL)[:249, ..., 3] > 0, coarse[:249, :256])


def test_classes_can_be_switched(overlay, content):
    tile = overlay.tile(0, 0, 0, "fill", {2, 6})
    assert np.array_equal(tile[..., 3] > 0, np.isin(content.classes[:256, :256], (2, 6)))
    assert not overlay.tile(0, 0, 0, "fill", set()).any()


def test_levels_agree_with_level_0(overlay, content):
    nearest = overlay.tile(2, 0, 0, "fill", ALL)
    assert np.array_equal(nearest[..., 3] > 0, content.classes[2:500:4, 2:600:4] > 0)
    far = overlay.marks(3, 0, 0, 75, 62, "fill")
    dense = content.classes[:496].reshape(62, 8, 75, 8).swapaxes(1, 2).reshape(62, 75, 64)
    assert np.array_equal(far.alpha > 0, (dense > 0).sum(2) * 255 // 64 > 0)


def test_a_click_finds_class_id_and_area(overlay, content):
    for number in (1, 17, 200):
        y, x = np.argwhere(content.instances == number)[0]
        found = overlay.find(int(x), int(y))
        assert (found.number, found.class_index) == (number, content.classes[y, x])
        assert found.area == (content.instances == number).sum() and found.whole and found.rings
    y, x = np.argwhere(content.classes == 0)[0]
    assert overlay.find(int(x), int(y)) is None


def test_without_ids_a_nucleus_is_what_hangs_together(tmp_path):
    classes = np.zeros((700, 700), np.uint8)
    classes[100:110, 100:112] = 3
    classes[110:120, 112:120] = 3  # touches at a corner only
    classes[200:650, 200:650] = 2  # larger than is followed
    write_mask(tmp_path / "m.tif", MaskWindow(classes))
    overlay = open_mask(tmp_path / "m.tif")
    found = overlay.find(105, 105)
    assert (found.number, found.area, found.whole) == (None, 120, True)
    assert not overlay.find(600, 220).whole or overlay.find(600, 220).area == 450 * 450
    assert overlay.counts[2] == 2
    overlay.close()


def geojson(path, *features: tuple[list, str]):
    made = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": rings},
            "properties": {"objectType": "annotation", "classification": {"name": name}},
        }
        for rings, name in features
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": made}))
    return path


def square(x, y, side):
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def test_outlines_of_geojson_are_drawn_counted_and_found(tmp_path):
    path = geojson(
        tmp_path / "a.geojson",
        ([square(10, 10, 100), square(30, 30, 20)], "Tumour"),
        ([square(60, 60, 8)], "lymphocyte"),
        ([square(300, 300, 12)], "lymphocyte"),
    )
    overlay = OutlineOverlay(path, (600, 500), 0.5, TINY.classes)
    assert [(entry.name, count) for entry, count in zip(overlay.classes, overlay.counts, strict=True)] == [
        ("Tumour", 1),
        ("lymphocyte", 2),
    ]
    assert overlay.classes[1].colour == TINY.classes.classes[2].colour, "known classes have the model's colours"
    tile = overlay.tile(0, 0, 0, "fill", {1, 2})
    assert tuple(tile[64, 64, :3]) == overlay.classes[1].rgb and tuple(tile[20, 90, :3]) == overlay.classes[0].rgb
    assert tile[40, 40, 3] == 0, "a hole is a hole"
    outline = overlay.tile(0, 0, 0, "outline", {1, 2})
    assert outline[20, 90, 3] == 0 and outline[10, 50, 3] == 255
    found = overlay.find(20, 20)
    assert (found.class_index, found.number, found.area) == (1, 1, 100 * 100 - 20 * 20)
    assert overlay.find(63, 63).number == 2, "the smallest one around a pixel"
    assert overlay.find(40, 40) is None and overlay.find(500, 10) is None
    overlay.close()


def test_tiny_outlines_are_marked_by_their_middles(tmp_path, demo_mask, overlay):
    export_mask(demo_mask, tmp_path / "m.geojson", TINY.classes)
    outlines = OutlineOverlay(tmp_path / "m.geojson", (600, 500), 0.5, TINY.classes)
    counts = {entry.name: count for entry, count in zip(outlines.classes, outlines.counts, strict=True)}
    assert {name: counts[name] for name in TINY.classes.names} == dict(zip(TINY.classes.names, overlay.counts))
    far = outlines.marks(6, 0, 0, 9, 7, "outline")
    assert far.classes.any()
    nuclei = {entry.index for entry in outlines.classes if entry.name in TINY.classes.names}
    drawn = outlines.tile(0, 0, 0, "fill", nuclei)
    assert (drawn == overlay.tile(0, 0, 0, "fill", ALL)).all(axis=2).mean() > 0.95  # borders may differ by a pixel
    outlines.close()


def test_files_without_outlines_are_refused(tmp_path):
    (tmp_path / "e.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    with pytest.raises(MaskError, match="no outlines"):
        OutlineOverlay(tmp_path / "e.geojson", (10, 10), None, TINY.classes)
    (tmp_path / "x.geojson").write_text("what is this")
    with pytest.raises(MaskError, match=r"x\.geojson"):
        OutlineOverlay(tmp_path / "x.geojson", (10, 10), None, TINY.classes)


def test_outlines_of_qupath_count_from_the_bounds_of_a_slide(tmp_path):
    path = geojson(tmp_path / "a.geojson", ([square(10, 10, 10)], "lymphocyte"))
    for bounds, origin, expected in (
        ((50, 40), Origin.AUTO, (60, 50)),
        ((50, 40), Origin.BOUNDS, (60, 50)),
        ((50, 40), Origin.SLIDE, (10, 10)),
        (None, Origin.AUTO, (10, 10)),
    ):
        overlay = OutlineOverlay(path, (400, 300), 0.5, TINY.classes, bounds=bounds, origin=origin)
        rows, columns = np.nonzero(overlay.tile(0, 0, 0, "fill", {1})[..., 3])
        assert np.abs([columns.min() - expected[0], rows.min() - expected[1]]).max() <= 1  # borders may differ by one
        assert overlay.find(expected[0] + 5, expected[1] + 5).area == 100
        overlay.close()
