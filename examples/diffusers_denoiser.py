"""A `UNet2DModel` of diffusers as a denoiser of wsigen, under the architecture "diffusers-unet2d".

A package that holds this file registers it in its pyproject.toml:

    [project.entry-points."wsigen.denoisers"]
    diffusers-unet2d = "my_package.diffusers_denoiser:DiffusersUNet"

After `pip install` of that package a model folder may say so in its config.json; "network" has the options of the
`UNet2DModel`, but for its channels and its size, which follow from the model's conditions and from the window:

    "architecture": "diffusers-unet2d",
    "network": {"block_out_channels": [64, 128, 256], "layers_per_block": 2,
                "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
                "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"]}
"""

from __future__ import annotations

import torch
from diffusers import UNet2DModel
from torch import Tensor

from wsigen.conditions.contract import ConditionBatch
from wsigen.models.config import ModelConfig
from wsigen.networks.denoiser import Denoiser, Prediction


class DiffusersUNet(Denoiser):
    """All conditions enter as channels beside the noisy window; the numbers of a vector are the same at all pixels."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        told = sum(spec.channels for spec in self.specs)
        out = 6 if config.learned_variance else 3
        self.unet = UNet2DModel(in_channels=3 + told, out_channels=out, **dict(config.network))

    @property
    def size_multiple(self) -> int:
        """Each level but the last halves the sides of a window."""
        return 2 ** (len(self.unet.config["block_out_channels"]) - 1)

    def prepare(self, told: ConditionBatch) -> Tensor:
        """Concatenate what does not change from step to step: (B, C, H, W)."""
        height, width = told.known.shape[2:]
        parts = [
            told[spec.name][:, :, None, None].expand(-1, -1, height, width)
            if spec.entry == "vector"
            else told[spec.name]
            for spec in self.specs
        ]
        return torch.cat(parts, 1)

    def predict(self, prepared: Tensor, x: Tensor, t: Tensor) -> Prediction:
        """Predict from the noisy windows ``x`` (B, 3, H, W) at ``t`` (B,)."""
        output = self.unet(torch.cat([x, prepared.to(x.dtype)], 1), t).sample
        return Prediction(output[:, :3], output[:, 3:]) if self.config.learned_variance else Prediction(output)
