"""Masks sampled in the engine: pure functions of layout, model and seed. A network with random weights paints noise,
which decodes to hundreds of small nuclei: hard on everything but its looks."""

from dataclasses import replace

import numpy as np
import openslide
import pytest
import torch
from click.testing import CliRunner

from wsigen.cli.main import main
from wsigen.config import RenderSettings
from wsigen.errors import ModelError, SettingsError
from wsigen.layouts.layout import Layout
from wsigen.masks.demo.mask import write_demo_mask
from wsigen.masks.slide_mask import SlideMask
from wsigen.models.config import ModelConfig
from wsigen.models.stain import StainStyle
from wsigen.networks.nasdm import NasdmModel
from wsigen.painting.canvas import Canvas
from wsigen.rendering.layout_request import LayoutRequest
from wsigen.rendering.mask_job import find_mask_model, sample_mask

REQUEST = LayoutRequest("adenocarcinoma", (420, 330), 5)


def random_model(preset: str, folder) -> str:
    torch.manual_seed(11)
    model = NasdmModel(replace(ModelConfig.preset(preset), styles=(StainStyle("violet"),), default_style="violet"))
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_model("tiny-mask", tmp_path_factory.mktemp("model") / "tiny-mask")


@pytest.fixture(scope="module")
def settings(model):
    return RenderSettings(model=model, seed=3, steps=2, device="cpu", dtype="float32", batch_size=4)


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "mask.tif"
    return path, sample_mask(path, REQUEST, settings)


def planes(path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with SlideMask.open(path, 6) as mask:
        read = mask.read(0, 0, mask.width, mask.height)
    return read.classes, read.instances, read.tissue


def test_a_sampled_mask_is_a_mask(whole):
    path, result = whole
    with SlideMask.open(path, 6) as mask:
        assert (mask.width, mask.height, mask.mpp, mask.has_tissue) == (420, 330, 0.5, True)
        assert list(mask.scan().nuclei) == list(result.nuclei.values()) and sum(result.nuclei.values()) > 100
    classes, instances, tissue = planes(path)
    assert np.array_equal(np.unique(instances), np.arange(instances.max() + 1))
    kinds = np.unique(np.stack([instances, classes]).reshape(2, -1), axis=1)
    assert kinds.shape[1] == instances.max() + 1  # one class each
    assert tissue[0, 0] == 0 and tissue[150:180, 200:230].all() and tissue[classes > 0].all()


def test_the_same_seed_gives_the_same_mask_and_another_seed_another(whole, settings, tmp_path):
    again = sample_mask(tmp_path / "again.tif", REQUEST, settings)
    assert all(np.array_equal(a, b) for a, b in zip(planes(whole[0]), planes(again.mask)))
    other = sample_mask(tmp_path / "other.tif", REQUEST, replace(settings, seed=4))
    assert not np.array_equal(planes(whole[0])[0], planes(other.mask)[0])


def test_a_part_is_that_part_of_the_whole(whole, settings, tmp_path):
    x, y, width, height = rect = (190, 140, 100, 80)
    part = planes(sample_mask(tmp_path / "part.tif", REQUEST, replace(settings, rect=rect)).mask)
    there = [plane[y : y + height, x : x + width] for plane in planes(whole[0])]
    assert np.array_equal(part[0], there[0]) and np.array_equal(part[2], there[2])
    pairs = np.unique(np.stack([part[1], there[1]]).reshape(2, -1), axis=1)
    assert all(len(np.unique(side)) == pairs.shape[1] for side in pairs)  # the same nuclei under other numbers


def test_a_stopped_run_is_resumed_to_the_same_mask(whole, settings, tmp_path):
    out = tmp_path / "mask.tif"

    def stop(progress):
        if progress.ended is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_mask(out, REQUEST, settings, on_paint=stop)
    assert not out.exists()
    with pytest.raises(SettingsError, match="--resume"):
        sample_mask(out, REQUEST, settings)
    seen = []
    sample_mask(out, REQUEST, settings, resume=True, on_paint=seen.append)
    assert seen[-1].resumed > 0
    assert all(np.array_equal(a, b) for a, b in zip(planes(whole[0]), planes(out)))


def test_variations_of_a_mask_have_its_size(settings, tmp_path):
    write_demo_mask(tmp_path / "real.tif", 300, 200, seed=1)
    result = sample_mask(tmp_path / "new.tif", LayoutRequest(str(tmp_path / "real.tif")), settings, keep_canvas=True)
    assert (result.width, result.height) == (300, 200) and result.layout.is_file()
    grid = Canvas.open(tmp_path / "new.tif.canvas").grid
    assert (grid.width, grid.blend) == (300, 0), "colours of masks stand for classes and are never mixed"
    with pytest.raises(SettingsError, match="leave --size out"):
        request = LayoutRequest(str(tmp_path / "real.tif"), (64, 64))
        sample_mask(tmp_path / "newer.tif", request, settings)


def test_the_command_line_samples_and_paints(model, tmp_path):
    painter = random_model("tiny", tmp_path / "tiny")
    out = tmp_path / "slide.svs"
    command = ["synth", "-o", out, "--layout", "muscle", "--size", "300x200", "--mask-model", model, "--model", painter]
    result = CliRunner().invoke(main, [str(part) for part in [*command, "--steps", 2, "--mask-steps", 2]])
    assert result.exit_code == 0, result.output
    assert openslide.OpenSlide(out).dimensions == (300, 200)
    with SlideMask.open(tmp_path / "slide_masks.tif", 6) as mask:
        assert (mask.width, mask.height) == (300, 200)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--layout", "liver", "--size", "300"], "neither a file nor one of normal-mucosa"),
        (["--layout", "mixed"], "give the slide's --size"),
        (["--size", "3"], "sides must lie from"),
        (["--size", "ax3"], "give the side or WIDTHxHEIGHT in px"),
        (["--size", "300x"], "give the side or WIDTHxHEIGHT in px"),
        (["--size", "300", "--more", "goblet=2"], "no such class"),
        (["--size", "300", "-o", "mask.png"], "ends in .tif"),
        (["--size", "300", "--rect", "0", "0", "400", "10"], "not inside the slide"),
    ],
)
def test_bad_requests_are_one_line_and_exit_code_2(options, says, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["mask", "sample", "--model", model, *options])
    lines = result.output.strip().splitlines()
    assert result.exit_code == 2 and says in lines[-1] and len(lines) == 1
    assert not list(tmp_path.iterdir())  # nothing is touched


