"""Changes of looks for networks that measure: stain jitter, blur and noise, with the strength of each kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wsigen.training.corrupt import apply_power, stain_power
from wsigen.training.settings import AppearanceSettings, AugmentSettings

BLUR_RADIUS = 4  # px: three deviations of the strongest blur


@dataclass(frozen=True)
class Changed:
    """Pictures (B, 3, H, W) in [-1, 1] and how strongly each was changed: (B, 2), blur and noise, each in [0, 1]."""

    images: Tensor
    strength: Tensor


class Appearance:
    """Draws changes from a generator, in a fixed order."""

    def __init__(self, augment: AugmentSettings, settings: AppearanceSettings) -> None:
        self.augment, self.settings = augment, settings

    def __call__(self, images: Tensor, generator: torch.Generator) -> Changed:
        """Change ``images`` (B, 3, H, W) in [-1, 1]."""
        settings, batch, device = self.settings, len(images), images.device
        power = stain_power(self.augment, batch, generator)
        images = apply_power((images + 1) * 127.5, power[:, :, None, None]) / 127.5 - 1
        draw = torch.rand((4, batch), generator=generator, device=device)
        blur = draw[0] * (draw[1] < settings.blur)
        noise = draw[2] * (draw[3] < settings.noise)
        images = gaussian_blur(images, blur * settings.blur_most)
        grain = torch.randn(images.shape, generator=generator, device=device)
        images = images + grain * (noise * settings.noise_most)[:, None, None, None]
        return Changed(images.clamp(-1, 1), torch.stack([blur, noise], 1))


def gaussian_blur(images: Tensor, deviation: Tensor) -> Tensor:
    """Blur each of ``images`` (B, C, H, W) with its own ``deviation`` (B,) in px; 0 leaves it as it is."""
    batch, channels, height, width = images.shape
    place = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=images.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (place / deviation.clamp(min=0.05)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).to(images.dtype).repeat_interleave(channels, 0)
    flat = images.reshape(1, batch * channels, height, width)
    for shape, pad in (((1, -1), (BLUR_RADIUS, BLUR_RADIUS, 0, 0)), ((-1, 1), (0, 0, BLUR_RADIUS, BLUR_RADIUS))):
        weight = kernel.reshape(batch * channels, 1, *shape)
        flat = F.conv2d(F.pad(flat, pad, mode="reflect"), weight, groups=batch * channels)
    return flat.reshape(images.shape)
