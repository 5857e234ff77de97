"""Classifier-free guidance of a batch: what stands for "not told", and the plane that says so to the network.

NASDM's condition has a plane more, *present*: 1, and 0 for the null condition. Without it an empty mask on unknown
tissue would equal the null condition, and guidance would do nothing there. To a network that has learned guidance,
*present* says its scale.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wsigen.conditions.contract import Condition, ConditionBatch, Draft, TensorSpec

PRESENT = TensorSpec("present", "planes", 1)


def present_plane(plane: Tensor) -> Tensor:
    """The plane of a batch with all its conditions: ones (B, 1, H, W), in the format of another tensor (B, C, H, W)."""
    return torch.ones_like(plane[:, :1])


def null_batch(conditions: Sequence[Condition], batch: ConditionBatch, drop: Tensor | None = None) -> ConditionBatch:
    """The batch without its guided conditions, in the samples of ``drop`` (B,) bool; in all if None.

    Context, known pixels and stain style are not guided and stay (Ho and Salimans 2022).
    """
    nulls = {PRESENT.name: torch.zeros_like(batch[PRESENT.name])}
    for condition in conditions:
        if condition.guided:
            nulls |= condition.null(batch)
    if drop is None:
        return batch.replaced(**nulls)
    chosen = {
        name: torch.where(drop.view(-1, *[1] * (null.ndim - 1)), null, batch[name]) for name, null in nulls.items()
    }
    return batch.replaced(**chosen)


def say_scale(batch: ConditionBatch, scale: float | Tensor) -> ConditionBatch:
    """The batch whose *present* plane says the guidance scale, to a network that learned it.

    The scale is a number, or one for each sample (B,). 0 stays the null condition, which is guidance with a scale of 0,
    as 1 is the condition itself.
    """
    present = batch[PRESENT.name]
    # A number stays one: a graph of the GPU's work can hold no copy from the host.
    factor = scale.to(present)[:, None, None, None] if torch.is_tensor(scale) else scale
    return batch.replaced(present=present * factor)


def drop_out(conditions: Sequence[Condition], draft: Draft, share: float) -> ConditionBatch:
    """Conditions of a training batch, of which ``share`` of the samples are told nothing that is guided."""
    context, known = draft.image * draft.known, draft.known.float()
    given = {PRESENT.name: present_plane(known), "context": context, "known": known}
    return null_batch(conditions, ConditionBatch({**draft.tensors, **given}), draft.rand(len(draft)) < share)
