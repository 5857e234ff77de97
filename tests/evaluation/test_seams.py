"""Seams are found where they are, and JPEG's own grid is not taken for one."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from wsigen.errors import SlideError
from wsigen.evaluation.probe import LinearProbe, auc, cross_validated_auc
from wsigen.evaluation.seams import MODULUS, border_positions, control_offsets, sample_strips, seam_scores

WINDOW, OVERLAP = 128, 16
SIDE = 1800


@pytest.fixture(scope="module")
def tissue():
    """Blobs of stain, without borders."""
    random = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(random.standard_normal((SIDE, SIDE, 3)), (2.5, 2.5, 0))
    return (150 + 250 * noise + random.normal(0, 3, noise.shape)).clip(40, 235).astype(np.uint8)


def reader(pixels):
    return lambda x, y, w, h: pixels[y : y + h, x : x + w]


def scores(pixels, sites=300):
    return seam_scores(reader(pixels), SIDE, SIDE, WINDOW, OVERLAP, sites)


def stained(tissue, change):
    """Tissue in which ``change`` was made to each stretch that one window owns."""
    painted = tissue.astype(float)
    cuts = [0, *border_positions(SIDE, WINDOW, OVERLAP), SIDE]
    for y in range(len(cuts) - 1):
        for x in range(len(cuts) - 1):
            part = np.s_[cuts[y] : cuts[y + 1], cuts[x] : cuts[x + 1]]
            painted[part] = change(painted[part], x, y)
    return painted.clip(0, 255).astype(np.uint8)


def test_borders_are_where_ownership_changes():
    assert border_positions(1000, 256, 32).tolist() == [240, 448, 688, 896]
    assert border_positions(200, 256, 32).tolist() == []


def test_controls_share_the_place_in_jpeg_blocks_and_keep_away():
    borders = border_positions(2000, 256, 32)
    offsets = control_offsets(448, borders, 2000)
    assert len(offsets) == 4 and all(offset % MODULUS == 0 and abs(offset) > MODULUS for offset in offsets)
    assert min(abs(borders - (448 + offset)).min() for offset in offsets) >= MODULUS


def test_tissue_without_seams_has_none(tissue):
    found = scores(tissue)
    for estimate in (found.gradient_ratio, found.laplacian_ratio, found.step_ratio):
        assert estimate.low < 1 < estimate.high and estimate.high - estimate.low < 0.3
    assert 0.4 < found.classifier_auc < 0.6
    assert 0.3 < found.period_ratio < 2


def test_jpeg_alone_makes_no_seams(tissue):
    file = io.BytesIO()
    Image.fromarray(tissue).save(file, "JPEG", quality=40, subsampling=2)
    pixels = np.asarray(Image.open(file))
    columns = np.abs(np.diff(pixels.astype(float), axis=1)).mean((0, 2))
    assert columns[7::8].mean() > 1.1 * columns.mean()  # its blocks show
    found = scores(pixels)
    assert found.gradient_ratio.low < 1 < found.gradient_ratio.high
    assert 0.4 < found.classifier_auc < 0.6 and found.period_ratio < 2


def test_a_jump_of_tone_is_found(tissue):
    found = scores(stained(tissue, lambda part, x, y: part + 12 * (-1) ** (x + y)))
    assert found.gradient_ratio.low > 1.1 and found.step_ratio.low > 1.1
    assert found.classifier_auc > 0.8 and found.period_ratio > 5


def test_blur_at_borders_is_found(tissue):
    def blurred_rim(part, x, y):
        soft = ndimage.gaussian_filter(part, (1.5, 1.5, 0))
        part = part.copy()
        for rim in (np.s_[:4], np.s_[-4:], np.s_[:, :4], np.s_[:, -4:]):
            part[rim] = soft[rim]
        return part

    found = scores(stained(tissue, blurred_rim))
    assert found.laplacian_ratio.high < 0.8 and found.classifier_auc > 0.8


def test_glass_is_no_site(tissue):
    with pytest.raises(SlideError, match="no border of windows of 128 px with overlap 16 crosses tissue"):
        seam_scores(reader(np.full_like(tissue, 244)), SIDE, SIDE, WINDOW, OVERLAP, 50)
    half = tissue.copy()
    half[:, : SIDE // 2] = 244
    places = sample_strips(reader(half), SIDE, SIDE, WINDOW, OVERLAP, 10_000, 0).place
    assert places[:, 0].min() > SIDE // 2 - 128


def test_a_probe_separates_what_is_separable():
    random = np.random.default_rng(0)
    labels = np.arange(400) % 2 == 0
    features = random.standard_normal((400, 5)) + labels[:, None] * 2.0
    assert auc(LinearProbe.fitted(features, labels)(features), labels) > 0.97
    groups = np.arange(400) // 20
    assert cross_validated_auc(features, labels, groups) > 0.97
    assert abs(cross_validated_auc(random.standard_normal((400, 50)), labels, groups) - 0.5) < 0.1


def test_auc_is_a_chance():
    assert auc(np.array([1.0, 2, 3, 4]), np.array([False, False, True, True])) == 1
    assert auc(np.zeros(6), np.array([True, False] * 3)) == 0.5


def test_a_real_slide_reads_like_its_pixels(tmp_path, tissue):
    from wsigen.evaluation.slides import SlidePixels

    tifffile.imwrite(tmp_path / "s.tif", tissue[:512, :512], tile=(256, 256), photometric="rgb")
    with SlidePixels(tmp_path / "s.tif") as slide:
        assert (slide.width, slide.height) == (512, 512)
        assert np.array_equal(slide.read(30, 40, 100, 50), tissue[40:90, 30:130])
