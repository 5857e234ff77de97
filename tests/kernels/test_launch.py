"""How kernels are cut: every pixel and channel is covered, and nothing depends on the batch."""

import pytest
import torch
from contract import needs_triton
from wsigen_kernels import ops
from wsigen_kernels.launch import Slices, Tile, ceil_div, next_power_of_2
from wsigen_kernels.layout import by_pixel, empty_by_pixel, fits, pixel_stride


@pytest.mark.parametrize("pixels", [1, 255, 256, 257, 1024, 4096, 16384, 16385, 65536, 1000 * 1001])
def test_slices_cover_an_image(pixels):
    slices = Slices.of(pixels)
    assert slices.pixels * (slices.count - 1) < pixels <= slices.pixels * slices.count
    assert slices.count <= 16 and slices.pixels == next_power_of_2(slices.pixels) >= 256


@pytest.mark.parametrize(
    ("channels", "width"), [(64, 64), (128, 128), (224, 32), (192, 64), (96, 32), (448, 64), (5, 8)]
)
def test_tiles_idle_little(channels, width):
    tile = Tile.of(channels)
    assert tile.channels == width and tile.pixels * tile.channels == 4096
    assert ceil_div(channels, width) * width - channels < max(width, 8)


def test_pixel_strides():
    x = torch.zeros(2, 6, 4, 5)
    last = x.contiguous(memory_format=torch.channels_last)
    assert pixel_stride(x) is None and pixel_stride(last) == 6
    assert pixel_stride(last[:, 2:4]) == 6 and pixel_stride(last[:, :, 1:]) is None
    assert pixel_stride(last[1:]) == 6 and pixel_stride(last[..., :4]) is None
    assert pixel_stride(torch.zeros(1, 3, 1, 1)) == 3
    copied, stride = by_pixel(x.normal_())
    assert stride == 6 and torch.equal(copied, x)
    assert by_pixel(last)[0] is last


def test_huge_images_are_left_to_torch():
    with torch.device("meta"):
        assert fits(empty_by_pixel((9, 64, 4096, 4096), torch.empty(0)))
        assert not fits(empty_by_pixel((1, 128, 4096, 4096), torch.empty(0)))


def test_inductor_calls_our_operators_as_they_are(monkeypatch):
    """It does not write down their arguments, whose text has no end in a deep network (torch 2.11)."""
    needs_triton()
    from torch._inductor.exc import OperatorIssue
    from torch._inductor.lowering import lowerings

    def operator_str(*_):
        raise AssertionError("written down")

    monkeypatch.setattr(OperatorIssue, "operator_str", operator_str)
    for _ in range(2):
        ops.register_fallbacks()
    assert torch.ops.wsigen.merge.default in lowerings
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(1, 32, 8, 8, device=device).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.equal(torch.compile(ops.moments, dynamic=False)(x), ops.moments(x))
