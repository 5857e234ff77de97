"""Model folders (configuration and weight shards), and the denoising loop over a network."""

import json
from dataclasses import replace

import pytest
import torch
from wsigen.models.conditioned import WindowInputs
from wsigen.models.conditioning import condition_planes, tell_guidance

from wsigen.diffusion.samplers import make_sampler
from wsigen.diffusion.schedules import NoiseSchedule
from wsigen.errors import ModelError
from wsigen.models import nasdm
from wsigen.models.config import PRESETS, ModelConfig, UNetConfig
from wsigen.models.stain import StainStyle, StyleRange
from wsigen.models.stain_response import StainResponse
from wsigen.networks.denoise import denoise
from wsigen.networks.nasdm import NasdmModel, weights_sha256

TINY = ModelConfig.preset("tiny")
PAPER = replace(
    ModelConfig.preset("nasdm-paper"),
    unet=UNetConfig(
        channels=(16, 16, 32, 48, 64),
        attention_levels=(2, 3, 4),
        patch=1,
        context=False,
        condition_in_encoder=False,
        style_dim=0,
        spade_resize="nearest",
        spade_hidden=16,
        norm_groups=8,
        head_channels=16,
    ),
)


@pytest.fixture
def folder(tmp_path, lively, monkeypatch):
    """A tiny model in several shards."""
    monkeypatch.setattr(nasdm, "SHARD_BYTES", 100_000)
    lively(TINY).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def shards_of(folder):
    return sorted(folder.glob("*.safetensors"))


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_a_configuration_reads_back_equal(name):
    config = replace(
        ModelConfig.preset(name),
        style_range=StyleRange(mean=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6), clamp=2.0),
        styles=(StainStyle("pale", glass_rgb=(250, 249, 248)), StainStyle("dark", description="ÜÖ")),
        default_style="pale",
    )
    assert ModelConfig.from_json(config.to_json()) == config


def test_a_stain_response_reads_back_equal_and_a_model_without_one_has_none():
    rows = tuple((0.1, *(0.5 if column == row else 0.0 for column in range(6))) for row in range(6))
    config = replace(TINY, stain_response=StainResponse(rows))
    assert ModelConfig.from_json(config.to_json()) == config
    data = json.loads(TINY.to_json())
    assert data.pop("stain_response") is None
    assert ModelConfig.from_json(json.dumps(data)) == TINY


@pytest.mark.parametrize("rows", [[], [[1.0] * 7] * 5, [[1.0] * 8] * 6, [[1.0] * 7] * 5 + [[1.0] * 28], "rows"])
def test_a_stain_response_of_another_shape_is_refused_by_name(rows):
    text = json.dumps({**json.loads(TINY.to_json()), "stain_response": {"rows": rows}})
    with pytest.raises(ModelError, match=r"somewhere\.json is not a model configuration"):
        ModelConfig.from_json(text, "somewhere.json")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", json.dumps({**json.loads(TINY.to_json()), "colour_of_the_bikeshed": 1})]
)
def test_what_is_no_configuration_is_refused_by_name(text):
    with pytest.raises(ModelError, match=r"somewhere\.json is not a model configuration"):
        ModelConfig.from_json(text, "somewhere.json")


def test_a_configuration_of_before_final_steps_samples_evenly():
    data = json.loads(TINY.to_json())
    del data["final_step"]
    assert ModelConfig.from_json(json.dumps(data)) == TINY


@pytest.mark.parametrize("final_step", [0, -1, 1.5, "half"])
def test_a_final_step_out_of_range_is_refused_by_name(final_step):
    text = json.dumps({**json.loads(TINY.to_json()), "final_step": final_step})
    with pytest.raises(ModelError, match=r"somewhere\.json.*final_step|somewhere\.json.*'str'"):
        ModelConfig.from_json(text, "somewhere.json")


