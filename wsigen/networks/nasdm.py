"""NasdmModel: the nuclei-aware semantic diffusion model, a U-Net whose decoder is modulated by the mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wsigen.conditions.contract import ConditionBatch
from wsigen.models.config import ModelConfig
from wsigen.networks import unet_fused
from wsigen.networks.denoiser import Denoiser, Prediction
from wsigen.networks.unet import SpadeMaps, UNet


@dataclass(frozen=True)
class Prepared:
    """What steps of a batch need: images beside the noisy one, vectors beside the timestep, and SPADE's maps."""

    beside: list[Tensor]
    vectors: dict[str, Tensor]
    maps: SpadeMaps | unet_fused.Cache


class Entries(NamedTuple):
    """A batch's conditions by where they enter the U-Net."""

    planes: Tensor  # (B, P, H, W), channels_last
    pixels: list[Tensor]
    vectors: dict[str, Tensor]


class NasdmModel(Denoiser):
    """The nuclei-aware semantic diffusion model (Shrivastava and Fletcher, MICCAI 2023): mask to H&E window."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        of_entry = {entry: [spec for spec in self.specs if spec.entry == entry] for entry in ("planes", "pixels")}
        planes, pixels = (sum(spec.channels for spec in specs) for specs in of_entry.values())
        vectors = {spec.name: spec.channels for spec in self.specs if spec.entry == "vector"}
        self.unet = UNet(config.unet, planes, 6 if config.learned_variance else 3, pixels, vectors)

    @property
    def size_multiple(self) -> int:
        """Window sides must be a multiple of this, in pixels."""
        return self.unet.size_multiple

    def entries(self, batch: ConditionBatch) -> Entries:
        """Sort a batch's conditions by where they enter."""
        planes = torch.cat([batch[spec.name] for spec in self.specs if spec.entry == "planes"], 1)
        return Entries(
            planes.contiguous(memory_format=torch.channels_last),
            [batch[spec.name] for spec in self.specs if spec.entry == "pixels"],
            {spec.name: batch[spec.name] for spec in self.specs if spec.entry == "vector"},
        )

    def prepare(self, conditions: ConditionBatch) -> Prepared:
        """Compute the SPADE maps once, by the path that runs here: see `wsigen.networks.unet_fused`."""
        planes, pixels, vectors = self.entries(conditions)
        fused = unet_fused.serves(self.unet, planes)
        maps = unet_fused.prepare(self.unet, planes) if fused else self.unet.spade_maps(planes)
        beside = [*pixels, planes] if self.config.unet.condition_in_encoder else pixels
        return Prepared(beside, vectors, maps)

    def predict(self, prepared: Prepared, x: Tensor, t: Tensor) -> Prediction:
        """Predict from the noisy window, in the configuration's parametrisation."""
        inputs, emb = [x, *prepared.beside], self.unet.embedding(t, prepared.vectors, x.dtype)
        if isinstance(prepared.maps, unet_fused.Cache):
            output = unet_fused.forward(self.unet, inputs, emb, prepared.maps)
        else:
            output = self.unet(inputs, emb, prepared.maps)
        return Prediction(output[:, :3], output[:, 3:]) if self.config.learned_variance else Prediction(output)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The layers that time and style modulate through, and the others."""
        groups: dict[str, list[nn.Parameter]] = {"others": [], "modulation": []}
        for name, parameter in self.named_parameters():
            modulates = ".time." in name or "_mlp" in name
            groups["modulation" if modulates else "others"].append(parameter)
        return groups
