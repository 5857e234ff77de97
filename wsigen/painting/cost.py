"""What one batch costs, told without computing: operations, and the most memory that is alive at a time.

The network runs on torch's meta device, where tensors have shapes and no data. Operations are counted by torch's own
counter; memory by asking after every operation which storages still live. That takes seconds, most of them to import
what torch traces with, so the costs of shipped networks at default settings lie in `costs.json`, which

    python -m wsigen.painting.cost

writes anew; a test compares it with what is traced.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, is_dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wsigen.conditions.contract import ConditionBatch
from wsigen.models.config import ModelConfig
from wsigen.models.registry import shipped_models
from wsigen.networks.denoiser import Denoiser

COSTS = Path(__file__).with_name("costs.json")
SHIPPED_BATCHES = ((64, "bfloat16"), (2, "bfloat16"), (2, "float32"))  # of GPUs, and of CPUs with and without bfloat16


@dataclass(frozen=True)
class BatchCost:
    """Of a batch and all its steps: operations (2 a multiply-add); bytes of weights, and of what lives beside them."""

    operations: int
    weight_bytes: int
    work_bytes: int


@dataclass(frozen=True)
class _Traced:
    """Of a network and a batch: operations of its maps and of a step; bytes of maps, and of what lives at most."""

    maps: int
    step: int
    maps_bytes: int
    peak_bytes: int


@lru_cache(64)
def batch_cost(config: ModelConfig, window: int, batch_size: int, steps: int, calls: int, dtype: str) -> BatchCost:
    """Cost of a batch of ``batch_size`` windows of ``window`` px in ``dtype``; each step makes ``calls`` calls."""
    listed = _listed().get(_key(config, window, batch_size, dtype))
    traced = _Traced(**listed) if listed else _trace(config, window, batch_size, dtype)
    # What the solver holds in float32: x, x0, the x0 before, noise, context.
    solver = 5 * batch_size * 3 * window**2 * 4
    with torch.device("meta"):
        parameters = Denoiser.from_config(config).parameter_count
    return BatchCost(
        calls * (traced.maps + steps * traced.step),
        parameters * getattr(torch, dtype).itemsize,
        traced.peak_bytes + (calls - 1) * traced.maps_bytes + solver,
    )


def _trace(config: ModelConfig, window: int, batch_size: int, dtype: str) -> _Traced:
    from torch.utils.flop_counter import FlopCounterMode  # late: it imports Triton

    kind = getattr(torch, dtype)
    with torch.device("meta"), torch.inference_mode():
        model = Denoiser.from_config(config).to(kind).eval()
        conditions = ConditionBatch(
            {
                spec.name: torch.empty(
                    batch_size, spec.channels, *[window] * (2 * (spec.entry != "vector")), dtype=kind
                )
                for spec in model.specs
            }
        )
        picture, t = torch.empty(batch_size, 3, window, window, dtype=kind), torch.empty(batch_size)
        # On this device attention is plain products whatever is chosen. Nothing may be chosen here for the process:
        # another slide may be under way.
        with _Peak() as peak:
            with FlopCounterMode(display=False) as maps:
                kept = model.prepare(conditions)
            with FlopCounterMode(display=False) as step:
                model.predict(kept, picture, t)
    maps_bytes = sum(tensor.nbytes for tensor in _tensors(kept))
    return _Traced(maps.get_total_flops(), step.get_total_flops(), maps_bytes, peak.bytes)


def _key(config: ModelConfig, window: int, batch_size: int, dtype: str) -> str:
    """Names a network's shape, whatever its weights are, and a batch."""
    network = json.dumps(config.shape, sort_keys=True)
    return f"{hashlib.sha256(network.encode()).hexdigest()[:16]} {batch_size} x {window} px {dtype}"


def _tensors(kept: Any) -> Iterator[torch.Tensor]:
    """Tensors of what a denoiser prepared, in dataclasses too."""
    for leaf in tree_leaves(vars(kept) if is_dataclass(kept) else kept):
        if isinstance(leaf, torch.Tensor):
            yield leaf


@cache
def _listed() -> dict[str, dict[str, int]]:
    return json.loads(COSTS.read_text(encoding="utf-8"))


def trace_shipped() -> dict[str, dict[str, int]]:
    """Costs of every shipped model at its window and the default batch of each device, in the dtypes that paint."""
    found = {}
    for folder in shipped_models().values():
        config = ModelConfig.load(folder)
        for batch_size, dtype in SHIPPED_BATCHES:
            found[_key(config, config.window, batch_size, dtype)] = asdict(
                _trace(config, config.window, batch_size, dtype)
            )
    return found


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


if __name__ == "__main__":
    COSTS.write_text(json.dumps(trace_shipped(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
