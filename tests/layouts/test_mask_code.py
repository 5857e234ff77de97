"""Masks as pictures, and back."""

import os
from pathlib import Path

import numpy as np
import pytest
import pyvips
from scipy import ndimage

from wsigen.layouts.bands import DecodedBands
from wsigen.layouts.decoding import HALO, Decoder
from wsigen.layouts.layout import CELL, REGIONS, Layout
from wsigen.layouts.mask_code import BLANK, CIRCLE, MaskCode, hills
from wsigen.masks.classes import ClassTable
from wsigen.masks.demo.mask import demo_mask
from wsigen.masks.limits import NucleusLimits
from wsigen.models.config import LIZARD_CLASSES

CODE = MaskCode.of(LIZARD_CLASSES)
PUBLISHED = Path(os.environ.get("WSIGEN_TEST_DATA", "no data"))  # a folder with consep/


@pytest.fixture(scope="module")
def demo():
    return demo_mask(900, 700, 4)


@pytest.fixture(scope="module")
def picture(demo):
    return CODE.encode(demo.classes, demo.instances)


@pytest.fixture(scope="module")
def spoilt(picture):
    """What a network might paint: blurred, with smooth noise, so that summits, saddles and borders are in doubt."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(0, 60, picture.shape), (1.5, 1.5, 0))
    soft = ndimage.gaussian_filter(picture.astype(float), (1, 1, 0))
    return np.clip(soft + noise, 0, 255).round().astype(np.uint8)


def matched(truth: np.ndarray, found: np.ndarray) -> float:
    """Share of true nuclei that one found nucleus covers by more than half (of their union)."""
    both = (truth > 0) & (found > 0)
    pairs, common = np.unique(np.stack([truth[both], found[both]]), axis=1, return_counts=True)
    union = np.bincount(truth.ravel())[pairs[0]] + np.bincount(found.ravel())[pairs[1]] - common
    return float((common / union > 0.5).sum() / (len(np.unique(truth)) - 1))


def same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two planes of ids mean the same nuclei, whatever their numbers."""
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1)
    return all(len(np.unique(side)) == pairs.shape[1] for side in pairs)


