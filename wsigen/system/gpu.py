"""Open an NVIDIA GPU early, beside what Python imports: its driver by itself, then the libraries that torch loads late.

A GPU's driver, a context on it, cuDNN and cuBLAS take seconds on a machine that has just started, and Python's lock is
free meanwhile. Nothing here changes what is computed, and nothing is said of failures: whoever needs the GPU hears.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from contextlib import suppress

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


def has_driver() -> bool:
    """Whether the driver's library is there; no GPU is touched."""
    return _driver() is not None


def compute_capability() -> int | None:
    """Compute capability of the first GPU that is visible: 90 for 9.0; None where there is none."""
    if (driver := _driver()) is None or (device := _first_device(driver)) is None:
        return None
    major, minor = ctypes.c_int(), ctypes.c_int()
    for value, attribute in ((major, _MAJOR), (minor, _MINOR)):
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
    return 10 * major.value + minor.value


def open_context() -> None:
    """Make the context of the first visible GPU, which torch then takes; it stays until the process ends."""
    if (driver := _driver()) is not None and (device := _first_device(driver)) is not None:
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(ctypes.c_void_p()), device)


def load_libraries() -> None:
    """Let torch load cuDNN and cuBLAS: by a small convolution and a small product on the current GPU."""
    import torch
    import torch.nn.functional as F

    if not torch.cuda.is_available():
        return
    with torch.inference_mode():
        x = torch.zeros(2, 64, 32, 32, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
        weight = torch.zeros(64, 64, 3, 3, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
        F.linear(F.conv2d(x, weight, padding=1)[0, 0], weight[0, :32, 0, 0].new_zeros(32, 32))
    torch.cuda.synchronize()


def beside(work: Callable[[], None]) -> threading.Thread:
    """Run ``work`` in a thread of its own; what it raises is dropped."""

    def run() -> None:
        with suppress(Exception):
            work()

    thread = threading.Thread(target=run, name="wsigen-open-gpu", daemon=True)
    thread.start()
    return thread


def _driver() -> ctypes.CDLL | None:
    with suppress(OSError):
        return ctypes.CDLL("libcuda.so.1")
    return None


def _first_device(driver: ctypes.CDLL) -> ctypes.c_int | None:
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")  # as torch sets it; read when the driver is initialised
    device = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    return device
