"""Compile a shipped model's kernels from the first moment of a render, in a process beside it.

Python, torch and the GPU take seconds to open on a machine that has just started. Meanwhile a process that needs none
of them (`python -m wsigen.painting.early MODEL`) compiles what `wsigen.painting.shipped_kernels` lists into Triton's
cache. The painter waits for it, and compiles what is missing: a process that fails, or a list that does not fit, costs
time and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Collection
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from wsigen.painting.shipped_kernels import KERNELS, default_model, listed
from wsigen.system.cores import quick_count
from wsigen.system.gpu import beside, compute_capability, has_driver
from wsigen.system.local_cache import one_process_at_a_time, recall, remember

COMPILERS = 16  # processes that compile kernels, at most: a painter has some seventy
SHARE = 2  # one of so many cores compiles beside the imports, which more would slow down
OLDEST_GPU = 80  # as wsigen_kernels.dispatch has it
DTYPE = "bfloat16"  # that the list is of
_LOCK = "compiling-early"


def start(model: str = "") -> bool:
    """Begin to compile the kernels of a shipped model ("": the default one), once a machine; whether that was begun.

    Returns at once. Nothing is begun where no GPU's driver or no Triton is, or another implementation is asked for.
    """
    model = model or default_model()
    asked = {os.environ.get(name, "auto") for name in ("WSIGEN_NORM", "WSIGEN_ATTENTION")}
    if "torch" in asked or not (hasattr(os, "fork") and has_driver() and find_spec("triton")):
        return False
    if not listed(model) or recall(_name(model)) is not None:
        return False
    command, quiet = [sys.executable, "-P", "-m", "wsigen.painting.early", model], subprocess.DEVNULL
    with suppress(OSError):
        subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)
        return True
    return False


def compiled(model: str) -> Collection[str]:
    """Wait for the process that `start` started, if there is one: the keys of what it has compiled (`source_key`)."""
    with one_process_at_a_time(_LOCK):
        return frozenset(recall(_name(model)) or ())


def compile_listed(model: str, architecture: int, processes: int) -> list[str]:
    """Compile what is listed for a model into Triton's cache, for GPUs of an architecture (90); return the keys."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from wsigen_kernels.compiling import NoDevice, compile_in_processes, source_key

    target = GPUTarget("cuda", architecture, 32)
    stand_in = NoDevice(target)
    driver.set_active(stand_in)
    with suppress(Exception):  # where it cannot be built here, the painter hears of it
        _ = stand_in.utils  # once, before the processes begin: each would build it
    sources = [specialisation.source(target) for specialisation in listed(model)]
    compile_in_processes(sources, target, processes)
    return [source_key(source, target) for source in sources]


def main(model: str) -> None:
    """Compile a model's kernels for the GPU of this machine, and keep what was compiled for `compiled`."""
    with one_process_at_a_time(_LOCK):
        found: list[int | None] = []
        looking = beside(lambda: found.append(compute_capability()))  # the driver opens while Triton is imported
        with suppress(ImportError):
            import triton.compiler  # noqa: F401
        looking.join()
        architecture = found[0] if found else None
        if architecture is None or architecture < OLDEST_GPU or recall(_name(model)) is not None:
            return
        remember(_name(model), compile_listed(model, architecture, min(COMPILERS, max(1, quick_count() // SHARE))))


def _name(model: str) -> str:
    """Name under which the keys are kept: another one for another model, list, Triton or place of this package."""
    triton = "none"
    with suppress(PackageNotFoundError):
        triton = version("triton")
    facts = f"{model} {triton} {Path(__file__).parent} {hashlib.sha256(KERNELS.read_bytes()).hexdigest()}"
    return f"early-{hashlib.sha256(facts.encode()).hexdigest()[:24]}"


if __name__ == "__main__":
    main(sys.argv[1])
