"""The demo mask is colon mucosa that is the same for the same seed, with nuclei that do not overlap."""

import numpy as np
import pytest
from scipy.ndimage import find_objects, label

from wsigen.errors import MaskError
from wsigen.masks.demo import drawing
from wsigen.masks.demo.mask import demo_bands, demo_mask, write_demo_mask
from wsigen.masks.slide_mask import SlideMask


@pytest.fixture(scope="module")
def mucosa():
    return demo_mask(1500, 1500, seed=5)


def test_each_nucleus_has_one_class_and_is_in_one_piece(mucosa):
    assert np.array_equal(mucosa.instances > 0, mucosa.classes > 0)
    boxes = find_objects(mucosa.instances.astype(np.int32))
    assert len(boxes) > 2000 and all(boxes), "ids are 1, 2, ... without gaps"
    for number, box in enumerate(boxes, 1):
        own = mucosa.instances[box] == number
        assert len(np.unique(mucosa.classes[box][own])) == 1
        assert label(own)[1] == 1


def test_nuclei_lie_on_tissue_and_have_the_size_of_nuclei(mucosa):
    assert set(np.unique(mucosa.tissue)) == {0, 1}
    assert (mucosa.tissue[mucosa.classes > 0] == 1).all()
    assert 0.6 < mucosa.tissue.mean() < 0.95 and not mucosa.tissue[:20].any() and not mucosa.tissue[:, :20].any()
    areas = np.bincount(mucosa.instances.ravel())[1:] * 0.25
    assert areas.min() > 4 and areas.max() < 90 and 15 < np.median(areas) < 45


def test_the_cells_of_mucosa_are_in_their_usual_shares(mucosa):
    first = np.unique(mucosa.instances, return_index=True)[1][1:]
    share = np.bincount(mucosa.classes.ravel()[first], minlength=7) / len(first)
    assert share[drawing.EPITHELIAL] > 0.15 and share[drawing.LYMPHOCYTE] > 0.1 and share[drawing.PLASMA] > 0.1
    assert (
        share[drawing.CONNECTIVE] > 0.1 and 0 < share[drawing.NEUTROPHIL] < 0.05 and 0 < share[drawing.EOSINOPHIL] < 0.1
    )


def test_the_seed_decides_everything():
    a, b, c = demo_mask(500, 400, 1), demo_mask(500, 400, 1), demo_mask(500, 400, 2)
    assert np.array_equal(a.instances, b.instances) and np.array_equal(a.tissue, b.tissue)
    assert not np.array_equal(a.classes, c.classes)


def test_a_slide_of_several_fragments_is_drawn_in_bands_with_ids_of_its_own():
    bands = list(demo_bands(90, 600, seed=3, mpp=4.0))
    assert len(bands) == 3 and sum(band.shape[0] for band in bands) == 600
    ids = [set(np.unique(band.instances)) - {0} for band in bands]
    assert not any(ids[a] & ids[b] for a in range(3) for b in range(a))


@pytest.mark.parametrize("size", [(1, 1), (30, 2000), (3000, 40), (130, 130), (256, 256)])
def test_odd_sizes_are_drawn_without_error(size):
    mask = demo_mask(*size, seed=0)
    assert mask.shape == size[::-1]


def test_a_written_demo_mask_passes_the_checks(tmp_path):
    write_demo_mask(tmp_path / "demo.tif", 600, 700, seed=9, mpp=0.5)
    with SlideMask.open(tmp_path / "demo.tif", 6) as opened:
        summary = opened.scan()
        assert opened.mpp == 0.5 and summary.hint is None and min(summary.nuclei[1:]) > 0
        assert np.array_equal(opened.read(0, 0, 600, 700).instances, demo_mask(600, 700, 9).instances)
    with pytest.raises(MaskError, match="positive"):
        demo_mask(0, 5, 0)
