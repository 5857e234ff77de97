"""Self-attention over the pixels of a feature map, from packed query, key and value channels.

Vaswani et al. 2017, equation 1: ``softmax(Q K^T / sqrt(d)) V``, a head at a time.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from wsigen_kernels.dispatch import attention_choice

BACKEND = attention_choice().name  # a constant, so that torch.compile traces one branch


def attention(qkv: Tensor, heads: int) -> Tensor:
    """Attend over the pixels of ``qkv`` (B, 3 * C, H, W), packed as (q, k, v) x heads x C/heads; return (B, C, H, W).

    A channels_last input is read through views, without a copy.
    """
    batch, packed, height, width = qkv.shape
    channels = packed // 3
    tokens = qkv.permute(0, 2, 3, 1).reshape(batch, height * width, 3, heads, channels // heads)
    query, key, value = tokens.unbind(dim=2)  # each (B, N, heads, d)
    if BACKEND == "xformers":
        from xformers.ops import memory_efficient_attention

        out = memory_efficient_attention(query, key, value)
    else:
        query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
        out = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    return out.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
