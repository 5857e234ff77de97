"""The denoising loop over a network: known pixels, samplers and guidance."""

from dataclasses import replace

import pytest
import torch
from random_conditions import NARROW_PAPER as PAPER
from random_conditions import conditions_for

from wsigen.diffusion.samplers import make_sampler
from wsigen.diffusion.schedules import NoiseSchedule
from wsigen.models.config import ModelConfig
from wsigen.networks.denoise import denoise

TINY = ModelConfig.preset("tiny")


def paint(model, sampler_name, steps, inputs, guidance_scale=1.0, seed=9):
    """Paint with a guidance scale, or with the model's own for None."""
    config = model.config
    schedule = NoiseSchedule.from_name(config.schedule, config.schedule_steps)
    sampler = make_sampler(sampler_name, schedule, steps)
    generator = torch.Generator().manual_seed(seed)
    noises = torch.randn((steps + 1, *inputs.context.shape), generator=generator)
    guidance = None if guidance_scale is None else config.guidance(guidance_scale)
    return denoise(model, schedule, sampler, inputs, noises[-1], lambda index: noises[index], guidance)


@pytest.fixture(params=["dpm++2m", "unipc", "ddim", "ddpm"])
def sampler_name(request):
    return request.param


def test_the_published_network_paints_with_ddpm(lively):
    model = lively(PAPER)
    inputs = conditions_for(PAPER, known_share=0.0)
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
    inputs = conditions_for(PAPER, known_share=0.0)
    schedule = NoiseSchedule.from_name(PAPER.schedule, PAPER.schedule_steps)
    low, high = make_sampler("ddpm", schedule, 3).steps[0].log_variance_range
    assert low < high
    assert not torch.equal(paint(narrow, "ddpm", 3, inputs), paint(wide, "ddpm", 3, inputs))


@pytest.mark.parametrize("config", [TINY, PAPER], ids=["tiny", "paper"])
def test_known_pixels_come_out_exactly(lively, config, sampler_name):
    inputs = conditions_for(config)
    painted = paint(lively(config), sampler_name, 3, inputs)
    known = inputs.known.expand_as(painted) > 0
    assert torch.equal(painted[known], inputs.context[known])
    assert not torch.equal(painted[~known], inputs.context[~known])


def test_guidance_of_one_is_no_guidance(lively, monkeypatch):
    model = lively(TINY)
    inputs = conditions_for(TINY)
    calls, prepare = [], model.prepare
    monkeypatch.setattr(model, "prepare", lambda told: calls.append(1) or prepare(told))
    plain = paint(model, "dpm++2m", 2, inputs)
    one = paint(model, "dpm++2m", 2, inputs, guidance_scale=1.0)
    assert torch.equal(plain, one) and len(calls) == 2  # and one branch is all that runs
    assert not torch.equal(plain, paint(model, "dpm++2m", 2, inputs, guidance_scale=3.0))
    assert len(calls) == 4


def test_the_models_own_guidance_is_the_default(lively):
    model, inputs = lively(TINY), conditions_for(TINY)
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
    model, inputs = lively(config), conditions_for(config)
    alike = inputs.map(lambda told: told[:1].repeat(batch, *[1] * (told.ndim - 1)))
    noise = torch.randn((1, 3, 32, 32), generator=torch.Generator().manual_seed(2)).repeat(batch, 1, 1, 1)
    with torch.inference_mode():
        predicted = model(noise, torch.full((batch,), 500.0), *alike.in_order(model.specs))
    assert all(torch.equal(row, predicted[0]) for row in predicted)


def test_learned_guidance_is_told_by_the_present_plane_and_takes_one_call(lively, monkeypatch):
    model, inputs = lively(TINY), conditions_for(TINY)
    outside = paint(model, "dpm++2m", 2, inputs, guidance_scale=2.5)
    unguided = paint(model, "dpm++2m", 2, inputs)
    seen, prepare = [], model.prepare
    monkeypatch.setattr(model, "prepare", lambda told: seen.append(told) or prepare(told))
    model.config = replace(TINY, guidance_scale=1.5, guided_scales=(1.0, 2.0))
    learned = paint(model, "dpm++2m", 2, inputs, guidance_scale=None)
    assert [told["present"].unique().tolist() for told in seen] == [[1.5]]
    assert all(torch.equal(seen[0][name], inputs[name]) for name in inputs if name != "present")
    assert (inputs["present"] == 1).all()
    assert not torch.equal(learned, unguided)
    assert torch.equal(paint(model, "dpm++2m", 2, inputs, guidance_scale=1.0), unguided)
    assert torch.equal(paint(model, "dpm++2m", 2, inputs, guidance_scale=2.5), outside), "two calls beyond the range"
    assert [model.config.guidance(scale).calls for scale in (None, 1.0, 2.0, 2.5, 0.5)] == [1, 1, 1, 2, 2]
    assert ModelConfig.from_json(model.config.to_json()) == model.config


def test_guidance_of_zero_forgets_the_mask(lively):
    model = lively(TINY)
    inputs = conditions_for(TINY)
    other = inputs.replaced(mask=inputs["mask"].flip(0), tissue=0 * inputs["tissue"])
    assert not torch.equal(*(paint(model, "dpm++2m", 2, given) for given in (inputs, other)))
    first, second = (paint(model, "dpm++2m", 2, given, guidance_scale=0.0) for given in (inputs, other))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


def test_a_network_in_bfloat16_keeps_known_pixels_exact(lively):
    inputs = conditions_for(TINY)
    painted = paint(lively(TINY).bfloat16(), "dpm++2m", 2, inputs)
    known = inputs.known.expand_as(painted) > 0
    assert painted.dtype == torch.float32
    assert torch.equal(painted[known], inputs.context[known])
