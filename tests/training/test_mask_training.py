"""Training of the mask model on small pictures with known nuclei."""

import csv
import math
from dataclasses import replace

import numpy as np
import pytest
import pyvips
import torch
from short_run import SHORT

from wsigen.conditions.density import CUT, MARGIN, drawn_layout
from wsigen.conditions.registry import conditions_of, specs_of
from wsigen.errors import SettingsError
from wsigen.layouts.decoding import Decoder
from wsigen.layouts.layout import CELL, DENSITY_SCALE
from wsigen.layouts.mask_code import MaskCode
from wsigen.models.config import LIZARD_CLASSES, PRESETS
from wsigen.networks.nasdm import NasdmModel
from wsigen.training.data import manifest as manifests
from wsigen.training.layouts import MaskBank, measured_limits
from wsigen.training.loop import train
from wsigen.training.masking import mask_corruptor
from wsigen.training.prepare import prepare
from wsigen.training.settings import Phase

SIDE = 192
SETTINGS = replace(SHORT, task="mask", architecture="tiny-mask", phases=(Phase((64, 128), (4, 2), 4),))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Disks of class 2 on the left and of class 3 on the right, one in 20 x 20 px; the border cuts the first row."""
    root = tmp_path_factory.mktemp("data")
    yy, xx = np.mgrid[:SIDE, :SIDE]
    for name in "abcd":
        rgb, labels = np.full((SIDE, SIDE, 3), (220, 170, 200)), np.zeros((SIDE, SIDE), np.uint8)
        for y in range(2, SIDE, 20):
            for x in range(12, SIDE, 20):
                disk = (yy - y) ** 2 + (xx - x) ** 2 < 49
                labels[disk], rgb[disk] = 2 + (x > SIDE // 2), (60, 60, 130)
        for part, array in (("images", rgb.astype(np.uint8)), ("labels", labels)):
            (root / "own" / part).mkdir(parents=True, exist_ok=True)
            pyvips.Image.new_from_array(array).write_to_file(str(root / "own" / part / f"{name}.png"))
    prepare({"folder": root / "own"}, root / "prepared", holdout=["d"])
    return root / "prepared"


@pytest.fixture(scope="module")
def bank(data):
    code = MaskCode.of(LIZARD_CLASSES)
    return MaskBank(data, manifests.load(data), "train", SETTINGS, torch.device("cpu"), code)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_mask_model_is_trained_and_read_back(data, tmp_path):
    result = train(SETTINGS, data, tmp_path, device="cpu", report=lambda _: None)
    assert result.step == 4
    with (tmp_path / "log.csv").open(newline="") as file:
        assert all(math.isfinite(float(row["loss"])) for row in csv.DictReader(file))
    config = NasdmModel.from_pretrained(tmp_path / "model").config
    assert sum(spec.channels for spec in specs_of(config) if spec.entry == "planes") == 11
    assert config.paints == "mask" and config.conditions == ("density", "context") and config.classes == LIZARD_CLASSES
    assert config.limits[1].least_area == config.limits[1].most_area == 145
    assert (tmp_path / "samples" / "step-000004.png").is_file()


def test_painters_are_not_trained_as_mask_models(data, tmp_path):
    with pytest.raises(SettingsError, match="paints no masks"):
        train(replace(SETTINGS, architecture="tiny"), data, tmp_path / "a", device="cpu", report=lambda _: None)
    with pytest.raises(SettingsError, match="paints masks"):
        train(replace(SETTINGS, task="denoise"), data, tmp_path / "b", device="cpu", report=lambda _: None)


def test_crops_are_decodable_masks_whatever_their_turn(bank):
    crops = bank.sample(128, 6, generator())
    decoder = Decoder(MaskCode.of(LIZARD_CLASSES))
    inner = (slice(None), slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    for picture, marks in zip(crops.picture[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN], crops["marks"][inner], strict=True):
        decoded = decoder(picture.permute(1, 2, 0).numpy())
        middles = (marks & (CUT - 1)).numpy()
        assert set(decoded.kind) <= {2, 3}
        assert (decoded.classes[middles > 0] == middles[middles > 0]).all()
        assert len(decoded.kind) == pytest.approx((middles > 0).sum(), abs=14)  # those that the crop cuts


def test_layouts_tell_the_density_of_nuclei_though_pictures_end(bank):
    """One nucleus in 400 px is 2.56 a cell; blurring and unknown margins must not lower that."""
    crops = bank.sample(64, 8, generator(1))
    layout = drawn_layout(crops["marks"], crops["zones"], 6, (3, 3), generator(2))
    assert layout.shape == (8, 10, 64, 64)
    density = (layout[:, :6].double() * 255 / DENSITY_SCALE).square()
    assert density.sum(1).mean().item() == pytest.approx(CELL * CELL / 400, rel=0.1)
    assert (density[:, [0, 3, 4, 5]] < 0.01).all()
    assert torch.allclose(layout[:, 6:10].sum(1), torch.ones(8, 64, 64), atol=0.01)


def test_batches_keep_context_and_forget_layouts_as_told(bank):
    settings = replace(SETTINGS, condition=replace(SETTINGS.condition, drop=1.0))
    batch = mask_corruptor(conditions_of(PRESETS["tiny-mask"]), bank, settings)(
        bank.sample(64, 8, generator(3)), generator(4)
    )
    assert not batch.conditions["density"].any() and not batch.conditions["present"].any()
    assert torch.equal(batch.conditions.context, batch.x0 * batch.known) and 0 < batch.known.mean() < 1
    assert batch.ignored is not None and batch.ignored.shape == (8, 1, 64, 64)


def test_nuclei_that_a_border_cuts_teach_nothing(bank):
    crops = bank.sample(64, 32, generator(5))
    cut = crops["marks"] >= CUT
    assert cut.any() and (crops["red"][cut] >= 128).all()


def test_limits_are_those_of_the_nuclei():
    rng = np.random.default_rng(0)
    areas = rng.uniform(50, 150, 500)
    nuclei = np.stack([np.full(500, 2), areas, np.full(500, 0.97), np.full(500, 8.0)], 1)
    limits = measured_limits(nuclei, 3)
    assert 49 < limits[1].least_area < 55 and 145 < limits[1].most_area < 151
    assert limits[0] == limits[1]  # a class that is not there takes the limits of all
