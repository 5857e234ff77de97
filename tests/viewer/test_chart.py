"""A chart shows a mask from afar, and tells where it has changed."""

import numpy as np
import pytest
from served import read_all, with_new_nucleus

from wsigen.masks.window import MaskWindow
from wsigen.viewer.chart import ChartMaker, MaskChart


def chart_of(content: MaskWindow, heights: list[int] | None = None) -> MaskChart:
    height, width = content.shape
    maker = ChartMaker(width, height, 6, content.tissue is not None, 0.5)
    top = 0
    for rows in [*(heights or []), height]:
        maker.add(content.take(slice(top, top + rows), slice(None)))
        top += rows
    return maker.result()


@pytest.fixture(scope="module")
def content(demo_mask):
    return read_all(demo_mask)


def test_the_height_of_bands_does_not_matter(content):
    whole, pieces = chart_of(content), chart_of(content, [1, 7, 32, 100, 3])
    assert np.array_equal(whole.digests, pieces.digests)
    for a, b in zip(whole.levels, pieces.levels, strict=True):
        assert all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("classes", "nuclei", "tissue"))


def test_cells_hold_the_class_and_the_shares_of_their_pixels(content):
    level = chart_of(content).levels[0]
    for row, column in ((5, 9), (20, 30), (40, 41), (62, 74)):
        cell = np.s_[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        counts = np.bincount(content.classes[cell].ravel(), minlength=7)[1:]
        assert level.nuclei[row, column] == counts.sum() * 255 // 64
        if counts.any():
            assert counts[level.classes[row, column] - 1] == counts.max()
        assert level.tissue[row, column] == pytest.approx(255 * (content.tissue[cell] == 1).sum() / 64, abs=1)


def test_only_changed_cells_differ_whatever_the_ids_are(content):
    before, after = chart_of(content), chart_of(with_new_nucleus(content, 200, 300))
    changed = before.changed(after)
    assert changed is not None
    rows, columns = np.nonzero(changed.cells)
    assert set(rows) <= {300 // 32, 309 // 32} and set(columns) <= {200 // 32, 209 // 32}
    assert len(rows) > 0
    assert not before.changed(chart_of(content)).cells.any()


def test_a_border_between_nuclei_is_content(content):
    """Two touching nuclei of one class become one: classes are the same, the painter sees another edge plane."""
    classes = np.zeros((64, 64), np.uint8)
    classes[10:20, 10:30] = 2
    two, one = np.zeros((64, 64), np.uint32), np.zeros((64, 64), np.uint32)
    two[10:20, 10:20], two[10:20, 20:30], one[10:20, 10:30] = 1, 2, 7
    assert chart_of(MaskWindow(classes, two)).changed(chart_of(MaskWindow(classes, one))).cells.any()


def test_tissue_is_guessed_where_there_is_no_plane():
    classes = np.zeros((400, 400), np.uint8)
    classes[200:210, 200:210] = 1
    tissue = chart_of(MaskWindow(classes)).levels[0].tissue
    assert tissue[25, 25] == 255 and tissue[0, 0] == 0 and 0 < tissue[25, 35] < 255


def test_masks_of_different_size_are_not_compared(content):
    assert chart_of(content).changed(chart_of(content.take(slice(0, 400), slice(None)))) is None
