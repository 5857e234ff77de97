"""The noise kernel gives the floats of wsigen.diffusion.noise, every bit of them."""

import pytest
import torch
from contract import needs_triton

from wsigen.diffusion.noise import coordinate_normals, normal_table

FAR = 2**32


@pytest.mark.parametrize("seed", [0, 1, 7, 2**31, 2**32 + 5, 2**64 - 1])
@pytest.mark.parametrize(("step", "stream"), [(0, 0), (1, 2), (1000, 2**31 + 7)])
def test_the_floats_are_those_of_torch(device, poisoned, seed, step, stream):
    needs_triton()
    from wsigen_kernels.noise_triton import coordinate_normals as kernel

    x0, y0 = torch.tensor([0, -5, 123_456, FAR - 3]), torch.tensor([7, 40_000, -(2**31), 2 * FAR + 1])
    expected = coordinate_normals(seed, x0, y0, 17, 35, step, stream, device="cpu")
    key = seed & 0xFFFFFFFF, seed >> 32
    got = kernel(key, x0.to(device), y0.to(device), 17, 35, step, stream, normal_table(device))
    assert torch.equal(got.cpu(), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_and_a_cpu_draw_the_same_noise():
    x0, y0 = torch.tensor([3, 1000]), torch.tensor([-20, 5])
    on_gpu = coordinate_normals(9, x0, y0, 256, 256, 4, device="cuda")
    assert torch.equal(on_gpu.cpu(), coordinate_normals(9, x0, y0, 256, 256, 4, device="cpu"))
