"""What is measured: labelled patches, real ones from a training folder or published ones from a file, and painted ones.

Real patches lie on a grid of half their side, so that no two share more than half of their pixels, and only where
people drew the labels. Painted patches are of the same masks, in the stain style of the same source image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from wsigen.conditions.context import to_uint8
from wsigen.conditions.contract import ConditionBatch, Crops
from wsigen.diffusion.noise import coordinate_normals
from wsigen.diffusion.schedules import NoiseSchedule
from wsigen.errors import DataError, SettingsError
from wsigen.evaluation.fidelity import instances_of
from wsigen.networks.denoise import denoise, model_sampler
from wsigen.networks.denoiser import Denoiser
from wsigen.system.devices import DeviceChoice
from wsigen.training.corrupt import plain_conditions
from wsigen.training.data import manifest as folder_format
from wsigen.training.patches import PatchBank
from wsigen.training.settings import TrainSettings

Tick = Callable[[int], None]
PAINT_BATCH = {"cuda": 32, "cpu": 2, "mps": 4}
PUBLISHED_GROUPS = 20
ON_THE_GRID = 1 << 20  # px between the places whose noise patches take


@dataclass(frozen=True)
class LabelledPatches:
    """N patches with their labels."""

    images: np.ndarray  # (N, W, W, 3) uint8
    classes: np.ndarray  # (N, W, W) uint8
    instances: np.ndarray  # (N, W, W) int32
    groups: list[str]  # source image of each

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: np.ndarray) -> LabelledPatches:
        """The patches of these numbers, in this order."""
        groups = [self.groups[i] for i in index]
        return LabelledPatches(self.images[index], self.classes[index], self.instances[index], groups)

    def with_images(self, images: np.ndarray) -> LabelledPatches:
        """Other pictures of the same labels."""
        return replace(self, images=images)


@dataclass(frozen=True)
class Material:
    """Real patches, and what the painter needs for the same masks."""

    patches: LabelledPatches
    crops: Crops
    bank: PatchBank
    class_names: tuple[str, ...]


def real_patches(
    folder: Path,
    split: str,
    window: int,
    count: int,
    device: torch.device,
    seed: int = 0,
    machine: bool = False,
    rare: tuple[float, ...] = (),
    stride: int | None = None,
) -> Material:
    """Draw up to ``count`` patches of ``window`` px of one side of the split; all that there are, if those are fewer.

    ``machine`` lets in patches whose labels a network drew. With ``rare``, weights by class that are added to a
    patch's 1 where it holds the class, ``count`` patches are drawn by weight, some of them often. ``stride`` is the
    grid's, in px. Raises DataError where the folder has no such patch.
    """
    manifest = folder_format.load(folder)
    settings = TrainSettings(crop_stride=stride or max(1, window // 2), rare_class_weight=rare)
    bank = PatchBank(folder, manifest, split, settings, device)
    table = bank.table(window)
    drawn = np.array([machine or entry.label_quality == "manual" for entry in bank.entries])
    rows = np.flatnonzero(drawn[table.image.cpu().numpy()])
    if not len(rows):
        raise DataError(f"{folder}: no {split} picture with labels drawn by people holds a window of {window} px")
    rng = np.random.default_rng(seed)
    if rare:
        weight = np.diff(table.cumulative.cpu().numpy(), prepend=0.0)[rows]
        rows = np.sort(rng.choice(rows, count, p=weight / weight.sum()))
    else:
        rows = np.sort(rng.permutation(rows)[:count])
    chosen = torch.from_numpy(rows).to(device)
    image, x, y = table.image[chosen], table.x[chosen], table.y[chosen]
    crops = bank.cut(image, x, y, window, torch.zeros_like(image))
    places = zip(image.tolist(), x.tolist(), y.tolist())
    ids: dict[int, np.ndarray] = {}
    instances = []
    for index, left, top in places:
        if index not in ids:
            path = folder_format.instance_path(folder, bank.entries[index].name)
            ids = {index: folder_format.read_label(path).astype(np.int32)}  # sorted: one picture at a time
        instances.append(ids[index][top : top + window, left : left + window])
    patches = LabelledPatches(
        np.ascontiguousarray(crops.picture.cpu().numpy().transpose(0, 2, 3, 1)),
        crops["classes"].cpu().numpy(),
        np.stack(instances),
        [bank.entries[index].group for index in image.tolist()],
    )
    names = tuple(str(entry["name"]) for entry in manifest.classes)
    return Material(patches, crops, bank, names)


def published_samples(path: Path, count: int, seed: int = 0) -> LabelledPatches:
    """Read samples with their masks from an .npz of ``images`` (N, H, W, 3) and ``labels`` (N, H, W), both uint8."""
    try:
        with np.load(path) as stored:
            images, labels = stored["images"], stored["labels"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: not an .npz with `images` and `labels` ({error})") from error
    fits = images.ndim == 4 and images.shape[3] == 3 and labels.shape == images.shape[:3]
    if not fits or images.dtype != np.uint8 or labels.dtype != np.uint8:
        raise DataError(
            f"{path}: images {images.shape} and labels {labels.shape}; give (N, H, W, 3) and (N, H, W) uint8"
        )
    chosen = np.sort(np.random.default_rng(seed).permutation(len(images))[:count])
    classes = labels[chosen]
    # Where they come from is not known: neighbours in the file are taken for one source image.
    groups = [f"{path.stem} {PUBLISHED_GROUPS * place // len(images)}" for place in chosen]
    return LabelledPatches(images[chosen], classes, np.stack([instances_of(c) for c in classes]), groups)


@dataclass(frozen=True)
class PaintOptions:
    """How patches are painted; None takes the model's default."""

    steps: int | None = None
    sampler: str | None = None
    guidance_scale: float | None = None
    seed: int = 0


