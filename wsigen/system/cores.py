"""How many cores there are to work with: the one place that counts them."""

from __future__ import annotations

import os


def available_cores(at_most: int | None = None) -> int:
    """Cores that this process may use, ``at_most`` so many: those of the machine, of its affinity and of its cgroup.

    A container with a quota of two cores on a machine of 64 counts two: more threads would only wait for one another.
    """
    from dask.system import cpu_count  # imported late: the command line imports this module for --help

    cores = cpu_count()
    return cores if at_most is None else min(cores, at_most)


def quick_count() -> int:
    """Cores of this process's affinity, whatever its cgroup allows: for processes that import little."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
