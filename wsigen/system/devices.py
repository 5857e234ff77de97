"""Which device and which number format paint, and why."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wsigen.errors import SettingsError

DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class DeviceChoice:
    """A resolved device ("cpu", "cuda", "mps") and dtype ("float32", ...), and a line for people."""

    device: str
    dtype: str
    description: str


def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 natively (AVX512-BF16 or AMX); elsewhere it is emulated and slow."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def choose_device(device: str = "auto", dtype: str = "auto") -> DeviceChoice:
    """Resolve "auto" and check that the machine has what is asked for; SettingsError otherwise."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("--device cuda: torch sees no CUDA GPU here; use --device cpu")
    if device == "mps" and not torch.backends.mps.is_available():
        raise SettingsError("--device mps: torch sees no Metal GPU here; use --device cpu")
    if dtype == "auto":
        native = device == "cuda" or (device == "cpu" and cpu_has_bfloat16())
        dtype = "bfloat16" if native else "float32"
    if dtype not in DTYPES:
        raise SettingsError(f"--dtype {dtype}: choose one of {', '.join(DTYPES)}")
    if dtype == "float16" and device == "cpu":
        raise SettingsError("--dtype float16: CPUs are slow at it; use bfloat16 or float32")
    name = torch.cuda.get_device_name() if device == "cuda" else device.upper()
    return DeviceChoice(device, dtype, f"{name}, {DTYPES[dtype]}")
