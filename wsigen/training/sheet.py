"""Sample sheets: a picture that shows how a run is doing, better than any loss.

Each column is one held-out crop: its mask in class colours, the real pixels, and a painting of the mask. Sheets show
real pixels, so they stay in the run's folder.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wsigen.diffusion.schedules import NoiseSchedule
from wsigen.models.conditioned import WindowInputs
from wsigen.models.conditioning import condition_planes
from wsigen.networks.denoise import denoise, model_sampler
from wsigen.networks.denoiser import Denoiser
from wsigen.training.patches import PatchBank

COLUMNS = 8


def write_sample_sheet(model: Denoiser, bank: PatchBank, window: int, path: Path, steps: int = 8) -> None:
    """Paint COLUMNS fixed crops of ``bank`` and write the sheet as PNG to ``path``."""
    config, device = model.config, bank.device
    crops = bank.sample(window, COLUMNS, torch.Generator(device).manual_seed(7))
    bytes_ = crops.planes
    normalised, _, glass = bank.style_tensors(config.style_range)
    planes = condition_planes(bytes_[:, 3], bytes_[:, 4] & 1, bytes_[:, 5], len(config.classes))
    known = (bytes_[:, 7:8] > 0).float()
    white = (glass[crops.group] / 127.5 - 1)[:, :, None, None]
    inputs = WindowInputs(planes, white * known, known, normalised[crops.group])
    schedule = NoiseSchedule.from_name(config.schedule, config.schedule_steps)
    sampler = model_sampler(config, schedule, steps)
    noise = torch.randn((COLUMNS, 3, window, window), generator=torch.Generator(device).manual_seed(8), device=device)
    was_training = model.training
    model.eval()
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        painted = denoise(model, schedule, sampler, inputs, noise, lambda _: torch.randn_like(noise))
    model.train(was_training)
    rows = [_class_colours(bytes_[:, 3], model), bytes_[:, :3], ((painted + 1) * 127.5).round().clamp(0, 255).byte()]
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
