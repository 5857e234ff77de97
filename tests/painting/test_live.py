"""Painting on demand: the pixels of the whole slide, from a bounded cache, by many threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from wsigen.masks.occupancy import Occupancy
from wsigen.masks.slide_mask import SlideMask
from wsigen.painting.canvas import Canvas
from wsigen.painting.grid import BlockGrid, Rectangle, Window, WindowGrid
from wsigen.painting.occupancy import changed_windows, window_occupancy
from wsigen.painting.on_demand import LivePainter
from wsigen.painting.scheduler import paint_canvas
from wsigen.painting.spec import run_record

WIDTH, HEIGHT = 330, 260
GRID = WindowGrid(WIDTH, HEIGHT, 64, 8, 3)


@pytest.fixture(scope="module")
def slide(spec, tmp_path_factory):
    canvas = Canvas.create(tmp_path_factory.mktemp("live") / "c", BlockGrid(GRID, 2), run_record(spec, "m", "w"))
    paint_canvas(canvas, spec)
    return canvas.read_region(0, 0, WIDTH, HEIGHT, require=True)[0]


@pytest.fixture
def live(spec, request):
    with SlideMask.open(spec.source, 6) as source:
        occupied = window_occupancy(GRID, source, source.scan(), spec.mpp)
    painter = LivePainter(spec, GRID, occupied, cache_bytes=getattr(request, "param", 64 << 20))
    yield painter
    painter.close()


def test_a_region_has_the_pixels_of_the_whole_slide_and_costs_only_its_neighbourhood(live, slide):
    assert not live.is_painted(100, 120, 50, 40)
    region = live.region(100, 120, 50, 40)
    assert np.array_equal(region, slide[120:160, 100:150])
    assert 0 < live.painted <= len(GRID.closure(Rectangle(100, 120, 50, 40)))
    before = live.painted
    assert live.is_painted(100, 120, 50, 40)
    live.region(100, 120, 50, 40)
    assert live.painted == before, "what is at hand is not painted again"


@pytest.mark.parametrize("live", [40_000], indirect=True)
def test_what_a_small_cache_drops_is_painted_again_the_same(live, slide):
    assert np.array_equal(live.region(0, 0, WIDTH, HEIGHT), slide)
    assert live._cached_bytes <= 40_000
    before = live.painted
    assert np.array_equal(live.region(0, 0, 60, 60), slide[:60, :60])
    assert live.painted > before


def test_many_threads_paint_a_window_once(live, slide):
    boxes = [(x, y, 70, 60) for y in (0, 60, 120, 200) for x in (0, 50, 100, 260)] * 2
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda box: live.region(*box), boxes))
    for (x, y, w, h), pixels in zip(boxes, results, strict=True):
        assert np.array_equal(pixels, slide[y : y + h, x : x + w])
    assert live.painted <= GRID.columns * GRID.rows


def test_a_cancelled_region_ends_and_does_not_stop_others(live, slide):
    asked = []

    def cancelled():
        asked.append(1)
        return len(asked) > 2

    with ThreadPoolExecutor(2) as pool:
        given_up = pool.submit(live.region, 0, 0, 150, 150, cancelled)
        wanted = pool.submit(live.region, 40, 40, 100, 100)
        with pytest.raises(InterruptedError):
            given_up.result()
        assert np.array_equal(wanted.result(), slide[40:140, 40:140])
    assert not live._claimed


def test_closing_ends_what_is_under_way(spec):
    painter = LivePainter(spec, GRID, np.ones((GRID.rows, GRID.columns), bool))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(painter.region, 0, 0, WIDTH, HEIGHT)
        painter.close()
        with pytest.raises(InterruptedError):
            running.result()


def test_what_is_at_hand_is_told_and_what_is_painted_is_announced(live, slide):
    heard = []
    live.on_painted = heard.append
    alone = Rectangle(0, 0, 57, 57)  # what the first window shares with none
    assert live.to_paint(alone) == (1, 1) and live.to_paint(Rectangle(0, 0, 58, 57)) == (2, 2)
    pixels, known = live.at_hand(0, 0, 200, 200)
    assert not known.any()
    live.region(*alone)
    assert heard == [Window(0, 0)] and live.to_paint(alone) == (1, 0)
    pixels, known = live.at_hand(0, 0, 200, 200)
    assert known[:57, :57].all() and known.sum() == 57 * 57, "bands are known once all their windows are painted"
    assert np.array_equal(pixels[known], slide[:200, :200][known])


def test_a_painter_takes_over_what_has_not_changed(live, spec, slide):
    live.region(0, 0, WIDTH, HEIGHT)
    other = LivePainter(spec, GRID, live.occupied, model=live.model)
    try:
        changed = np.zeros((GRID.rows, GRID.columns), bool)
        changed[1, 1:3] = True
        assert other.inherit(live, changed) >= live.painted - 2
        assert np.array_equal(other.region(0, 0, WIDTH, HEIGHT), slide)
        assert other.painted == (changed & live.occupied).sum()
    finally:
        other.close()


def test_a_change_reaches_the_windows_that_see_it(spec):
    """Marked cell by cell: every window whose conditions hold the cell, and every window that sees such a one."""
    with SlideMask.open(spec.source, 6) as mask:
        for row, column in ((0, 0), (3, 4), (8, 10)):
            cells = np.zeros((-(-HEIGHT // 32), -(-WIDTH // 32)), bool)
            cells[row, column] = True
            found = changed_windows(GRID, mask, Occupancy(cells, WIDTH, HEIGHT), spec.mpp)
            expected = np.zeros_like(found)
            halo = 9  # the mask has a tissue plane
            for window in GRID.windows():
                for near in (window, *GRID.dependencies(window)):
                    x, y, width, height = GRID.extent(near)
                    inside = x - halo < 32 * column + 32 and 32 * column < x + width + halo
                    expected[window.j, window.i] |= inside and y - halo < 32 * row + 32 and 32 * row < y + height + halo
            assert not (expected & ~found).any(), "no window is forgotten"
            assert found.sum() <= expected.sum() + 8, "and few are painted in vain"
