"""Triton kernel of self-attention over the pixels of a feature map.

Query, key and value are read from the packed channels of one channels_last tensor and the result is written to
another, so that no layout changes hands. Up to ``RESIDENT`` tokens, a program holds all keys and values and takes
an exact softmax; above, it walks over them and rescales (Milakov and Gimelshein 2018; Dao et al. 2022).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from wsigen_kernels.compiling import launch
from wsigen_kernels.launch import AttentionCut, ceil_div
from wsigen_kernels.layout import by_pixel, empty_by_pixel

if TYPE_CHECKING:
    from torch import Tensor


@triton.jit
def attention_kernel(
    qkv_ptr,  # (B, N, 3, heads, D), tokens `stride` apart
    out_ptr,  # (B, N, heads, D)
    tokens,
    stride,
    scale,  # log2(e) / sqrt(D)
    HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    EVEN: tl.constexpr,  # whether the last block of keys is full
    EXACT: tl.constexpr,  # whether scores are subtracted before they are scaled: one operation more, no cancellation
):
    """Attend from BLOCK_M queries of one head of one image to all keys."""
    blocks = tl.cdiv(tokens, BLOCK_M)
    head = tl.program_id(0) // blocks % HEADS
    image = (tl.program_id(0) // blocks // HEADS).to(tl.int64)
    base = qkv_ptr + image * tokens * stride + head * D
    d = tl.arange(0, BLOCK_D)
    in_d = d < D
    m = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    in_m = m < tokens
    query = tl.load(base + (m * stride)[:, None] + d[None, :], mask=in_m[:, None] & in_d[None, :], other=0.0)
    n = tl.arange(0, BLOCK_N)
    if ONE_BLOCK:
        in_n = (n < tokens)[:, None] & in_d[None, :]
        where = base + (n * stride)[:, None] + d[None, :]
        key = tl.load(where + HEADS * D, mask=in_n, other=0.0)
        value = tl.load(where + 2 * HEADS * D, mask=in_n, other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee")
        if not EVEN:
            scores = tl.where((n < tokens)[None, :], scores, float("-inf"))
        highest = tl.max(scores, axis=1)
        if EXACT:
            weights = tl.exp2((scores - highest[:, None]) * scale)
        else:
            weights = tl.exp2(scores * scale - (highest * scale)[:, None])
        total = tl.sum(weights, axis=1)
        out = tl.dot(weights.to(value.dtype), value, input_precision="ieee")
    else:
        highest = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
        total = tl.zeros([BLOCK_M], dtype=tl.float32)
        out = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
        for start in range(0, tokens, BLOCK_N):
            at = start + n
            in_n = (at < tokens)[:, None] & in_d[None, :]
            where = base + (at * stride)[:, None] + d[None, :]
            key = tl.load(where + HEADS * D, mask=in_n, other=0.0)
            scores = tl.dot(query, tl.trans(key), input_precision="ieee")
            if not EVEN:
                scores = tl.where((at < tokens)[None, :], scores, float("-inf"))
            higher = tl.maximum(highest, tl.max(scores, axis=1))
            if EXACT:
                weights = tl.exp2((scores - higher[:, None]) * scale)
            else:
                weights = tl.exp2(scores * scale - (higher * scale)[:, None])
            fade = tl.exp2((highest - higher) * scale)
            value = tl.load(where + 2 * HEADS * D, mask=in_n, other=0.0)
            out = tl.dot(weights.to(value.dtype), value, out * fade[:, None], input_precision="ieee")
            total = total * fade + tl.sum(weights, axis=1)
            highest = higher
    out = out / total[:, None]
    to = out_ptr + image * tokens * HEADS * D + head * D + (m * HEADS * D)[:, None] + d[None, :]
    tl.store(to, out.to(out_ptr.dtype.element_ty), mask=in_m[:, None] & in_d[None, :])


def attention(qkv: Tensor, heads: int) -> Tensor:
    """Attend over the pixels of ``qkv`` (B, 3 C, H, W), packed (q, k, v) x heads x C/heads; return (B, C, H, W)."""
    qkv, stride = by_pixel(qkv)
    batch, packed, height, width = qkv.shape
    tokens, channels = height * width, packed // 3
    depth = channels // heads
    out = empty_by_pixel((batch, channels, height, width), qkv)
    cut = AttentionCut.of(tokens, depth)
    launch(attention_kernel, (ceil_div(tokens, cut.queries) * batch * heads,),
        qkv, out, tokens, stride, 1.4426950408889634 / depth**0.5,
        HEADS=heads, D=depth, BLOCK_M=cut.queries, BLOCK_N=cut.keys, BLOCK_D=cut.depth,
        ONE_BLOCK=tokens <= cut.keys, EVEN=tokens % cut.keys == 0,
        EXACT=qkv.element_size() == 4, num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip
    return out
