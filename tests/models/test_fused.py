"""The network in fewer passes gives what the plain one gives, up to rounding."""

import importlib.util
import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernels are imported, which is lazy

from wsigen.models import fused
from wsigen.models.conditioning import condition_planes
from wsigen.models.config import ModelConfig

# Largest difference allowed between the two paths, as a share of the prediction's standard deviation.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.15}

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@pytest.fixture
def on_triton(monkeypatch):
    """Choose Triton for norms and attention, whatever this machine would choose."""
    for name in ("norm", "attention"):
        monkeypatch.setattr(f"wsigen_kernels.{name}.BACKEND", "triton")
        monkeypatch.setattr(f"wsigen_kernels.{name}.ANY_DEVICE", True)
    monkeypatch.setattr("wsigen_kernels.attention.FORCED", True)


def inputs_for(config, side, dtype, batch=2):
    generator = torch.Generator().manual_seed(3)

    def randn(*shape):
        return torch.randn(shape, generator=generator).to(DEVICE, dtype)

    classes = torch.randint(0, 7, (batch, side, side), generator=generator).byte().to(DEVICE)
    edges = torch.randint(0, 2, (batch, side, side), generator=generator).byte().to(DEVICE)
    planes = condition_planes(classes, edges, torch.ones_like(edges), len(config.classes), dtype)
    known = (randn(batch, 1, side, side) > 0.5).to(dtype)
    context = randn(batch, 3, side, side).clamp(-1, 1) * known
    t = torch.tensor([17.5, 903.0], device=DEVICE)
    return randn(batch, 3, side, side), t, planes, context, known, randn(batch, 6)


def both_paths(model, inputs, monkeypatch, **more):
    """Run the plain path, then the fused one."""
    with monkeypatch.context() as patch, torch.inference_mode():
        patch.setattr(fused, "serves", lambda unet, x: False)
        patch.setattr("wsigen_kernels.norm.BACKEND", "torch")
        patch.setattr("wsigen_kernels.attention.BACKEND", "torch")
        plain = model(*inputs, **more)
    with torch.inference_mode():
        assert fused.serves(model.unet, inputs[0])
        return plain, model(*inputs, **more)


def assert_close(got, plain):
    worst = (got.float() - plain.float()).abs().max() / plain.float().std()
    assert worst < TOLERANCE[plain.dtype], f"{worst:.3g} standard deviations"


def test_the_fused_network_is_the_network(lively, on_triton, monkeypatch):
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    model = lively(ModelConfig.preset("tiny")).to(DEVICE, dtype).to(memory_format=torch.channels_last)
    inputs = inputs_for(model.config, 16, dtype)
    plain, got = both_paths(model, inputs, monkeypatch)
    assert got.shape == plain.shape and plain.std() > 0.01
    assert_close(got, plain)
    with torch.inference_mode():
        cached = model(*inputs, cache=model.spade_cache(inputs[2]))
        assert torch.equal(cached, got)
        monkeypatch.setattr(fused, "SUB_PIXEL", True)
        assert_close(model(*inputs), plain)


def test_gradients_take_the_plain_path(lively, on_triton):
    model = lively(ModelConfig.preset("tiny"))
    x = torch.zeros(1, 3, 8, 8)
    with torch.enable_grad():
        assert not fused.serves(model.unet, x)
    with torch.no_grad():
        assert fused.serves(model.unet, x) and not fused.serves(model.unet, x.half())


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_inputs_are_concatenated_and_unshuffled_in_one_pass(patch):
    inputs = [torch.randn(2, channels, 8, 12) for channels in (3, 1, 5)]
    expected = torch.nn.functional.pixel_unshuffle(torch.cat(inputs, dim=1), patch)
    got = fused.unshuffled(inputs, patch)
    assert torch.equal(got, expected) and got.is_contiguous(memory_format=torch.channels_last)
