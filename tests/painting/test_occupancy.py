"""The map of occupied windows errs on one side, glass costs nothing, and sparse blocks share tasks."""

import numpy as np
import pytest

from wsigen.masks.conditions import read_conditions
from wsigen.masks.resampling import resampled_to
from wsigen.masks.slide_mask import SlideMask
from wsigen.masks.window import MaskWindow
from wsigen.masks.writer import write_slide_mask
from wsigen.painting.canvas import Canvas
from wsigen.painting.grid import PARITIES, BlockGrid, WindowGrid
from wsigen.painting.occupancy import occupied_windows, window_occupancy, windows_by_parity
from wsigen.painting.scheduler import paint_canvas
from wsigen.painting.spec import run_record
from wsigen.painting.tasks import chunk_sources, make_plan


@pytest.fixture(params=[True, False], ids=["tissue plane", "nuclei alone"])
def sparse_mask(request, tmp_path):
    """A few nuclei, and tissue around them, on much glass; also at the border, where it is reflected."""
    width, height = 1100, 900
    rng = np.random.default_rng(4)
    classes, tissue = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
    for x, y in [(3, 5), (width - 4, 400), (500, height - 3), *rng.integers(200, 800, (3, 2))]:
        classes[max(0, y - 4) : y + 4, max(0, x - 4) : x + 4] = 2
        tissue[max(0, y - 30) : y + 30, max(0, x - 30) : x + 30] = 1
    path = tmp_path / "mask.tif"
    has_tissue = request.param
    bands = [MaskWindow(classes, None, tissue if has_tissue else None)]
    write_slide_mask(path, width, height, 0.5, bands, instances=False, tissue=has_tissue)
    return path


@pytest.mark.parametrize("mpp", [0.5, 0.35, 1.1])
def test_every_window_that_owns_more_than_glass_is_found(sparse_mask, mpp):
    with SlideMask.open(sparse_mask, 6) as source:
        mask = resampled_to(source, mpp)
        grid = WindowGrid(mask.width, mask.height, 64, 8, 3)
        occupied = window_occupancy(grid, mask, source.scan(), mpp)
        needed = np.zeros_like(occupied)
        for window in grid.windows():
            glass = read_conditions(mask, *grid.extent(window), mpp).glass
            needed[window.j, window.i] = not glass[grid.held_within(window)].all()
    assert needed.any() and not needed.all()
    assert not (needed & ~occupied).any(), "a window with tissue was taken for glass"
    if mpp == 0.5 and mask.has_tissue:
        assert occupied.sum() < 3 * needed.sum(), "most glass is known to be glass"


def test_windows_by_parity_count_every_window_once():
    occupied = np.random.default_rng(0).random((9, 12)) < 0.3
    counts = windows_by_parity(occupied)
    assert sum(total for total, _ in counts.values()) == occupied.size
    assert sum(found for _, found in counts.values()) == occupied.sum()
    layout = BlockGrid(WindowGrid(12 * 56 - 20, 9 * 56 - 20, 64, 8), 2)
    assert (layout.grid.rows, layout.grid.columns) == occupied.shape
    assert occupied.sum() == sum(occupied_windows(layout, (b, c), occupied) for b in layout.blocks() for c in PARITIES)


def test_glass_is_written_and_not_painted_and_the_pixels_are_the_same(spec, tmp_path):
    grid = WindowGrid(330, 260, 64, 8, 3)
    with SlideMask.open(spec.source, 6) as source:
        occupied = window_occupancy(grid, source, source.scan(), spec.mpp)
    assert not occupied.all()
    record = run_record(spec, "mask", "model")
    blind, knowing = (Canvas.create(tmp_path / name, BlockGrid(grid, 1), record) for name in ("blind", "knowing"))
    plan = make_plan(knowing, occupied=occupied)
    assert plan.blank and not set(plan.blank) & {chunk for task in plan.tasks for chunk in task.chunks}
    first = paint_canvas(blind, spec)
    second = paint_canvas(knowing, spec, occupied=occupied)
    assert (first.painted, first.glass, first.total) == (second.painted, second.glass, second.total)
    assert np.array_equal(blind.read_region(0, 0, 330, 260)[0], knowing.read_region(0, 0, 330, 260)[0])
    assert not make_plan(knowing, occupied=occupied).tasks


def test_sparse_blocks_share_tasks_and_keep_their_dependencies(tmp_path, spec):
    layout = BlockGrid(WindowGrid(4000, 2000, 64, 8, 3), 2)
    canvas = Canvas.create(tmp_path / "c", layout, run_record(spec, "mask", "model"))
    occupied = np.random.default_rng(1).random((layout.grid.rows, layout.grid.columns)) < 0.1
    plan = make_plan(canvas, occupied=occupied, batch_size=16)
    weights = [sum(occupied_windows(layout, chunk, occupied) for chunk in task.chunks) for task in plan.tasks]
    assert np.mean(weights) > 8 and max(weights) <= 16
    chunks = [chunk for task in plan.tasks for chunk in task.chunks] + list(plan.blank)
    assert len(chunks) == len(set(chunks)) == sum(bool(layout.windows(b, c)) for b in layout.blocks() for c in PARITIES)
    assert len({task.key for task in plan.tasks}) == len(plan.tasks)
    writer = {chunk: task for task in plan.tasks for chunk in task.chunks}
    for rank, task in enumerate(plan.tasks):
        sources = {source for chunk in task.chunks for source in chunk_sources(*chunk)}
        assert plan.waits_for[task] == {writer[source] for source in sources if source in writer}
        assert plan.waits_for[task] <= set(plan.tasks[:rank])
        assert len({block.q for block, _ in task.chunks}) == 1