def paint_patches(
    model: Denoiser,
    material: Material,
    options: PaintOptions,
    device: DeviceChoice,
    which: np.ndarray | None = None,
    tick: Tick = lambda n: None,
) -> np.ndarray:
    """Paint the masks of ``material`` (those numbered ``which``; all for None): (N, W, W, 3) uint8.

    Clear glass is pinned, as in rendering. The noise of a patch depends on its number and the seed alone.
    """
    numbers = np.arange(len(material.patches)) if which is None else np.asarray(which)
    inputs = partial(material_inputs, model, material)
    return paint_windows(model, inputs, torch.from_numpy(numbers).to(material.bank.device), options, device, tick)


def paint_windows(
    model: Denoiser,
    inputs: Callable[[torch.Tensor], ConditionBatch],
    numbers: torch.Tensor,
    options: PaintOptions,
    device: DeviceChoice,
    tick: Tick = lambda n: None,
) -> np.ndarray:
    """Paint the windows of these ``numbers`` (N,), whose conditions ``inputs`` gives: (N, W, W, 3) uint8.

    The noise of a window depends on its number and the seed alone.
    """
    config = model.config
    schedule = NoiseSchedule.from_name(config.schedule, config.schedule_steps)
    sampler = model_sampler(config, schedule, options.steps or config.num_inference_steps, options.sampler or "")
    painted = []
    for part in numbers.split(PAINT_BATCH[device.device]):
        given = inputs(part)
        window = given.known.shape[-1]
        check_window(model, window)
        noise = partial(_noise, options.seed, part, window)
        guidance = config.guidance(options.guidance_scale)
        pixels = denoise(model, schedule, sampler, given, noise(-1), noise, guidance)
        painted.append(to_uint8(pixels).cpu().numpy())
        tick(len(part))
    return np.concatenate(painted)


def check_window(model: Denoiser, window: int) -> None:
    """Raise SettingsError for a side that the network cannot take."""
    if window % model.size_multiple:
        raise SettingsError(f"--window {window}: must be a multiple of {model.size_multiple} for this model")


def _noise(seed: int, numbers: torch.Tensor, window: int, step: int) -> torch.Tensor:
    """Fresh noise of a solver's step, or for -1 what painting starts from: (B, 3, W, W)."""
    origin = torch.zeros_like(numbers)
    return coordinate_normals(seed, numbers * ON_THE_GRID, origin, window, window, step + 1, device=numbers.device)


def material_inputs(model: Denoiser, material: Material, which: torch.Tensor | None = None) -> ConditionBatch:
    """What a painter is told of patches (those numbered ``which``): mask, style, clear glass."""
    crops, bank = material.crops.part(slice(None) if which is None else which), material.bank
    told = model.config.told_stain(np.array([style.vector for style in bank.styles]))
    glass = np.array([style.glass_rgb for style in bank.styles], np.float32)
    stain, white = (torch.from_numpy(values).to(bank.device)[crops.group] for values in (told, glass))
    return plain_conditions(model.conditions, crops, white, {"stain": stain}, bank)


def load_painter(name: str, device: DeviceChoice) -> Denoiser:
    """Load a painter onto the device, in its number format."""
    model = Denoiser.from_pretrained(name).to(device.device, getattr(torch, device.dtype)).eval()
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch types omit it


def jpeg_history(patches: np.ndarray, quality: int) -> np.ndarray:
    """Store (N, W, W, 3) uint8 patches as JPEG once and read them back, as a slide does with its tiles."""
    import pyvips

    def through(patch: np.ndarray) -> np.ndarray:
        data = pyvips.Image.new_from_array(np.ascontiguousarray(patch)).jpegsave_buffer(Q=quality, keep="none")
        return pyvips.Image.jpegload_buffer(data).numpy()

    return np.stack([through(patch) for patch in patches])
