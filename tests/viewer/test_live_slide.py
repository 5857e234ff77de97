"""A slide that is painted while it is looked at has the pixels of the render, and costs what is looked at."""

import time
from dataclasses import replace

import numpy as np
import pytest
from served import eventually, read_all, with_new_nucleus, write_mask

from wsigen.errors import ModelError, SettingsError
from wsigen.models.config import ModelConfig
from wsigen.painting.grid import Rectangle, bounding
from wsigen.rendering.plan import plan_render
from wsigen.slides.pyramid import halve
from wsigen.viewer.form import Answers
from wsigen.viewer.live.mask import ReadMask, read_mask
from wsigen.viewer.live.sessions import Session
from wsigen.viewer.live.slide import LiveSlide
from wsigen.viewer.stain_preview import preview_pixels

TINY = ModelConfig.preset("tiny")


def open_live(mask, painting, **options) -> LiveSlide:
    read: ReadMask = read_mask(mask, TINY)
    return LiveSlide(plan_render(mask, None, painting, read.facts), read, painting, **options)


@pytest.fixture
def live(own_mask, painting):
    slide = open_live(own_mask, painting)
    yield slide
    slide.close()


def preview_of(live: LiveSlide, level: int, width: int, height: int) -> np.ndarray:
    return preview_pixels(live.view.overlay, live.view.plan.spec.style, level, 0, 0, width, height)


def look_and_wait(live: LiveSlide, x: int, y: int, width: int, height: int) -> str:
    session = live.join()
    assert live.look(session, x, y, width, height)
    wait_until_painted(live, session)
    return session


def wait_until_painted(live: LiveSlide, session: str) -> None:
    def painted():
        status = live.status(session)
        assert status["state"] != "failed", status["problem"]
        return status["windows"] > 0 and status["painted"] == status["windows"] and live.idle()

    eventually(painted, what="the view is painted")


