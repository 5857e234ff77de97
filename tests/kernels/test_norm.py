"""Group norm with all that follows it, against the formula of its module in float64."""

import itertools

import pytest
import torch
from wsigen_kernels.norm import group_norm

B, C, H, W, GROUPS = 2, 24, 6, 5, 8


def reference(x, groups, weight=None, bias=None, gamma=None, beta=None, scale=None, shift=None, silu=True, eps=1e-5):
    """Compute act(((x - mean) / std * (1 + gamma) + beta) * (1 + scale) + shift), term by term."""
    x = x.double()
    grouped = x.reshape(len(x), groups, -1)
    centred = grouped - grouped.mean(dim=2, keepdim=True)
    y = (centred / (centred.square().mean(dim=2, keepdim=True) + eps).sqrt()).reshape(x.shape)
    if weight is not None:
        y = y * weight.double()[:, None, None] + bias.double()[:, None, None]
    if gamma is not None:
        y = y * (1 + gamma.double()) + beta.double()
    if scale is not None:
        y = y * (1 + scale.double())[:, :, None, None] + shift.double()[:, :, None, None]
    return y / (1 + torch.exp(-y)) if silu else y


def modulation(affine, spade, time, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator)

    given = {}
    if affine:
        given |= {"weight": randn(C), "bias": randn(C)}
    if spade:
        given |= {"gamma": randn(B, C, H, W), "beta": randn(B, C, H, W)}
    if time:
        given |= {"scale": randn(B, C), "shift": randn(B, C)}
    return given


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize(("affine", "spade", "time"), list(itertools.product([False, True], repeat=3)))
def test_every_combination_follows_the_formula(affine, spade, time, silu):
    x = torch.randn((B, C, H, W), generator=torch.Generator().manual_seed(7)) * 3 + 1
    given = modulation(affine, spade, time)
    got = group_norm(x, GROUPS, **given, silu=silu)
    torch.testing.assert_close(got.double(), reference(x, GROUPS, **given, silu=silu), rtol=1e-5, atol=1e-5)


def test_memory_layout_does_not_matter():
    x = torch.randn((B, C, H, W), generator=torch.Generator().manual_seed(8))
    given = modulation(True, False, True)
    last = group_norm(x.contiguous(memory_format=torch.channels_last), GROUPS, **given)
    torch.testing.assert_close(last, group_norm(x, GROUPS, **given), rtol=0, atol=1e-5)


def test_statistics_of_half_precision_are_taken_in_full():
    x = (torch.randn((1, 8, 64, 64), generator=torch.Generator().manual_seed(9)) + 200).bfloat16()
    got = group_norm(x, 2, silu=False)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), reference(x, 2, silu=False), rtol=0.02, atol=0.02)


def test_a_flat_image_becomes_its_offset():
    flat = torch.full((1, 8, 4, 4), 5.0)
    bias = torch.arange(8.0)
    got = group_norm(flat, 4, torch.ones(8), bias, silu=False)
    torch.testing.assert_close(got, bias[None, :, None, None].expand_as(got), rtol=0, atol=1e-3)
