"""Self-attention over the pixels of a feature map, from packed query, key and value channels.

Vaswani et al. 2017, equation 1: ``softmax(Q K^T / sqrt(d)) V``, a head at a time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from wsigen_kernels.dispatch import attention_choice, interpreting
from wsigen_kernels.layout import fits

BACKEND = attention_choice().name  # a constant, so that torch.compile traces one branch
FORCED = attention_choice().reason.startswith("set by")
ANY_DEVICE = interpreting()
# Above so many tokens cuDNN's, which torch picks, multiplies faster.
LONG = 1024


def attention(qkv: Tensor, heads: int) -> Tensor:
    """Attend over the pixels of ``qkv`` (B, 3 * C, H, W), packed as (q, k, v) x heads x C/heads; return (B, C, H, W).

    A channels_last input is read without a copy, and gives a channels_last result. Where a gradient is wanted, or the
    tensor lies on no GPU, torch's own attention runs.
    """
    if BACKEND == "triton" and _served(qkv):
        from wsigen_kernels import ops

        return ops.attention(qkv, heads)
    return attention_torch(qkv, heads, xformers=BACKEND == "xformers" and qkv.is_cuda)


def _served(qkv: Tensor) -> bool:
    """Whether the kernel takes ``qkv``: without gradients, on a GPU; in 16 bits and short unless asked for by name."""
    if (torch.is_grad_enabled() and qkv.requires_grad) or not (qkv.is_cuda or ANY_DEVICE) or not fits(qkv):
        return False
    return FORCED or (qkv.element_size() == 2 and qkv.shape[2] * qkv.shape[3] <= LONG)


def attention_torch(qkv: Tensor, heads: int, xformers: bool = False) -> Tensor:
    """Compute ``attention`` with torch's scaled_dot_product_attention, or with xformers."""
    batch, packed, height, width = qkv.shape
    channels = packed // 3
    tokens = qkv.permute(0, 2, 3, 1).reshape(batch, height * width, 3, heads, channels // heads)
    query, key, value = tokens.unbind(dim=2)  # each (B, N, heads, d)
    if xformers:
        from xformers.ops import memory_efficient_attention

        # Channels next to one another, as its kernels ask for.
        out = memory_efficient_attention(query.contiguous(), key.contiguous(), value.contiguous())
    else:
        query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
        out = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    return out.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
