"""The window grid: ownership is a partition, contexts come from earlier stages, at most 9 windows matter."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsigen.errors import SettingsError
from wsigen.tiling.grid import COLOURS, Block, BlockGrid, Rectangle, Window, WindowGrid, block_windows

windows = st.sampled_from([(32, 8), (64, 8), (64, 16), (64, 24), (128, 40), (256, 32)])
sides = st.integers(1, 700)


@st.composite
def grids(draw):
    window, overlap = draw(windows)
    return WindowGrid(draw(sides), draw(sides), window, overlap)


@given(grids())
@settings(max_examples=60, deadline=None)
def test_every_pixel_is_owned_by_exactly_one_existing_window(grid):
    owners = np.zeros((grid.height, grid.width), np.uint8)
    for window in grid.windows():
        x, y, width, height = grid.owned(window)
        owners[y : y + height, x : x + width] += 1
        assert x < grid.width and y < grid.height, "a window without a pixel of the slide"
        assert grid.owner(x, y) == window == grid.owner(x + width - 1, y + height - 1)
    assert (owners == 1).all()


@given(grids())
@settings(max_examples=60, deadline=None)
def test_a_pixel_belongs_to_the_first_stage_that_covers_it(grid):
    """Covered by what a window keeps: all but a quarter of the overlap at each of its sides."""
    first, margin = np.full((grid.height, grid.width), 9, np.uint8), grid.overlap // 4
    for j in range(grid.rows + 1):
        for i in range(grid.columns + 1):
            x, y, width, height = grid.extent(Window(i, j))
            assert (x + margin) % grid.stride == (y + margin) % grid.stride == 0
            covered = first[y + margin : y + height - margin, x + margin : x + width - margin]
            np.minimum(covered, Window(i, j).stage, out=covered)
    for window in grid.windows():
        x, y, width, height = grid.owned(window)
        assert (first[y : y + height, x : x + width] == window.stage).all()


@given(grids(), st.data())
@settings(max_examples=60, deadline=None)
def test_context_comes_from_earlier_stages_of_at_most_8_neighbours(grid, data):
    window = data.draw(st.sampled_from(list(grid.windows())))
    x, y, width, height = grid.extent(window)
    seen = {grid.owner(px, py) for px in range(x, x + width, 4) for py in range(y, y + height, 4)} - {window}
    existing = {w for w in seen if 0 <= w.i < grid.columns and 0 <= w.j < grid.rows}
    earlier = {w for w in existing if w.stage < window.stage}
    assert earlier == set(grid.dependencies(window))


@given(grids(), st.data())
@settings(max_examples=60, deadline=None)
def test_context_is_as_wide_as_the_overlap_less_its_margin(grid, data):
    window = data.draw(st.sampled_from(list(grid.windows())))
    x, _, width, _ = grid.extent(window)
    own = grid.owned(window)
    margin = grid.overlap // 4
    seen = grid.overlap - margin if window.i % 2 else margin
    assert own.x - x == x + width - own.x - own.width == seen


@given(grids(), st.data())
@settings(max_examples=60, deadline=None)
def test_the_closure_of_a_pixel_has_at_most_9_windows_and_is_closed(grid, data):
    x, y = data.draw(st.integers(0, grid.width - 1)), data.draw(st.integers(0, grid.height - 1))
    closure = grid.closure(Rectangle(x, y, 1, 1))
    assert len(closure) <= 9
    assert grid.owner(x, y) in closure
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
        for colour in COLOURS:
            width, height = layout.chunk_size(colour)
            held = np.zeros((height, width), np.uint8)
            for window in layout.windows(block, colour):
                assert window.colour == colour and layout.block_of(window) == block
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
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_one_line(arguments, named):
    with pytest.raises(SettingsError) as caught:
        WindowGrid(*arguments)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_the_largest_overlap_is_three_eighths():
    assert WindowGrid(10, 10, 256, 96).x_axis.owned_length(1) == 112


def test_blocks_shrink_on_small_slides_and_fill_batches():
    large = WindowGrid(100_000, 100_000)
    assert block_windows(large, batch_size=64, workers=8) == 16
    small = WindowGrid(1500, 1500)
    assert block_windows(small, batch_size=4, workers=1) == 4
    assert block_windows(small, batch_size=4, workers=2) in (2, 4)
    assert block_windows(WindowGrid(300, 300), batch_size=4, workers=16) == 2


def test_grid_and_blocks_do_not_import_torch():
    code = "import sys, wsigen.tiling.grid; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_block_region_is_cropped_to_the_slide():
    layout = BlockGrid(WindowGrid(1000, 500, 64, 8), 2)
    assert layout.region(Block(0, 0)) == Rectangle(0, 0, 224, 224)
    assert layout.region(Block(4, 2)) == Rectangle(896, 448, 104, 52)
