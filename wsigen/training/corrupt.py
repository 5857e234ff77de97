"""From crops to what the network sees: stain jitter, tissue and edge variants, context and its corruption.

Everything is drawn on the device from one generator, so that a step is a function of (seed, step, process).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wsigen.models.conditioning import UNKNOWN_TISSUE, condition_planes, null_planes
from wsigen.models.stain import StyleRange
from wsigen.training.patches import Crops
from wsigen.training.settings import AugmentSettings, ConditionSettings, ContextSettings


@dataclass(frozen=True)
class TrainingBatch:
    """What one step trains on; pixels in [-1, 1] float32, shapes as in ``wsigen.models.unet.UNet.forward``."""

    x0: Tensor  # (B, 3, W, W) clean image; known pixels carry the (corrupted) context
    planes: Tensor
    context: Tensor
    known: Tensor
    style: Tensor
    ignored: Tensor | None = None  # (B, 1, W, W) bool: pixels that teach nothing


class Corruptor:
    """Draws training batches from crops.

    ``style_mean`` and ``glass`` are (G, 6) raw styles and (G, 3) glass whites of the groups.
    """

    def __init__(
        self,
        class_count: int,
        raw_styles: Tensor,
        glass: Tensor,
        style_range: StyleRange,
        context: ContextSettings,
        condition: ConditionSettings,
        augment: AugmentSettings,
    ) -> None:
        self.class_count, self.raw_styles, self.glass = class_count, raw_styles, glass
        device = raw_styles.device
        self.style_mean = torch.tensor(style_range.mean, device=device)
        self.style_std = torch.tensor(style_range.std, device=device)
        self.style_clamp = style_range.clamp
        self.context, self.condition, self.augment = context, condition, augment

    def __call__(self, crops: Crops, generator: torch.Generator) -> TrainingBatch:
        """Build a batch; consumes random numbers from ``generator`` in a fixed order."""
        bytes_ = crops.planes
        batch, _, window, _ = bytes_.shape
        device = bytes_.device
        power = stain_power(self.augment, batch, generator, device)
        pixels = apply_power(bytes_[:, :3].float(), power[:, :, None, None])
        glass_white = apply_power(self.glass[crops.group], power)
        style = self._style(crops.group, power, generator)

        image = pixels / 127.5 - 1
        pinned = (bytes_[:, 7:8] > 0) & coin(batch, self.condition.pin_glass, generator, device)
        image = torch.where(pinned, (glass_white.round() / 127.5 - 1)[:, :, None, None], image)
        painted = context_mask(batch, window, self.context, generator, device)
        context = corrupt_context(image, self.context, generator)
        image = torch.where(painted & ~pinned, context, image)
        known = (painted | pinned).float()
        return TrainingBatch(image, self._planes(bytes_, generator), image * known, known, style)

    def _style(self, group: Tensor, power: Tensor, generator: torch.Generator) -> Tensor:
        """Style after the jitter (multiplying OD multiplies its mean and deviation), normalised, with noise."""
        raw = self.raw_styles[group] * power.repeat(1, 2)
        z = ((raw - self.style_mean) / self.style_std).clamp(-self.style_clamp, self.style_clamp)
        noise = torch.randn(z.shape, generator=generator, device=z.device) * self.augment.style_noise
        return z + noise

    def _planes(self, bytes_: Tensor, generator: torch.Generator) -> Tensor:
        settings, batch, device = self.condition, len(bytes_), bytes_.device
        merged = coin(batch, settings.merge_edges, generator, device)[:, 0]
        edges = torch.where(merged, bytes_[:, 4] >> 1, bytes_[:, 4] & 1)
        draw = torch.rand(batch, generator=generator, device=device)[:, None, None]
        tissue = torch.where(draw < settings.tissue_derived, bytes_[:, 6], bytes_[:, 5])
        unknown = (draw >= settings.tissue_derived) & (draw < settings.tissue_derived + settings.tissue_unknown)
        tissue = torch.where(unknown, torch.full_like(tissue, UNKNOWN_TISSUE), tissue)
        planes = condition_planes(bytes_[:, 3], edges, tissue, self.class_count)
        drop = torch.rand(batch, generator=generator, device=device) < settings.drop
        return null_planes(planes, drop)


def coin(batch: int, share: float, generator: torch.Generator, device: torch.device) -> Tensor:
    """Draw which samples something happens to: (B, 1, 1, 1) bool."""
    return (torch.rand(batch, generator=generator, device=device) < share)[:, None, None, None]


def corrupt_context(image: Tensor, settings: ContextSettings, generator: torch.Generator) -> Tensor:
    """Context as the painter would meet it: a little blur, tint and noise, in [-1, 1]."""
    batch, device = len(image), image.device
    blurred = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    mix = torch.rand((batch, 1, 1, 1), generator=generator, device=device)
    mix = mix * coin(batch, settings.blur, generator, device)
    tint = torch.randn((batch, 3, 1, 1), generator=generator, device=device) * settings.tint
    strength = torch.rand((batch, 1, 1, 1), generator=generator, device=device) * settings.noise
    strength = strength * coin(batch, 0.5, generator, device)
    tint = tint * coin(batch, 0.5, generator, device)
    noise = torch.randn(image.shape, generator=generator, device=device)
    return (torch.lerp(image, blurred, mix) + tint + strength * noise).clamp(-1, 1)


def stain_power(augment: AugmentSettings, batch: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Draw what optical density is multiplied by, (B, 3): about 1."""
    overall = torch.randn((batch, 1), generator=generator, device=device) * augment.overall
    channel = torch.randn((batch, 3), generator=generator, device=device) * augment.channel
    return (overall + channel).exp()


def apply_power(pixels: Tensor, power: Tensor) -> Tensor:
    """Multiply optical density by ``power``: intensities in 0..255 to intensities in 0..255."""
    return (((pixels + 1) / 256) ** power * 256 - 1).clamp(0, 255)


def context_mask(
    batch: int, window: int, settings: ContextSettings, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Draw which pixels are already painted: (B, 1, W, W) bool, one of the painting order's contexts each."""
    shares = torch.tensor(
        [settings.none, settings.horizontal, settings.vertical, settings.ring, settings.strips],
        dtype=torch.float32,  # a recipe may say 1 for 1.0
        device=device,
    )
    kind = torch.multinomial(shares, batch, replacement=True, generator=generator)
    most = 3 * window // 8 // 8
    widths = 8 * torch.randint(1, most + 1, (batch, 4), generator=generator, device=device)
    usual = torch.rand(batch, generator=generator, device=device) < 0.5
    overlap = torch.where(usual, min(settings.usual_overlap, 8 * most), widths[:, 0])
    horizontal, vertical = (kind == 1) | (kind == 3), (kind == 2) | (kind == 3)
    zero = torch.zeros_like(overlap)
    sides = torch.stack([torch.where(flag, overlap, zero) for flag in (horizontal, horizontal, vertical, vertical)], 1)
    present = torch.rand((batch, 4), generator=generator, device=device) < 0.5
    sides = torch.where((kind == 4)[:, None], widths * present, sides)
    steps = torch.arange(window, device=device)
    left, right, top, bottom = (sides[:, index, None] for index in range(4))
    columns = (steps < left) | (steps >= window - right)
    rows = (steps < top) | (steps >= window - bottom)
    return (columns[:, None, :] | rows[:, :, None])[:, None]
