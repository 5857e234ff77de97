"""The U-Net of `wsigen.networks.unet`, run for inference with the fewest passes over its feature maps.

The same weights and the same sums in the same order, cut otherwise:

- a feature map travels with its moments (see wsigen_kernels.moments_triton), which whoever writes it takes on the way,
  so that norms read their input once;
- skip connections are read where they lie, never concatenated;
- a map is halved while a norm writes its result, and a residual resampled while it is added; a map that is to be
  doubled is convolved as it is (see wsigen_kernels.upsample);
- the biases of convolutions ride along with what comes before or follows: torch adds them in a pass of their own.

What is computed differs from the plain network by rounding alone; tests/networks/test_unet_fused.py bounds it.
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
from wsigen_kernels.launch import padded_channels
from wsigen_kernels.upsample import phase_weights, upsample_places

if TYPE_CHECKING:
    from wsigen.networks.unet import AffineNorm, AttentionBlock, ResBlock, UNet

SAME, UP, DOWN = 0, 1, 2
_RESAMPLE = {"": SAME, "up": UP, "down": DOWN}
EPS = 1e-5
Modulation = tuple[
    Tensor, Tensor, Tensor | None
]  # gamma and beta (B, C, H, W), and (2 C,) that is still to be added to them


@dataclass(frozen=True)
class Cache:
    """What does not change from step to step: SPADE maps in the order of use, and weights as this path wants them."""

    modulations: list[Modulation]
    conv_in: Tensor
    conv_out: Tensor
    phases: dict[nn.Module, Tensor]  # of the first convolution of every block that doubles the resolution


@dataclass(frozen=True)
class Feature:
    """A feature map (B, C, H, W) in channels_last or in places, and its moments (B, slices, 2, C).

    ``bias`` (C,) is still to be added to both.
    """

    pixels: Tensor
    moments: Tensor
    bias: Tensor | None = None


def serves(unet: UNet, x: Tensor) -> bool:
    """Whether this path runs: where Triton does the norms, without gradients, in 16 bits and in the weights' format."""
    if kernels.BACKEND != "triton" or torch.is_grad_enabled() or not kernels.served(x):
        return False
    return x.dtype == unet.conv_in.weight.dtype and (x.element_size() == 2 or kernels.ANY_DEVICE)


def prepare(unet: UNet, planes: Tensor) -> Cache:
    """Compute what every step with these ``planes`` (B, P, H, W) needs."""
    pyramid = unet.mask_pyramid(ops.gather([planes], unet.config.patch, ones=True), 1)
    modulations = []
    for norm, level in unet.spade_norms():
        hidden = F.conv2d(pyramid[level], _with_bias(norm.shared, pyramid[level].shape[1]), padding=1).relu_()
        gamma, beta = F.conv2d(hidden, norm.gamma_beta.weight, padding=1).chunk(2, dim=1)
        modulations.append((gamma, beta, norm.gamma_beta.bias))
    doubling: list[ResBlock] = [stage.block for stage in unet.decoder if stage.upsamples]  # type: ignore[misc]
    first, last = unet.conv_in.weight, unet.conv_out.weight
    return Cache(
        modulations,
        _padded(first, inputs=padded_channels(first.shape[1])),
        _padded(last, outputs=padded_channels(len(last))),
        {block: phase_weights(block.conv_in.weight) for block in doubling},
    )


def _with_bias(conv: nn.Conv2d, channels: int) -> Tensor:
    """Weights of a 3 x 3 convolution over ``channels``, of which the first unknown to it is one everywhere."""
    weight = _padded(conv.weight, inputs=channels)
    assert conv.bias is not None
    weight[:, conv.in_channels, 1, 1] = conv.bias
    return weight


def _padded(weight: Tensor, outputs: int = 0, inputs: int = 0) -> Tensor:
    """Weights (O, I, 3, 3) filled up with zeros to so many channels, channels_last; a copy."""
    more_out, more_in = max(0, outputs - weight.shape[0]), max(0, inputs - weight.shape[1])
    padded = F.pad(weight, (0, 0, 0, 0, 0, more_in, 0, more_out))
    return padded.clone(memory_format=torch.channels_last)


