"""Upsampling and convolution in one, against doing one after the other."""

import pytest
import torch
import torch.nn.functional as F
from contract import needs_triton
from wsigen_kernels import ops
from wsigen_kernels.layout import map_shape
from wsigen_kernels.upsample import phase_weights, upsample_places


def gathered(places):
    """Bring what `upsample_places` returned into the order of pixels: (B, O, 2 H, 2 W), channels_last."""
    batch, channels, height, width = map_shape(places, phased=True)
    out = places.new_empty((batch, height // 2, 2, width // 2, 2, channels))
    for index in range(4):
        row, column = divmod(index, 2)
        own = places[:, index * channels : (index + 1) * channels]
        out[:, :, row, :, column] = own[:, :, row : row + height // 2, column : column + width // 2].permute(0, 2, 3, 1)
    return out.view(batch, height, width, channels).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 4), (16, 9)])
def test_phases_make_the_convolution_of_the_upsampled_map(device, height, width):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, height, width, generator=generator, dtype=torch.float64).to(device)
    weight = torch.randn(10, 6, 3, 3, generator=generator, dtype=torch.float64).to(device)
    weight = weight.float().round(decimals=3).double()  # sums of phases are exact in float32 to about 1e-7
    got = gathered(upsample_places(x.contiguous(memory_format=torch.channels_last), phase_weights(weight)))
    expected = F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, padding=1)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_kernels_read_phases_where_they_lie(device, poisoned):
    needs_triton()
    places = torch.randn(2, 4 * 24, 9, 6, generator=torch.Generator().manual_seed(1)).to(device)
    places = places.contiguous(memory_format=torch.channels_last)
    in_order = gathered(places)
    moments = ops.moments(places, True)
    torch.testing.assert_close(moments, ops.moments(in_order), rtol=1e-6, atol=1e-6)
    formula = [None] * 6
    for resample in (0, 1, 2):
        got = ops.normalise(places, None, moments, None, 4, None, *formula, True, 1e-5, resample, None, True)
        expected = ops.normalise(in_order, None, moments, None, 4, None, *formula, True, 1e-5, resample)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    torch.library.opcheck(ops.moments, (places, True))


def test_weights_of_a_phase_sum_to_those_of_the_whole():
    weight = torch.randn(3, 2, 3, 3)
    phases = phase_weights(weight).reshape(4, 3, 2, 2, 2)
    for phase in phases:
        torch.testing.assert_close(phase.sum((-1, -2)), weight.sum((-1, -2)))
