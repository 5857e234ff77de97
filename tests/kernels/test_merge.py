"""The end of a residual block: sum, skip connection and moments in one pass, against their definitions in float64."""

import pytest
import torch
import torch.nn.functional as F
from contract import assert_as_good_as, needs_triton
from wsigen_kernels import ops

SAME, UP, DOWN = 0, 1, 2
SIZES = {SAME: (12, 10), UP: (6, 5), DOWN: (24, 20)}

pytestmark = pytest.mark.usefixtures("triton_here")


@pytest.fixture
def triton_here():
    needs_triton()


def randn(*shape, seed=0, dtype=torch.float32, device="cpu"):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


def resampled(x, resample):
    if resample == UP:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
    return F.avg_pool2d(x, 2) if resample == DOWN else x


def moments_of(x):
    """Mean and sum of squared deviations of each channel of each image, from those of the slices."""
    taken = ops.moments(x).double()
    pixels = x.shape[2] * x.shape[3]
    per_slice = -(-pixels // taken.shape[1])
    per_slice = max(256, 1 << (per_slice - 1).bit_length())
    counts = torch.tensor([min(per_slice, pixels - k * per_slice) for k in range(taken.shape[1])])[:, None].to(taken)
    mean = (taken[:, :, 0] * counts).sum(1) / pixels
    return mean, (taken[:, :, 1] + counts * (taken[:, :, 0] - mean[:, None]).square()).sum(1)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 5), (16, 16), (29, 31), (64, 65)])
def test_moments_are_those_of_the_channels(device, poisoned, height, width):
    x = randn(2, 5, height, width, device=device) * 3 + 50
    mean, m2 = moments_of(x)
    exact = x.double().flatten(2)
    torch.testing.assert_close(mean, exact.mean(2), rtol=1e-6, atol=0)
    torch.testing.assert_close(m2, (exact - exact.mean(2, keepdim=True)).square().sum(2), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("resample", [SAME, UP, DOWN])
def test_a_residual_is_added_at_any_resolution(device, dtype, poisoned, resample):
    like = {"dtype": dtype, "device": device}
    h, bias, x = randn(2, 12, 12, 10, **like), randn(12, seed=1, **like), randn(2, 12, *SIZES[resample], seed=2, **like)
    got, moments = ops.merge(h, bias, x, None, None, resample)
    exact = h.double() + bias.double()[:, None, None] + resampled(x.double(), resample)
    assert_as_good_as(got, h + bias[:, None, None] + resampled(x, resample), exact)
    torch.testing.assert_close(moments, ops.moments(got), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("behind", [0, 9, 40])
@pytest.mark.parametrize("biased", [True, False])
def test_a_skip_connection_is_multiplied_where_its_halves_lie(device, dtype, poisoned, behind, biased):
    like = {"dtype": dtype, "device": device}
    h, x = randn(2, 24, 12, 13, **like), randn(2, 40, 12, 13, seed=2, **like)
    skip = randn(2, behind, 12, 13, seed=3, **like) if behind else None
    weight, bias = randn(24, 40 + behind, 1, 1, seed=4, **like), randn(24, seed=1, **like) if biased else None
    got, moments = ops.merge(h, bias, x, skip, weight, SAME)
    whole = x if skip is None else torch.cat([x, skip], dim=1)

    def definition(number):
        return h.to(number) + F.conv2d(whole.to(number), weight.to(number), None if bias is None else bias.to(number))

    assert_as_good_as(got, definition(dtype), definition(torch.float64))
    torch.testing.assert_close(moments, ops.moments(got), rtol=1e-4, atol=1e-3)


def test_several_slices_and_blocks_agree_with_one_image_at_a_time(device):
    h, x = randn(2, 136, 24, 25, device=device), randn(2, 32, 24, 25, seed=2, device=device)
    weight = randn(136, 32, 1, 1, seed=4, device=device)
    got, moments = ops.merge(h, None, x, None, weight, SAME)
    exact = h.double() + F.conv2d(x.double(), weight.double())  # a GPU would multiply float32 in fewer bits
    torch.testing.assert_close(got, exact.float(), rtol=1e-5, atol=1e-4)
    alone, alone_moments = ops.merge(h[1:], None, x[1:], None, weight, SAME)
    assert torch.equal(alone, got[1:]) and torch.equal(alone_moments, moments[1:])


def test_torch_accepts_the_operators(device):
    h, x = randn(1, 4, 6, 5, device=device), randn(1, 6, 6, 5, device=device)
    torch.library.opcheck(ops.merge, (h, None, x, None, randn(4, 6, device=device), SAME))
    torch.library.opcheck(ops.moments, (x,))
    torch.library.opcheck(ops.normalise, (x, None, ops.moments(x), None, 3, None, *[None] * 6, True, 1e-5, UP))