def whole_layout(width: int, height: int) -> Layout:
    """Tissue everywhere."""
    planes = np.zeros((6 + len(REGIONS), -(-height // CELL), -(-width // CELL)), np.uint8)
    planes[7] = 255
    return Layout(planes, LIZARD_CLASSES.names, width, height, 0.5)


def test_a_mask_survives_being_drawn_and_decoded(demo, picture):
    decoded = Decoder(CODE)(picture)
    assert matched(demo.instances.astype(np.int64), decoded.index) > 0.99
    assert (decoded.classes == demo.classes).mean() > 0.997


@pytest.mark.skipif(not (PUBLISHED / "consep").is_dir(), reason="WSIGEN_TEST_DATA names no folder with consep/")
def test_published_nuclei_survive_too():
    """CoNSeP's outlines at half their resolution: 0.5 µm a pixel."""
    files = sorted((PUBLISHED / "consep" / "instances").glob("*.png"))[::20]
    truths = [pyvips.Image.new_from_file(str(file)).numpy()[::2, ::2].astype(np.int64) for file in files]
    truths = [truth for truth in truths if truth.any()]
    count = np.array([len(np.unique(truth)) - 1 for truth in truths])
    kept = [
        matched(truth, Decoder(CODE)(CODE.encode(np.where(truth > 0, 2, 0).astype(np.uint8), truth)).index)
        for truth in truths
    ]
    assert len(truths) > 5 and (kept * count).sum() / count.sum() > 0.97


def test_a_spoilt_picture_still_holds_most_nuclei(demo, spoilt):
    limits = (NucleusLimits(least_area=12),) * 6
    assert matched(demo.instances.astype(np.int64), Decoder(CODE, limits)(spoilt).index) > 0.85


@pytest.mark.parametrize("which", ["picture", "spoilt"])
def test_every_nucleus_has_one_class_and_one_connected_shape(which, request):
    decoded = Decoder(CODE)(request.getfixturevalue(which))
    assert len(decoded.kind) > 500
    for number, place in enumerate(ndimage.find_objects(decoded.index), 1):
        shape = decoded.index[place] == number
        assert ndimage.label(shape)[1] == 1
        assert len(np.unique(decoded.classes[place][shape])) == 1


@pytest.mark.parametrize("which", ["picture", "spoilt"])
def test_windows_with_halo_decode_to_what_the_whole_decodes_to(which, request):
    picture = request.getfixturevalue(which)
    decoder = Decoder(CODE, (NucleusLimits(least_area=20, most_area=400),) * 6)
    whole = decoder(picture)
    for y, x, side in ((0, 0, 150), (300, 390, 160), (520, 700, 200)):
        top, left = max(0, y - HALO), max(0, x - HALO)
        part = decoder(picture[top : y + side + HALO, left : x + side + HALO])
        inner = np.s_[y - top : y - top + side, x - left : x - left + side]
        here = np.s_[y : y + side, x : x + side]
        assert np.array_equal(part.classes[inner], whole.classes[here])
        assert same_partition(part.index[inner], whole.index[here])


def test_bands_number_nuclei_once_whatever_the_tiles(spoilt):
    height, width = spoilt.shape[:2]
    whole = Decoder(CODE)(spoilt)
    bands = DecodedBands(
        lambda x, y, w, h: spoilt[y : y + h, x : x + w],
        whole_layout(width, height),
        Decoder(CODE),
        (0, 0, width, height),
        tile=256,
    )
    parts = list(bands)
    instances, classes = (np.concatenate([getattr(p, name) for p in parts]) for name in ("instances", "classes"))
    assert np.array_equal(classes, whole.classes) and same_partition(instances, whole.index)
    assert np.array_equal(np.unique(instances), np.arange(len(whole.kind) + 1))
    assert bands.nuclei.tolist() == np.bincount(whole.kind, minlength=7)[1:].tolist()


def test_shapes_unlike_nuclei_are_left_out():
    instances = np.zeros((80, 120), np.int64)
    yy, xx = np.mgrid[:80, :120]
    instances[(yy - 20) ** 2 + (xx - 20) ** 2 < 64] = 1  # as it should be
    instances[(yy - 20) ** 2 + (xx - 60) ** 2 < 5] = 2  # too small
    instances[(yy - 45) ** 2 + (xx - 90) ** 2 < 400] = 3  # too large
    instances[60:63, 5:60] = 4  # too long
    instances[30:50, 40] = instances[50, 40:60] = 5  # an angle
    picture = CODE.encode((instances > 0).astype(np.uint8) * 2, instances)
    kept = Decoder(CODE, (NucleusLimits(20, 500, 0.75, 15),) * 6)(picture)
    assert len(kept.kind) == 1 and len(kept.lost_y) >= 3 and (kept.y[0], kept.x[0]) == (20, 20)
    assert len(Decoder(CODE)(picture).kind) == 5


def test_touching_nuclei_are_two_hills():
    instances = np.zeros((20, 40), np.int64)
    instances[4:16, 4:16], instances[4:16, 16:34] = 1, 2
    hill = hills(instances)
    assert hill[10, 9] > 200 and hill[10, 24] > 200 and max(hill[10, 15], hill[10, 16]) < 180
    assert hill[0, 39] < 128 and not hills(np.zeros((5, 5), int)).any()


@pytest.mark.parametrize(("valley", "touching"), [(120, False), (175, True)])
def test_a_low_valley_parts_two_nuclei_and_a_high_one_does_not(valley, touching):
    """Two plateaus of 240 with a slope to a valley of one column between them."""
    profile = [0, 60, 112, 200, 240, 230, 200, valley, 200, 230, 240, 200, 112, 60, 0]
    hill = np.zeros((15, 15), np.uint8)
    hill[3:12] = profile
    picture = np.dstack([hill, *[np.full_like(hill, 128 + value) for value in CODE.points[2]]])
    index = Decoder(CODE)(picture).index
    assert index.max() == 2
    meets = (index[:, 1:] != index[:, :-1]) & (index[:, 1:] > 0) & (index[:, :-1] > 0)
    assert meets.any() == touching


def test_blank_pictures_hold_nothing():
    assert not Decoder(CODE)(np.full((50, 60, 3), BLANK, np.uint8)).index.any()


def test_other_class_tables_have_a_circle_too():
    table = ClassTable.from_config([{"index": i, "name": f"c{i}", "colour": "#000000"} for i in range(1, 5)])
    points = MaskCode.of(table).points
    assert points.shape == (5, 2) and len(np.unique(points, axis=0)) == 5
    assert set(CIRCLE) == set(LIZARD_CLASSES.names)
