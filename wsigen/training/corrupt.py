"""From crops to what the network sees: stain jitter, and the conditions that the model takes, each drawn in turn.

Everything is drawn on the device from one generator, so that a step is a function of (seed, step, process).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from wsigen.conditions.contract import Condition, ConditionBatch, Crops, Draft, Groups
from wsigen.conditions.guidance import drop_out
from wsigen.conditions.settings import AugmentSettings, unspoilt
from wsigen.training.settings import TrainSettings

PLAIN = unspoilt(TrainSettings())
Begin = Callable[[Crops, torch.Generator], Draft]


@dataclass(frozen=True)
class TrainingBatch:
    """What one step trains on; pixels in [-1, 1] float32.

    x0: (B, 3, W, W), the clean image; known pixels carry the (corrupted) context. conditions: what goes with it.
    ignored: (B, 1, W, W) bool, pixels that teach nothing.
    """

    x0: Tensor
    conditions: ConditionBatch
    ignored: Tensor | None = None

    @property
    def known(self) -> Tensor:
        """Which pixels are given: (B, 1, W, W) float, 0 or 1."""
        return self.conditions.known


class Corruptor:
    """Draws training batches from crops: ``begin`` makes a draft, to which each condition adds its tensors."""

    def __init__(self, conditions: Sequence[Condition], groups: Groups, begin: Begin, settings: TrainSettings) -> None:
        self.conditions, self.begin, self.settings = conditions, begin, settings
        self.of_groups = [condition.of_groups(groups) for condition in conditions]

    def __call__(self, crops: Crops, generator: torch.Generator) -> TrainingBatch:
        """Build a batch; consumes random numbers from ``generator`` in a fixed order."""
        draft = self.begin(crops, generator)
        for condition, known in zip(self.conditions, self.of_groups, strict=True):
            condition.draw(draft, self.settings, known)
        drawn = drop_out(self.conditions, draft, self.settings.condition.drop)
        return TrainingBatch(draft.image, drawn, draft.ignored)


def slide_corruptor(conditions: Sequence[Condition], groups: Groups, settings: TrainSettings) -> Corruptor:
    """What draws batches of a model that paints slides, with the recipe's jitter, drop-out and corruption."""
    glass = torch.tensor([style.glass_rgb for style in groups.styles], dtype=torch.float32, device=groups.device)
    return Corruptor(conditions, groups, partial(begin_slide, glass, settings.augment), settings)


def plain_conditions(
    conditions: Sequence[Condition],
    crops: Crops,
    glass: Tensor,
    given: Mapping[str, Tensor] = {},
    groups: Groups | None = None,
) -> ConditionBatch:
    """Conditions of crops as a painter gives them: nothing is dropped or spoilt, clear glass is given.

    ``glass`` (B, 3) is the white of each crop in 0..255. ``given`` has tensors that are known already, by the name of
    the condition; the others are drawn, with what is known of the ``groups`` of the pictures.
    """
    whole = torch.ones_like(glass)
    draft = begin_draft(crops, crops.picture.float(), glass.round(), whole, torch.Generator(glass.device))
    for condition in conditions:
        if condition.name in given:
            draft.tensors[condition.name] = given[condition.name]
        else:
            condition.draw(draft, PLAIN, None if groups is None else condition.of_groups(groups))
    return drop_out(conditions, draft, 0.0)


def begin_slide(glass: Tensor, augment: AugmentSettings, crops: Crops, generator: torch.Generator) -> Draft:
    """A draft of a picture of tissue with its stain jittered; ``glass`` (G, 3) is the white of the groups in 0..255."""
    power = stain_power(augment, len(crops.planes), generator)
    pixels = apply_power(crops.picture.float(), power[:, :, None, None])
    white = apply_power(glass[crops.group], power).round()
    return begin_draft(crops, pixels, white, power, generator)


def begin_draft(crops: Crops, pixels: Tensor, white: Tensor, power: Tensor, generator: torch.Generator) -> Draft:
    """A draft of pictures (B, 3, W, W) and their glass whites (B, 3), both in 0..255, of which nothing is given yet."""
    nothing = torch.zeros_like(pixels[:, :1], dtype=torch.bool)
    return Draft(crops, pixels / 127.5 - 1, white / 127.5 - 1, power, nothing, nothing, generator)


def stain_power(augment: AugmentSettings, batch: int, generator: torch.Generator) -> Tensor:
    """Draw what optical density is multiplied by, (B, 3): about 1."""
    device = generator.device
    overall = torch.randn((batch, 1), generator=generator, device=device) * augment.overall
    channel = torch.randn((batch, 3), generator=generator, device=device) * augment.channel
    return (overall + channel).exp()


def apply_power(pixels: Tensor, power: Tensor) -> Tensor:
    """Multiply optical density by ``power``: intensities in 0..255 to intensities in 0..255."""
    return (((pixels + 1) / 256) ** power * 256 - 1).clamp(0, 255)
