"""Compile the kernels that some work launches before it runs, many at a time.

Triton compiles a kernel when it is first launched, one after another: a network with seventy of them takes half a
minute on a machine that has compiled none. `compile_ahead` runs the work once without starting its kernels, notes what
each launch would be compiled for, and compiles all of it in threads. What is compiled stays in Triton's cache on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import torch

_noting: ContextVar[_Launches | None] = ContextVar("wsigen_noting_launches", default=None)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Start a Triton kernel on the current device; inside `compile_ahead` note the launch instead."""
    launches = _noting.get()
    if launches is None:
        kernel[grid](*arguments, **options)
    else:
        launches.add(kernel, grid, arguments, options)


def compile_ahead(work: Callable[[], object], device: torch.device, threads: int) -> int:
    """Compile the kernels that ``work`` launches on a CUDA ``device``, ``threads`` at a time; return their number.

    ``work`` runs once, and what its kernels would have written stays undefined. Kernels that are compiled already cost
    nothing but this. Raises what Triton raises for a kernel that does not compile.
    """
    with ThreadPoolExecutor(threads, "wsigen-compile") as pool:
        launches = _Launches(pool, device)
        token = _noting.set(launches)
        try:
            work()
        finally:
            _noting.reset(token)
        return launches.wait()


class _Launches:
    """Launches that were noted, each compiled once."""

    def __init__(self, pool: ThreadPoolExecutor, device: torch.device) -> None:
        self._pool, self._device = pool, device
        self._futures: dict[tuple, Future] = {}

    def add(self, kernel: Any, grid: tuple[int, ...], arguments: tuple, options: dict[str, Any]) -> None:
        key = (kernel, tuple(map(_kind, arguments)), tuple(sorted(options.items())))
        if key not in self._futures:
            # The hash of the source is computed here: threads that each compute it would repeat the work.
            _ = kernel.cache_key
            self._futures[key] = self._pool.submit(self._compile, kernel, grid, arguments, options)

    def wait(self) -> int:
        for future in self._futures.values():
            future.result()
        return len(self._futures)

    def _compile(self, kernel: Any, grid: tuple[int, ...], arguments: tuple, options: dict[str, Any]) -> None:
        with torch.cuda.device(self._device):
            built = kernel.warmup(*arguments, grid=grid, **options)
            # Triton builds a kernel's launcher with a C compiler when it is first asked for.
            _ = built.run


def _kind(argument: Any) -> Any:
    """What Triton compiles a kernel anew for: types and alignment, and integers that are 1 or multiples of 16."""
    if isinstance(argument, torch.Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    if isinstance(argument, int):
        return argument == 1, argument % 16 == 0, argument.bit_length() > 31
    return type(argument)
