"""Compile the kernels that some work launches before it runs, many at a time.

Triton compiles a kernel when it is first launched, one after another: a network with seventy of them takes half a
minute on a machine that has compiled none. `compile_ahead` runs the work once without starting its kernels, notes what
each launch would be compiled for, and compiles all of it in processes: threads would take turns at Python's lock. What
is compiled stays in Triton's cache on disk, from where this process then loads it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, NoReturn

import torch

POLL_SECONDS = 0.02
PATIENCE_SECONDS = 120  # for processes that compile; what they have not done is compiled in this one

_noting: ContextVar[_Launches | None] = ContextVar("wsigen_noting_launches", default=None)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Start a Triton kernel on the current device; inside `compile_ahead` note the launch instead."""
    launches = _noting.get()
    if launches is None:
        kernel[grid](*arguments, **options)
    else:
        launches.add(kernel, grid, arguments, options)


def compile_ahead(work: Callable[[], object], device: torch.device, processes: int, threads: int = 16) -> int:
    """Compile the kernels that ``work`` launches on a CUDA ``device``; return their number.

    ``work`` runs once, and what its kernels would have written stays undefined. ``processes`` compile at a time; 0
    where all is compiled already, which then only is loaded, by ``threads``. Raises what Triton raises for a kernel
    that does not compile.
    """
    launches = _Launches()
    token = _noting.set(launches)
    try:
        work()
    finally:
        _noting.reset(token)
    if processes > 1:
        from triton.runtime import driver

        compile_in_processes(_sources(launches.found), driver.active.get_current_target(), processes)
    with ThreadPoolExecutor(threads, "wsigen-load-kernels") as pool:
        for future in [pool.submit(_load, noted, device) for noted in launches.found]:
            future.result()
    return len(launches.found)


Launch = tuple[Any, tuple[int, ...], tuple, dict[str, Any]]  # kernel, grid, arguments, options
Source = tuple[Any, dict[str, Any]]  # an ASTSource of Triton, and the options that it is compiled with


class _Launches:
    """Launches that were noted, one of each kind."""

    def __init__(self) -> None:
        self.found: list[Launch] = []
        self._kinds: set[tuple] = set()

    def add(self, kernel: Any, grid: tuple[int, ...], arguments: tuple, options: dict[str, Any]) -> None:
        kind = (kernel, tuple(map(_kind, arguments)), tuple(sorted(options.items())))
        if kind not in self._kinds:
            self._kinds.add(kind)
            self.found.append((kernel, grid, arguments, options))


def _load(noted: Launch, device: torch.device) -> None:
    """Compile a kernel, or load it from the cache, on a device."""
    kernel, grid, arguments, options = noted
    with torch.cuda.device(device):
        built = kernel.warmup(*arguments, grid=grid, **options)
        # Triton builds a kernel's launcher with a C compiler when it is first asked for.
        _ = built.run


def _sources(launches: Sequence[Launch]) -> list[Source]:
    """What Triton would compile for each launch; nothing is compiled."""
    from triton import knobs
    from triton.compiler import ASTSource

    found: dict[str, Source] = {}

    def note(*, key: str, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        options = json.loads(compile["specialization_data"])["options"]
        source = ASTSource(fn.jit_function, compile["signature"], compile["constants"], compile["configs"][0])
        found[f"{fn.name} {key}"] = source, {name: _as_tuple(value) for name, value in options.items()}
        return True  # do not compile now

    before, knobs.runtime.jit_cache_hook = knobs.runtime.jit_cache_hook, note
    try:
        for kernel, grid, arguments, options in launches:
            kernel.warmup(*arguments, grid=grid, **options)
    finally:
        knobs.runtime.jit_cache_hook = before
    return list(found.values())


def compile_in_processes(sources: Sequence[Source], target: Any, processes: int) -> None:
    """Compile for a target (Triton's GPUTarget) into the cache on disk, in ``processes`` forks of this process.

    A fork has all modules and sources in memory, and never touches the GPU: compiling needs none. Failures are not
    reported: whoever launches such a kernel compiles it again and hears of them. Where a system cannot fork, nothing
    happens. (`multiprocessing` would refuse in a worker of Dask, which is a daemon.)
    """
    if not hasattr(os, "fork"):
        return
    turn = multiprocessing.get_context("fork").Value("i", 0)
    children = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: theirs are not used in the fork
        for _ in range(min(processes, len(sources))):
            child = os.fork()
            if child == 0:
                _compile_in_turn(sources, target, turn)
            children.append(child)
    deadline = time.monotonic() + PATIENCE_SECONDS
    try:
        while children and time.monotonic() < deadline:
            children = [child for child in children if os.waitpid(child, os.WNOHANG)[0] == 0]
            time.sleep(POLL_SECONDS)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _compile_in_turn(sources: Sequence[Source], target: Any, turn: Any) -> NoReturn:
    """Take sources in turn until there are none, in a fork; ends the process."""
    try:
        import triton
        from triton.runtime import driver

        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
        while True:
            with turn.get_lock():
                number = turn.value
                turn.value += 1
            if number >= len(sources):
                break
            source, options = sources[number]
            with suppress(Exception):  # what fails here is compiled again, and reported, where it is launched
                built = triton.compile(source, target=target, options=options)
                driver.active.launcher_cls(built.src, built.metadata)
    finally:
        os._exit(0)  # nothing of the process that was forked may run at its end


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def _kind(argument: Any) -> Any:
    """What Triton compiles a kernel anew for: types and alignment, and integers that are 1 or multiples of 16."""
    if isinstance(argument, torch.Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    if isinstance(argument, int):
        return argument == 1, argument % 16 == 0, argument.bit_length() > 31
    return type(argument)
