"""Tiles of finished slides: fixed levels, whatever levels the slide has."""

import io

import numpy as np
import openslide
import pytest
import pyvips
from PIL import Image

from wsigen.errors import SlideError
from wsigen.slides.pyramid import halve
from wsigen.viewer.tiles import SlideTiles, encode, tile_box


@pytest.fixture
def tiles(rendered):
    opened = SlideTiles(rendered[0])
    yield opened
    opened.close()


def test_tiles_of_level_0_are_the_slide(tiles, rendered):
    with openslide.OpenSlide(rendered[0]) as slide:
        expected = np.asarray(slide.read_region((256, 256), 0, (256, 244)))[..., :3]
    tile, done = tiles.tile(0, 1, 1)
    assert done and np.array_equal(tile, expected)


def test_levels_are_halved_and_tiles_cropped(tiles):
    assert tiles.levels == [(600, 500), (300, 250), (150, 125)]
    assert tiles.tile(2, 0, 0)[0].shape == (125, 150, 3)
    assert tiles.tile(1, 1, 0)[0].shape == (250, 44, 3)
    assert tile_box(tiles.levels, 0, 3, 0) is None and tile_box(tiles.levels, 3, 0, 0) is None


def test_a_slide_without_levels_is_averaged(tmp_path):
    """A flat tiled TIFF: the coarsest tile is made of many reads, and equals 2 x 2 means of the whole."""
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(0, 255, (80, 96, 3), np.uint8), np.ones((32, 32, 1), np.uint8))
    path = tmp_path / "flat.tif"
    pyvips.Image.new_from_array(pixels).tiffsave(str(path), tile=True, tile_width=256, tile_height=256)
    opened = SlideTiles(path)
    expected = pixels
    for level in range(len(opened.levels)):
        tile, _ = opened.tile(level, 0, 0)
        assert np.abs(tile.astype(int) - expected[:256, :256]).max() <= 2, level
        expected = halve(expected)
    assert len(opened.levels) == 5
    opened.close()


def test_png_is_lossless_and_jpeg_is_near():
    pixels = np.random.default_rng(0).integers(100, 120, (40, 30, 3), np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode(pixels, "png")))), pixels)
    assert np.abs(np.asarray(Image.open(io.BytesIO(encode(pixels, "jpg")))).astype(int) - pixels).max() < 30


def test_what_is_no_slide_is_refused(tmp_path):
    (tmp_path / "a.svs").write_text("no")
    with pytest.raises(SlideError, match="not a slide"):
        SlideTiles(tmp_path / "a.svs")
