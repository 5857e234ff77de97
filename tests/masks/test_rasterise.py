"""Outlines and pixels: tracing and drawing are exact inverses, and drawing follows the even-odd rule."""

from pathlib import Path

import numpy as np
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from wsigen.masks.importers.outlines import OutlineSpool
from wsigen.masks.importers.rasterise import BAND_ROWS, Rasteriser
from wsigen.masks.importers.sources import SourceObject
from wsigen.masks.outline import trace_bitmap, trace_runs


def drawn(objects: list[list[list[np.ndarray]]], height: int, width: int, folder: Path) -> np.ndarray:
    folder.mkdir(exist_ok=True)
    spool = OutlineSpool(folder)
    for polygons in objects:
        spool.add(SourceObject("a", polygons))
    outlines = spool.finish()
    value = (outlines.polygon_object + 1).astype(np.uint32)
    rasteriser = Rasteriser(outlines, outlines.polygon_object >= 0, value, width, height)
    out = np.zeros((height, width), np.uint32)
    for y in range(0, height, BAND_ROWS):
        rasteriser.draw(y, out[y : y + BAND_ROWS])
    return out


bitmaps = arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


@settings(max_examples=80, deadline=None)
@given(bitmap=bitmaps)
def test_what_is_traced_is_valid_and_draws_the_same_pixels(bitmap: np.ndarray, tmp_path_factory) -> None:
    polygons = trace_bitmap(bitmap)
    shapes = [shapely.Polygon(rings[0], rings[1:]) for rings in polygons]
    assert all(shape.is_valid for shape in shapes)
    assert sum(shape.area for shape in shapes) == bitmap.sum()
    if polygons:
        again = drawn([polygons], *bitmap.shape, tmp_path_factory.getbasetemp() / "rings")
        assert np.array_equal(again > 0, bitmap)


def test_many_objects_are_traced_at_once() -> None:
    ids = np.kron(np.arange(1, 26).reshape(5, 5), np.ones((3, 4), int))
    ids[4, 5] = 3  # object 3 has a pixel inside object 7
    row, left = np.nonzero(np.diff(ids, axis=1, prepend=0) != 0)
    right = np.array(
        [left[i + 1] if i + 1 < len(left) and row[i + 1] == row[i] else ids.shape[1] for i in range(len(row))]
    )
    rings = trace_runs(ids[row, left], row, left, right)
    found = dict(rings.polygons())
    assert sorted(found) == list(range(1, 26))
    assert len(found[3]) == 2 and len(found[7]) == 1 and len(found[7][0]) == 2  # two pieces; one hole
    areas = {owner: int(rings.area[rings.owner == owner].sum()) for owner in found}
    assert areas == {owner: 12 + (owner == 3) - (owner == 7) for owner in found}


def test_drawing_agrees_with_geometry_at_pixel_centres(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    height, width = 2 * BAND_ROWS + 60, 90
    objects = []
    for _ in range(40):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
        centre = rng.uniform(0, 1, 2) * (width, height)
        ring = centre + rng.uniform(3, 25, (9, 1)) * np.stack([np.cos(angles), np.sin(angles)], 1)
        objects.append([[ring]])
    shapes = [shapely.Polygon(rings[0][0]) for rings in objects]
    expected = np.zeros((height, width), np.uint32)
    for index in sorted(range(40), key=lambda i: -shapes[i].area):
        y, x = np.mgrid[:height, :width] + 0.5
        expected[shapely.contains_xy(shapes[index], x, y)] = index + 1
    assert np.array_equal(drawn(objects, height, width, tmp_path), expected)


def test_a_self_crossing_outline_is_filled_by_the_even_odd_rule(tmp_path: Path) -> None:
    star = 20 + 15 * np.stack([np.sin(np.arange(5) * 0.8 * np.pi), np.cos(np.arange(5) * 0.8 * np.pi)], 1)
    mended = shapely.make_valid(shapely.Polygon(star))
    y, x = np.mgrid[:40, :40] + 0.5
    assert np.array_equal(drawn([[[star]]], 40, 40, tmp_path) > 0, shapely.contains_xy(mended, x, y))
