"""What ships to measure with: it fits the painter that ships, and is found without being named."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.ndimage import gaussian_filter

from wsigen.cli.main import main
from wsigen.evaluation.features import to_images
from wsigen.evaluation.memorisation import SHIPPED_INDEX, TrainingIndex
from wsigen.evaluation.slide import tissue_patches
from wsigen.evaluation.slides import SlidePixels
from wsigen.masks.demo.mask import write_demo_mask
from wsigen.models.config import ModelConfig
from wsigen.models.registry import DEFAULT_MODEL, find_model
from wsigen.networks.measuring import FEATURES, SEGMENTER, WEIGHTS_ROOT, FeatureNetwork, SegmentationNetwork
from wsigen.rendering.job import render

CPU = torch.device("cpu")


def run(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """A slide of the painter that ships, and its mask: few steps, small windows, seconds."""
    folder = tmp_path_factory.mktemp("slide")
    slide, mask = folder / "slide.svs", folder / "mask.tif"
    write_demo_mask(mask, 320, 256, seed=7)
    render(mask, slide, steps=4, window=128, overlap=16, device="cpu")
    return slide, mask


def test_what_ships_fits_the_painter_that_ships():
    painter = ModelConfig.load(find_model(DEFAULT_MODEL))
    networks = FeatureNetwork.from_pretrained(FEATURES), SegmentationNetwork.from_pretrained(SEGMENTER)
    for network, name in zip(networks, (FEATURES, SEGMENTER)):
        assert (network.config.name, network.config.mpp) == (name, painter.mpp)
        assert network.config.classes.names == painter.classes.names
    index = TrainingIndex.load(SHIPPED_INDEX)
    assert index.network == FEATURES and index.features.shape[1] == networks[0].config.channels[-1]
    assert np.isfinite(index.features).all() and 0 < index.near < np.median(index.held_out)


def test_all_that_ships_has_a_card_and_a_licence():
    folders = [folder for folder in WEIGHTS_ROOT.iterdir() if folder.is_dir()]
    assert {folder.name for folder in folders} == {FEATURES, SEGMENTER, SHIPPED_INDEX.name}
    for folder in folders:
        assert (folder / "README.md").read_text().startswith(f"# {folder.name}\n")
        assert folder.name in (folder / "LICENSE").read_text()


def test_a_slide_is_read_with_what_ships(painted, tmp_path):
    slide, mask = painted
    run("evaluate", "slide", slide, mask, "-o", tmp_path / "report", "--device", "cpu", "--sites", 20)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    nuclei = report["fidelity"]["rows"][0]
    assert nuclei["dice"] > 0.6 > 0.3 > nuclei["shuffled dice"]
    assert report["memorisation"]["rows"][0]["share of near-copies"] < 0.5


def test_an_audit_needs_no_more_than_the_slide(painted):
    said = run("audit", painted[0], "--device", "cpu")
    assert "near-copies of training patches: " in said and "(real held-out patches: 1.1%)" in said


@torch.inference_mode()
def test_features_notice_blur(painted):
    network = FeatureNetwork.from_pretrained(FEATURES)
    with SlidePixels(painted[0]) as slide:
        sharp = tissue_patches(slide, 128, 4, 0)
    blurred = gaussian_filter(sharp, (0, 1.2, 1.2, 0))
    before, after = (network(to_images(patches, CPU)) for patches in (sharp, blurred))
    assert (after.decay[:, 0] > before.decay[:, 0] + 0.2).all()
    assert (after.features - before.features).norm(dim=1).min() > 0.1 * before.features.norm(dim=1).mean()
