"""Sample sheets: a picture that shows how a run is doing, better than any loss.

Each column is one held-out crop: its mask in class colours, the real pixels, and a painting of the mask. Sheets show
real pixels, so they stay in the run's folder.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wsigen.conditions.context import to_uint8
from wsigen.diffusion.schedules import NoiseSchedule
from wsigen.networks.denoise import denoise, model_sampler
from wsigen.networks.denoiser import Denoiser
from wsigen.training.corrupt import plain_conditions
from wsigen.training.patches import PatchBank

COLUMNS = 8


def write_sample_sheet(model: Denoiser, bank: PatchBank, window: int, path: Path, steps: int = 8) -> None:
    """Paint COLUMNS fixed crops of ``bank`` and write the sheet as PNG to ``path``."""
    config, device = model.config, bank.device
    crops = bank.sample(window, COLUMNS, torch.Generator(device).manual_seed(7))
    glass = torch.tensor([style.glass_rgb for style in bank.styles], dtype=torch.float32, device=device)
    conditions = plain_conditions(model.conditions, crops, glass[crops.group], groups=bank)
    schedule = NoiseSchedule.from_name(config.schedule, config.schedule_steps)
    sampler = model_sampler(config, schedule, steps)
    noise = torch.randn((COLUMNS, 3, window, window), generator=torch.Generator(device).manual_seed(8), device=device)
    was_training = model.training
    model.eval()
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        painted = denoise(model, schedule, sampler, conditions, noise, lambda _: torch.randn_like(noise))
    model.train(was_training)
    pixels = to_uint8(painted).permute(0, 3, 1, 2)
    rows = [_class_colours(crops["classes"], model), crops.picture, pixels]
    sheet = torch.cat([_row(images) for images in rows], dim=1).permute(1, 2, 0).cpu().numpy()
    write_png(sheet, path)


def _class_colours(classes: Tensor, model: Denoiser) -> Tensor:
    table = [(255, 255, 255), *(entry.rgb for entry in model.config.classes)]
    return torch.tensor(table, dtype=torch.uint8, device=classes.device)[classes.long()].permute(0, 3, 1, 2)


def _row(images: Tensor) -> Tensor:
    return torch.cat(list(images), dim=2)


def write_png(pixels: np.ndarray, path: Path) -> None:
    """Write a picture (H, W, 3) uint8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        import pyvips

        pyvips.Image.new_from_array(pixels).write_to_file(str(path))
    except ImportError:  # a training machine may have Pillow only, as for reading
        from PIL import Image

        Image.fromarray(pixels).save(path)
