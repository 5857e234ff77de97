"""What one batch costs, told without computing: operations, and the most memory that is alive at a time.

The network runs on torch's meta device, where tensors have shapes and no data. Operations are counted by torch's own
counter; memory by asking after every operation which storages still live.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from wsigen.models.config import ModelConfig
from wsigen.models.nasdm import NasdmModel


@dataclass(frozen=True)
class BatchCost:
    """Of a batch and all its steps: operations (2 a multiply-add); bytes of weights, and of what lives beside them."""

    operations: int
    weight_bytes: int
    work_bytes: int


@lru_cache(64)
def batch_cost(config: ModelConfig, window: int, batch_size: int, steps: int, calls: int, dtype: str) -> BatchCost:
    """Cost of a batch of ``batch_size`` windows of ``window`` px in ``dtype``; each step makes ``calls`` calls."""
    kind = getattr(torch, dtype)
    with torch.device("meta"), torch.inference_mode():
        model = NasdmModel(config).to(kind).eval()
        planes = torch.empty(batch_size, config.condition_planes, window, window, dtype=kind)
        picture = torch.empty(batch_size, 3, window, window, dtype=kind)
        known, t = torch.empty(batch_size, 1, window, window, dtype=kind), torch.empty(batch_size)
        style = torch.empty(batch_size, 6, dtype=kind)
        # What the solver holds in float32: x, x0, the x0 before, noise, context.
        solver = 5 * batch_size * 3 * window**2 * 4
        # On this device attention is plain products whatever is chosen. Nothing may be chosen here for the process:
        # another slide may be under way.
        with _Peak() as peak:
            with FlopCounterMode(display=False) as maps:
                cache = model.spade_cache(planes)
            with FlopCounterMode(display=False) as step:
                model(picture, t, planes, picture, known, style, cache)
    operations = calls * (maps.get_total_flops() + steps * step.get_total_flops())
    maps_bytes = sum(leaf.nbytes for leaf in tree_leaves(cache) if isinstance(leaf, torch.Tensor))
    weights = sum(p.numel() for p in model.parameters()) * kind.itemsize
    return BatchCost(operations, weights, peak.bytes + (calls - 1) * maps_bytes + solver)


class _Peak(TorchDispatchMode):
    """The most bytes alive at a time of all tensors that are made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self._alive.values()))
        return out
