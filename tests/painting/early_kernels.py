"""Compile some of the default model's listed kernels as the process beside a render does; run as a script.

Prints as JSON: whether the list is what is traced now, and of the kernels that were compiled how many a painter finds.
"""

import json
from unittest.mock import patch

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from wsigen_kernels import compiling

from wsigen.models.registry import DEFAULT_MODEL
from wsigen.painting import early, kernel_tracing, shipped_kernels

TARGET = GPUTarget("cuda", 90, 32)
SOURCES, HITS = {}, []


def noted(launches):
    """What Triton says that a painter's launches are compiled for, kept by its key."""
    sources = compiling.sources_of(launches)
    SOURCES.update({compiling.source_key(source, TARGET): source for source in sources})
    return sources


if __name__ == "__main__":
    with patch.object(kernel_tracing, "sources_of", noted):
        listed_now = kernel_tracing.trace_shipped()
    with patch.object(early, "listed", lambda model: shipped_kernels.listed(model)[::11]):
        keys = early.compile_listed(DEFAULT_MODEL, TARGET.arch, 2)
    knobs.compilation.listener = lambda *, cache_hit, **_: HITS.append(cache_hit)
    for source, options in [SOURCES[key] for key in keys]:
        triton.compile(source, target=TARGET, options=options)
    same = listed_now == json.loads(shipped_kernels.KERNELS.read_text(encoding="utf-8"))
    print(json.dumps({"same": same, "compiled": len(keys), "found": sum(HITS)}))
