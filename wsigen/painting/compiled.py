"""Whether kernels are compiled for a device, and the names under which processes remember what they found out."""

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version

import torch
from wsigen_kernels import attention, norm

from wsigen.painting.spec import environment
from wsigen.system.local_cache import recall


def compiles_first(device: str) -> bool:
    """Whether the first painter on a device will have to compile kernels: no process of this user has yet."""
    return compiles(torch.device(device)) and recall(kernels_of(device)) is None


def compiles(device: torch.device) -> bool:
    """Whether kernels are compiled for a device."""
    return device.type == "cuda" and "triton" in (norm.BACKEND, attention.BACKEND)


def kernels_of(device: str) -> str:
    """Name under which it is remembered that kernels are compiled for a device."""
    return f"kernels-{digest(environment(device), triton_version())}"


def digest(*facts: object) -> str:
    """A short name that follows from plain data."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def triton_version() -> str:
    """Version of Triton, or that there is none."""
    try:
        return version("triton")
    except PackageNotFoundError:
        return "none"