def test_tiles_of_all_levels_have_the_pixels_of_the_render(live, rendered):
    preview, done = live.tile(0, 1, 1)
    assert not done and not np.array_equal(preview, rendered[1][256:500, 256:512])
    look_and_wait(live, 0, 0, 600, 500)
    expected = rendered[1]
    for level in range(len(live.levels)):
        for row in range(-(-expected.shape[0] // 256)):
            for column in range(-(-expected.shape[1] // 256)):
                tile, done = live.tile(level, column, row)
                part = expected[256 * row : 256 * row + 256, 256 * column : 256 * column + 256]
                assert done and np.array_equal(tile, part), (level, column, row)
        expected = halve(expected)


def test_a_tile_shows_what_is_painted_of_it_and_the_preview_elsewhere(live, rendered):
    eventually(lambda: live.view.slide)
    live.view.slide.painter.region(0, 0, 64, 64)
    preview = preview_of(live, 0, 256, 256)
    tile, done = live.tile(0, 0, 0)
    _, known = live.view.slide.painter.at_hand(0, 0, 256, 256)
    assert not done and 0 < known.mean() < 1
    assert np.array_equal(tile[known], rendered[1][:256, :256][known])
    assert np.array_equal(tile[~known], preview[~known])


def test_far_tiles_are_made_of_painted_ones(painting, tmp_path):
    """A slide of five levels: the coarsest is 2 x 2 means of what is painted, four times over."""
    from wsigen.masks.demo.mask import write_demo_mask

    path = tmp_path / "large.tif"
    write_demo_mask(path, 3000, 300, seed=1)
    live = open_live(path, painting)
    try:
        assert len(live.levels) == 5
        assert np.array_equal(live.tile(4, 0, 0)[0], preview_of(live, 4, 187, 18))
        look_and_wait(live, 0, 0, 400, 300)
        tile, done = live.tile(4, 0, 0)
        exact = live.view.slide.painter.at_hand(0, 0, 384, 288)
        assert exact[1].all() and not done
        pixels = exact[0]
        for _ in range(4):
            pixels = halve(pixels)
        assert np.array_equal(tile[:18, :24], pixels)
    finally:
        live.close()


def test_what_is_looked_at_comes_first_and_what_nobody_looks_at_is_not_painted(live):
    session = look_and_wait(live, 250, 200, 60, 60)
    painter = live.view.slide.painter
    live.leave(session)
    time.sleep(0.5)
    painted = painter.painted
    assert painted < live.view.plan.occupied.sum()
    time.sleep(0.5)
    assert painter.painted == painted


def test_what_lies_around_is_painted_in_the_background(live):
    look_and_wait(live, 200, 150, 200, 150)
    around = Rectangle(100, 75, 400, 300)
    eventually(lambda: live.view.slide.painter.to_paint(around)[1] == 0, what="the neighbourhood is painted")


def test_a_page_that_closes_cancels_its_work(live):
    eventually(lambda: live.view.slide)
    session = live.join()
    live.look(session, 0, 0, 600, 500)
    eventually(lambda: live.view.slide.painter.painted > 2)
    live.leave(session)
    eventually(live.idle, 5, "nothing is painted any more")
    assert live.view.slide.painter.painted < live.view.plan.occupied.sum()


def test_changed_settings_paint_anew(live, tiny_model, own_mask, rendered):
    import wsigen

    session = look_and_wait(live, 0, 0, 100, 100)
    generation = live.status(session)["generation"]
    live.choose(Answers(9, 3, {"stain": "violet"}))
    eventually(lambda: live.status(session)["seed"] == 9)
    wait_until_painted(live, session)
    assert live.status(session)["generation"] > generation
    with wsigen.open_generated(own_mask, model=str(tiny_model), device="cpu", seed=9, steps=3) as expected:
        region = np.asarray(expected.read_region((0, 0), 0, (100, 100)))[..., :3]
    assert np.array_equal(live.tile(0, 0, 0)[0][:100, :100], region)
    assert not np.array_equal(region, rendered[1][:100, :100])


def test_a_changed_mask_repaints_only_what_depends_on_it(live, own_mask, tiny_model):
    import wsigen

    session = look_and_wait(live, 0, 0, 600, 500)
    before = live.view.slide.painter
    pixels = live.tile(0, 0, 0)[0]
    live.changes(session)
    write_mask(own_mask, with_new_nucleus(read_all(own_mask), 430, 300))
    eventually(lambda: live.view.overlay.revision == 1, what="the change is seen")
    eventually(lambda: live.view.slide is not None and live.view.slide.painter is not before)
    wait_until_painted(live, session)
    painter, grid = live.view.slide.painter, live.view.plan.grid
    parts = live.changes(session)
    near = Rectangle(430 - 200, 300 - 200, 400, 400)  # two windows, and the halo of glass
    assert 0 < painter.painted < 0.4 * grid.columns * grid.rows
    assert live.kept + painter.painted >= live.view.plan.occupied.sum()
    for part in parts:
        assert part.x < near.x + near.width and near.x < part.x + part.width
        assert part.y < near.y + near.height and near.y < part.y + part.height
    assert np.array_equal(live.tile(0, 0, 0)[0], pixels)
    with wsigen.open_generated(own_mask, model=str(tiny_model), device="cpu", seed=4) as expected:
        for column, row in ((0, 0), (1, 1), (2, 1)):
            assert np.array_equal(live.tile(0, column, row)[0], expected.paint_tile(0, column, row))


def test_ids_alone_repaint_nothing(live, own_mask):
    session = look_and_wait(live, 0, 0, 600, 500)
    content = read_all(own_mask)
    write_mask(own_mask, replace(content, instances=np.where(content.instances > 0, content.instances + 70, 0)))
    eventually(lambda: live.view.overlay.revision == 1)
    wait_until_painted(live, session)
    assert live.view.slide.painter.painted == 0


def test_a_mask_that_is_broken_for_a_while_is_said_and_mended(live, own_mask):
    session = look_and_wait(live, 0, 0, 100, 100)
    good = own_mask.read_bytes()
    own_mask.write_bytes(good[: len(good) // 2])
    problem = eventually(lambda: live.status(session)["problem"])
    assert "mask.tif" in problem
    own_mask.write_bytes(good)
    eventually(lambda: not live.status(session)["problem"])
    wait_until_painted(live, session)


def test_a_view_larger_than_the_cache_is_not_painted(own_mask, painting):
    live = open_live(own_mask, painting, cache_bytes=600_000)
    try:
        session = live.join()
        live.look(session, 0, 0, 600, 500)
        assert live.status(session)["too_large"]
        eventually(lambda: live.view.slide)
        time.sleep(0.3)
        assert live.view.slide.painter.painted == 0
        live.look(session, 0, 0, 60, 60)
        wait_until_painted(live, session)
    finally:
        live.close()


def test_sessions_and_waiting_changes_are_bounded(live):
    sessions = [live.join() for _ in range(17)]
    assert sessions[-1] is None and None not in sessions[:-1]
    assert not live.look("nobody", 0, 0, 1, 1)
    page = Session()
    for i in range(1000):
        page.note(Rectangle(5 + i, 6, 7, 8))
    changes = page.take_changes()
    assert len(changes) <= 256 and bounding(changes) == Rectangle(5, 6, 1006, 8)


def test_settings_that_cannot_be_are_refused_and_change_nothing(live):
    spec = live.view.plan.spec
    with pytest.raises((SettingsError, ModelError)):
        live.choose(Answers(-1, 2, {"stain": "violet"}))
    with pytest.raises(ModelError, match="no style 'no such'"):
        live.choose(Answers(1, 2, {"stain": "no such"}))
    assert live.view.plan.spec == spec
