"""The pixels that are known already: those of painted neighbours, and clear glass."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from wsigen.conditions.contract import Condition, Draft, TensorSpec
from wsigen.conditions.settings import ContextSettings, DrawSettings


class Context(Condition):
    """The known pixels, 0 elsewhere, and which they are."""

    name = "context"

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """Three planes of colour, one of where they are known."""
        return TensorSpec("context", "pixels", 3), TensorSpec("known", "pixels", 1)

    def null(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The context itself: guidance does not move away from it."""
        return {"context": batch["context"], "known": batch["known"]}

    def draw(self, draft: Draft, settings: DrawSettings, groups: Tensor | None) -> None:
        """Some part of the picture is given as painted, a little spoilt; glass that is given stays as it is."""
        painted = context_mask(len(draft), draft.image.shape[-1], settings.context, draft.generator)
        spoilt = corrupt_context(draft, settings.context)
        draft.image = torch.where(painted & ~draft.pinned, spoilt, draft.image)
        draft.known = draft.known | painted


def context_tensors(pixels: Tensor, known: Tensor) -> dict[str, Tensor]:
    """Tensors of known pixels: (B, H, W, 3) uint8, and which are known (B, H, W) bool."""
    is_known = known[:, None]
    return {"context": from_uint8(pixels) * is_known, "known": is_known}


def from_uint8(pixels: Tensor) -> Tensor:
    """Map (B, H, W, 3) uint8 to (B, 3, H, W) float32 in [-1, 1], in channels_last memory."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Map (B, 3, H, W) in [-1, 1] to (B, H, W, 3) uint8, rounded; inverse of from_uint8."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def corrupt_context(draft: Draft, settings: ContextSettings) -> Tensor:
    """The picture as a painter would meet it in its context: a little blur, tint and noise, in [-1, 1]."""
    image, batch = draft.image, len(draft)
    blurred = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    mix = draft.rand(batch, 1, 1, 1) * draft.coin(settings.blur)
    tint = draft.randn(batch, 3, 1, 1) * settings.tint
    strength = draft.rand(batch, 1, 1, 1) * settings.noise * draft.coin(0.5)
    tint = tint * draft.coin(0.5)
    noise = draft.randn(*image.shape)
    return (torch.lerp(image, blurred, mix) + tint + strength * noise).clamp(-1, 1)


def context_mask(batch: int, window: int, settings: ContextSettings, generator: torch.Generator) -> Tensor:
    """Draw which pixels are already painted: (B, 1, W, W) bool, one of the painting order's contexts each."""
    device = generator.device
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
