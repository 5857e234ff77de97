"""The window grid: who holds a pixel, with which weight and when it is known; at most 9 windows matter to it."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from bands import trapezia
from hypothesis import given, settings
from hypothesis import strategies as st

from wsigen.errors import SettingsError
from wsigen.painting.blending import Mosaic
from wsigen.painting.grid import (
    PARITIES,
    STAGES,
    Block,
    BlockGrid,
    Rectangle,
    Window,
    WindowGrid,
    block_windows,
    usual_blend,
)

windows = st.sampled_from([(32, 8), (64, 8), (64, 16), (64, 24), (128, 40), (256, 32)])
sides = st.integers(1, 700)


@st.composite
def grids(draw, blends=True):
    window, overlap = draw(windows)
    blend = draw(st.integers(0, overlap - 2 * (overlap // 4))) if blends else 0
    return WindowGrid(draw(sides), draw(sides), window, overlap, blend)


@given(grids(blends=False))
@settings(max_examples=60, deadline=None)
def test_without_blending_every_pixel_has_one_window(grid):
    held = np.zeros((grid.height, grid.width), np.uint8)
    for window in grid.windows():
        x, y, width, height = grid.held(window)
        held[y : y + height, x : x + width] += 1
        assert x < grid.width and y < grid.height, "a window without a pixel of the slide"
        for axis, i, first, last in ((grid.x_axis, window.i, x, x + width), (grid.y_axis, window.j, y, y + height)):
            assert axis.holders(first) == axis.holders(last - 1) == range(i, i + 1)
    assert (held == 1).all()


@given(grids(blends=False))
@settings(max_examples=60, deadline=None)
def test_without_blending_a_pixel_belongs_to_the_first_stage_that_covers_it(grid):
    """Covered by what a window keeps: all but a quarter of the overlap at each of its sides."""
    first, margin = np.full((grid.height, grid.width), 9, np.uint8), grid.overlap // 4
    for j in range(grid.rows + 1):
        for i in range(grid.columns + 1):
            x, y, width, height = grid.extent(Window(i, j))
            assert (x + margin) % grid.stride == (y + margin) % grid.stride == 0
            covered = first[y + margin : y + height - margin, x + margin : x + width - margin]
            np.minimum(covered, Window(i, j).stage, out=covered)
    for window in grid.windows():
        x, y, width, height = grid.held(window)
        assert (first[y : y + height, x : x + width] == window.stage).all()


@given(grids())
@settings(max_examples=60, deadline=None)
def test_blending_adds_no_windows_and_widens_the_odd_ones(grid):
    cut = replace(grid, blend=0)
    assert list(grid.windows()) == list(cut.windows())
    for window in grid.windows():
        (x, y, width, height), own = grid.held(window), cut.held(window)
        more_x, more_y = grid.blend * (window.i % 2), grid.blend * (window.j % 2)
        assert (x, width, y, height) == (
            own.x - more_x,
            own.width + 2 * more_x,
            own.y - more_y,
            own.height + 2 * more_y,
        )


@given(grids())
@settings(max_examples=60, deadline=None)
def test_segments_and_holders_are_those_of_the_windows(grid):
    axis, weights = grid.x_axis, trapezia(grid.x_axis)
    pixels = np.zeros(weights.shape[1], int)
    for windows, start, stop, into in axis.segments(-50, weights.shape[1]):
        pixels[start:stop] += 1
        for pixel in {start, stop - 1}:
            assert list(np.nonzero(weights[:, pixel])[0]) == list(windows) == list(axis.holders(pixel))
            assert set(windows) <= set(axis.covering(pixel, pixel + 1)) or pixel >= axis.length
        assert (len(windows) == 1 and into == 0) or stop - start + into <= grid.blend
    assert np.array_equal(pixels, weights.any(0))


@given(grids(), st.integers(0, STAGES), st.data())
@settings(max_examples=40, deadline=None)
def test_a_pixel_is_the_weighted_mean_of_its_windows_once_all_of_them_are_painted(grid, stages_below, data):
    x, y = data.draw(st.integers(-40, grid.width)), data.draw(st.integers(-40, grid.height))
    region = Rectangle(x, y, data.draw(st.integers(1, 150)), data.draw(st.integers(1, 150)))
    random = np.random.default_rng(0)
    rows, columns = (
        np.pad(trapezia(axis), ((0, 0), (200, 400)))[:, start + 200 : start + 200 + length]
        for axis, start, length in ((grid.y_axis, y, region.height), (grid.x_axis, x, region.width))
    )
    expected = np.zeros((region.height, region.width, 3))
    stage = np.full((region.height, region.width), -1)
    mosaic = Mosaic(grid, region, stages_below)
    asked = set(mosaic.windows)
    assert asked <= set(grid.windows(region)) or x + region.width > grid.width or y + region.height > grid.height
    reaching = [Window(i, j) for j in np.nonzero(rows.any(1))[0] for i in np.nonzero(columns.any(1))[0]]
    for index in random.permutation(len(reaching)):
        window = reaching[index]
        left, top, width, height = grid.held(window)
        held = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        mosaic.add(window, held)
        weight = rows[window.j][:, None] * columns[window.i]
        at = np.clip(np.arange(y, y + region.height) - top, 0, height - 1)
        across = np.clip(np.arange(x, x + region.width) - left, 0, width - 1)
        expected += weight[..., None] * held[at][:, across]
        stage = np.where(weight > 0, np.maximum(stage, window.stage), stage)
    known = (stage >= 0) & (stage < stages_below)
    assert np.array_equal(mosaic.known, known) and not mosaic.windows
    assert np.array_equal(mosaic.rgb[known], np.floor(expected[known] + 0.5 + 1e-9))
    assert not mosaic.rgb[~known].any()


def test_a_pixel_is_not_known_before_its_last_window():
    grid = WindowGrid(400, 400, 64, 16, 6)
    region = Rectangle(*grid.held(Window(1, 1)))
    mosaic = Mosaic(grid, region)
    *others, last = mosaic.windows
    for window in others:
        mosaic.add(window, np.full((*grid.held_size(window.parity)[::-1], 3), 9, np.uint8))
    x, y, width, height = grid.held(last)
    own = np.s_[max(y - region.y, 0) : y - region.y + height, max(x - region.x, 0) : x - region.x + width]
    assert mosaic.known.any() and not mosaic.known[own].any()
    mosaic.add(last, np.full((height, width, 3), 9, np.uint8))
    assert mosaic.known.all() and (mosaic.rgb == 9).all()


@given(grids(), st.data())
@settings(max_examples=60, deadline=None)
def test_context_comes_from_earlier_stages_of_at_most_8_neighbours(grid, data):
    window = data.draw(st.sampled_from(list(grid.windows())))
    mosaic = Mosaic(grid, grid.extent(window), window.stage)
    seen = set(mosaic.windows)
    assert seen == set(grid.dependencies(window)) and all(near.stage < window.stage for near in seen)
    for near in mosaic.windows:
        mosaic.add(near, np.zeros((*grid.held_size(near.parity)[::-1], 3), np.uint8))
    assert not mosaic.known[grid.held_within(window)].any(), "what a window holds it paints without knowing"


@given(grids(), st.data())
@settings(max_examples=60, deadline=None)
def test_context_is_as_wide_as_the_overlap_less_margin_and_band(grid, data):
    window = data.draw(st.sampled_from(list(grid.windows())))
    x, _, width, _ = grid.extent(window)
    held = grid.held(window)
    margin = grid.overlap // 4
    seen = grid.overlap - margin - grid.blend if window.i % 2 else margin
    assert held.x - x == x + width - held.x - held.width == seen >= margin


@given(grids(), st.data())
@settings(max_examples=60, deadline=None)
def test_the_closure_of_a_pixel_has_at_most_9_windows_and_is_closed(grid, data):
    x, y = data.draw(st.integers(0, grid.width - 1)), data.draw(st.integers(0, grid.height - 1))
    closure = grid.closure(Rectangle(x, y, 1, 1))
    assert len(closure) <= 9
    assert {Window(i, j) for j in grid.y_axis.holders(y) for i in grid.x_axis.holders(x)} <= set(closure)
    for position, window in enumerate(closure):
        assert set(grid.dependencies(window)) <= set(closure[:position])


def test_inner_windows_depend_on_4_windows_on_average():
    grid = WindowGrid(4000, 4000)
    inner = [Window(i, j) for i in range(2, 10) for j in range(2, 10)]
    assert sum(len(grid.dependencies(w)) + 1 for w in inner) / len(inner) == 4


@given(grids(), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_blocks_partition_windows_and_chunks_hold_each_window_once(grid, b):
    layout = BlockGrid(grid, b)
    found = []
    for block in layout.blocks():
        for parity in PARITIES:
            width, height = layout.chunk_size(parity)
            held = np.zeros((height, width), np.uint8)
            for window in layout.windows(block, parity):
                assert window.parity == parity and layout.block_of(window) == block
                found.append(window)
                held[layout.within_chunk(window)] += 1
            assert held.max(initial=0) <= 1
    assert sorted(found) == sorted(grid.windows())
    area = sum(r.width * r.height for r in (layout.region(block) for block in layout.blocks()))
    assert area == grid.width * grid.height


def test_the_plane_outside_the_slide_belongs_to_windows_that_do_not_exist():
    axis = WindowGrid(500, 100).x_axis
    assert [s.start for s in axis.segments(-64, 0)] == []
    assert axis.neighbours(1) == range(0, 3)
    assert list(WindowGrid(500, 100).windows(Rectangle(-50, -50, 40, 40))) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((0, 10), "slide size 0"),
        ((10, 10, 250, 32), "--window 250"),
        ((10, 10, 256, 100), "--overlap 100"),
        ((10, 10, 256, 104), "--overlap 104"),
        ((10, 10, 256, 0), "--overlap 0"),
        ((10, 10, 256, 12), "--overlap 12"),
        ((10, 10, 256, 32, -1), "blend -1: must lie from 0 to 16 px for --overlap 32"),
        ((10, 10, 256, 32, 17), "blend 17"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_one_line(arguments, named):
    with pytest.raises(SettingsError) as caught:
        WindowGrid(*arguments)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_the_largest_overlap_is_three_eighths():
    assert WindowGrid(10, 10, 256, 96).x_axis.held_length(1) == 112


@pytest.mark.parametrize(("overlap", "blend"), [(8, 3), (16, 6), (32, 12), (96, 36)])
def test_a_slide_is_blended_over_three_eighths_of_the_overlap(overlap, blend):
    grid = WindowGrid(1000, 1000, 256, overlap, usual_blend(overlap))
    assert grid.blend == blend
    assert grid.held_within(Window(1, 0))[1].start == overlap - overlap // 4 - blend >= 3, "what is left for context"


def test_blocks_shrink_on_small_slides_and_fill_batches():
    large = WindowGrid(100_000, 100_000)
    assert block_windows(large, batch_size=64, workers=8) == 16
    small = WindowGrid(1500, 1500)
    assert block_windows(small, batch_size=4, workers=1) == 4
    assert block_windows(small, batch_size=4, workers=2) in (2, 4)
    assert block_windows(WindowGrid(300, 300), batch_size=4, workers=16) == 2


def test_grid_and_blocks_do_not_import_torch():
    code = "import sys, wsigen.painting.grid; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_block_region_is_cropped_to_the_slide():
    layout = BlockGrid(WindowGrid(1000, 500, 64, 8), 2)
    assert layout.region(Block(0, 0)) == Rectangle(0, 0, 224, 224)
    assert layout.region(Block(4, 2)) == Rectangle(896, 448, 104, 52)
