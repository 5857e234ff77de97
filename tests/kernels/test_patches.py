"""Pixels to patches and back: what torch does in several passes, exactly."""

import pytest
import torch
import torch.nn.functional as F
from contract import needs_triton
from wsigen_kernels import ops
from wsigen_kernels.launch import padded_channels

pytestmark = pytest.mark.usefixtures("triton_here")


@pytest.fixture
def triton_here():
    needs_triton()


def randn(*shape, seed=0, dtype=torch.float32, device="cpu"):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


@pytest.mark.parametrize("ones", [False, True])
@pytest.mark.parametrize(("patch", "channels"), [(1, (3,)), (2, (3, 3, 1)), (2, (3, 1, 5, 2)), (4, (3, 3, 1))])
def test_images_become_patches(device, dtype, poisoned, patch, channels, ones):
    images = [randn(2, n, 8, 12, seed=n, dtype=dtype, device=device) for n in channels]
    images[0] = images[0].contiguous(memory_format=torch.channels_last)
    got = ops.gather(images, patch, ones)
    expected = F.pixel_unshuffle(torch.cat(images, dim=1), patch)
    if ones:
        expected = torch.cat([expected, torch.ones_like(expected[:, :1])], dim=1)
    filled = expected.shape[1]
    assert got.shape == (2, padded_channels(filled), 8 // patch, 12 // patch) and got.shape[1] % 8 == 0
    assert torch.equal(got[:, :filled], expected) and not got[:, filled:].any()
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("patch", [1, 2])
def test_patches_become_pixels_with_the_bias(device, dtype, poisoned, patch):
    x = randn(2, 16, 5, 7, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
    bias = randn(3 * patch**2, seed=1, dtype=dtype, device=device)
    got = ops.scatter(x, bias, patch)
    own = x[:, : len(bias)] + bias[:, None, None]
    assert torch.equal(got, F.pixel_shuffle(own, patch)) and got.is_contiguous(memory_format=torch.channels_last)


def test_too_many_images_are_refused(device):
    with pytest.raises(ValueError, match="5 images; from 1 to 4"):
        ops.gather([randn(1, 1, 4, 4, device=device)] * 5, 2)


def test_torch_accepts_the_operators(device):
    torch.library.opcheck(ops.gather, ([randn(1, 3, 4, 6, device=device), randn(1, 1, 4, 6, device=device)], 2))
    torch.library.opcheck(ops.scatter, (randn(1, 8, 2, 3, device=device), randn(4, device=device), 2))
