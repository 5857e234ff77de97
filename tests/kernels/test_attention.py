"""Attention against equation 1 of Vaswani et al., in float64."""

import pytest
import torch
from wsigen_kernels.attention import attention


def reference(qkv, heads):
    """softmax(Q K^T / sqrt(d)) V, a head and a pixel at a time, from channels packed (q, k, v) x heads x d."""
    batch, packed, height, width = qkv.shape
    depth = packed // 3 // heads
    query, key, value = qkv.double().reshape(batch, 3, heads, depth, height * width).unbind(1)
    weights = torch.softmax(torch.einsum("bhdn,bhdm->bhnm", query, key) / depth**0.5, dim=-1)
    return torch.einsum("bhnm,bhdm->bhdn", weights, value).reshape(batch, packed // 3, height, width)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("heads", "depth", "height", "width"), [(1, 16, 4, 4), (3, 8, 6, 10), (2, 80, 5, 3)])
def test_attention_follows_the_formula(layout, heads, depth, height, width):
    qkv = torch.randn((2, 3 * heads * depth, height, width), generator=torch.Generator().manual_seed(1))
    got = attention(qkv.contiguous(memory_format=layout), heads)
    assert got.shape == (2, heads * depth, height, width)
    torch.testing.assert_close(got.double(), reference(qkv, heads), rtol=0, atol=1e-5)


def test_half_precision_stays_close():
    qkv = torch.randn((1, 48, 8, 8), generator=torch.Generator().manual_seed(2)).bfloat16()
    got = attention(qkv, 2)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), reference(qkv, 2), rtol=0, atol=0.02)


def test_gradients_flow_to_query_key_and_value():
    qkv = torch.randn((1, 24, 3, 3), generator=torch.Generator().manual_seed(3), requires_grad=True)
    attention(qkv, 2).square().sum().backward()
    mine = qkv.grad.clone()
    qkv.grad = None
    reference(qkv, 2).square().sum().backward()
    torch.testing.assert_close(mine, qkv.grad, rtol=1e-4, atol=1e-5)
