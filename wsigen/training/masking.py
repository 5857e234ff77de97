"""Training of the mask model: the denoiser's training, of pictures of masks under layouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch

from wsigen.conditions.context import to_uint8
from wsigen.conditions.contract import Condition, Crops, Draft, Groups
from wsigen.conditions.density import CUT, MARGIN
from wsigen.conditions.settings import unspoilt
from wsigen.errors import SettingsError
from wsigen.layouts.decoding import Decoder
from wsigen.layouts.mask_code import BLANK, MaskCode
from wsigen.masks.classes import ClassTable
from wsigen.models.config import ModelConfig
from wsigen.models.stain import StainStyle
from wsigen.networks.denoise import denoise, model_sampler
from wsigen.networks.denoiser import Denoiser
from wsigen.training.corrupt import Corruptor, begin_draft
from wsigen.training.data.manifest import Manifest
from wsigen.training.denoising import DenoisingTrainer
from wsigen.training.layouts import MaskBank
from wsigen.training.patches import PatchBank
from wsigen.training.settings import TrainSettings
from wsigen.training.sheet import write_png

COLUMNS = 8
SHEET_STEPS = 12


class MaskTrainer(DenoisingTrainer):
    """Trains a `Denoiser` that paints masks."""

    def open_bank(self, data: Path, manifest: Manifest, split: str) -> PatchBank:
        """Load the masks of one side of the split."""
        code = MaskCode.of(ClassTable.from_config(manifest.classes))
        return MaskBank(data, manifest, split, self.settings, self.process.device, code)

    def configure(self, manifest: Manifest) -> ModelConfig:
        """Fill the preset of the recipe with the classes of the data, its scale, and what its nuclei are like."""
        preset = ModelConfig.preset(self.settings.architecture).changed(self.settings.model)
        if preset.paints != "mask":
            raise SettingsError(f"architecture {preset.name!r} paints no masks; take mask-colon-20x")
        blank = StainStyle("mask", glass_rgb=BLANK)
        return replace(
            preset,
            classes=ClassTable.from_config(manifest.classes),
            mpp=manifest.mpp,
            styles=(blank,),
            default_style=blank.name,
            limits=cast(MaskBank, self.bank).limits,
        )

    def corruptor(self, bank: PatchBank, conditions: Sequence[Condition], settings: TrainSettings) -> Corruptor:
        """What makes training batches of a bank's crops."""
        return mask_corruptor(conditions, bank, settings)

    def show(self, window: int) -> None:
        """Write held-out masks above what the model samples from their layouts, in class colours."""
        bank, config = self.held_out, self.config
        device = bank.device
        model = cast(Denoiser, self.averaged)
        settings = unspoilt(self.settings)
        settings = replace(settings, condition=replace(settings.condition, pin_glass=0.0))
        batch = mask_corruptor(model.conditions, bank, settings)(
            bank.sample(window, COLUMNS, torch.Generator(device).manual_seed(7)), torch.Generator(device).manual_seed(7)
        )
        noise = torch.randn(batch.x0.shape, generator=torch.Generator(device).manual_seed(8), device=device)
        sampler = model_sampler(config, self.schedule, min(config.num_inference_steps, SHEET_STEPS))
        model.eval()
        with self.autocast():
            sampled = denoise(model, self.schedule, sampler, batch.conditions, noise, lambda _: torch.randn_like(noise))
        decoder = Decoder(MaskCode.of(config.classes), config.limits)
        colours = np.array([(255, 255, 255), *(entry.rgb for entry in config.classes)], np.uint8)
        rows = []
        for pictures in (batch.x0, sampled):
            bytes_ = to_uint8(pictures).cpu().numpy()
            rows += [np.hstack(list(bytes_)), np.hstack([colours[decoder(picture).classes] for picture in bytes_])]
        write_png(np.vstack(rows), self.out / "samples" / f"step-{self.step:06d}.png")


def mask_corruptor(conditions: Sequence[Condition], groups: Groups, settings: TrainSettings) -> Corruptor:
    """What draws batches of a model that paints masks."""
    return Corruptor(conditions, groups, _begin, settings)


def _begin(crops: Crops, generator: torch.Generator) -> Draft:
    """A draft of a picture of a mask; nuclei that are not whole teach nothing."""
    batch, inner = len(crops.planes), (slice(None), slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    picture = crops.picture[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN].float()
    blank = torch.tensor(BLANK, dtype=torch.float32, device=picture.device).expand(batch, 3)
    draft = begin_draft(crops, picture, blank, torch.ones_like(blank), generator)
    draft.ignored = (crops["marks"][inner] >= CUT)[:, None]
    return draft
