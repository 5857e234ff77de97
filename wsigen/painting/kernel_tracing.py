"""Trace what the kernels of the shipped models are compiled for, without a GPU.

The network runs on torch's meta device, where tensors have shapes and no data, as if that were a GPU, and the launches
of its kernels are noted.

    python -m wsigen.painting.kernel_tracing

writes the list of `wsigen.painting.shipped_kernels` anew; a test compares it with what is traced.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from wsigen_kernels import attention, norm, ops
from wsigen_kernels.compiling import NoDevice, Specialisation, noted_launches, sources_of

from wsigen.models.config import ModelConfig
from wsigen.models.registry import DEFAULT_MODEL, shipped_models
from wsigen.networks.denoiser import Denoiser
from wsigen.painting.painter import Painter
from wsigen.painting.shipped_kernels import KERNELS

ARCHITECTURE = 90  # that launches are traced for; what they are compiled for is the same on others
# Kernels by the time that the compiler takes, longest first; those that are not named come last.
LONGEST = ("project_kernel", "attention_kernel", "ring_kernel", "normals_kernel", "add_kernel", "apply_kernel")


def trace_shipped() -> dict[str, Any]:
    """Trace every shipped model at its default settings on a GPU. To be run in a process of its own."""
    with _as_on_a_gpu():
        models = {name: _trace(ModelConfig.load(folder)) for name, folder in sorted(shipped_models().items())}
    found = {"default": DEFAULT_MODEL, "models": {name: list(map(asdict, rows)) for name, rows in models.items()}}
    return json.loads(json.dumps(found))


def _trace(config: ModelConfig) -> list[Specialisation]:
    with torch.device("meta"), torch.inference_mode():
        model = Denoiser.from_config(config).to(torch.bfloat16).eval()
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    painter = Painter(
        model,
        config.style(),
        sampler=config.sampler_for(config.num_inference_steps),
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance().scale,
        batch_size=2,  # the number of windows is no argument of a kernel
        device="meta",
        dtype=torch.bfloat16,
    )
    batch = painter.prepare([painter.any_window(config.window)])
    with noted_launches() as found, torch.inference_mode():
        painter._compute(*batch.tensors)
    specialisations = list(map(Specialisation.of, sources_of(found)))
    return sorted(specialisations, key=lambda one: _rank(one.kernel.split(":")[1]))


def _rank(kernel: str) -> int:
    return LONGEST.index(kernel) if kernel in LONGEST else len(LONGEST)


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """Let the meta device take the ways of a GPU: Triton's kernels, without the operators' shapes of torch."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from wsigen_kernels import noise_triton

    class Bodies(TorchFunctionMode):
        """Runs an operator's body, which launches kernels, where torch would only tell the result's shape."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return ops.BODIES.get(func, func)(*args, **(kwargs or {}))

    def normals(_painter: Any, corners: Any, size: int, step: int) -> Any:
        table = torch.empty(4096, dtype=torch.int64, device="meta")
        return noise_triton.coordinate_normals((0, 0), corners[:, 0], corners[:, 1], size, size, step, 0, table)

    triton: dict[str, Any] = {"BACKEND": "triton", "ANY_DEVICE": True}
    driver.set_active(NoDevice(GPUTarget("cuda", ARCHITECTURE, 32)))
    with (
        patch.multiple(norm, **triton),
        patch.multiple(attention, **triton),
        patch.object(Painter, "_noise", normals),
        Bodies(),
    ):
        yield


def main() -> None:
    """Write the list anew."""
    text = json.dumps(trace_shipped(), separators=(",", ":"))
    KERNELS.write_text(text.replace('{"kernel"', '\n{"kernel"') + "\n", encoding="utf-8")  # a kernel a line


if __name__ == "__main__":
    main()