@pytest.mark.parametrize("response", [[1.0], [1.0, -1.0, 1.0, 1.0, 1.0, 1.0], [0, 1, 1, 1, 1, 1]])
def test_a_response_that_fits_no_class_table_is_refused_by_name(response):
    text = json.dumps({**json.loads(TINY.to_json()), "response": response})
    with pytest.raises(ModelError, match="response"):
        ModelConfig.from_json(text)


def test_another_final_step_is_another_model(folder):
    before = weights_sha256(folder)  # part of the record that a resumed run must agree with
    (folder / "config.json").write_text(replace(TINY, final_step=0.5).to_json())
    assert weights_sha256(folder) != before


def test_an_unknown_preset_or_style_names_those_there_are():
    with pytest.raises(ModelError, match="nasdm-paper"):
        ModelConfig.preset("nasdm-papers")
    with pytest.raises(ModelError, match=r"'green'.*violet"):
        TINY.style("green")
    assert TINY.style().name == "violet"


# --- model folders ----------------------------------------------------------------------------------------------------


def test_a_saved_model_loads_bit_for_bit(folder, lively):
    saved, loaded = lively(TINY).state_dict(), NasdmModel.from_pretrained(folder)
    assert loaded.config == TINY
    assert len(shards_of(folder)) > 2
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    assert saved.keys() == loaded.state_dict().keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in loaded.state_dict().items())


def test_saving_again_leaves_no_shard_of_before(folder, lively, monkeypatch):
    before = weights_sha256(folder)
    monkeypatch.setattr(nasdm, "SHARD_BYTES", 10_000_000)
    lively(TINY).save_pretrained(folder, torch.float16)
    assert [path.name for path in shards_of(folder)] == ["weights-00001-of-00001.safetensors"]
    assert weights_sha256(folder) != before
    loaded = NasdmModel.from_pretrained(folder)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    first, want = next(loaded.parameters()), next(lively(TINY).parameters())
    assert torch.equal(first, want.half().float())


def test_a_missing_shard_is_counted(folder):
    shards = shards_of(folder)
    shards[1].unlink()
    with pytest.raises(ModelError, match=rf"holds {len(shards) - 1} of {len(shards)} weight shards"):
        NasdmModel.from_pretrained(folder)


def test_a_folder_without_weights_is_refused(folder):
    for shard in shards_of(folder):
        shard.unlink()
    with pytest.raises(ModelError, match="holds 0 of its weight shards"):
        NasdmModel.from_pretrained(folder)


@pytest.mark.parametrize("damage", [b"", b"not safetensors", None])
def test_a_damaged_shard_is_named(folder, damage):
    shard = shards_of(folder)[1]
    shard.write_bytes(shard.read_bytes()[:-100] if damage is None else damage)
    with pytest.raises(ModelError, match=rf"{shard.name} is damaged") as caught:
        NasdmModel.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_refused(folder):
    other = replace(TINY, unet=replace(TINY.unet, channels=(16, 48)))
    (folder / "config.json").write_text(other.to_json())
    with pytest.raises(ModelError, match="weights do not fit") as caught:
        NasdmModel.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_an_unknown_model_is_refused_by_name(tmp_path):
    with pytest.raises(ModelError, match="no model 'nasdm-lung'"):
        NasdmModel.from_pretrained("nasdm-lung")
    with pytest.raises(ModelError, match=r"give a folder with config\.json"):
        NasdmModel.from_pretrained(tmp_path)


# --- denoising --------------------------------------------------------------------------------------------------------


def window_inputs(config, side=32, known_share=0.3):
    generator = torch.Generator().manual_seed(5)
    classes = torch.randint(0, len(config.classes) + 1, (2, side, side), generator=generator).byte()
    tissue = torch.ones_like(classes)
    known = (torch.rand((2, 1, side, side), generator=generator) < known_share).float()
    context = (torch.rand((2, 3, side, side), generator=generator) * 2 - 1) * known
    style = torch.randn((2, 6), generator=generator)
    return WindowInputs(condition_planes(classes, tissue, tissue, len(config.classes)), context, known, style)


