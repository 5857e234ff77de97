"""The U-Net of NASDM: plain residual blocks going down, mask-modulated (SPADE) ones in the middle and going up.

The layout follows the network that NASDM released (Shrivastava and Fletcher 2023, after Wang et al. 2022, "Semantic
image synthesis via diffusion models", and Dhariwal and Nichol 2021). Two additions serve whole slides: the neighbour
context enters beside the noisy image, and a stain-style vector enters beside the time embedding.

SPADE's gamma and beta depend on the mask alone, not on time or image. `UNet.spade_maps` computes them once for
a batch of windows, and every denoising step reuses them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from wsigen_kernels.attention import attention
from wsigen_kernels.norm import group_norm

from wsigen.models.config import UNetConfig

Layer = TypeVar("Layer", bound=nn.Module)
SpadeMaps = list[tuple[Tensor, Tensor]]  # (gamma, beta), in the order in which the decoder uses them


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal embedding (B, dim) of float timesteps (B,) (Vaswani et al. 2017, section 3.5)."""
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[:, None] * torch.exp(-math.log(max_period) * exponent)[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def zeroed(module: Layer) -> Layer:
    """Set a module's parameters to zero, so that its residual branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def by_row(layers: nn.Module, vectors: Tensor) -> Tensor:
    """Apply ``layers`` to (B, n), so that a row's result does not depend on its place in the batch.

    On a CPU a matrix product in float32 may round the rows of a small matrix differently: of the stain style, for one.
    """
    if vectors.device.type == "cpu" and not torch.is_grad_enabled():
        return torch.cat([layers(row) for row in vectors.split(1)])
    return layers(vectors)


def conv3x3(channels_in: int, channels_out: int) -> nn.Conv2d:
    """Same-size 3 x 3 convolution."""
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


def _vector_mlp(length: int, time_dim: int) -> nn.Sequential:
    """What turns a vector into a part of the embedding; at first it adds nothing."""
    return nn.Sequential(nn.Linear(length, time_dim), nn.SiLU(), zeroed(nn.Linear(time_dim, time_dim)))


class AffineNorm(nn.Module):
    """Group norm with a learned scale and offset a channel."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, silu: bool = True) -> Tensor:
        """Normalise ``x`` (B, C, H, W); modulate with ``scale`` and ``shift`` (B, C)."""
        return group_norm(x, self.groups, self.weight, self.bias, scale=scale, shift=shift, silu=silu)


class SpadeNorm(nn.Module):
    """Group norm modulated by the mask: gamma and beta are maps (Park et al. 2019)."""

    def __init__(self, channels: int, groups: int, mask_channels: int, hidden: int) -> None:
        super().__init__()
        self.groups = groups
        self.shared = conv3x3(mask_channels, hidden)
        self.gamma_beta = conv3x3(hidden, 2 * channels)

    def maps(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Compute gamma and beta (B, C, H, W) from ``mask`` (B, M, H, W)."""
        gamma, beta = self.gamma_beta(F.relu(self.shared(mask))).chunk(2, dim=1)
        return gamma, beta

    def forward(
        self,
        x: Tensor,
        maps: tuple[Tensor, Tensor],
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        """Normalise ``x`` (B, C, H, W) with ``maps`` from ``maps``."""
        return group_norm(x, self.groups, gamma=maps[0], beta=maps[1], scale=scale, shift=shift)


class ResBlock(nn.Module):
    """Residual block with time modulation; ``resample`` is "down", "up" or "" (Dhariwal and Nichol 2021).

    With ``mask_channels`` both norms are SPADE norms, and forward takes their maps from an iterator.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        time_dim: int,
        groups: int,
        resample: str = "",
        mask_channels: int = 0,
        spade_hidden: int = 0,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.spade = mask_channels > 0
        if self.spade:
            self.norm_in: nn.Module = SpadeNorm(channels_in, groups, mask_channels, spade_hidden)
            self.norm_out: nn.Module = SpadeNorm(channels_out, groups, mask_channels, spade_hidden)
        else:
            self.norm_in = AffineNorm(channels_in, groups)
            self.norm_out = AffineNorm(channels_out, groups)
        self.conv_in = conv3x3(channels_in, channels_out)
        self.conv_out = zeroed(conv3x3(channels_out, channels_out))
        self.time = nn.Linear(time_dim, 2 * channels_out)
        self.skip = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, emb: Tensor, maps: Iterator[tuple[Tensor, Tensor]] | None = None) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H', W'); ``emb`` (B, time_dim) is already activated."""
        scale, shift = self.time(emb).chunk(2, dim=1)
        if maps is not None:
            h = self.norm_in(x, next(maps))
        else:
            h = self.norm_in(x)
        h = self.conv_in(self._resample(h))
        if maps is not None:
            h = self.norm_out(h, next(maps), scale, shift)
        else:
            h = self.norm_out(h, scale, shift)
        return self.skip(self._resample(x)) + self.conv_out(h)

    def _resample(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x


class AttentionBlock(nn.Module):
    """Self-attention over all pixels of a level, with a residual."""

    def __init__(self, channels: int, groups: int, head_channels: int) -> None:
        super().__init__()
        self.heads = max(1, channels // head_channels)
        self.norm = AffineNorm(channels, groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        return x + self.proj(attention(self.qkv(self.norm(x, silu=False)), self.heads))


class Stage(nn.Module):
    """A residual block and, at some levels, attention behind it."""

    def __init__(self, block: ResBlock, level: int, attention_block: AttentionBlock | None = None) -> None:
        super().__init__()
        self.block = block
        self.level = level  # of the block's input: the level that its first norm works at
        self.upsamples = block.resample == "up"
        self.attention = attention_block

    def forward(self, x: Tensor, emb: Tensor, maps: Iterator[tuple[Tensor, Tensor]] | None = None) -> Tensor:
        """Run block and attention."""
        h = self.block(x, emb, maps)
        return h if self.attention is None else self.attention(h)


class UNet(nn.Module):
    """The denoiser's network; see ``wsigen.models.config.UNetConfig`` for its shape.

    ``planes`` is the number of planes that modulate the decoder, ``out_channels`` 3, or 6 with learned variance,
    ``pixels`` the number of channels of images beside the noisy one, ``vectors`` the lengths of vectors by name that
    enter beside the timestep.
    """

    def __init__(
        self,
        config: UNetConfig,
        planes: int,
        out_channels: int = 3,
        pixels: int = 0,
        vectors: Mapping[str, int] = {},
    ) -> None:
        super().__init__()
        self.config = config
        base, groups, patch = config.channels[0], config.norm_groups, config.patch
        time_dim = 4 * base
        self.mask_channels = planes * patch * patch
        inputs = 3 + pixels + (planes if config.condition_in_encoder else 0)

        self.time_mlp = nn.Sequential(nn.Linear(base, time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim))
        self.style_mlp = _vector_mlp(vectors["stain"], time_dim) if "stain" in vectors else None
        others = {name: _vector_mlp(length, time_dim) for name, length in vectors.items() if name != "stain"}
        self.vector_mlps = nn.ModuleDict(others)
        self.conv_in = conv3x3(inputs * patch * patch, base)

        def stage(c_in: int, c_out: int, level: int, resample: str = "", decoder: bool = False) -> Stage:
            mask_channels = self.mask_channels if decoder else 0
            block = ResBlock(c_in, c_out, time_dim, groups, resample, mask_channels, config.spade_hidden)
            attends = level in config.attention_levels and not resample
            return Stage(block, level, AttentionBlock(c_out, groups, config.head_channels) if attends else None)

        channels, skips = base, [base]
        self.encoder = nn.ModuleList()
        last = len(config.channels) - 1
        for level, width in enumerate(config.channels):
            for _ in range(config.num_res_blocks):
                self.encoder.append(stage(channels, width, level))
                channels = width
                skips.append(channels)
            if level < last:
                self.encoder.append(stage(channels, channels, level, "down"))
                skips.append(channels)

        first, second = (stage(channels, channels, last, decoder=True) for _ in range(2))
        if first.attention is None:
            first.attention = AttentionBlock(channels, groups, config.head_channels)
        second.attention = None  # the middle attends once, between its two blocks
        self.middle = nn.ModuleList([first, second])

        self.decoder = nn.ModuleList()
        for level in range(last, -1, -1):
            width = config.channels[level]
            for _ in range(config.num_res_blocks + 1):
                self.decoder.append(stage(channels + skips.pop(), width, level, decoder=True))
                channels = width
            if level > 0:
                self.decoder.append(stage(channels, channels, level, "up", decoder=True))

        self.norm_out = AffineNorm(channels, groups)
        self.conv_out = zeroed(conv3x3(channels, out_channels * patch * patch))

    @property
    def size_multiple(self) -> int:
        """Window sides must be a multiple of this, in pixels."""
        return self.config.patch * 2 ** (len(self.config.channels) - 1)

    def mask_pyramid(self, planes: Tensor, patch: int) -> list[Tensor]:
        """Bring the planes (B, P, H, W) to every level, the first in patches."""
        mask = F.pixel_unshuffle(planes, patch) if patch > 1 else planes
        pyramid = [mask]
        for level in range(1, len(self.config.channels)):
            if self.config.spade_resize == "nearest":
                coarse = mask[:, :, :: 2**level, :: 2**level]
                pyramid.append(coarse.contiguous(memory_format=torch.channels_last))
            else:
                pyramid.append(F.avg_pool2d(pyramid[-1], 2))
        return pyramid

    def spade_norms(self) -> Iterator[tuple[SpadeNorm, int]]:
        """Every mask-modulated norm in the order of use, with the level that it works at."""
        for stage in [*self.middle, *self.decoder]:
            yield stage.block.norm_in, stage.level
            yield stage.block.norm_out, stage.level - stage.upsamples

    def spade_maps(self, planes: Tensor) -> SpadeMaps:
        """Compute every gamma and beta for ``planes`` (B, P, H, W), in the order of use."""
        pyramid = self.mask_pyramid(planes, self.config.patch)
        return [norm.maps(pyramid[level]) for norm, level in self.spade_norms()]

    def embedding(self, t: Tensor, vectors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """Embed timesteps (B,) and vectors (B, n) by name, activated: (B, time_dim)."""
        emb = by_row(self.time_mlp, timestep_embedding(t, self.config.channels[0]).to(dtype))
        if self.style_mlp is not None:
            emb = emb + by_row(self.style_mlp, vectors["stain"].to(dtype))
        for name, mlp in self.vector_mlps.items():
            emb = emb + by_row(mlp, vectors[name].to(dtype))
        return F.silu(emb)

    def forward(self, inputs: Sequence[Tensor], emb: Tensor, maps: SpadeMaps) -> Tensor:
        """Predict from ``inputs``, the noisy window (B, 3, H, W) and what lies beside it: (B, out_channels, H, W).

        ``emb`` is what `embedding`, and ``maps`` what `spade_maps` gave.
        """
        config = self.config
        h = torch.cat(list(inputs), dim=1) if len(inputs) > 1 else inputs[0]
        if config.patch > 1:
            h = F.pixel_unshuffle(h, config.patch)
        h = self.conv_in(h.contiguous(memory_format=torch.channels_last))
        skips = [h]
        for stage in self.encoder:
            h = stage(h, emb)
            skips.append(h)
        rest = iter(maps)
        for stage in self.middle:
            h = stage(h, emb, rest)
        for stage in self.decoder:
            if not stage.upsamples:
                h = torch.cat([h, skips.pop()], dim=1)
            h = stage(h, emb, rest)
        h = self.conv_out(self.norm_out(h))
        return F.pixel_shuffle(h, config.patch) if config.patch > 1 else h
