"""What the network promises: sizes, SPADE maps of one batch for all steps, and that every input reaches the output."""

from dataclasses import replace

import pytest
import torch
from random_conditions import NARROW_PAPER, conditions_for

from wsigen.models.config import ModelConfig
from wsigen.networks.nasdm import NasdmModel
from wsigen.networks.unet import UNet, timestep_embedding

PUBLISHED_PARAMETERS = 500.5e6

CONFIGS = {
    "tiny": ModelConfig.preset("tiny"),
    "paper": NARROW_PAPER,
}


def inputs_for(config, side=32, batch=2):
    """A noisy window, timesteps, and what the network is told."""
    x = torch.randn((batch, 3, side, side), generator=torch.Generator().manual_seed(3))
    return x, torch.tensor([17.5, 903.0])[:batch], conditions_for(config, side, batch)


def run(model, x, t, told):
    return model(x, t, *told.in_order(model.specs))


def on_meta(name):
    with torch.device("meta"):
        return NasdmModel(ModelConfig.preset(name))


def test_the_published_network_has_the_published_size():
    assert on_meta("nasdm-paper").parameter_count == pytest.approx(PUBLISHED_PARAMETERS, rel=0.01)


def test_the_shipped_networks_stay_small():
    large, small = on_meta("nasdm-colon-20x"), on_meta("nasdm-colon-20x-small")
    assert large.parameter_count <= 22e6
    assert small.parameter_count < large.parameter_count / 2


@pytest.mark.parametrize("name", CONFIGS)
def test_output_has_the_windows_size(lively, name):
    model = lively(CONFIGS[name])
    x, t, told = inputs_for(model.config)
    channels = 6 if model.config.learned_variance else 3
    assert run(model, x, t, told).shape == (2, channels, 32, 32)
    wide = told.map(lambda tensor: tensor[..., :16] if tensor.ndim == 4 else tensor)
    assert run(model, x[..., :16], t, wide).shape == (2, channels, 32, 16)


@pytest.mark.parametrize("name", CONFIGS)
def test_conditions_that_are_prepared_once_serve_every_step(lively, name):
    model = lively(CONFIGS[name])
    x, t, told = inputs_for(model.config)
    prepared = model.prepare(told)
    for noisy, timesteps in ((x, t), (x.flip(0), t.flip(0))):
        mean, raw_variance = model.predict(prepared, noisy, timesteps)
        assert (raw_variance is not None) == model.config.learned_variance
        whole = mean if raw_variance is None else torch.cat([mean, raw_variance], 1)
        assert torch.equal(whole, run(model, noisy, timesteps, told))


@pytest.mark.parametrize("changed", ["x", "t", "stain", "mask", "tissue", "context", "known", "present"])
def test_every_input_reaches_the_output(lively, changed):
    model = lively(CONFIGS["tiny"])
    x, t, told = inputs_for(model.config)
    assert {spec.name for spec in model.specs} == {"stain", "mask", "tissue", "context", "known", "present"}
    if changed in told:
        other = 0.5 * told[changed] if changed in ("tissue", "present") else told[changed].flip(0)
        after = run(model, x, t, told.replaced(**{changed: other}))
    else:
        after = run(model, *((x.flip(0), t) if changed == "x" else (x, t.flip(0))), told)
    assert (run(model, x, t, told) - after).abs().max() > 1e-4


def test_planes_enter_in_the_order_of_the_configuration(lively):
    model = lively(CONFIGS["tiny"])
    told = model.entries(conditions_for(model.config))
    given = conditions_for(model.config)
    assert torch.equal(told.planes, torch.cat([given["mask"], given["tissue"], given["present"]], 1))
    assert told.planes.is_contiguous(memory_format=torch.channels_last)
    assert [torch.equal(*pair) for pair in zip(told.pixels, (given["context"], given["known"]), strict=True)] == [
        True
    ] * 2
    assert list(told.vectors) == ["stain"]


def test_the_published_network_sees_the_mask_through_spade_alone(lively):
    model = lively(CONFIGS["paper"])
    x, t, told = inputs_for(model.config)
    bare = told.map(torch.zeros_like).replaced(mask=told["mask"], tissue=told["tissue"], present=told["present"])
    prepared = model.prepare(told)
    with_context, alone = (model.predict(model.prepare(given), x, t).mean for given in (told, bare))
    assert torch.equal(with_context, alone)  # no context, no style
    emptied = replace(model.prepare(told.replaced(mask=torch.zeros_like(told["mask"]))), maps=prepared.maps)
    assert torch.equal(model.predict(emptied, x, t).mean, alone)


def test_a_sample_does_not_depend_on_its_batch(lively):
    model = lively(CONFIGS["tiny"])
    x, t, told = inputs_for(model.config)
    alone = run(model, x[1:], t[1:], told.map(lambda tensor: tensor[1:]))
    torch.testing.assert_close(alone, run(model, x, t, told)[1:], rtol=0, atol=1e-5)


def test_a_network_is_called_with_all_that_it_takes(lively):
    model = lively(CONFIGS["tiny"])
    x, t, told = inputs_for(model.config)
    with pytest.raises(ValueError, match="shorter"):
        model(x, t, *told.in_order(model.specs[:-1]))


def test_a_fresh_network_answers_zero():
    torch.manual_seed(0)
    model = NasdmModel(CONFIGS["tiny"])
    assert not run(model, *inputs_for(model.config)).any()


@pytest.mark.parametrize(("resize", "expected"), [("nearest", 1.0), ("area", 0.25)])
def test_masks_reach_coarser_levels_as_the_configuration_says(resize, expected):
    unet = UNet(replace(NARROW_PAPER.unet, spade_resize=resize), planes=1)
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., ::2, ::2] = 1
    pyramid = unet.mask_pyramid(mask, 1)
    assert [level.shape[-1] for level in pyramid] == [32, 16, 8, 4, 2]
    assert torch.all(pyramid[1] == expected)


def test_attention_stands_where_the_configuration_says():
    unet = UNet(NARROW_PAPER.unet, planes=9)
    for stage in [*unet.encoder, *unet.decoder]:
        attends = stage.level in NARROW_PAPER.unet.attention_levels and not stage.block.resample
        assert (stage.attention is not None) == attends
    assert [stage.attention is not None for stage in unet.middle] == [True, False]


def test_size_multiple_is_what_the_levels_need():
    assert UNet(NARROW_PAPER.unet, planes=9).size_multiple == 16
    assert UNet(CONFIGS["tiny"].unet, planes=9).size_multiple == 4


def test_timestep_embedding_is_the_sinusoid():
    embedding = timestep_embedding(torch.tensor([0.0, 2.5]), 8)
    assert torch.equal(embedding[0], torch.tensor([1.0] * 4 + [0.0] * 4))
    angles = 2.5 * 10_000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    expected = torch.cat([angles.cos(), angles.sin()]).float()
    torch.testing.assert_close(embedding[1], expected, rtol=0, atol=1e-6)
