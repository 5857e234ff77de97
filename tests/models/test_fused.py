"""The network in fewer passes gives what the plain one gives, up to rounding, and paints the same pixels.

In float32 that is 1e-4 of a standard deviation. In bfloat16, on a GPU, the two paths round at different places: each is
compared with the plain network in float32, and the fused one may err half as much again as the plain one.
"""

import importlib.util
import os
from dataclasses import replace

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernels are imported, which is lazy

from wsigen.models.conditioned import ConditionedNetwork, WindowInputs
from wsigen.models.conditioning import condition_planes

from wsigen.diffusion.samplers import make_sampler
from wsigen.diffusion.schedules import NoiseSchedule
from wsigen.models.config import ModelConfig
from wsigen.networks.denoise import denoise
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
    generator = torch.Generator().manual_seed(3)

    def randn(*shape):
        return torch.randn(shape, generator=generator).to(DEVICE)

    classes = torch.randint(0, 7, (batch, side, side), generator=generator).byte().to(DEVICE)
    edges = torch.randint(0, 2, (batch, side, side), generator=generator).byte().to(DEVICE)
    planes = condition_planes(classes, edges, torch.ones_like(edges), len(config.classes))
    known = (randn(batch, 1, side, side) > 0.5).float()
    context = randn(batch, 3, side, side).clamp(-1, 1) * known
    t = torch.tensor([17.5, 903.0], device=DEVICE)
    return randn(batch, 3, side, side), t, planes, context, known, randn(batch, 6)


def run(model, inputs, dtype=DTYPE, **more):
    with torch.inference_mode():
        return model.to(dtype)(*(part if part.ndim == 1 else part.to(dtype) for part in inputs), **more).float()


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
    with torch.inference_mode():
        cache = model.spade_cache(inputs[2].to(DTYPE))
    assert isinstance(cache, fused.Cache) and torch.equal(run(model, inputs, cache=cache), got)
    choose("torch")
    with torch.inference_mode():
        maps = model.spade_cache(inputs[2].to(DTYPE))
    choose("triton")
    assert_as_close(run(model, inputs, cache=maps), plain, exact)  # a cache says which path it is for


def test_a_mask_model_of_large_patches_is_fused_too(lively, choose):
    tiny = ModelConfig.preset("tiny-mask")
    config = replace(tiny, unet=replace(tiny.unet, norm_groups=2, patch=4))
    model = lively(config).to(DEVICE).to(memory_format=torch.channels_last)
    noise, t, _, context, known, style = inputs_for(config)
    planes = torch.rand(2, config.condition_planes, 16, 16, device=DEVICE).to(memory_format=torch.channels_last)
    inputs = (noise, t, planes, context, known, style)
    choose("torch")
    exact, plain = run(model, inputs, torch.float32), run(model, inputs)
    choose("triton")
    got = run(model, inputs)
    assert plain.std() > 0.01 and not torch.equal(got, plain)
    assert_as_close(got, plain, exact)


def painted(model, inputs, dtype=DTYPE):
    noise, _, planes, context, known, style = inputs
    config = model.config
    schedule = NoiseSchedule.from_name(config.schedule, config.schedule_steps)
    given = WindowInputs(planes, context, known, style)
    return denoise(model.to(dtype), schedule, make_sampler("dpm++2m", schedule, 2), given, noise)


def test_the_same_pixels_are_painted(model, choose):
    inputs = inputs_for(model.config, side=8)
    choose("torch")
    exact, plain = painted(model, inputs, torch.float32), painted(model, inputs)
    choose("triton")
    got = painted(model, inputs)
    assert_as_close(got, plain, exact)
    known = inputs[4].bool().expand_as(got)
    assert torch.equal(got[known], inputs[3][known])


def test_gradients_and_unserved_formats_take_the_plain_path(model, choose, monkeypatch):
    choose("triton")
    unet, x = model.to(torch.float32).unet, torch.zeros(1, 3, 8, 8, device=DEVICE)
    with torch.no_grad():
        assert fused.serves(unet, x) and not fused.serves(unet, x.half())
        monkeypatch.setattr("wsigen_kernels.norm.ANY_DEVICE", False)
        assert not fused.serves(unet, x) and fused.serves(unet.half(), x.half()) == (DEVICE == "cuda")
    monkeypatch.setattr("wsigen_kernels.norm.ANY_DEVICE", True)
    with torch.enable_grad():
        assert not fused.serves(unet.float(), x)


def test_conditions_are_given_once(model):
    model = model.to(DTYPE)
    for side in (16, 8):
        x, _, planes, context, known, style = (part.to(DTYPE) for part in inputs_for(model.config, side))
        with torch.inference_mode():
            network = ConditionedNetwork(model, WindowInputs(planes, context, known, style))
            for timestep in (903.0, 17.5):
                t = torch.full((2,), timestep, device=DEVICE)
                assert torch.equal(network(x, timestep), model(x, t, planes, context, known, style))


@pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs need a CUDA device")
def test_recorded_work_is_the_work(model):
    """It repeats itself, follows new values, and is recorded anew for another shape."""
    model = model.to(DTYPE)

    def work(*inputs):
        return painted(model, inputs).to(DTYPE)

    recorded = Recorded(work)
    for side in (16, 16, 8):
        inputs = inputs_for(model.config, side)
        for given in (inputs, tuple(part.flip(0) for part in inputs), inputs):
            assert torch.equal(recorded(*given), work(*given))
