"""Attention against equation 1 of Vaswani et al., in float64: one contract for every backend."""

import pytest
import torch
from contract import assert_as_good_as, needs_triton
from wsigen_kernels import ops
from wsigen_kernels.attention import attention, attention_torch
from wsigen_kernels.dispatch import xformers_obstacle

ATTENTIONS = {
    "torch": attention_torch,
    "triton": ops.attention,
    "xformers": lambda qkv, heads: attention_torch(qkv, heads, xformers=True),
}


@pytest.fixture(params=["torch", "triton", "xformers"])
def attend(request):
    if request.param == "triton":
        needs_triton()
    if request.param == "xformers" and (obstacle := xformers_obstacle()):
        pytest.skip(obstacle)
    return ATTENTIONS[request.param]


def packed(batch, heads, depth, height, width, seed=1, device="cpu", dtype=torch.float32):
    shape = (batch, 3 * heads * depth, height, width)
    qkv = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)
    return qkv.contiguous(memory_format=torch.channels_last)


def reference(qkv, heads):
    """softmax(Q K^T / sqrt(d)) V, a head and a pixel at a time, from channels packed (q, k, v) x heads x d."""
    batch, width_of_all, height, width = qkv.shape
    depth = width_of_all // 3 // heads
    query, key, value = qkv.double().reshape(batch, 3, heads, depth, height * width).unbind(1)
    weights = torch.softmax(torch.einsum("bhdn,bhdm->bhnm", query, key) / depth**0.5, dim=-1)
    return torch.einsum("bhnm,bhdm->bhdn", weights, value).reshape(batch, width_of_all // 3, height, width)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("heads", "depth", "height", "width"), [(1, 16, 4, 4), (3, 8, 6, 10), (2, 80, 5, 3)])
def test_attention_follows_the_formula(attend, device, layout, heads, depth, height, width):
    qkv = packed(2, heads, depth, height, width, device=device)
    got = attend(qkv.contiguous(memory_format=layout), heads)
    assert got.shape == (2, heads * depth, height, width)
    torch.testing.assert_close(got.double(), reference(qkv, heads), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [1, 30])
@pytest.mark.parametrize(
    ("batch", "heads", "depth", "height", "width"),
    [(1, 1, 32, 1, 1), (2, 3, 32, 8, 8), (1, 1, 64, 16, 16), (1, 2, 32, 17, 19), (1, 1, 80, 18, 15), (1, 1, 7, 5, 31)],
)
def test_errors_are_at_most_twice_those_of_torch(device, dtype, poisoned, batch, heads, depth, height, width, scale):
    needs_triton()
    qkv = packed(batch, heads, depth, height, width, device=device, dtype=dtype)
    qkv[:, : heads * depth] *= scale  # from almost even weights to almost one-hot ones
    # A score is a sum in float32, rounded in whatever order: its error is the relative error of a weight.
    slack = torch.finfo(torch.float32).eps * scale * depth**0.5 * qkv.abs().max().item()
    assert_as_good_as(ops.attention(qkv, heads), attention_torch(qkv, heads), reference(qkv, heads), slack)


@pytest.mark.parametrize("case", ["equal keys", "large values"])
def test_difficult_values(device, dtype, poisoned, case):
    needs_triton()
    qkv = packed(1, 2, 16, 6, 7, device=device, dtype=dtype)
    if case == "equal keys":
        qkv[:, 32:64] = 3.0
    else:
        qkv[:, 64:] *= 1e4
    assert_as_good_as(ops.attention(qkv, 2), attention_torch(qkv, 2), reference(qkv, 2))


def test_the_kernel_keeps_channels_last_and_repeats_itself_bit_for_bit(device):
    needs_triton()
    qkv = packed(2, 2, 16, 20, 15, device=device)
    first = ops.attention(qkv, 2)
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(ops.attention(qkv, 2), first)
    assert torch.equal(ops.attention(qkv[1:], 2), first[1:]), "an image depends on its batch"


def test_half_precision_stays_close():
    qkv = packed(1, 2, 8, 8, 8, seed=2).bfloat16()
    got = attention_torch(qkv, 2)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), reference(qkv, 2), rtol=0, atol=0.02)


@pytest.mark.parametrize("chosen", ["torch", "triton"])
def test_gradients_flow_to_query_key_and_value_whatever_is_chosen(monkeypatch, device, chosen):
    monkeypatch.setattr("wsigen_kernels.attention.BACKEND", chosen)
    qkv = packed(1, 2, 4, 3, 3, seed=3, device=device).requires_grad_()
    attention(qkv, 2).square().sum().backward()
    mine = qkv.grad.clone()
    qkv.grad = None
    reference(qkv, 2).square().sum().backward()
    torch.testing.assert_close(mine, qkv.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("forced", "side", "runs"), [(False, 4, "triton"), (False, 33, "torch"), (True, 33, "triton")])
def test_long_sequences_go_to_torch_unless_triton_is_asked_for(monkeypatch, forced, side, runs):
    module = "wsigen_kernels.attention"
    for name, value in (("BACKEND", "triton"), ("ANY_DEVICE", True), ("FORCED", forced)):
        monkeypatch.setattr(f"{module}.{name}", value)
    monkeypatch.setattr("wsigen_kernels.ops.attention", lambda qkv, heads: "triton")
    monkeypatch.setattr(f"{module}.attention_torch", lambda qkv, heads, xformers: "torch")
    assert attention(torch.zeros(1, 48, side, side).half(), 1) == runs


def test_torch_accepts_the_operator(device):
    needs_triton()
    torch.library.opcheck(ops.attention, (packed(2, 2, 8, 3, 5, device=device), 2))