def paint(model, sampler_name, steps, inputs, guidance_scale=1.0, seed=9):
    config = model.config
    schedule = NoiseSchedule.from_name(config.schedule, config.schedule_steps)
    sampler = make_sampler(sampler_name, schedule, steps)
    generator = torch.Generator().manual_seed(seed)
    noises = torch.randn((steps + 1, *inputs.context.shape), generator=generator)
    return denoise(model, schedule, sampler, inputs, noises[-1], lambda index: noises[index], guidance_scale)


@pytest.fixture(params=["dpm++2m", "unipc", "ddim", "ddpm"])
def sampler_name(request):
    return request.param


def test_the_published_network_paints_with_ddpm(lively):
    model = lively(PAPER)
    inputs = window_inputs(PAPER, known_share=0.0)
    painted = paint(model, "ddpm", 4, inputs)
    assert painted.shape == (2, 3, 32, 32) and painted.dtype == torch.float32
    assert painted.isfinite().all() and painted.abs().max() <= 1
    assert torch.equal(painted, paint(model, "ddpm", 4, inputs))
    assert not torch.equal(painted, paint(model, "ddpm", 4, inputs, seed=10))


def test_the_learned_variance_scales_the_fresh_noise(lively):
    narrow, wide = lively(PAPER), lively(PAPER)
    with torch.no_grad():
        for model, raw in ((narrow, -1.0), (wide, 1.0)):  # beta~ and beta: the two ends of the range
            model.unet.conv_out.weight[3:] = 0
            model.unet.conv_out.bias[3:] = raw
    inputs = window_inputs(PAPER, known_share=0.0)
    schedule = NoiseSchedule.from_name(PAPER.schedule, PAPER.schedule_steps)
    low, high = make_sampler("ddpm", schedule, 3).steps[0].log_variance_range
    assert low < high
    assert not torch.equal(paint(narrow, "ddpm", 3, inputs), paint(wide, "ddpm", 3, inputs))


@pytest.mark.parametrize("config", [TINY, PAPER], ids=["tiny", "paper"])
def test_known_pixels_come_out_exactly(lively, config, sampler_name):
    inputs = window_inputs(config)
    painted = paint(lively(config), sampler_name, 3, inputs)
    known = inputs.known.expand_as(painted) > 0
    assert torch.equal(painted[known], inputs.context[known])
    assert not torch.equal(painted[~known], inputs.context[~known])


def test_guidance_of_one_is_no_guidance(lively, monkeypatch):
    model = lively(TINY)
    inputs = window_inputs(TINY)
    calls = []
    monkeypatch.setattr(model, "spade_cache", lambda planes: calls.append(1) or model.unet.spade_cache(planes))
    plain = paint(model, "dpm++2m", 2, inputs)
    one = paint(model, "dpm++2m", 2, inputs, guidance_scale=1.0)
    assert torch.equal(plain, one) and len(calls) == 2  # and one branch is all that runs
    assert not torch.equal(plain, paint(model, "dpm++2m", 2, inputs, guidance_scale=3.0))
    assert len(calls) == 4


def test_the_models_own_guidance_is_the_default(lively):
    model, inputs = lively(TINY), window_inputs(TINY)
    asked = paint(model, "dpm++2m", 2, inputs, guidance_scale=3.0)
    model.config = replace(TINY, guidance_scale=3.0)
    assert torch.equal(paint(model, "dpm++2m", 2, inputs, guidance_scale=None), asked)
    assert not torch.equal(paint(model, "dpm++2m", 2, inputs, guidance_scale=1.0), asked)
    assert ModelConfig.from_json(model.config.to_json()) == model.config
    for scale in (-0.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="guidance_scale"):
            replace(TINY, guidance_scale=scale)


