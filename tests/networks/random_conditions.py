"""The published network with narrow layers, and what a network of any configuration is told, drawn at random."""

from dataclasses import replace

import torch

from wsigen.conditions.contract import ConditionBatch
from wsigen.conditions.guidance import present_plane
from wsigen.conditions.mask import mask_planes
from wsigen.conditions.tissue import tissue_plane
from wsigen.layouts.layout import REGIONS
from wsigen.models.config import ModelConfig, UNetConfig

NARROW_PAPER = replace(
    ModelConfig.preset("nasdm-paper"),
    unet=UNetConfig(
        channels=(16, 16, 32, 48, 64),
        attention_levels=(2, 3, 4),
        patch=1,
        condition_in_encoder=False,
        spade_resize="nearest",
        spade_hidden=16,
        norm_groups=8,
        head_channels=16,
    ),
)


def conditions_for(
    config: ModelConfig, side: int = 32, batch: int = 2, known_share: float = 0.3, device: str = "cpu"
) -> ConditionBatch:
    """Every condition of this package, of random values: tissue everywhere, and a share of pixels known."""
    generator = torch.Generator().manual_seed(5)
    count, shape = len(config.classes), (batch, side, side)
    classes = torch.randint(0, count + 1, shape, generator=generator).byte()
    edges = torch.randint(0, 2, shape, generator=generator).byte()
    known = (torch.rand((batch, 1, side, side), generator=generator) < known_share).float()
    planes = mask_planes(classes, edges, count)
    told = {
        "stain": torch.randn((batch, 6), generator=generator),
        "mask": planes,
        "tissue": tissue_plane(torch.ones_like(classes)),
        "density": torch.rand((batch, count + len(REGIONS), side, side), generator=generator),
        "context": (torch.rand((batch, 3, side, side), generator=generator) * 2 - 1) * known,
        "known": known,
        "present": present_plane(planes),
    }
    return ConditionBatch(told).map(lambda tensor: tensor.to(device))
