"""The pyramid from panels: the levels of `write_svs`, tiles of one colour stored once, readers that run ahead."""

import threading

import numpy as np
import openslide
import pytest
import pyvips
import tifffile

from wsigen.errors import SlideError
from wsigen.slides.metadata import SlideMetadata
from wsigen.slides.pyramid import constant, halve, level_sizes
from wsigen.slides.svs import write_svs, write_svs_panels
from wsigen.slides.tiled_tiff import TILE, TileJpeg

METADATA = SlideMetadata(0.5, 20)
GLASS = (243, 242, 244)


def picture(width: int, height: int) -> np.ndarray:
    """Smooth colours on the left, glass on the right."""
    y, x = np.mgrid[0:height, 0:width]
    waves = np.sin(x / 50) * np.cos(y / 40)
    rgb = (150 + 60 * waves[..., None] * np.array([1.0, 0.5, -0.8])).astype(np.uint8)
    rgb[:, width // 3 :] = GLASS
    return rgb


def levels(path) -> list[np.ndarray]:
    with openslide.OpenSlide(path) as slide:
        return [
            np.asarray(slide.read_region((0, 0), level, size).convert("RGB"))
            for level, size in enumerate(slide.level_dimensions)
        ]


@pytest.mark.parametrize("size", [(1531, 1117), (1024, 512), (513, 1025), (300, 5), (2049, 515)])
@pytest.mark.parametrize("quality", [80, 95])
def test_panels_and_rows_make_the_same_levels(tmp_path, size, quality):
    width, height = size
    image = picture(width, height)
    write_svs(tmp_path / "rows.svs", width, height, lambda a, b: image[a:b], METADATA, jpeg_quality=quality)
    write_svs_panels(
        tmp_path / "panels.svs",
        width,
        height,
        lambda x, y, w, h: image[y : y + h, x : x + w],
        METADATA,
        panel=512,
        jpeg_quality=quality,
    )
    for one, other in zip(levels(tmp_path / "rows.svs"), levels(tmp_path / "panels.svs"), strict=True):
        assert np.array_equal(one, other)


def test_glass_is_stored_once_and_every_reader_finds_it(tmp_path):
    path, side = tmp_path / "glass.svs", 6000

    def read(x, y, w, h):
        return picture(512, 512)[:h, :w] if (x, y) == (512, 512) else constant(GLASS, h, w)

    write_svs_panels(path, side, side, read, METADATA, panel=512, jpeg_quality=87)
    with tifffile.TiffFile(path) as tiff:
        offsets = tiff.pages.first.dataoffsets
        assert len(offsets) == 24 * 24 and len(set(offsets)) < 10
        assert all(tiff.pages.first.databytecounts)
        by_tifffile = tiff.series[0].levels[2].asarray()
    with openslide.OpenSlide(path) as slide:
        by_openslide = np.asarray(slide.read_region((0, 0), 2, slide.level_dimensions[2]))
    by_vips = pyvips.Image.openslideload(str(path), level=2) if hasattr(pyvips.Image, "openslideload") else None
    assert np.abs(by_openslide[..., :3].astype(int) - by_tifffile).max() <= 1 and (by_openslide[..., 3] == 255).all()
    assert np.abs(by_openslide[600:, 600:, :3].astype(int) - GLASS).max() <= 1
    assert by_vips is None or by_vips.width == by_openslide.shape[1]


def test_halving_rounds_halves_up_and_drops_odd_lines():
    image = np.random.default_rng(0).integers(0, 256, (37, 51, 3), dtype=np.uint8)
    sums = image[:36, :50].reshape(18, 2, 25, 2, 3).sum((1, 3), dtype=np.int32)
    assert np.array_equal(halve(image), (sums + 2) // 4)
    assert halve(constant(GLASS, 8, 8)).strides[:2] == (0, 0)
    assert halve(image[:1]).size == 0
    assert level_sizes(257, 1) == [(257, 1)]
    assert level_sizes(1000, 600) == [(1000, 600), (500, 300), (250, 150)]


@pytest.mark.parametrize("quality", [50, 87, 90, 100])
def test_a_tile_and_its_tables_decode_to_what_was_encoded(quality):
    jpeg, tile = TileJpeg(quality), picture(TILE, TILE)
    decoded = jpeg.decode(jpeg.encode(tile))
    assert decoded.shape == tile.shape
    assert np.abs(decoded.astype(int) - tile)[:, : TILE // 3 - 16].mean() < 6


def test_panels_are_read_by_other_threads_and_their_error_comes_out(tmp_path):
    seen = set()

    def read(x, y, w, h):
        seen.add(threading.current_thread().name)
        if y >= 1024:
            raise RuntimeError("the canvas is gone")
        return constant(GLASS, h, w)

    with pytest.raises(RuntimeError, match="the canvas is gone"):
        write_svs_panels(tmp_path / "s.svs", 2000, 3000, read, METADATA, panel=512)
    assert threading.main_thread().name not in seen
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SlideError, match="panel 500: must be a multiple of 512"):
        write_svs_panels(tmp_path / "s.svs", 2000, 3000, read, METADATA, panel=500)
