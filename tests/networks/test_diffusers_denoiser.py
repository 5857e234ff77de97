"""The example adapter: a `UNet2DModel` of diffusers is saved, found by its name, checked, painted with and trained."""

import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import openslide
import pytest
import pyvips
import torch
from click.testing import CliRunner

from wsigen.cli.main import main
from wsigen.errors import ModelError
from wsigen.masks.demo.mask import write_demo_mask
from wsigen.models.config import ModelConfig
from wsigen.networks import denoiser
from wsigen.networks.denoiser import Denoiser
from wsigen.painting.cost import batch_cost
from wsigen.painting.painter import Painter
from wsigen.painting.slide_worker import fixed_threads
from wsigen.training.loop import train
from wsigen.training.prepare import prepare
from wsigen.training.settings import Phase, TrainSettings

# Not imported yet: it imports Triton, and other tests choose Triton's interpreter before that.
pytestmark = pytest.mark.skipif(find_spec("diffusers") is None, reason="diffusers is not installed")

EXAMPLES = Path(__file__).parents[2] / "examples"
OPTIONS = (
    ("block_out_channels", (8, 16)),
    ("layers_per_block", 1),
    ("norm_num_groups", 4),
    ("attention_head_dim", 8),
    ("down_block_types", ("DownBlock2D", "AttnDownBlock2D")),
    ("up_block_types", ("AttnUpBlock2D", "UpBlock2D")),
)
CONFIG = replace(ModelConfig.preset("tiny"), name="diffused", architecture="diffusers-unet2d", network=OPTIONS)


@pytest.fixture(autouse=True)
def installed(tmp_path, monkeypatch):
    """The example as an installed package would register it: as an entry point."""
    info = tmp_path / "site" / "adapter-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: adapter\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[wsigen.denoisers]\ndiffusers-unet2d = diffusers_denoiser:DiffusersUNet\n")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.syspath_prepend(str(info.parent))
    denoiser.architecture.cache_clear()
    yield
    denoiser.architecture.cache_clear()
    sys.modules.pop("diffusers_denoiser", None)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    model = Denoiser.from_config(CONFIG)
    assert type(model).__name__ == "DiffusersUNet"
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def mask(tmp_path):
    write_demo_mask(tmp_path / "mask.tif", 100, 80, seed=3)
    return tmp_path / "mask.tif"


def command(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_it_is_read_back_through_the_registry(folder):
    loaded = Denoiser.from_pretrained(folder)
    assert loaded.config == CONFIG and loaded.size_multiple == 2
    torch.manual_seed(0)
    fresh = Denoiser.from_config(CONFIG).state_dict()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in loaded.state_dict().items())


def test_a_slide_is_painted_from_the_command_line(folder, mask, tmp_path):
    def painted(name, *options):
        command("render", mask, "-o", tmp_path / name, "--model", folder, "--device", "cpu", *options)
        with openslide.OpenSlide(tmp_path / name) as slide:
            assert slide.dimensions == (100, 80)
            return np.asarray(slide.read_region((0, 0), 0, slide.dimensions))

    once = painted("once.svs")
    assert np.array_equal(once, painted("again.svs")) and not np.array_equal(once, painted("other.svs", "--seed", 1))
    assert "fits" in command("render", mask, "--model", folder, "--device", "cpu", "--plan")
    command("verify", tmp_path / "once.svs", "--mask", mask)


def test_rows_of_a_batch_are_equal(folder):
    assert "operations tried" in command("doctor", "--device", "cpu", "--model", folder, "--batch-size", 3)


def test_known_pixels_stay_and_what_is_told_counts(folder):
    model = Denoiser.from_pretrained(folder).to(memory_format=torch.channels_last)

    def painted(style):
        with fixed_threads():
            painter = Painter(model, style, num_inference_steps=2, batch_size=2)
            return painter.paint([job])[0]

    style = CONFIG.style()
    with fixed_threads():
        job = Painter(model, style, num_inference_steps=2, batch_size=2).any_window(64)
    first = painted(style)
    second = painted(replace(style, vector=tuple(2 * value for value in style.vector)))
    assert np.array_equal(first[job.known], job.context[job.known]) and not job.known.all()
    assert not np.array_equal(first, second)


def test_options_that_it_does_not_take_are_refused_in_one_line():
    for wrong in (("no_such_option", 1), ("up_block_types", ("UpBlock2D",))):
        config = replace(CONFIG, network=(*(option for option in OPTIONS if option[0] != wrong[0]), wrong))
        with pytest.raises(ModelError, match="'diffused': its 'diffusers-unet2d' cannot be") as caught:
            Denoiser.from_config(config)
        assert wrong[0] in str(caught.value) and "\n" not in str(caught.value)


def test_costs_follow_from_the_options():
    wider = replace(CONFIG, network=(("block_out_channels", (16, 32)), *OPTIONS[1:]))
    narrow, wide = (batch_cost(config, 64, 2, 2, 1, "float32") for config in (CONFIG, wider))
    assert wide.operations > narrow.operations > 0 and wide.weight_bytes > narrow.weight_bytes > 0


def test_it_is_trained_from_its_folder(folder, tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        labels = np.zeros((160, 160), np.uint8)
        labels[20:40, 20:40] = 2
        rgb = rng.integers(90, 180, (160, 160, 3)).astype(np.uint8)
        for part, array in (("images", rgb), ("labels", labels)):
            (tmp_path / "own" / part).mkdir(parents=True, exist_ok=True)
            pyvips.Image.new_from_array(array).write_to_file(str(tmp_path / "own" / part / f"{name}.png"))
    prepare({"folder": tmp_path / "own"}, tmp_path / "data", holdout=["b"])
    settings = TrainSettings(initial_model=str(folder), phases=(Phase((32,), (2,), 2),), warmup_steps=1, decay_steps=1)
    result = train(settings, tmp_path / "data", tmp_path / "run", device="cpu", report=lambda _: None)
    assert result.step == 2
    before, after = (Denoiser.from_pretrained(path).state_dict() for path in (folder, tmp_path / "run" / "model"))
    assert any(not torch.equal(before[name], tensor) for name, tensor in after.items())
