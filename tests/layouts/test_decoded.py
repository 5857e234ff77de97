"""A mask that is decoded where it is read is the mask that a file of it would be."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from wsigen.errors import StoreError
from wsigen.layouts.bands import DecodedBands
from wsigen.layouts.decoded import DecodedMask
from wsigen.layouts.decoding import Decoder
from wsigen.layouts.layout import CELL, REGIONS, Layout
from wsigen.layouts.mask_code import MaskCode
from wsigen.masks.conditions import read_conditions
from wsigen.masks.demo.mask import demo_mask
from wsigen.masks.slide_mask import SlideMask
from wsigen.masks.writer import write_slide_mask
from wsigen.models.config import LIZARD_CLASSES

WIDTH, HEIGHT = 620, 530
CODE = MaskCode.of(LIZARD_CLASSES)
# Inside, at a corner, over each border, over all borders, and further beyond the slide than it is wide.
PLACES = [
    (200, 150, 256, 256),
    (0, 0, 1, 1),
    (WIDTH - 1, HEIGHT - 1, 1, 1),
    (-40, 100, 90, 80),
    (WIDTH - 30, HEIGHT - 20, 140, 150),
    (-70, -60, WIDTH + 140, HEIGHT + 120),
    (WIDTH - 9, 200, 256, 64),
    (-200, -300, 210, 305),
    (-3 * WIDTH, 5 * HEIGHT, 100, 90),
]


@pytest.fixture(scope="module")
def picture():
    """What a network might paint, with glass at one side: blurred and noisy, so that summits are in doubt."""
    demo = demo_mask(WIDTH, HEIGHT, 4)
    drawn = CODE.encode(demo.classes, demo.instances)
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(0, 60, drawn.shape), (1.5, 1.5, 0))
    soft = ndimage.gaussian_filter(drawn.astype(float), (1, 1, 0))
    return np.clip(soft + noise, 0, 255).round().astype(np.uint8)


@pytest.fixture(scope="module")
def layout():
    planes = np.zeros((6 + len(REGIONS), -(-HEIGHT // CELL), -(-WIDTH // CELL)), np.uint8)
    planes[7] = 255
    planes[6, :, :5], planes[7, :, :5] = 255, 0
    return Layout(planes, LIZARD_CLASSES.names, WIDTH, HEIGHT, 0.5)


@pytest.fixture(scope="module")
def file(picture, layout, tmp_path_factory):
    path = tmp_path_factory.mktemp("mask") / "mask.tif"
    bands = DecodedBands(panels_of(picture), layout, Decoder(CODE), (0, 0, WIDTH, HEIGHT), tile=200)
    write_slide_mask(path, WIDTH, HEIGHT, 0.5, iter(bands), instances=True, tissue=True)
    with SlideMask.open(path, 6) as mask:
        yield mask


def panels_of(picture):
    return lambda x, y, w, h: picture[y : y + h, x : x + w]


def decoded(picture, layout, tile):
    return DecodedMask(Path("canvas"), panels_of(picture), layout, Decoder(CODE), tile)


def assert_equal(one, other):
    """Equal planes; nuclei may have other numbers, but are the same."""
    assert np.array_equal(one.classes, other.classes) and np.array_equal(one.tissue, other.tissue)
    pairs = np.unique(np.stack([one.instances.ravel(), other.instances.ravel()]), axis=1)
    assert all(len(np.unique(side)) == pairs.shape[1] for side in pairs)


@pytest.mark.parametrize("tile", [64, 130, 1024])
def test_it_reads_as_the_file_does_whatever_its_tiles(picture, layout, file, tile):
    mask = decoded(picture, layout, tile)
    assert (mask.width, mask.height, mask.mpp, mask.planes) == (file.width, file.height, file.mpp, file.planes)
    for place in PLACES:
        assert_equal(mask.read(*place), file.read(*place))


def test_it_has_the_conditions_and_the_nuclei_of_the_file(picture, layout, file):
    mask = decoded(picture, layout, 256)
    for place in PLACES:
        here, there = read_conditions(mask, *place, 0.5), read_conditions(file, *place, 0.5)
        for name in ("classes", "edges", "tissue", "glass"):
            assert np.array_equal(getattr(here, name), getattr(there, name)), name
    assert mask.count_nuclei() == file.count_nuclei() and sum(mask.count_nuclei()) > 200


def test_threads_that_share_it_read_the_same_and_decode_a_tile_once(picture, layout, file):
    read = []

    def panels(x, y, w, h):
        read.append((x, y))
        return panels_of(picture)(x, y, w, h)

    mask = DecodedMask(Path("canvas"), panels, layout, Decoder(CODE), 256)
    with ThreadPoolExecutor(8) as pool:
        for place, window in zip(PLACES * 4, pool.map(lambda place: mask.read(*place), PLACES * 4)):
            assert_equal(window, file.read(*place))
    assert len(read) == len(set(read)) == 9


def test_what_is_not_painted_yet_can_be_read_later(picture, layout, file):
    painted = False

    def panels(x, y, w, h):
        if not painted:
            raise StoreError("missing")
        return panels_of(picture)(x, y, w, h)

    mask = DecodedMask(Path("canvas"), panels, layout, Decoder(CODE), 256)
    with pytest.raises(StoreError):
        mask.read(*PLACES[0])
    painted = True
    assert_equal(mask.read(*PLACES[0]), file.read(*PLACES[0]))
