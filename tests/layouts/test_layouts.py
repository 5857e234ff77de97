"""Layouts: from presets, pictures and masks."""

import numpy as np
import pytest

from wsigen.choices import LAYOUT_PRESETS
from wsigen.errors import MaskError, SettingsError
from wsigen.layouts.architecture import Tissue, layout_by_hand, sampled_layout, zones
from wsigen.layouts.layout import CELL, Layout, parse_more
from wsigen.layouts.regions import layout_of_mask
from wsigen.masks.demo.mask import write_demo_mask
from wsigen.masks.slide_mask import SlideMask
from wsigen.models.config import LIZARD_CLASSES
from wsigen.painting.grid import WindowGrid
from wsigen.painting.occupancy import layout_occupancy

NAMES = LIZARD_CLASSES.names


def counts(layout: Layout) -> dict[str, float]:
    return dict(zip(layout.classes, layout.expected().tolist()))


@pytest.fixture(scope="module")
def mixed():
    return sampled_layout("mixed", 3000, 2000, 5, LIZARD_CLASSES, 0.5)


@pytest.mark.parametrize("preset", LAYOUT_PRESETS)
def test_presets_follow_from_their_seed_and_lie_in_glass(preset):
    one, same, other = (sampled_layout(preset, 2000, 1500, seed, LIZARD_CLASSES, 0.5) for seed in (1, 1, 2))
    assert np.array_equal(one.planes, same.planes) and not np.array_equal(one.planes, other.planes)
    glass = one.planes[6]
    rim = np.concatenate([glass[0], glass[-1], glass[:, 0], glass[:, -1]])
    assert (rim == 255).mean() > 0.8 and (glass == 0).mean() > 0.5
    shares = one.planes[6:].astype(int).sum(0)
    assert shares.min() >= 253 and shares.max() <= 257


def test_tissues_differ_as_they_should():
    kinds = {preset: counts(sampled_layout(preset, 4000, 4000, 3, LIZARD_CLASSES, 0.5)) for preset in LAYOUT_PRESETS}
    assert kinds["muscle"]["epithelial"] < 1 < kinds["normal-mucosa"]["epithelial"]
    assert kinds["adenocarcinoma"]["epithelial"] > 1.5 * kinds["normal-mucosa"]["epithelial"]
    assert kinds["inflamed"]["neutrophil"] > 5 * kinds["normal-mucosa"]["neutrophil"]


def test_a_part_of_a_tissue_is_that_part_of_the_whole():
    tissue = Tissue("mixed", 5000.0, 4000.0, 9)
    x, y = np.arange(600) * 8.0 + 1, np.arange(450) * 8.0 + 1
    whole = tissue.zones(x, y)
    assert np.array_equal(whole[100:230, 310:500], tissue.zones(x[310:500], y[100:230]))
    assert len(np.unique(whole)) > 6


def test_more_of_a_class_is_as_much_more(mixed):
    more = counts(mixed.more({"neutrophil": 3.0, "plasma": 0.5}))
    before = counts(mixed)
    assert more["neutrophil"] == pytest.approx(3 * before["neutrophil"], rel=0.03)
    assert more["plasma"] == pytest.approx(0.5 * before["plasma"], rel=0.03)
    assert more["epithelial"] == before["epithelial"]
    with pytest.raises(SettingsError, match="no such class"):
        mixed.more({"goblet": 2.0})
    for wrong in ("neutrophil", "neutrophil=x", "neutrophil=-1"):
        with pytest.raises(SettingsError, match="CLASS=FACTOR"):
            parse_more([wrong])


def test_a_layout_is_read_back_from_its_file(mixed, tmp_path):
    saved = mixed.save(tmp_path / "layout.tif")
    assert np.array_equal(saved.planes, mixed.planes) and saved.sha256() == mixed.sha256()
    assert (saved.width, saved.height, saved.mpp, saved.classes) == (3000, 2000, 0.5, NAMES)
    (tmp_path / "other.tif").write_bytes(b"no")
    with pytest.raises(MaskError, match="is no layout"):
        Layout.open(tmp_path / "other.tif")


def test_glass_windows_are_known_beforehand(mixed):
    grid = WindowGrid(3000, 2000, 256, 32)
    occupied = layout_occupancy(grid, mixed)
    for window in grid.windows():
        said = mixed.read(*grid.extent(window)).is_glass((slice(None), slice(None)))
        assert said != occupied[window.j, window.i]
    assert 0 < occupied.sum() < occupied.size


def test_the_layout_of_a_mask_counts_its_nuclei(tmp_path):
    write_demo_mask(tmp_path / "mask.tif", 2200, 1500, seed=3)
    with SlideMask.open(tmp_path / "mask.tif", 6) as mask:
        truth = mask.count_nuclei()
        layout = layout_of_mask(mask, LIZARD_CLASSES, 0.5)
    for name, count in zip(NAMES, truth):
        assert counts(layout)[name] == pytest.approx(count, rel=0.04, abs=8)
    shares = layout.planes[6:].mean((1, 2)) / 255
    assert (shares > 0.01).all() and shares.sum() == pytest.approx(1, abs=0.01)


def test_a_painted_picture_is_a_layout():
    colours = {zone.name: zone.rgb for zone in zones()}
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:, :20], picture[:, 20:40], picture[:, 40:] = colours["glass"], colours["follicle"], colours["tumour"]
    layout = layout_by_hand(picture, 60 * CELL, 40 * CELL, LIZARD_CLASSES, 0.5)
    assert layout.planes.shape == (10, 40, 60)
    assert (layout.planes[6, :, :20] == 255).all() and (layout.planes[8, :, 40:] == 255).all()
    assert layout.density()[2, :, 20:40].mean() == pytest.approx(4.5, rel=0.03)


def test_an_unknown_preset_is_named():
    with pytest.raises(SettingsError, match="choose one of normal-mucosa"):
        sampled_layout("liver", 500, 500, 0, LIZARD_CLASSES, 0.5)
