"""What the network promises: sizes, the SPADE cache, and that every input reaches the output."""

from dataclasses import replace

import pytest
import torch
from wsigen.models.conditioning import condition_planes

from wsigen.models.config import ModelConfig, UNetConfig
from wsigen.networks.nasdm import NasdmModel
from wsigen.networks.unet import UNet, timestep_embedding

PUBLISHED_PARAMETERS = 500.5e6

NARROW_PAPER = UNetConfig(
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
)
CONFIGS = {
    "tiny": ModelConfig.preset("tiny"),
    "paper": replace(ModelConfig.preset("nasdm-paper"), unet=NARROW_PAPER),
}


def inputs_for(config, side=32, batch=2):
    generator = torch.Generator().manual_seed(3)

    def randn(*shape):
        return torch.randn(shape, generator=generator)

    classes = torch.randint(0, len(config.classes) + 1, (batch, side, side), generator=generator).byte()
    edges = torch.randint(0, 2, (batch, side, side), generator=generator).byte()
    known = (torch.rand((batch, 1, side, side), generator=generator) < 0.3).float()
    return {
        "x": randn(batch, 3, side, side),
        "t": torch.tensor([17.5, 903.0])[:batch],
        "planes": condition_planes(classes, edges, torch.ones_like(edges), len(config.classes)),
        "context": randn(batch, 3, side, side).clamp(-1, 1) * known,
        "known": known,
        "style": randn(batch, 6),
    }


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
    inputs = inputs_for(model.config)
    channels = 6 if model.config.learned_variance else 3
    assert model(**inputs).shape == (2, channels, 32, 32)
    wide = {key: value[..., :16] if value.ndim == 4 else value for key, value in inputs.items()}
    assert model(**wide).shape == (2, channels, 32, 16)


@pytest.mark.parametrize("name", CONFIGS)
def test_cached_spade_maps_equal_recomputed_ones(lively, name):
    model = lively(CONFIGS[name])
    inputs = inputs_for(model.config)
    cache = model.spade_cache(inputs["planes"])
    assert torch.equal(model(**inputs, cache=cache), model(**inputs))


@pytest.mark.parametrize("changed", ["x", "t", "planes", "context", "known", "style"])
def test_every_input_reaches_the_output(lively, changed):
    model = lively(CONFIGS["tiny"])
    inputs = inputs_for(model.config)
    other = {**inputs, changed: inputs[changed].flip(0)}
    assert (model(**inputs) - model(**other)).abs().max() > 1e-4


def test_the_published_network_sees_the_mask_through_spade_alone(lively):
    model = lively(CONFIGS["paper"])
    inputs = inputs_for(model.config)
    bare = {key: inputs[key] for key in ("x", "t", "planes")}
    assert torch.equal(model(**bare), model(**inputs))  # no context, no style
    cache = model.spade_cache(inputs["planes"])
    assert torch.equal(model(**{**bare, "planes": torch.zeros_like(inputs["planes"])}, cache=cache), model(**bare))


def test_a_sample_does_not_depend_on_its_batch(lively):
    model = lively(CONFIGS["tiny"])
    inputs = inputs_for(model.config)
    alone = model(**{key: value[1:] for key, value in inputs.items()})
    torch.testing.assert_close(alone, model(**inputs)[1:], rtol=0, atol=1e-5)


def test_absent_context_means_nothing_is_known(lively):
    model = lively(CONFIGS["tiny"])
    inputs = inputs_for(model.config)
    empty = {**inputs, "context": torch.zeros_like(inputs["context"]), "known": torch.zeros_like(inputs["known"])}
    absent = {key: inputs[key] for key in ("x", "t", "planes", "style")}
    assert torch.equal(model(**empty), model(**absent))


def test_a_fresh_network_answers_zero():
    torch.manual_seed(0)
    model = NasdmModel(CONFIGS["tiny"])
    assert not model(**inputs_for(model.config)).any()


@pytest.mark.parametrize(("resize", "expected"), [("nearest", 1.0), ("area", 0.25)])
def test_masks_reach_coarser_levels_as_the_configuration_says(resize, expected):
    unet = UNet(replace(NARROW_PAPER, spade_resize=resize), planes=1)
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., ::2, ::2] = 1
    pyramid = unet.mask_pyramid(mask, 1)
    assert [level.shape[-1] for level in pyramid] == [32, 16, 8, 4, 2]
    assert torch.all(pyramid[1] == expected)


def test_attention_stands_where_the_configuration_says():
    unet = UNet(NARROW_PAPER, planes=9)
    for stage in [*unet.encoder, *unet.decoder]:
        attends = stage.level in NARROW_PAPER.attention_levels and not stage.block.resample
        assert (stage.attention is not None) == attends
    assert [stage.attention is not None for stage in unet.middle] == [True, False]


def test_size_multiple_is_what_the_levels_need():
    assert UNet(NARROW_PAPER, planes=9).size_multiple == 16
    assert UNet(CONFIGS["tiny"].unet, planes=9).size_multiple == 4


def test_timestep_embedding_is_the_sinusoid():
    embedding = timestep_embedding(torch.tensor([0.0, 2.5]), 8)
    assert torch.equal(embedding[0], torch.tensor([1.0] * 4 + [0.0] * 4))
    angles = 2.5 * 10_000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    expected = torch.cat([angles.cos(), angles.sin()]).float()
    torch.testing.assert_close(embedding[1], expected, rtol=0, atol=1e-6)