@pytest.mark.parametrize("batch", [2, 3])
def test_a_window_is_rounded_alike_in_every_row_of_a_batch(lively, batch):
    """With the shipped network's shapes: small matrix products of a CPU round by place where they are left to."""
    config = ModelConfig.preset("nasdm-colon-20x")
    model, inputs = lively(config), window_inputs(config)
    alike = [part[:1].repeat(batch, 1, 1, 1).contiguous(memory_format=torch.channels_last) for part in inputs.parts[:3]]
    style = inputs.style[:1].repeat(batch, 1)
    noise = torch.randn((1, 3, 32, 32), generator=torch.Generator().manual_seed(2)).repeat(batch, 1, 1, 1)
    with torch.inference_mode():
        predicted = model(noise, torch.full((batch,), 500.0), *alike, style)
    assert all(torch.equal(row, predicted[0]) for row in predicted)


def test_learned_guidance_is_told_by_the_present_plane_and_takes_one_call(lively, monkeypatch):
    model, inputs = lively(TINY), window_inputs(TINY)
    outside = paint(model, "dpm++2m", 2, inputs, guidance_scale=2.5)
    unguided = paint(model, "dpm++2m", 2, inputs)
    seen = []
    monkeypatch.setattr(model, "spade_cache", lambda planes: seen.append(planes) or model.unet.spade_cache(planes))
    model.config = replace(TINY, guidance_scale=1.5, guided_scales=(1.0, 2.0))
    learned = paint(model, "dpm++2m", 2, inputs, guidance_scale=None)
    assert [planes[:, -1].unique().tolist() for planes in seen] == [[1.5]]
    assert torch.equal(seen[0][:, :-1], inputs.planes[:, :-1]) and (inputs.planes[:, -1] == 1).all()
    assert not torch.equal(learned, unguided)
    assert torch.equal(paint(model, "dpm++2m", 2, inputs, guidance_scale=1.0), unguided)
    assert torch.equal(paint(model, "dpm++2m", 2, inputs, guidance_scale=2.5), outside), "two calls beyond the range"
    assert [model.config.calls_a_step(scale) for scale in (None, 1.0, 2.0, 2.5, 0.5)] == [1, 1, 1, 2, 2]
    assert ModelConfig.from_json(model.config.to_json()) == model.config


@pytest.mark.parametrize("scales", [(1.5,), (2.0, 1.0), (0.0, 1.0), (1.0, float("inf")), (1.0, 1.5, 2.0)])
def test_learned_scales_are_a_range(scales):
    with pytest.raises(ValueError, match="guided_scales"):
        replace(TINY, guided_scales=scales)


def test_each_sample_can_be_told_its_own_guidance():
    planes = torch.rand(3, 5, 4, 4)
    told = tell_guidance(planes, torch.tensor([1.0, 1.5, 2.0]))
    assert torch.equal(told[:, :-1], planes[:, :-1])
    assert torch.equal(told[2], tell_guidance(planes, 2)[2]), "a whole number is a scale too"
    assert torch.equal(told[1], tell_guidance(planes, 1.5)[1]) and torch.equal(told[0], planes[0])
    assert not tell_guidance(torch.zeros(1, 5, 4, 4), 1.5).any(), "the null condition stays"


def test_guidance_of_zero_forgets_the_mask(lively):
    model = lively(TINY)
    inputs = window_inputs(TINY)
    other = replace(inputs, planes=inputs.planes.flip(0))
    first, second = (paint(model, "dpm++2m", 2, given, guidance_scale=0.0) for given in (inputs, other))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


def test_a_network_in_bfloat16_keeps_known_pixels_exact(lively):
    inputs = window_inputs(TINY)
    painted = paint(lively(TINY).bfloat16(), "dpm++2m", 2, inputs)
    known = inputs.known.expand_as(painted) > 0
    assert painted.dtype == torch.float32
    assert torch.equal(painted[known], inputs.context[known])


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"channels": (64, 100)}, "channels 100: must be a multiple of norm_groups"),
        ({"channels": (64, 96), "head_channels": 64, "attention_levels": (1,)}, "channels 96: must be a multiple"),
    ],
)
def test_widths_that_do_not_divide_are_named(shape, words):
    with pytest.raises(ModelError, match=words):
        UNetConfig(**shape)
