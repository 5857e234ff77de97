import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import pyvips

from wsigen.errors import SlideError
from wsigen.slides.preview import LIGHT_GREY, Preview


def box_means(pixels: np.ndarray, scale: int) -> np.ndarray:
    h, w = pixels.shape[:2]
    boxes = [
        [pixels[y : y + scale, x : x + scale].reshape(-1, 3) for x in range(0, w, scale)] for y in range(0, h, scale)
    ]
    return np.array([[(b.sum(0, dtype=int) + len(b) // 2) // len(b) for b in row] for row in boxes], np.uint8)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(1).integers(0, 256, (301, 487, 3), dtype=np.uint8)


@pytest.mark.parametrize(("max_side", "scale"), [(487, 1), (486, 2), (100, 8), (1, 512)])
def test_preview_is_exact_whatever_the_cut(pixels, max_side, scale):
    preview = Preview(487, 301, max_side)
    assert preview.scale == scale
    xs, ys = [0, 1, 97, 98, 333, 487], [0, 50, 51, 300, 301]
    regions = [(x0, y0, x1, y1) for x0, x1 in pairwise(xs) for y0, y1 in pairwise(ys)]
    for x0, y0, x1, y1 in reversed(regions):
        preview.add(x0, y0, pixels[y0:y1, x0:x1])
    assert (preview.image() == box_means(pixels, scale)).all()
    assert (preview.height, preview.width) == preview.image().shape[:2]


def test_unpainted_is_background_and_partly_painted_is_the_mean_of_what_is(pixels):
    preview = Preview(487, 301, 100)
    assert (preview.image() == LIGHT_GREY).all()
    preview.add(9, 16, pixels[16:17, 9:12])
    image = preview.image()
    assert (image[2, 1] == (pixels[16, 9:12].sum(0, dtype=int) + 1) // 3).all()
    assert (image != LIGHT_GREY).any(-1).sum() == 1


def test_known_mask_leaves_pixels_out(pixels):
    known = np.random.default_rng(2).random((301, 487)) < 0.5
    whole, halves = Preview(487, 301, 64), Preview(487, 301, 64)
    whole.add(0, 0, pixels)
    halves.add(0, 0, pixels, known)
    halves.add(0, 0, pixels, ~known)
    assert (whole.image() == halves.image()).all()


@pytest.mark.parametrize(("max_side", "scale"), [(487, 1), (486, 2), (100, 8), (20, 32)])
def test_a_sketch_is_the_mean_of_its_samples(pixels, max_side, scale):
    preview = Preview(487, 301, max_side)
    every = preview.sampled_every
    assert every == max(1, scale // 4)
    columns, rows = np.arange(0, 487, every), np.arange(0, 301, every)
    odd = columns // 64 % 2 == 1
    for part in (columns[odd], columns[~odd]):  # as chunks come: with gaps
        preview.sketch(part, rows, pixels[np.ix_(rows, part)])
    assert np.array_equal(preview.image(), box_means(pixels[::every, ::every], scale // every))


def test_written_picture_is_replaced_whole(tmp_path, pixels):
    path = tmp_path / "slide.png"
    preview = Preview(487, 301, 256)
    preview.write(path)
    preview.add(0, 0, pixels)
    preview.write(path)
    assert (pyvips.Image.new_from_file(str(path)).numpy() == preview.image()).all()
    assert list(tmp_path.iterdir()) == [path]


def test_bad_regions_sizes_and_folders(tmp_path, pixels):
    preview = Preview(487, 301)
    with pytest.raises(ValueError, match="not inside"):
        preview.add(1, 0, pixels)
    with pytest.raises(SlideError):
        Preview(0, 5)
    with pytest.raises(SlideError, match="cannot write to folder"):
        preview.write(tmp_path / "missing" / "slide.png")


def test_slides_never_import_torch():
    script = (
        "import sys, wsigen.slides.svs, wsigen.slides.info, wsigen.slides.preview; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
