"""Group norm with all that follows it, against the formula of its module in float64: one contract for every backend."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from contract import assert_as_good_as, needs_triton
from wsigen_kernels import ops
from wsigen_kernels.norm import group_norm, group_norm_torch

B, C, H, W, GROUPS = 2, 24, 6, 5, 8


def doubled(y):
    return F.interpolate(y, scale_factor=2.0, mode="nearest")


def halved(y):
    return F.avg_pool2d(y, 2)


def reference(
    x, groups, weight=None, bias=None, gamma=None, beta=None, scale=None, shift=None, silu=True, eps=1e-5, skip=None
):
    """Compute act(((x - mean) / std * (1 + gamma) + beta) * (1 + scale) + shift), term by term."""
    x = x.double() if skip is None else torch.cat([x, skip], dim=1).double()
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


def triton(
    x, groups, weight=None, bias=None, gamma=None, beta=None, scale=None, shift=None, silu=True, eps=1e-5, skip=None
):
    return ops.group_norm(x, skip, groups, weight, bias, gamma, beta, scale, shift, silu, eps)[0]


NORMS = {"torch": group_norm_torch, "triton": triton}


@pytest.fixture
def norm(backend):
    return NORMS[backend]


def randn(*shape, seed=7, dtype=torch.float32, device="cpu"):
    """Random, and in channels_last memory where it is a feature map."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


def modulation(affine, spade, time, channels=C, batch=B, size=(H, W), **like):
    given = {}
    if affine:
        given |= {"weight": randn(channels, seed=1, **like), "bias": randn(channels, seed=2, **like)}
    if spade:  # halves of one map, as the network makes them
        maps = randn(batch, 2 * channels, *size, seed=3, **like)
        given |= {"gamma": maps[:, :channels], "beta": maps[:, channels:]}
    if time:
        halves = randn(batch, 2 * channels, seed=4, **like)
        given |= {"scale": halves[:, :channels], "shift": halves[:, channels:]}
    return given


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize(("affine", "spade", "time"), list(itertools.product([False, True], repeat=3)))
def test_every_combination_follows_the_formula(norm, device, affine, spade, time, silu):
    x = randn(B, C, H, W, device=device) * 3 + 1
    given = modulation(affine, spade, time, device=device)
    got = norm(x, GROUPS, **given, silu=silu)
    torch.testing.assert_close(got.double(), reference(x, GROUPS, **given, silu=silu), rtol=1e-5, atol=1e-5)


