"""Open a GPU while a command imports what it needs, so that the first slide of a machine waits for less."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from wsigen.choices import AUTO


@contextmanager
def gpu_opened_beside(options: Mapping[str, Any]) -> Iterator[Callable[[], None]]:
    """Begin to compile kernels and to open the GPU that a render's options choose, if this machine has one.

    Yields what waits until the GPU is open; it must be called before anything is painted. Where other processes paint,
    kernels alone are compiled.
    """
    if options["device"] not in (AUTO, "cuda") or options["dask_scheduler"]:
        yield lambda: None
        return
    from wsigen.painting import early
    from wsigen.system.gpu import beside, has_driver, load_libraries, open_context

    if options["dtype"] in (AUTO, early.DTYPE):
        early.start(options["model"])
    if not has_driver() or (options["workers"] or 1) > 1:
        yield lambda: None
        return
    context = beside(open_context)
    import torch  # noqa: F401  # whole, before a thread uses it

    context.join()
    libraries = beside(load_libraries)
    try:
        yield libraries.join
    finally:
        libraries.join()  # a process must not end while a thread opens a GPU