def forward(unet: UNet, inputs: list[Tensor], emb: Tensor, cache: Cache) -> Tensor:
    """Map the inputs, (B, C_i, H, W) each, to the prediction; ``emb`` (B, time_dim) is activated already."""
    patch, modulations = unet.config.patch, iter(cache.modulations)
    first = F.conv2d(ops.gather(inputs, patch), cache.conv_in, padding=1)
    h = Feature(first, ops.moments(first), unet.conv_in.bias)
    skips = [h]
    for stage in unet.encoder:
        h = _stage(stage, h, None, emb, None)
        skips.append(h)
    for stage in unet.middle:
        h = _stage(stage, h, None, emb, modulations)
    for stage in unet.decoder:
        skip = None if stage.upsamples else skips.pop()
        h = _stage(stage, h, skip, emb, modulations, cache.phases.get(stage.block))  # type: ignore[arg-type]
    out = F.conv2d(_affine_norm(unet.norm_out, h), cache.conv_out, padding=1)
    return ops.scatter(out, unet.conv_out.bias, patch)


def _stage(
    stage: nn.Module,
    x: Feature,
    skip: Feature | None,
    emb: Tensor,
    modulations: Iterator[Modulation] | None,
    phases: Tensor | None = None,
) -> Feature:
    h = _res_block(stage.block, x, skip, emb, modulations, phases)  # type: ignore[arg-type]
    return h if stage.attention is None else _attention_block(stage.attention, h)  # type: ignore[arg-type]


def _res_block(
    block: ResBlock,
    x: Feature,
    skip: Feature | None,
    emb: Tensor,
    modulations: Iterator[Modulation] | None,
    phases: Tensor | None,
) -> Feature:
    resample = _RESAMPLE[block.resample]
    phased = phases is not None
    h = _norm(block.norm_in, x, skip, modulations, resample=SAME if phased else resample)
    if phases is not None:
        h = upsample_places(h, phases)
    else:
        h = F.conv2d(h, block.conv_in.weight, padding=1)
    taken = Feature(h, ops.moments(h, phased), block.conv_in.bias)
    h = _norm(block.norm_out, taken, None, modulations, block.time(emb), phased=phased)
    h = F.conv2d(h, block.conv_out.weight, padding=1)
    bias, weight, before = block.conv_out.bias, None, _bias(x, skip)
    assert bias is not None
    if isinstance(block.skip, nn.Conv2d):
        weight = block.skip.weight
        assert block.skip.bias is not None
        bias = bias + block.skip.bias
        before = None if before is None else weight[:, :, 0, 0] @ before
    bias = bias if before is None else bias + before
    behind = None if skip is None else skip.pixels
    return Feature(*ops.merge(h, bias, x.pixels, behind, weight, resample))


def _norm(
    norm: nn.Module,
    x: Feature,
    skip: Feature | None,
    modulations: Iterator[Modulation] | None,
    scale_shift: Tensor | None = None,
    resample: int = SAME,
    phased: bool = False,
) -> Tensor:
    """Apply an AffineNorm, or with ``modulations`` a SpadeNorm, and SiLU."""
    weight, bias = (None, None) if modulations is not None else (norm.weight, norm.bias)
    gamma, beta, map_bias = next(modulations) if modulations is not None else (None, None, None)
    scale, shift = (None, None) if scale_shift is None else scale_shift.chunk(2, dim=1)
    return ops.normalise(
        x.pixels,
        None if skip is None else skip.pixels,
        x.moments,
        None if skip is None else skip.moments,
        norm.groups,
        _bias(x, skip),
        weight,
        bias,
        gamma,
        beta,
        scale,
        shift,
        True,
        EPS,
        resample,
        map_bias,
        phased,
    )


def _bias(x: Feature, skip: Feature | None) -> Tensor | None:
    """What is still to be added to x and skip concatenated, None if nothing."""
    parts = [x] if skip is None else [x, skip]
    if all(part.bias is None for part in parts):
        return None
    biases = [part.pixels.new_zeros(part.pixels.shape[1]) if part.bias is None else part.bias for part in parts]
    return torch.cat(biases) if len(biases) > 1 else biases[0]


def _affine_norm(norm: AffineNorm, x: Feature, silu: bool = True) -> Tensor:
    formula = (norm.weight, norm.bias, None, None, None, None)
    return ops.normalise(x.pixels, None, x.moments, None, norm.groups, None, *formula, silu, EPS, SAME)


def _attention_block(block: AttentionBlock, x: Feature) -> Feature:
    attended = attention(_by_rows(block.qkv, _affine_norm(block.norm, x, silu=False), block.qkv.bias), block.heads)
    return Feature(*ops.merge(_by_rows(block.proj, attended, None), block.proj.bias, x.pixels, None, None, SAME))


def _by_rows(conv: nn.Conv2d, x: Tensor, bias: Tensor | None) -> Tensor:
    """Run a 1 x 1 convolution as a matrix product of channels_last memory, which adds the bias on its way out."""
    return F.linear(x.permute(0, 2, 3, 1), conv.weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)
