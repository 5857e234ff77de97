"""Training of the mask model: the denoiser's training, of pictures of masks under layouts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from wsigen.errors import SettingsError
from wsigen.masks.classes import ClassTable
from wsigen.masks.synthesis.decoding import Decoder
from wsigen.masks.synthesis.layout import REGIONS
from wsigen.masks.synthesis.mask_code import BLANK, MaskCode
from wsigen.models.conditioned import WindowInputs
from wsigen.models.conditioning import null_planes
from wsigen.models.config import ModelConfig
from wsigen.models.denoise import denoise, model_sampler
from wsigen.models.nasdm import NasdmModel
from wsigen.models.stain import StainStyle
from wsigen.training.corrupt import TrainingBatch, coin, context_mask, corrupt_context
from wsigen.training.denoising import DenoisingTrainer
from wsigen.training.layouts import CODE, CUT, MARGIN, MARKS, MaskBank, drawn_layout
from wsigen.training.manifest import Manifest
from wsigen.training.patches import Crops, PatchBank
from wsigen.training.settings import TrainSettings
from wsigen.training.sheet import write_png

COLUMNS = 8
SHEET_STEPS = 12
STYLE_VALUES = 6  # that networks take, and a mask model has no use for


class MaskTrainer(DenoisingTrainer):
    """Trains a ``NasdmModel`` that paints masks."""

    def open_bank(self, data: Path, manifest: Manifest, split: str) -> PatchBank:
        """Load the masks of one side of the split."""
        code = MaskCode.of(ClassTable.from_config(manifest.classes))
        return MaskBank(data, manifest, split, self.settings, self.process.device, code)

    def configure(self, manifest: Manifest) -> ModelConfig:
        """Fill the preset of the recipe with the classes of the data, its scale, and what its nuclei are like."""
        preset = ModelConfig.preset(self.settings.architecture)
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

    def corruptor(self, bank: PatchBank) -> MaskCorruptor:
        """What makes training batches of a bank's crops."""
        return MaskCorruptor(bank.class_count, self.settings)

    def show(self, window: int) -> None:
        """Write held-out masks above what the model samples from their layouts, in class colours."""
        bank, config = self.held_out, self.config
        device = bank.device
        batch = MaskCorruptor(bank.class_count, _without_context(self.settings))(
            bank.sample(window, COLUMNS, torch.Generator(device).manual_seed(7)), torch.Generator(device).manual_seed(7)
        )
        noise = torch.randn(batch.x0.shape, generator=torch.Generator(device).manual_seed(8), device=device)
        sampler = model_sampler(config, self.schedule, min(config.num_inference_steps, SHEET_STEPS))
        inputs = WindowInputs(batch.planes, batch.context, batch.known, batch.style)
        self.averaged.eval()
        with self.autocast():
            model = cast(NasdmModel, self.averaged)
            sampled = denoise(model, self.schedule, sampler, inputs, noise, lambda _: torch.randn_like(noise))
        decoder = Decoder(MaskCode.of(config.classes), config.limits)
        colours = np.array([(255, 255, 255), *(entry.rgb for entry in config.classes)], np.uint8)
        rows = []
        for pictures in (batch.x0, sampled):
            bytes_ = ((pictures + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
            rows += [np.hstack(list(bytes_)), np.hstack([colours[decoder(picture).classes] for picture in bytes_])]
        write_png(np.vstack(rows), self.out / "samples" / f"step-{self.step:06d}.png")


def _without_context(settings: TrainSettings) -> TrainSettings:
    context = replace(settings.context, none=1.0, horizontal=0.0, vertical=0.0, ring=0.0, strips=0.0)
    condition = replace(settings.condition, drop=0.0, pin_glass=0.0)
    return replace(settings, context=context, condition=condition)


class MaskCorruptor:
    """Draws training batches from the crops of a `MaskBank`."""

    def __init__(self, class_count: int, settings: TrainSettings) -> None:
        self.class_count, self.settings = class_count, settings

    def __call__(self, crops: Crops, generator: torch.Generator) -> TrainingBatch:
        """Build a batch; consumes random numbers from ``generator`` in a fixed order."""
        settings, planes = self.settings, crops.planes
        batch, device = len(planes), planes.device
        blurs = (settings.layout.least_blurs, settings.layout.most_blurs)
        layout = drawn_layout(planes, self.class_count, blurs, generator)
        inner = planes[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN]
        image = inner[:, CODE].float() / 127.5 - 1
        glass = layout[:, self.class_count : self.class_count + 1] > 254.5 / 255
        pinned = glass & coin(batch, settings.condition.pin_glass, generator, device)
        image = torch.where(pinned, _blank(device), image)
        painted = context_mask(batch, image.shape[-1], settings.context, generator, device)
        context = corrupt_context(image, settings.context, generator)
        image = torch.where(painted & ~pinned, context, image)
        known = (painted | pinned).float()
        drop = torch.rand(batch, generator=generator, device=device) < settings.condition.drop
        cut = inner[:, MARKS : MARKS + 1] >= CUT
        style = torch.zeros(batch, STYLE_VALUES, device=device)
        return TrainingBatch(image, null_planes(layout, drop), image * known, known, style, cut)


def _blank(device: torch.device) -> Tensor:
    return torch.tensor(BLANK, device=device)[:, None, None] / 127.5 - 1


assert REGIONS[0] == "glass"  # whose plane follows the densities
