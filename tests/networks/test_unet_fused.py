"""The network in fewer passes gives what the plain one gives, up to rounding, and paints the same pixels.

In float32 that is 1e-4 of a standard deviation. In bfloat16, on a GPU, the two paths round at different places: each is
compared with the plain network in float32, and the fused one may err half as much again as the plain one.
"""

import importlib.util
from dataclasses import replace

import pytest
import torch
from random_conditions import conditions_for

from wsigen.conditions.contract import ConditionBatch
from wsigen.diffusion.samplers import make_sampler
from wsigen.diffusion.schedules import NoiseSchedule
from wsigen.models.config import ModelConfig
from wsigen.networks import unet_fused
from wsigen.networks.denoise import denoise
from wsigen.networks.guided import ConditionedNetwork
from wsigen.networks.recorded import Recorded

DEVICE, DTYPE = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@pytest.fixture
def choose(monkeypatch):
    """Choose Triton or torch for everything, whatever this machine would choose."""
    monkeypatch.setattr("wsigen_kernels.norm.ANY_DEVICE", True)
    monkeypatch.setattr("wsigen_kernels.attention.ANY_DEVICE", True)
    monkeypatch.setattr("wsigen_kernels.attention.FORCED", True)

    def choose(name):
        for module in ("norm", "attention"):
            monkeypatch.setattr(f"wsigen_kernels.{module}.BACKEND", name)

    return choose


@pytest.fixture
def model(lively):
    tiny = ModelConfig.preset("tiny")
    few_groups = replace(tiny, unet=replace(tiny.unet, norm_groups=2))  # the interpreter takes a while for each
    return lively(few_groups).to(DEVICE).to(memory_format=torch.channels_last)


def inputs_for(config, side=16, batch=2):
    """A noisy window, timesteps, and what the network is told."""
    x = torch.randn((batch, 3, side, side), generator=torch.Generator().manual_seed(3)).to(DEVICE)
    told = conditions_for(config, side, batch, known_share=0.5, device=DEVICE)
    return x, torch.tensor([17.5, 903.0], device=DEVICE), told


def run(model, inputs, dtype=DTYPE):
    x, t, told = inputs
    with torch.inference_mode():
        return model.to(dtype)(x.to(dtype), t, *told.to(dtype).in_order(model.specs)).float()


def assert_as_close(got, plain, exact):
    """Compare in float32; or, where ``plain`` is coarser than ``exact``, root mean square errors."""
    if DEVICE == "cpu":
        assert (got - plain).abs().max() < 1e-4 * plain.std()
    else:
        mine, its = ((path - exact).square().mean().sqrt() for path in (got, plain))
        assert mine < 1.5 * its, f"{mine:.3g}, the plain path {its:.3g}"


def test_the_fused_network_is_the_network(model, choose):
    inputs = inputs_for(model.config)
    choose("torch")
    exact, plain = run(model, inputs, torch.float32), run(model, inputs)
    assert plain.std() > 0.01
    choose("triton")
    got = run(model, inputs)
    assert not torch.equal(got, plain)  # it did take the other path
    assert_as_close(got, plain, exact)
    x, t, told = inputs
    with torch.inference_mode():
        prepared = model.prepare(told.to(DTYPE))
        assert isinstance(prepared.maps, unet_fused.Cache)
        assert torch.equal(model.predict(prepared, x.to(DTYPE), t).mean.float(), got)
        choose("torch")
        by_plain_path = model.prepare(told.to(DTYPE))
        choose("triton")  # what is prepared says which path it is for
        assert_as_close(model.predict(by_plain_path, x.to(DTYPE), t).mean.float(), plain, exact)


def test_a_mask_model_of_large_patches_is_fused_too(lively, choose):
    tiny = ModelConfig.preset("tiny-mask")
    config = replace(tiny, unet=replace(tiny.unet, norm_groups=2, patch=4))
    model = lively(config).to(DEVICE).to(memory_format=torch.channels_last)
    inputs = inputs_for(config)
    choose("torch")
    exact, plain = run(model, inputs, torch.float32), run(model, inputs)
    choose("triton")
    got = run(model, inputs)
    assert plain.std() > 0.01 and not torch.equal(got, plain)
    assert_as_close(got, plain, exact)


def painted(model, inputs, dtype=DTYPE):
    noise, _, told = inputs
    config = model.config
    schedule = NoiseSchedule.from_name(config.schedule, config.schedule_steps)
    return denoise(model.to(dtype), schedule, make_sampler("dpm++2m", schedule, 2), told, noise)


def test_the_same_pixels_are_painted(model, choose):
    inputs = inputs_for(model.config, side=8)
    choose("torch")
    exact, plain = painted(model, inputs, torch.float32), painted(model, inputs)
    choose("triton")
    got = painted(model, inputs)
    assert_as_close(got, plain, exact)
    told = inputs[-1]
    known = told.known.bool().expand_as(got)
    assert torch.equal(got[known], told.context[known])


def test_gradients_and_unserved_formats_take_the_plain_path(model, choose, monkeypatch):
    choose("triton")
    unet, x = model.to(torch.float32).unet, torch.zeros(1, 3, 8, 8, device=DEVICE)
    with torch.no_grad():
        assert unet_fused.serves(unet, x) and not unet_fused.serves(unet, x.half())
        monkeypatch.setattr("wsigen_kernels.norm.ANY_DEVICE", False)
        assert not unet_fused.serves(unet, x) and unet_fused.serves(unet.half(), x.half()) == (DEVICE == "cuda")
    monkeypatch.setattr("wsigen_kernels.norm.ANY_DEVICE", True)
    with torch.enable_grad():
        assert not unet_fused.serves(unet.float(), x)


def test_conditions_are_given_once(model):
    model = model.to(DTYPE)
    for side in (16, 8):
        noise, _, given = inputs_for(model.config, side)
        x, told = noise.to(DTYPE), given.to(DTYPE)
        with torch.inference_mode():
            network = ConditionedNetwork(model, told)
            for timestep in (903.0, 17.5):
                t = torch.full((2,), timestep, device=DEVICE)
                assert torch.equal(network(x, timestep).mean, model(x, t, *told.in_order(model.specs)))


@pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs need a CUDA device")
def test_recorded_work_is_the_work(model):
    """It repeats itself, follows new values, and is recorded anew for another shape."""
    model = model.to(DTYPE)

    names = list(conditions_for(model.config, 8))

    def work(noise, *tensors):
        told = ConditionBatch(dict(zip(names, tensors, strict=True)))
        return painted(model, (noise, None, told)).to(DTYPE)

    recorded = Recorded(work)
    for side in (16, 16, 8):
        noise, _, told = inputs_for(model.config, side)
        inputs = (noise, *told.values())
        for given in (inputs, tuple(part.flip(0) for part in inputs), inputs):
            assert torch.equal(recorded(*given), work(*given))
