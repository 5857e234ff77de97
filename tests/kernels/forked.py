"""Compile the kernels for an H100 or H200 in two processes, then here; run as a script. Prints how many were there."""

import sm90
import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction
from wsigen_kernels.compiling import compile_in_processes

SOURCES, TARGET, HITS = [], GPUTarget("cuda", 90, 32), []


def note(kernel, *args, grid, warmup, **named):
    SOURCES.append((sm90.source_of(kernel, args, named), named))


if __name__ == "__main__":
    JITFunction.run = note
    sm90.launch_all(torch.bfloat16)
    compile_in_processes(SOURCES, TARGET, 2)
    knobs.compilation.listener = lambda *, cache_hit, **_: HITS.append(cache_hit)
    for source, options in SOURCES:
        triton.compile(source, target=TARGET, options=options)
    print(len(SOURCES), sum(HITS))