def test_painters_and_mask_models_are_not_mixed_up(model, tmp_path):
    painter = random_model("tiny", tmp_path / "tiny")
    with pytest.raises(SettingsError, match="paints slides, not masks"):
        find_mask_model(painter)
    write_demo_mask(tmp_path / "mask.tif", 128, 128, seed=1)
    result = CliRunner().invoke(main, ["render", str(tmp_path / "mask.tif"), "--model", model])
    assert result.exit_code == 2 and "paints masks, not slides" in result.output


def test_without_a_model_the_way_to_one_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("wsigen.rendering.mask_job.shipped_models", list)
    result = CliRunner().invoke(main, ["mask", "sample", "-o", str(tmp_path / "mask.tif"), "--size", "300"])
    assert result.exit_code == 2 and len(result.output.strip().splitlines()) == 1
    assert "no mask model ships" in result.output and "configs/mask.toml" in result.output
    with pytest.raises(ModelError):
        find_mask_model("")


@pytest.mark.exhaustive
def test_class_balance_follows_the_layout(tmp_path):
    """Common classes within a quarter of what the layout says, on half a square millimetre."""
    settings = RenderSettings(seed=3, device="cpu", batch_size=2)
    result = sample_mask(tmp_path / "mask.tif", LayoutRequest("normal-mucosa", (1024, 1024), 2), settings)
    layout = Layout.open(result.layout)
    for name, wanted in zip(layout.classes, layout.expected()):
        if wanted > 100:
            assert result.nuclei[name] == pytest.approx(wanted, rel=0.25), name
