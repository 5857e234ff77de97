"""Compile the kernels that some work launches before it runs, many at a time.

Triton compiles a kernel when it is first launched, one after another: a network with seventy of them takes half a
minute on a machine that has compiled none. `compile_ahead` runs the work once without starting its kernels, notes what
each launch would be compiled for, and compiles all of it in processes: threads would take turns at Python's lock. What
is compiled stays in Triton's cache on disk, from where this process then loads it.

What a launch is compiled for can be written down as plain data (`Specialisation`), so that a process that has imported
neither torch nor the network compiles it too: this module and the kernels import torch only where they meet a tensor.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import torch

POLL_SECONDS = 0.02
PATIENCE_SECONDS = 120  # for processes that compile; what they have not done is compiled in this one

_noting: ContextVar[_Launches | None] = ContextVar("wsigen_noting_launches", default=None)

Launch = tuple[Any, tuple[int, ...], tuple, dict[str, Any]]  # kernel, grid, arguments, options
Source = tuple[Any, dict[str, Any]]  # an ASTSource of Triton, and the options that it is compiled with


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Start a Triton kernel on the current device; inside `noted_launches` note the launch instead."""
    launches = _noting.get()
    if launches is None:
        kernel[grid](*arguments, **options)
    else:
        launches.add(kernel, grid, arguments, options)


@contextmanager
def noted_launches() -> Iterator[list[Launch]]:
    """Note launches instead of starting kernels, one of each kind; what kernels would write stays undefined."""
    launches = _Launches()
    token = _noting.set(launches)
    try:
        yield launches.found
    finally:
        _noting.reset(token)


def compile_ahead(
    work: Callable[[], object],
    device: torch.device,
    processes: int,
    compiled: Callable[[], Collection[str]] = frozenset,
    threads: int = 16,
) -> int:
    """Compile the kernels that ``work`` launches on a CUDA ``device``; return their number.

    ``work`` runs once, and what its kernels would have written stays undefined. ``processes`` compile at a time; 0
    where all is compiled already, which then only is loaded, by ``threads``. ``compiled`` is asked after the work has
    run for the `source_key` of what another process has compiled meanwhile. Raises what Triton raises for a kernel that
    does not compile.
    """
    with noted_launches() as found:
        work()
    if processes > 1:
        from triton.runtime import driver

        target = driver.active.get_current_target()
        done = compiled()
        missing = [source for source in sources_of(found) if source_key(source, target) not in done]
        compile_in_processes(missing, target, processes)
    with ThreadPoolExecutor(threads, "wsigen-load-kernels") as pool:
        for future in [pool.submit(_load, noted, device) for noted in found]:
            future.result()
    return len(found)


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
    import torch

    kernel, grid, arguments, options = noted
    with torch.cuda.device(device):
        built = kernel.warmup(*arguments, grid=grid, **options)
        # Triton builds a kernel's launcher with a C compiler when it is first asked for.
        _ = built.run


def sources_of(launches: Sequence[Launch]) -> list[Source]:
    """What Triton would compile for each launch, each once; nothing is compiled."""
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


def source_key(source: Source, target: Any) -> str:
    """Name what is compiled for a target: it changes with the kernel's code, its arguments' kinds and the options."""
    built, options = source
    return f"sm{target.arch} {built.hash()} {options['num_warps']} {options['num_stages']}"


ALIGNED = [["tt.divisibility", 16]]  # what Triton writes of a pointer or an integer that 16 divides
CONSTANT = "constexpr"  # type of an argument that is compiled in


@dataclass(frozen=True)
class Specialisation:
    """What a kernel is compiled for, as plain data, whatever the GPU and the version of Triton.

    kernel: "module:name". arguments: of each its type in Triton's terms, and whether 16 divides it (None: not looked
    at). constants: the values of those that are compiled in, in order.
    """

    kernel: str
    arguments: list[tuple[str, bool | None]]
    constants: list[Any]
    num_warps: int
    num_stages: int

    @classmethod
    def of(cls, source: Source) -> Specialisation:
        """Write a source down."""
        built, options = source
        notes = [built.attrs.get((place,)) for place in range(len(built.signature))]
        return cls(
            f"{built.fn.__module__}:{built.fn.__name__}",
            [
                (kind, None if kind == CONSTANT or note is None else note == ALIGNED)
                for kind, note in zip(built.signature.values(), notes, strict=True)
            ],
            [value for _, value in sorted(built.constants.items())],
            options["num_warps"],
            options["num_stages"],
        )

    def source(self, target: Any) -> Source:
        """Read it back for a target; raises what Python or Triton raise where the kernel is another one by now."""
        from triton.compiler import ASTSource, make_backend

        module, name = self.kernel.split(":")
        kernel, constants = getattr(import_module(module), name), iter(self.constants)
        values = [next(constants) if kind == CONSTANT else None for kind, _ in self.arguments]
        kinds = [
            (kind, value if kind == CONSTANT else None if divides is None else "D" if divides else "")
            for (kind, divides), value in zip(self.arguments, values, strict=True)
        ]
        bound = {parameter.name: value for parameter, value in zip(kernel.params, values, strict=True)}
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        # Triton's own packing: its versions write constants and attributes down differently.
        _, *packed = kernel._pack_args(make_backend(target), dict(options), bound, kinds, None)
        return ASTSource(kernel, *packed), options


class NoDevice:
    """Stands in for Triton's driver where kernels are compiled for a GPU that this process does not open."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def get_current_target(self) -> Any:
        """Return the target: Triton's GPUTarget."""
        return self._target

    def get_current_device(self) -> int:
        """Return a number that stands for no device."""
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        """Return a number that stands for no stream."""
        return 0

    @property
    def utils(self) -> Any:
        """What Triton's launchers are built with; compiled by a C compiler on a machine that has not done so."""
        from triton.backends.nvidia.driver import CudaUtils

        return CudaUtils()

    @property
    def launcher_cls(self) -> Any:
        """The class that builds a kernel's launcher."""
        from triton.backends.nvidia.driver import CudaLauncher

        return CudaLauncher


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
    if hasattr(argument, "data_ptr"):
        return argument.dtype, argument.data_ptr() % 16 == 0
    if isinstance(argument, int):
        return argument == 1, argument % 16 == 0, argument.bit_length() > 31
    return type(argument)
