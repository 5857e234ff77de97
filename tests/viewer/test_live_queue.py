"""What pages show is painted before what lies around it, and what no page shows is given up."""

import pytest

from wsigen.painting.grid import Rectangle, WindowGrid, bounding
from wsigen.viewer.live.queue import BlockCutter, Blocks, is_outdated, next_block

GRID = WindowGrid(4000, 3000, 256, 32)
FIRST, SECOND, THIRD = (Rectangle(x, 0, 100, 100) for x in (0, 200, 400))


def always(block):
    return True


@pytest.fixture
def cutter():
    return BlockCutter(GRID, batch_size=2, cache_bytes=200 << 20)


def test_blocks_cover_what_a_page_shows_from_the_middle_outwards(cutter):
    look = Rectangle(500, 300, 3000, 2400)
    blocks = cutter.cut(look)
    assert sum(block.width * block.height for block in blocks.visible) == look.width * look.height
    assert bounding(blocks.visible) == look

    def distance(block):
        return (block.x + block.width / 2 - 2000) ** 2 + (block.y + block.height / 2 - 1500) ** 2

    assert len(blocks.visible) > 4
    assert list(blocks.visible) == sorted(blocks.visible, key=distance)
    assert bounding(blocks.near) == Rectangle(0, 0, 4000, 3000)


def test_more_than_the_cache_can_keep_is_not_painted():
    small = BlockCutter(GRID, batch_size=2, cache_bytes=16 << 20)
    assert small.cut(Rectangle(0, 0, 4000, 3000)) == Blocks(too_large=True)
    fits = small.cut(Rectangle(0, 0, 600, 600))
    assert fits.visible and not fits.too_large


def test_a_look_is_clipped_to_the_slide(cutter):
    assert cutter.clipped(-100, 2900, 300, 300) == Rectangle(0, 2900, 200, 100)
    assert cutter.clipped(4000, 0, 10, 10) is None
    assert cutter.cut(None) == Blocks()


def test_what_is_visible_comes_before_what_is_near():
    pages = [Blocks(visible=(FIRST,), near=(SECOND,)), Blocks(visible=(THIRD,))]
    left = {FIRST, SECOND, THIRD}
    order = []
    while (block := next_block(pages, left.__contains__)) is not None:
        order.append(block)
        left.remove(block)
    assert order == [FIRST, THIRD, SECOND]
    assert next_block(pages, {SECOND}.__contains__, visible_only=True) is None


def test_a_block_is_given_up_when_nobody_shows_it_or_something_visible_waits():
    assert not is_outdated(FIRST, [Blocks(visible=(FIRST,))], always)
    assert is_outdated(FIRST, [Blocks(visible=(SECOND,))], always)
    assert is_outdated(FIRST, [], always)
    around = [Blocks(visible=(SECOND,), near=(FIRST,))]
    assert is_outdated(FIRST, around, always)
    assert not is_outdated(FIRST, around, {FIRST}.__contains__)
