"""The choice of an implementation, once per process, and its reason.

The choice can be forced with the environment variables ``WSIGEN_ATTENTION`` (``auto``, ``triton``, ``torch``,
``xformers``) and ``WSIGEN_NORM`` (``auto``, ``triton``, ``torch``); options of the command line set them. An
implementation that cannot run here is refused with the reason; it is never replaced without a message.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from wsigen_kernels import BackendError

ATTENTION_BACKENDS = ("triton", "torch", "xformers")
NORM_BACKENDS = ("triton", "torch")
_OLDEST_GPU = (8, 0)  # Ampere: the first with bfloat16 matrix products


@dataclass(frozen=True)
class Choice:
    """An implementation's name and the reason that it was chosen."""

    name: str
    reason: str


def interpreting() -> bool:
    """Whether Triton's interpreter is on, which runs kernels on the CPU, slowly, for tests."""
    return os.environ.get("TRITON_INTERPRET", "0").strip().lower() in ("1", "true", "yes", "on", "y")


def xformers_obstacle() -> str | None:
    """Say why xformers cannot run here, or None if it can."""
    if not torch.cuda.is_available():
        return "xformers needs a CUDA device"
    if importlib.util.find_spec("xformers") is None:
        return "xformers is not installed"
    return _xformers_refusal()


@cache
def _xformers_refusal() -> str | None:
    """Say why xformers refuses to attend on this GPU, as one built for another torch does; None if it attends."""
    try:
        from xformers.ops import memory_efficient_attention

        probe = torch.zeros(1, 16, 1, 32, device="cuda", dtype=torch.float16)
        memory_efficient_attention(probe, probe, probe)
    except Exception as error:  # of any kind: what its binaries raise is not documented
        told = (str(error).strip() or repr(error)).splitlines()[0].rstrip(":")
        return f"xformers has no kernels for this GPU and torch {torch.__version__} ({told})"
    return None


def triton_obstacle() -> str | None:
    """Say why Triton's kernels cannot run here, or None if they can."""
    if not torch.cuda.is_available() and not interpreting():
        return "Triton needs a CUDA device"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if torch.version.hip is not None:
        return "the kernels are not tested on AMD GPUs"
    if torch.cuda.is_available():
        oldest = min(torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count()))
        if oldest < _OLDEST_GPU:
            return f"compute capability {oldest[0]}.{oldest[1]}: the kernels need 8.0 or newer"
    return None


_OBSTACLES: dict[str, Callable[[], str | None]] = {
    "triton": lambda: triton_obstacle(),
    "xformers": lambda: xformers_obstacle(),
    "torch": lambda: None,
}


def _choose(variable: str, allowed: tuple[str, ...], on_gpu: str, on_cpu: str) -> Choice:
    """Take what the variable forces; else Triton on a GPU that it serves, and torch everywhere else."""
    value = os.environ.get(variable, "auto").strip().lower() or "auto"
    if value not in ("auto", *allowed):
        raise BackendError(f"{variable}={value}: not one of auto, {', '.join(allowed)}")
    if value != "auto":
        if obstacle := _OBSTACLES[value]():
            raise BackendError(f"{variable}={value}: {obstacle}; set {variable}=auto")
        return Choice(value, f"set by {variable}")
    if not torch.cuda.is_available():
        return Choice("torch", f"no GPU: {on_cpu}")
    if obstacle := triton_obstacle():
        return Choice("torch", obstacle)
    return Choice("triton", on_gpu)


@cache
def attention_choice() -> Choice:
    """Choose the attention implementation of this process."""
    return _choose(
        "WSIGEN_ATTENTION",
        ATTENTION_BACKENDS,
        "reads packed channels without copies; torch's attention (cuDNN, flash) for long sequences and gradients",
        "scaled_dot_product_attention is the implementation for CPUs",
    )


@cache
def norm_choice() -> Choice:
    """Choose the group-norm implementation of this process."""
    return _choose(
        "WSIGEN_NORM",
        NORM_BACKENDS,
        "normalisation, modulation and residuals in fewer passes over channels_last memory",
        "native group_norm is the implementation for CPUs",
    )
