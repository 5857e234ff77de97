"""The canvas: what was written is read back, a damaged chunk counts as not done, another run's store is refused."""

import json
from itertools import pairwise

import numpy as np
import pytest
from bands import trapezia
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wsigen.errors import StoreError
from wsigen.painting.canvas import Canvas, CanvasPanels
from wsigen.painting.grid import PARITIES, Block, BlockGrid, Parity, Rectangle, WindowGrid

RUN = {"seed": 1, "model": {"sha256": "ab"}, "style": (0.5, 0.25)}


def plane(layout: BlockGrid, seed=5) -> np.ndarray:
    """A picture that covers every pixel that existing windows hold, slide or not."""
    size = (layout.rows * layout.pixels + 512, layout.columns * layout.pixels + 512, 3)
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def fill(canvas: Canvas, picture: np.ndarray | dict[Parity, np.ndarray], parities=PARITIES) -> None:
    """Paint all windows after one picture, or after one for each parity."""
    layout = canvas.layout
    for block in layout.blocks():
        for parity in parities:
            width, height = layout.chunk_size(parity)
            chunk = np.zeros((height, width, 3), np.uint8)
            for window in layout.windows(block, parity):
                x, y, w, h = layout.grid.held(window)
                painted = picture[parity] if isinstance(picture, dict) else picture
                chunk[layout.within_chunk(window)] = painted[y : y + h, x : x + w]
            if layout.windows(block, parity):
                canvas.write(block, parity, chunk)


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([0, 6, 8]), st.integers(1, 3), st.data())
@settings(max_examples=16, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_region_reads_back_what_was_painted_blended(tmp_path_factory, width, height, blend, b, data):
    layout = BlockGrid(WindowGrid(width, height, 64, 16, blend), b)
    canvas = Canvas.create(tmp_path_factory.mktemp("store") / "c.canvas", layout, RUN)
    pictures = {parity: plane(layout, seed) for seed, parity in enumerate(PARITIES)}
    fill(canvas, pictures)
    picture, exists = blended(layout.grid, pictures)
    x, y = data.draw(st.integers(-80, width)), data.draw(st.integers(-80, height))
    w, h = data.draw(st.integers(1, 200)), data.draw(st.integers(1, 200))
    rgb, known = canvas.read_region(x, y, w, h)
    part = np.s_[100 + y : 100 + y + h, 100 + x : 100 + x + w]
    edge = ((100, 400), (100, 400))
    assert np.array_equal(known, np.pad(exists, edge)[part])
    assert np.array_equal(rgb, np.pad(np.where(exists[..., None], picture, 0), (*edge, (0, 0)))[part])
    panels = CanvasPanels(canvas, (1, 2, 3))
    cuts = [0, *range(50, height, 50), height]
    slide = np.concatenate([panels(0, a, width, b - a) for a, b in pairwise(cuts)])
    assert np.array_equal(slide, picture[:height, :width])


def blended(grid: WindowGrid, pictures: dict[Parity, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The mean of pictures of four parities with the weights of their windows, rounded, and where it is known."""
    size = next(iter(pictures.values())).shape[:2]
    rows, columns = (
        [np.pad(trapezia(axis), ((0, 0), (0, 999)))[parity::2, :length].sum(0) for parity in (0, 1)]
        for axis, length in ((grid.y_axis, size[0]), (grid.x_axis, size[1]))
    )
    mean = sum((rows[c.y][:, None] * columns[c.x])[..., None] * picture for c, picture in pictures.items())
    return np.floor(mean + 0.5 + 1e-9).astype(np.uint8), (rows[0] + rows[1] > 0)[:, None] & (
        columns[0] + columns[1] > 0
    )


@pytest.mark.parametrize("blend", [0, 6])
def test_a_stage_sees_only_earlier_stages(tmp_path, blend):
    canvas = Canvas.create(tmp_path / "c", BlockGrid(WindowGrid(300, 300, 64, 16, blend), 2), RUN)
    fill(canvas, plane(canvas.layout))
    grid = canvas.grid
    for stage in range(4):
        _, known = canvas.read_region(0, 0, 300, 300, stages_below=stage)
        for x, y in [(10, 10), (52, 10), (70, 10), (52, 70), (10, 70), (70, 70), (299, 299)]:
            last = max(i % 2 for i in grid.x_axis.holders(x)) + max(j % 2 for j in grid.y_axis.holders(y))
            assert known[y, x] == (last < stage)


@pytest.mark.parametrize("every", [1, 4])
def test_painted_samples_show_each_pixel_once(tmp_path, every):
    canvas = Canvas.create(tmp_path / "c", BlockGrid(WindowGrid(300, 200, 64, 16, 6), 2), RUN)
    picture, seen = plane(canvas.layout), np.zeros((140, 250), int)
    region = Rectangle(30, 20, 250, 140)
    assert canvas.painted_samples((Block(0, 0), Parity(0, 0)), region, every) is None
    fill(canvas, picture)
    for block in canvas.layout.blocks():
        for parity in PARITIES:
            shown = canvas.painted_samples((block, parity), region, every)
            assert (shown is None) == (not canvas.layout.windows(block, parity))
            columns, rows, pixels = shown or (np.zeros(0, int), np.zeros(0, int), np.zeros((0, 0, 3), np.uint8))
            seen[np.ix_(rows, columns)] += 1
            assert np.array_equal(pixels, picture[np.ix_(20 + rows, 30 + columns)])
    assert (seen[::every, ::every] == 1).all() and seen.sum() == seen[::every, ::every].size


def test_blank_chunks_count_as_done(tmp_path):
    canvas = Canvas.create(tmp_path / "c", BlockGrid(WindowGrid(100, 100, 64, 16), 1), RUN)
    block, parity = Block(0, 0), Parity(0, 0)
    assert not canvas.is_done(block, parity)
    canvas.write(block, parity, np.zeros((56, 56, 3), np.uint8))
    assert canvas.is_done(block, parity)
    assert Canvas.open(tmp_path / "c").is_done(block, parity)


@pytest.mark.parametrize("damage", ["truncate", "empty", "flip", "flip checksum"])
def test_a_damaged_chunk_counts_as_not_done_and_is_never_context(tmp_path, damage):
    canvas = Canvas.create(tmp_path / "c", BlockGrid(WindowGrid(100, 100, 64, 16), 1), RUN)
    fill(canvas, plane(canvas.layout))
    file = tmp_path / "c" / "colour-00" / "c" / "0" / "0" / "0"
    content = bytearray(file.read_bytes())
    if damage == "truncate":
        content = content[: len(content) // 2]
    elif damage == "empty":
        content = bytearray()
    else:
        content[-1 if damage == "flip checksum" else len(content) // 2] ^= 1
    file.write_bytes(content)
    fresh = Canvas.open(tmp_path / "c")
    assert not fresh.is_done(Block(0, 0), Parity(0, 0))
    assert fresh.is_done(Block(0, 0), Parity(1, 0))
    _, known = fresh.read_region(0, 0, 56, 56)
    assert not known.any()
    with pytest.raises(StoreError, match="damaged"):
        fresh.read_region(0, 0, 56, 56, require=True)


def test_panels_of_an_unfinished_canvas_are_refused(tmp_path):
    canvas = Canvas.create(tmp_path / "c", BlockGrid(WindowGrid(100, 100, 64, 16), 1), RUN)
    fill(canvas, plane(canvas.layout), parities=PARITIES[:3])
    with pytest.raises(StoreError, match="missing"):
        CanvasPanels(canvas, (1, 2, 3))(0, 0, 100, 100)


def test_resume_takes_the_same_run_and_keeps_its_block_size(tmp_path):
    grid = WindowGrid(300, 200, 64, 16)
    Canvas.create(tmp_path / "c", BlockGrid(grid, 2), RUN)
    (tmp_path / "c" / "colour-00" / "x.partial").write_bytes(b"left by a killed writer")
    again = Canvas.resume(tmp_path / "c", BlockGrid(grid, 4), RUN)
    assert again.layout.b == 2
    assert not list((tmp_path / "c").rglob("*.partial"))


@pytest.mark.parametrize(
    ("run", "grid", "named"),
    [
        ({**RUN, "seed": 2}, (300, 200, 64, 16), "seed is 1 there and 2 here"),
        ({**RUN, "model": {"sha256": "cd"}}, (300, 200, 64, 16), "model.sha256"),
        ({**RUN, "new": True}, (300, 200, 64, 16), "new is None there and True here"),
        (RUN, (301, 200, 64, 16), "width is 300 there and 301 here"),
        (RUN, (300, 200, 64, 8), "overlap is 16 there and 8 here"),
        (RUN, (300, 200, 64, 16, 6), "blend is 0 there and 6 here"),
    ],
)
def test_another_run_is_refused_and_the_line_says_why(tmp_path, run, grid, named):
    Canvas.create(tmp_path / "c", BlockGrid(WindowGrid(300, 200, 64, 16), 2), RUN)
    with pytest.raises(StoreError, match=named) as caught:
        Canvas.resume(tmp_path / "c", BlockGrid(WindowGrid(*grid), 2), run)
    assert "\n" not in str(caught.value)


def test_what_is_no_canvas_is_refused(tmp_path):
    with pytest.raises(StoreError, match="no canvas here"):
        Canvas.open(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"format": "something else"}))
    with pytest.raises(StoreError, match="not of format"):
        Canvas.open(tmp_path)
    with pytest.raises(StoreError, match="exists already"):
        Canvas.create(tmp_path, BlockGrid(WindowGrid(10, 10), 1), RUN)


def test_remove_deletes_the_store(tmp_path):
    canvas = Canvas.create(tmp_path / "c", BlockGrid(WindowGrid(10, 10), 1), RUN)
    canvas.remove()
    assert not (tmp_path / "c").exists()


def test_blank_chunks_are_ordinary_chunks_that_are_told_by_their_files(tmp_path):
    canvas = Canvas.create(tmp_path / "c", BlockGrid(WindowGrid(300, 200, 64, 16), 2), RUN)
    chunks = [(block, parity) for block in canvas.layout.blocks() for parity in PARITIES]
    canvas.write_blank([chunk for chunk in chunks if canvas.layout.windows(*chunk)], (9, 8, 7))
    again = Canvas.open(tmp_path / "c")
    assert all(again.is_done(*chunk) for chunk in chunks)
    rgb, known = again.read_region(0, 0, 300, 200)
    assert known.all() and (rgb == (9, 8, 7)).all()
    assert again.is_blank(Rectangle(0, 0, 300, 200), (9, 8, 7))
    assert not again.is_blank(Rectangle(0, 0, 300, 200), (9, 8, 6))
    panel = CanvasPanels(again, (9, 8, 7))(0, 0, 300, 200)
    assert (panel == (9, 8, 7)).all() and panel.strides[:2] == (0, 0), "without memory"
    width, height = canvas.layout.chunk_size(Parity(0, 0))
    again.write(Block(0, 0), Parity(0, 0), np.full((height, width, 3), 5, np.uint8))
    assert not again.is_blank(Rectangle(0, 0, 10, 10), (9, 8, 7))
    assert again.is_blank(Rectangle(250, 150, 10, 10), (9, 8, 7))


def test_a_panel_holds_whole_blocks_and_whole_tiles(tmp_path):
    for number, (window, overlap, b) in enumerate([(256, 32, 8), (256, 32, 4), (64, 8, 8)]):
        canvas = Canvas.create(tmp_path / str(number), BlockGrid(WindowGrid(900, 900, window, overlap), b), RUN)
        side = CanvasPanels(canvas, (1, 2, 3)).side
        assert side % 512 == 0 and side % canvas.layout.pixels == 0 and side <= 8192