SHAPES = {
    "odd sizes": (2, 24, 7, 5, 8),
    "batch of one": (1, 16, 8, 8, 4),
    "single group": (2, 12, 5, 3, 1),
    "a group a channel": (1, 6, 4, 4, 6),
    "groups of seven": (1, 56, 9, 4, 8),
    "several slices": (1, 8, 29, 31, 4),
    "one pixel": (2, 8, 1, 1, 2),
    "several blocks of channels": (1, 160, 3, 3, 5),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_errors_are_at_most_twice_those_of_torch(device, dtype, poisoned, shape):
    needs_triton()
    batch, channels, height, width, groups = SHAPES[shape]
    like = {"dtype": dtype, "device": device}
    x = randn(batch, channels, height, width, **like) * 3 + 1
    given = modulation(True, True, True, channels, batch, (height, width), **like)
    rival, exact = (function(x, groups, **given) for function in (group_norm_torch, reference))
    assert_as_good_as(triton(x, groups, **given), rival, exact)


@pytest.mark.parametrize("case", ["flat", "flat and large", "large mean", "large values", "one outlier"])
def test_difficult_values(device, dtype, poisoned, case):
    needs_triton()
    noise = randn(2, 16, 9, 7, device=device)
    x = {
        "flat": torch.full_like(noise, 5.0),
        "flat and large": torch.full_like(noise, 1e4),
        "large mean": 1e4 + 30 * noise,
        "large values": 1e4 * noise,
        "one outlier": noise.index_fill(2, torch.tensor([0], device=device), 1e4),
    }[case].to(dtype)
    given = modulation(True, False, True, 16, 2, dtype=dtype, device=device)
    rival, exact = (function(x, 4, **given, silu=False) for function in (group_norm_torch, reference))
    assert_as_good_as(triton(x, 4, **given, silu=False), rival, exact)


@pytest.mark.parametrize(("own", "behind", "groups"), [(16, 8, 4), (20, 12, 8), (14, 22, 3)])
def test_a_skip_is_normalised_as_if_concatenated(norm, device, own, behind, groups):
    x, skip = randn(B, own, H, W, device=device), randn(B, behind, H, W, seed=9, device=device) * 2 - 1
    given = modulation(True, True, True, own + behind, device=device)
    got = norm(x, groups, **given, skip=skip)
    torch.testing.assert_close(got.double(), reference(x, groups, **given, skip=skip), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("resample", "resampled"), [(0, lambda y: y), (1, doubled), (2, halved)])
@pytest.mark.parametrize("spade", [False, True])
def test_ready_moments_a_bias_before_and_another_resolution_behind(device, dtype, poisoned, resample, resampled, spade):
    needs_triton()
    like = {"dtype": dtype, "device": device}
    x, skip, before = randn(B, C, H, 10, **like), randn(B, 8, H, 10, seed=9, **like), randn(C + 8, seed=5, **like)
    given = modulation(not spade, spade, True, C + 8, size=(H, 10), **like)
    formula = {"weight": None, "bias": None, "gamma": None, "beta": None, **given, "silu": True, "eps": 1e-5}
    got = ops.normalise(x, skip, ops.moments(x), ops.moments(skip), GROUPS, before, **formula, resample=resample)

    def definition(function, number):
        added = before.to(number)[:, None, None]
        return resampled(function(x.to(number) + added[:C], GROUPS, skip=skip.to(number) + added[C:], **given))

    assert_as_good_as(got, definition(group_norm_torch, dtype), definition(reference, torch.float64))


def test_memory_layout_does_not_matter(norm, device):
    x = randn(B, C, H, W, device=device)
    given = modulation(True, True, True, device=device)
    last = norm(x, GROUPS, **given)
    plain = {name: value.contiguous() for name, value in given.items()}
    torch.testing.assert_close(norm(x.contiguous(), GROUPS, **plain), last, rtol=0, atol=1e-5)
    within = randn(B, 3 * C, H, W, device=device)[:, C : 2 * C]  # a slice of channels
    torch.testing.assert_close(norm(within, GROUPS), norm(within.clone(), GROUPS), rtol=0, atol=1e-5)


def test_the_kernel_keeps_channels_last_and_repeats_itself_bit_for_bit(device):
    needs_triton()
    x = randn(3, C, 20, 17, device=device)
    given = modulation(True, False, False, device=device)
    first = triton(x, GROUPS, **given)
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(triton(x, GROUPS, **given), first)
    assert torch.equal(triton(x[1:2], GROUPS, **given), first[1:2]), "an image depends on its batch"


def test_statistics_of_half_precision_are_taken_in_full(norm, backend, device):
    # On CPUs torch's own is that good in bfloat16 alone, and only where memory is not channels_last.
    number = torch.float16 if backend == "triton" else torch.bfloat16
    x = (randn(1, 8, 64, 64, device=device) + 200).to(number).contiguous()
    got = norm(x, 2, silu=False)
    assert got.dtype == number
    torch.testing.assert_close(got.double(), reference(x, 2, silu=False), rtol=0.02, atol=0.02)


def test_a_flat_image_becomes_its_offset(norm, device):
    flat = torch.full((1, 8, 4, 4), 5.0, device=device)
    bias = torch.arange(8.0, device=device)
    got = norm(flat, 4, torch.ones(8, device=device), bias, silu=False)
    torch.testing.assert_close(got, bias[None, :, None, None].expand_as(got), rtol=0, atol=1e-3)


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize(
    ("affine", "spade", "time", "skipping"), [(1, 0, 1, 0), (0, 1, 1, 1), (1, 1, 1, 1), (0, 0, 0, 0)]
)
def test_gradients_are_those_of_the_formula(device, affine, spade, time, skipping, silu):
    needs_triton()
    behind = 8 * skipping
    given = modulation(affine, spade, time, C + behind, device=device)
    tensors = {"x": randn(B, C, H, W, device=device), **given}
    if skipping:
        tensors["skip"] = randn(B, behind, H, W, seed=5, device=device)
    weights = randn(B, C + behind, H, W, seed=6, device=device)

    def gradients(function, number):
        leaves = {name: value.detach().to(number).requires_grad_() for name, value in tensors.items()}
        loss = (function(groups=GROUPS, silu=silu, **leaves) * weights).sum()
        return torch.autograd.grad(loss, list(leaves.values()))

    mine, exact = gradients(triton, torch.float32), gradients(reference, torch.float64)
    for name, got, expected in zip(tensors, mine, exact, strict=True):
        error = (got.double() - expected).abs().max().item()
        assert error < 1e-4 * max(1.0, expected.abs().max().item()), f"{name}: {error:.3g}"


@pytest.mark.parametrize("chosen", ["torch", "triton"])
def test_the_public_function_follows_the_choice(monkeypatch, device, chosen):
    if chosen == "triton":
        needs_triton()
    monkeypatch.setattr("wsigen_kernels.norm.BACKEND", chosen)
    monkeypatch.setattr("wsigen_kernels.norm.ANY_DEVICE", True)
    monkeypatch.setattr("wsigen_kernels.norm.FORCED", True)
    x, given = randn(B, C, H, W, device=device), modulation(True, False, True, device=device)
    assert torch.equal(group_norm(x, GROUPS, **given), NORMS[chosen](x, GROUPS, **given))


def test_torch_accepts_the_operator(device):
    """Schema, fake implementation and autograd registration agree with what the operator does."""
    needs_triton()
    given = modulation(True, True, True, device=device)
    x = randn(B, C, H, W, device=device).requires_grad_()
    arguments = (x, None, GROUPS, *given.values(), True, 1e-5)
    torch.library.opcheck(ops.group_norm, arguments)
