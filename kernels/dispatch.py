"""Which implementation runs, decided once per process, and why.

The choice can be forced with the environment variables ``WSIGEN_ATTENTION`` (``auto``, ``torch``, ``xformers``) and
``WSIGEN_NORM`` (``auto``, ``torch``). What cannot run here is refused with its reason rather than replaced in silence.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from functools import cache

import torch
from wsigen_kernels import BackendError


@dataclass(frozen=True)
class Choice:
    """An implementation's name and the reason that it was chosen."""

    name: str
    reason: str


def _forced(variable: str, allowed: tuple[str, ...]) -> str | None:
    value = os.environ.get(variable, "auto").strip().lower() or "auto"
    if value not in ("auto", *allowed):
        raise BackendError(f"{variable}={value}: not one of auto, {', '.join(allowed)}")
    return None if value == "auto" else value


def xformers_obstacle() -> str | None:
    """Say why xformers cannot run here, or None if it can."""
    if not torch.cuda.is_available():
        return "xformers needs a CUDA device"
    if importlib.util.find_spec("xformers") is None:
        return "xformers is not installed"
    return None


@cache
def attention_choice() -> Choice:
    """Choose the attention implementation of this process."""
    forced = _forced("WSIGEN_ATTENTION", ("torch", "xformers"))
    if forced == "xformers" and (obstacle := xformers_obstacle()):
        raise BackendError(f"WSIGEN_ATTENTION=xformers: {obstacle}; set WSIGEN_ATTENTION=auto")
    if forced:
        return Choice(forced, "set by WSIGEN_ATTENTION")
    if torch.cuda.is_available():
        return Choice("torch", "scaled_dot_product_attention picks cuDNN or flash attention on this GPU")
    return Choice("torch", "no GPU: scaled_dot_product_attention is the implementation for CPUs")


@cache
def norm_choice() -> Choice:
    """Choose the group-norm implementation of this process."""
    if _forced("WSIGEN_NORM", ("torch",)):
        return Choice("torch", "set by WSIGEN_NORM")
    return Choice("torch", "native group_norm; torch.compile fuses what follows it on a GPU")
