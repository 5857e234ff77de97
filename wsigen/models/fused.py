"""The U-Net of :mod:`wsigen.models.unet`, run for inference with the fewest passes over its feature maps.

The same weights and the same sums in the same order, cut otherwise:

- a feature map travels with its moments (see wsigen_kernels.norm_triton), which whoever writes it takes on the way, so
  that norms read their input once;
- skip connections are read where they lie, never concatenated;
- resampling happens while a norm writes its result, and while a residual is added;
- the biases of convolutions ride along with what follows: torch adds them in a pass of their own.

What is computed differs from the plain network by rounding alone; tests/models/test_fused.py bounds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from wsigen_kernels import norm as kernels
from wsigen_kernels import ops
from wsigen_kernels.attention import attention
from wsigen_kernels.upsample import upsample_conv3x3

if TYPE_CHECKING:
    from wsigen.models.unet import AffineNorm, AttentionBlock, ResBlock, UNet

SAME, UP, DOWN = 0, 1, 2
_RESAMPLE = {"": SAME, "up": UP, "down": DOWN}
EPS = 1e-5
Maps = tuple[Tensor, Tensor]

# Upsampling and convolution as four convolutions of the small map: less arithmetic, one more pass. Off until
# benchmarks/denoiser.py (variant "ours, sub-pixel") shows it faster.
SUB_PIXEL = False


@dataclass(frozen=True)
class Feature:
    """A feature map (B, C, H, W) in channels_last, and its moments (B, slices, 2, C)."""

    pixels: Tensor
    moments: Tensor

    @staticmethod
    def of(pixels: Tensor) -> Feature:
        """Take the moments of a map."""
        return Feature(pixels, ops.moments(pixels))


def serves(unet: UNet, x: Tensor) -> bool:
    """Whether this path runs: where Triton does the norms, without gradients, in 16 bits and in the weights' format."""
    if kernels.BACKEND != "triton" or torch.is_grad_enabled() or not kernels.served(x):
        return False
    return x.dtype == unet.conv_in.weight.dtype and (x.element_size() == 2 or kernels.ANY_DEVICE)


def forward(unet: UNet, inputs: list[Tensor], emb: Tensor, maps: Iterator[Maps]) -> Tensor:
    """Map the inputs, (B, C_i, H, W) each, to the prediction; ``emb`` (B, time_dim) is activated already."""
    patch = unet.config.patch
    h = Feature.of(unet.conv_in(unshuffled(inputs, patch)))
    skips = [h]
    for stage in unet.encoder:
        h = _stage(stage, h, None, emb, None)
        skips.append(h)
    for stage in unet.middle:
        h = _stage(stage, h, None, emb, maps)
    for stage in unet.decoder:
        h = _stage(stage, h, None if stage.upsamples else skips.pop(), emb, maps)
    out = unet.conv_out(_affine_norm(unet.norm_out, h))
    return F.pixel_shuffle(out, patch) if patch > 1 else out


def unshuffled(inputs: list[Tensor], patch: int) -> Tensor:
    """Concatenate and pixel-unshuffle into channels_last in one pass over each input."""
    batch, _, height, width = inputs[0].shape
    channels = sum(x.shape[1] for x in inputs)
    rows, columns = height // patch, width // patch
    out = inputs[0].new_empty((batch, rows, columns, channels, patch, patch))
    start = 0
    for x in inputs:
        blocks = x.reshape(batch, x.shape[1], rows, patch, columns, patch).permute(0, 2, 4, 1, 3, 5)
        out[:, :, :, start : start + x.shape[1]] = blocks
        start += x.shape[1]
    return out.reshape(batch, rows, columns, -1).permute(0, 3, 1, 2)


def _stage(stage: nn.Module, x: Feature, skip: Feature | None, emb: Tensor, maps: Iterator[Maps] | None) -> Feature:
    h = _res_block(stage.block, x, skip, emb, maps)  # type: ignore[arg-type]
    return h if stage.attention is None else _attention_block(stage.attention, h)  # type: ignore[arg-type]


def _res_block(block: ResBlock, x: Feature, skip: Feature | None, emb: Tensor, maps: Iterator[Maps] | None) -> Feature:
    resample = _RESAMPLE[block.resample]
    by_phase = SUB_PIXEL and resample == UP
    h = _norm(block.norm_in, x, skip, maps, resample=SAME if by_phase else resample)
    weight_in, bias_in = block.conv_in.weight, block.conv_in.bias
    h = upsample_conv3x3(h, weight_in) if by_phase else F.conv2d(h, weight_in, None, padding=1)
    h = _norm(block.norm_out, Feature.of(h), None, maps, block.time(emb), bias_in)
    h = F.conv2d(h, block.conv_out.weight, None, padding=1)
    bias, weight = block.conv_out.bias, None
    if isinstance(block.skip, nn.Conv2d):
        weight = block.skip.weight
        assert bias is not None and block.skip.bias is not None
        bias = bias + block.skip.bias
    behind = None if skip is None else skip.pixels
    return Feature(*ops.merge(h, bias, x.pixels, behind, weight, resample))


def _norm(
    norm: nn.Module,
    x: Feature,
    skip: Feature | None,
    maps: Iterator[Maps] | None,
    scale_shift: Tensor | None = None,
    x_bias: Tensor | None = None,
    resample: int = SAME,
) -> Tensor:
    """Apply an AffineNorm, or with ``maps`` a SpadeNorm, and SiLU."""
    weight, bias = (None, None) if maps is not None else (norm.weight, norm.bias)
    gamma, beta = next(maps) if maps is not None else (None, None)
    scale, shift = (None, None) if scale_shift is None else scale_shift.chunk(2, dim=1)
    return ops.normalise(
        x.pixels,
        None if skip is None else skip.pixels,
        x.moments,
        None if skip is None else skip.moments,
        norm.groups,
        x_bias,
        weight,
        bias,
        gamma,
        beta,
        scale,
        shift,
        True,
        EPS,
        resample,
    )


def _affine_norm(norm: AffineNorm, x: Feature, silu: bool = True) -> Tensor:
    formula = (norm.weight, norm.bias, None, None, None, None)
    return ops.normalise(x.pixels, None, x.moments, None, norm.groups, None, *formula, silu, EPS, SAME)


def _attention_block(block: AttentionBlock, x: Feature) -> Feature:
    attended = attention(_by_rows(block.qkv, _affine_norm(block.norm, x, silu=False), block.qkv.bias), block.heads)
    return Feature(*ops.merge(_by_rows(block.proj, attended, None), block.proj.bias, x.pixels, None, None, SAME))


def _by_rows(conv: nn.Conv2d, x: Tensor, bias: Tensor | None) -> Tensor:
    """Run a 1 x 1 convolution as a matrix product of channels_last memory, which adds the bias on its way out."""
    return F.linear(x.permute(0, 2, 3, 1), conv.weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)
