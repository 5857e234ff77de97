"""Training of the feature network, over which distances between painted and real patches are taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from wsigen.masks.classes import ClassTable
from wsigen.networks.measuring import Description, FeatureNetwork, network_config
from wsigen.training.appearance import Appearance
from wsigen.training.data.manifest import Manifest
from wsigen.training.fields import RGB, Plane
from wsigen.training.loop import Trainable, Trainer
from wsigen.training.patches import PRESENT_PIXELS, PatchBank

UNKNOWN_SOURCE = -100  # of held-out patches: their source images are not among those that are learned


@dataclass(frozen=True)
class DescribedBatch:
    """Pictures (B, 3, W, W) in [-1, 1] and what is to be said of them: see :class:`Description`."""

    images: Tensor
    presence: Tensor
    share: Tensor
    source: Tensor
    decay: Tensor


class RecognisingTrainer(Trainer):
    """Trains :class:`FeatureNetwork`: nuclei, their share of pixels, source image, and decay of quality."""

    columns = ("presence", "share", "source", "decay")

    def build(self, manifest: Manifest) -> Trainable:
        """Make the network of the recipe's architecture for the groups of the training split."""
        self.appearance = Appearance(self.settings.augment, self.settings.appearance)
        classes = ClassTable.from_config(manifest.classes)
        groups = tuple(self.bank.groups)
        config = network_config(self.settings.architecture, "features", classes, manifest.mpp, groups)
        return cast(Trainable, FeatureNetwork(config))

    def draw(self, bank: PatchBank, window: int, size: int, generator: torch.Generator) -> DescribedBatch:
        """Draw crops, change their looks, and note what the network should say."""
        crops = bank.sample(window, size, generator)
        changed = self.appearance(crops.planes[:, RGB].float() / 127.5 - 1, generator)
        classes = crops.planes[:, Plane.CLASSES]
        count = torch.stack([(classes == index + 1).sum((1, 2)) for index in range(bank.class_count)], 1)
        source = crops.group if bank.split == "train" else torch.full_like(crops.group, UNKNOWN_SOURCE)
        return DescribedBatch(
            changed.images,
            (count >= PRESENT_PIXELS).float(),
            (count / window**2).sqrt(),
            source,
            changed.strength,
        )

    def losses(self, network: Callable[..., Description], batch: DescribedBatch) -> tuple[Tensor, Tensor]:
        """Four losses a sample, brought to like sizes; columns in the order of ``columns``."""
        with self.autocast():
            said = network(batch.images)
        terms = torch.stack(
            [
                F.binary_cross_entropy_with_logits(said.presence, batch.presence, reduction="none").mean(1),
                20 * (said.share - batch.share).square().mean(1),
                0.3 * F.cross_entropy(said.source, batch.source, ignore_index=UNKNOWN_SOURCE, reduction="none"),
                5 * (said.decay - batch.decay).square().mean(1),
            ]
        )
        columns = torch.arange(len(terms), device=terms.device)[:, None].expand(terms.shape)
        return terms.flatten(), columns.flatten()
