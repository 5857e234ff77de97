"""The condition that CONTRIBUTING.md writes out works as it stands there: trained, painted with, refused, listed."""

import ast
import importlib.util
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import numpy as np
import openslide
import pytest
import pyvips
import torch
from click.testing import CliRunner

import wsigen
from wsigen.cli.main import main
from wsigen.conditions import registry
from wsigen.errors import SettingsError
from wsigen.masks.demo.mask import write_demo_mask
from wsigen.models.config import PRESETS, ModelConfig
from wsigen.networks.denoiser import Denoiser
from wsigen.training.data import manifest as manifests
from wsigen.training.prepare import prepare

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTION = TEXT.partition("## Add a condition")[2].partition("\n## ")[0]
BLOCKS = [(kind, dedent(code)) for kind, code in re.findall(r"^ *```(\w+)\n(.*?)^ *```$", SECTION, re.S | re.M)]
MODULE, ENTRY, RECIPE, COMMAND, CALL = (code for _, code in BLOCKS)
SIDE = 160
SHORT = """
learning_rate = 0.01
modulation_rate = 1.0
warmup_steps = 1
decay_steps = 1
"""
PHASE = """
[[phases]]
windows = [32]
batches = [4]
steps = 6
"""


@pytest.fixture(autouse=True)
def added(tmp_path, monkeypatch):
    """The file and the line of the registry; a small network stands for the large one."""
    (tmp_path / "organ.py").write_text(MODULE)
    spec = importlib.util.spec_from_file_location("wsigen.conditions.organ", tmp_path / "organ.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    registry._class_of.cache_clear()
    for name, path in ast.literal_eval(f"{{{ENTRY}}}").items():
        monkeypatch.setitem(registry.CONDITIONS, name, path)
    monkeypatch.setitem(PRESETS, "nasdm-colon-20x", ModelConfig.preset("tiny"))
    yield
    registry._class_of.cache_clear()


@pytest.fixture
def data(tmp_path):
    """Two pictures to learn from, of two organs, and one held out, of which none is known."""
    for seed, name in enumerate("abc"):
        rgb = np.random.default_rng(seed).integers(90, 180, (SIDE, SIDE, 3)).astype(np.uint8)
        labels = np.zeros((SIDE, SIDE), np.uint8)
        labels[20:40, 20:40] = 2
        for part, array in (("images", rgb), ("labels", labels)):
            (tmp_path / "own" / part).mkdir(parents=True, exist_ok=True)
            pyvips.Image.new_from_array(array).write_to_file(str(tmp_path / "own" / part / f"{name}.png"))
    prepare({"folder": tmp_path / "own"}, tmp_path / "data", holdout=["c"])
    written = manifests.load(tmp_path / "data")
    facts = {"a": {"organ": "colon"}, "b": {"organ": "lung"}, "c": {}}
    images = tuple(replace(image, facts=facts[image.group]) for image in written.images)
    manifests.save(replace(written, images=images), tmp_path / "data")
    return tmp_path / "data"


def command(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def picture(path):
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions))


def test_the_condition_is_trained_with_its_recipe_and_painted_with(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.toml").write_text(SHORT + RECIPE + PHASE)
    trained = command("train", "recipe.toml", "--data", data, "-o", "run", "--device", "cpu")
    assert trained.exit_code == 0, trained.output
    model = Denoiser.from_pretrained(tmp_path / "run" / "model")
    layers = model.unet.vector_mlps["organ"]
    assert layers[2].weight.any(), "zero before training"
    with torch.no_grad():  # a few steps teach little: what the organ does must be more than rounding
        layers[2].weight.normal_(0, 1.0, generator=torch.Generator().manual_seed(0))
        model.unet.conv_out.weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(tmp_path / "organs")

    write_demo_mask(tmp_path / "mask.tif", 100, 80, seed=3)
    arguments = shlex.split(COMMAND)
    assert arguments.pop(0) == "wsigen"
    painted = command(*arguments, "--device", "cpu")
    assert painted.exit_code == 0, painted.output
    colon = picture("slide.svs")
    eval(CALL.strip().removesuffix(")") + ', device="cpu", overwrite=True)', {"wsigen": wsigen})
    assert np.array_equal(colon, picture("slide.svs"))
    for name, conditions in (("lung", {"organ": "lung"}), ("none", {})):
        wsigen.render("mask.tif", f"{name}.svs", model="organs", conditions=conditions, device="cpu")
        assert not np.array_equal(colon, picture(f"{name}.svs"))
    again = command("render", "--from", "lung.json", "-o", "again.svs")
    assert again.exit_code == 0, again.output
    assert np.array_equal(picture("lung.svs"), picture("again.svs"))

    assert "; organ (colon, breast, lung); " in command("models", "organs").output
    refused = command("render", "mask.tif", "-o", "x.svs", "--model", "organs", "--condition", "organ=liver")
    assert refused.exit_code == 2 and not Path("x.svs").exists()
    assert refused.stderr.strip() == "wsigen: organ 'liver': choose one of colon, breast, lung"
    with pytest.raises(SettingsError, match="organ 'liver': choose one of colon, breast, lung"):
        wsigen.render("mask.tif", "x.svs", model="organs", conditions={"organ": "liver"}, device="cpu")


def test_the_documents_name_the_files_that_there_are():
    named = re.findall(r"`((?:wsigen|tests|examples)/[\w/.]+)`", TEXT)
    root = Path(__file__).parents[2]
    assert [path for path in named if not (root / path).exists()] == ["wsigen/conditions/organ.py"]
