"""Triton kernel of coordinate noise: Philox4x32-10 and a table of integers, the floats of wsigen.diffusion.noise.

Everything up to the last step is integer arithmetic, and that step rounds once, to nearest, so that the interpreter,
a GPU and torch agree in every bit. See that module for the table and its reading.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from wsigen_kernels.compiling import launch
from wsigen_kernels.launch import ceil_div, on
from wsigen_kernels.layout import empty_float32

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = 512


@triton.jit
def _normal(word, table_ptr, inside):
    """Standard normal (float32) of uniform 32-bit words."""
    word = word.to(tl.int64)
    above = word >> 31
    r = (word ^ (0 - above)) & 0x7FFFFFFF
    tail = r < 4194304
    segment = tl.where(tail, (r >> 11) + 2048, r >> 20)
    m = (r << 1) | 1
    fraction = tl.where(tail, (m & 4095) << 9, m & 2097151)
    entry = tl.load(table_ptr + segment, mask=inside, other=0)
    q = ((entry >> 32) << 21) - (entry & 0xFFFFFFFF) * fraction
    return (q * ((above << 1) - 1)).to(tl.float32) * 3.552713678800501e-15  # 2^-48


@triton.jit(do_not_specialize=["key_low", "key_high", "step", "stream"])
def normals_kernel(
    x0_ptr,
    y0_ptr,  # (B,) int64
    table_ptr,  # (4096,) int64
    out_ptr,  # (B, 3, H, W) float32
    key_low,
    key_high,
    step,
    stream,
    height,
    width,
    BLOCK: tl.constexpr,
):
    """Counter (x, y, step, stream) of every pixel; words 0, 1, 2 become the normals of R, G, B."""
    window = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < height * width
    x = (tl.load(x0_ptr + window) + pixel % width).to(tl.uint32)
    y = (tl.load(y0_ptr + window) + pixel // width).to(tl.uint32)
    zero = tl.zeros([BLOCK], dtype=tl.uint32)
    key = (key_high.to(tl.uint64) << 32) | (key_low.to(tl.uint64) & 0xFFFFFFFF)
    red, green, blue, _ = tl.philox(key, x, y, zero + step.to(tl.uint32), zero + stream.to(tl.uint32))
    out = out_ptr + window * 3 * height * width + pixel
    tl.store(out, _normal(red, table_ptr, inside), mask=inside)
    tl.store(out + height * width, _normal(green, table_ptr, inside), mask=inside)
    tl.store(out + 2 * height * width, _normal(blue, table_ptr, inside), mask=inside)


def coordinate_normals(
    key: tuple[int, int], x0: Tensor, y0: Tensor, height: int, width: int, step: int, stream: int, table: Tensor
) -> Tensor:
    """Fill (B, 3, height, width) float32 for windows at ``x0``, ``y0`` (B,) int64 with key (low, high) word."""
    out = empty_float32((len(x0), 3, height, width), table)
    with on(table):
        launch(normals_kernel, (ceil_div(height * width, _BLOCK), len(x0)),
            x0.contiguous(), y0.contiguous(), table, out, *key, step, stream, height, width, BLOCK=_BLOCK,
        )  # fmt: skip
    return out
