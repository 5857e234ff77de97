"""The nuclei of the mask: one-hot classes, and the edges between instances (NASDM's condition)."""

from __future__ import annotations

import torch
from torch import Tensor

from wsigen.conditions.contract import Condition, Draft, TensorSpec, WindowBatch
from wsigen.conditions.settings import DrawSettings
from wsigen.masks.conditions import HALO


class Mask(Condition):
    """Planes of the classes, and one of the edges: 1 where a 4-neighbour belongs to another nucleus or to none."""

    name = "mask"
    source = "mask"
    guided = True

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """A plane a class, and one of edges."""
        return (TensorSpec("mask", "planes", len(self.config.classes) + 1),)

    def of_windows(self, windows: WindowBatch) -> dict[str, Tensor]:
        """From "classes" and "labels" (B, H + 18, W + 18), as `wsigen.masks.conditions.Surroundings` holds them."""
        inner = windows.arrays["classes"][:, HALO:-HALO, HALO:-HALO]
        edges = instance_edges(windows.arrays["labels"])
        return {"mask": mask_planes(inner, edges, len(self.config.classes), windows.dtype)}

    def draw(self, draft: Draft, settings: DrawSettings, groups: Tensor | None) -> None:
        """In some samples edges between touching nuclei of one class are dropped, as in masks without instances."""
        merged = draft.coin(settings.condition.merge_edges)[:, 0]
        edges = torch.where(merged, draft.crops["class_edges"], draft.crops["edges"])
        draft.tensors["mask"] = mask_planes(draft.crops["classes"], edges, len(self.config.classes))


def mask_planes(classes: Tensor, edges: Tensor, class_count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Expand (B, H, W) uint8 to (B, class_count + 1, H, W): one-hot classes, edges.

    ``classes`` holds 0 (background) to ``class_count``, ``edges`` 0 or 1.
    """
    batch, height, width = classes.shape
    planes = torch.empty((batch, class_count + 1, height, width), dtype=dtype, device=classes.device)
    for index in range(class_count):
        planes[:, index] = classes == index + 1
    planes[:, class_count] = edges
    return planes


def instance_edges(labels: Tensor) -> Tensor:
    """Edges (B, H, W) uint8 of labels (B, H + 18, W + 18): `wsigen.masks.conditions.instance_edges` of a batch."""
    rows, columns = labels[:, HALO - 1 : 1 - HALO, HALO:-HALO], labels[:, HALO:-HALO, HALO - 1 : 1 - HALO]
    along, across = rows[:, 1:] != rows[:, :-1], columns[:, :, 1:] != columns[:, :, :-1]
    return (along[:, 1:] | along[:, :-1] | across[:, :, 1:] | across[:, :, :-1]).to(torch.uint8)
