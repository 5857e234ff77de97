"""Training of the network that finds nuclei, from which mask fidelity is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from wsigen.masks.classes import ClassTable
from wsigen.networks.measuring import SegmentationNetwork, network_config
from wsigen.training.appearance import Appearance
from wsigen.training.data.manifest import Manifest
from wsigen.training.fields import RGB, Plane
from wsigen.training.loop import Trainable, Trainer
from wsigen.training.patches import PatchBank

DEPTH_WEIGHT = 2.0  # the squared error of depth is a tenth of the cross entropy at the same quality


@dataclass(frozen=True)
class LabelledBatch:
    """Pictures (B, 3, W, W) in [-1, 1], classes (B, W, W) int64, depth (B, W, W) in [0, 1]."""

    images: Tensor
    classes: Tensor
    depth: Tensor


class SegmentingTrainer(Trainer):
    """Trains :class:`SegmentationNetwork` on class (cross entropy and Dice) and on depth (squared error)."""

    columns = ("class", "dice", "depth")

    def open_bank(self, data: Path, manifest: Manifest, split: str) -> PatchBank:
        """Load one side of the split, with the plane of depths."""
        return PatchBank(data, manifest, split, self.settings, self.process.device, depth=True)

    def build(self, manifest: Manifest) -> Trainable:
        """Make the network of the recipe's architecture, or load the one to start from."""
        self.appearance = Appearance(self.settings.augment, self.settings.appearance)
        if self.settings.initial_model:
            network = SegmentationNetwork.from_pretrained(self.settings.initial_model).requires_grad_(True)
            return cast(Trainable, network)
        classes = ClassTable.from_config(manifest.classes)
        config = network_config(self.settings.architecture, "segment", classes, manifest.mpp)
        return cast(Trainable, SegmentationNetwork(config))

    def draw(self, bank: PatchBank, window: int, size: int, generator: torch.Generator) -> LabelledBatch:
        """Draw crops and change their looks; the held-out ones stay as they are."""
        planes = bank.sample(window, size, generator).planes
        images = planes[:, RGB].float() / 127.5 - 1
        if bank.split == "train":
            images = self.appearance(images, generator).images
        return LabelledBatch(images, planes[:, Plane.CLASSES].long(), planes[:, Plane.DEPTH].float() / 255)

    def losses(self, network: Callable[..., tuple[Tensor, Tensor]], batch: LabelledBatch) -> tuple[Tensor, Tensor]:
        """Three losses a sample, columns in the order of ``columns``."""
        with self.autocast():
            logits, depth = network(batch.images)
        entropy = F.cross_entropy(logits, batch.classes, reduction="none").mean((1, 2))
        squared = (depth - batch.depth).square()
        inside = (batch.classes > 0).float()
        error = DEPTH_WEIGHT * (squared * (1 + 3 * inside)).mean((1, 2))
        terms = torch.stack([entropy, dice_loss(logits, batch.classes), error])
        columns = torch.arange(3, device=depth.device)[:, None].expand(3, len(depth))
        return terms.flatten(), columns.flatten()


def dice_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """One minus the soft Dice of the classes that a sample holds, background excepted: (B,).

    ``logits`` (B, C + 1, H, W), ``classes`` (B, H, W). Rare classes count as much as common ones, which the cross
    entropy does not give them. A sample without nuclei has the loss 0.
    """
    probability = logits.softmax(1)[:, 1:]
    truth = torch.stack([classes == index + 1 for index in range(probability.shape[1])], dim=1).float()
    overlap = (probability * truth).sum((2, 3))
    total = probability.sum((2, 3)) + truth.sum((2, 3))
    held = truth.amax((2, 3))
    dice = (2 * overlap + 1) / (total + 1)
    return ((1 - dice) * held).sum(1) / held.sum(1).clamp(min=1)
