"""Compile for an H100 or H200 every kernel that the launchers launch, on a machine without one; run as a script.

Triton compiles ahead of time for any target; only starting a kernel needs the device. Launches are intercepted, their
arguments become a signature, and a JSON line a kernel says what the assembler reports.
"""

import json
import os
import re
import subprocess
import tempfile

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from wsigen_kernels import (
    attention_triton,
    merge_triton,
    moments_triton,
    noise_triton,
    norm_triton,
    patches_triton,
    solver_triton,
)
from wsigen_kernels.layout import DOWN, UP

NAMES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64", torch.uint8: "*u8"}
TOOL = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")
ALIGNED = [["tt.divisibility", 16]]


def describe(value, parameter):
    """Type, constant value or None, and attributes of an argument, as Triton's launcher would have them."""
    special = not parameter.do_not_specialize
    if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1 and special):
        return "constexpr", (value,), None
    if isinstance(value, torch.Tensor):
        return NAMES[value.dtype], None, ALIGNED
    if isinstance(value, float):
        return "fp32", None, None
    return "i32" if value < 2**31 else "i64", None, ALIGNED if value % 16 == 0 and special else None


def source_of(kernel, args, named):
    """What Triton compiles for a launch; what is left in ``named`` are options."""
    names = [parameter.name for parameter in kernel.params]
    given = dict(zip(names, args, strict=False)) | {name: named.pop(name) for name in list(named) if name in names}
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        kind, constant, attribute = describe(given[parameter.name], parameter)
        signature[parameter.name] = kind
        if constant is not None:
            constants[(index,)] = constant[0]
        if attribute:
            attributes[(index,)] = attribute
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)


def compile_instead(kernel, *args, grid, warmup, **named):
    source = source_of(kernel, args, named)
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=named)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        report = subprocess.run([TOOL, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, local = (int(re.search(rf"{key}:(\d+)", report).group(1)) for key in ("REG", "LOCAL"))
    loads = re.findall(r"ld\.global[\w:.]*", built.asm["ptx"])
    shared = built.metadata.shared
    row = {"kernel": kernel.__name__, "registers": registers, "local": local, "shared": shared}
    print(json.dumps(row | {"wide_loads": sum(".v4" in load or ".v8" in load for load in loads)}), flush=True)


def feature(channels, side, dtype=torch.bfloat16):
    return torch.empty(2, side, side, channels, dtype=dtype, device="meta").permute(0, 3, 1, 2)


def vector(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def launch_all(dtype):
    x, skip, maps = feature(64, 128, dtype), feature(64, 128, dtype), feature(256, 128, dtype)
    taken = moments_triton.moments(x)
    norm_triton.normalise(x, taken, 32, weight=vector(64), bias=vector(64), scale=vector(2, 64), shift=vector(2, 64))
    halves = {"gamma": maps[:, :128], "beta": maps[:, 128:]}
    norm_triton.normalise(x, taken, 32, skip, taken, **halves)
    for resample in (UP, DOWN):
        norm_triton.normalise(x, taken, 32, weight=vector(64), bias=vector(64), resample=resample)
    places = feature(4 * 128, 65, dtype)
    norm_triton.normalise(places, moments_triton.moments(places, True), 32, map_bias=vector(256), phased=True, **halves)
    for resample, side in ((0, 128), (1, 64), (2, 256)):
        merge_triton.merge(x, vector(64), feature(64, side, dtype), resample=resample)
    merge_triton.merge(x, vector(64), feature(128, 128, dtype), skip, vector(64, 192))
    merge_triton.merge(
        feature(224, 32, dtype), None, feature(224, 32, dtype), feature(128, 32, dtype), vector(224, 352)
    )
    for side in (8, 16, 32):
        attention_triton.attention(feature(3 * 224, side, dtype), 7)
    corner, table = vector(2, dtype=torch.int64), vector(4096, dtype=torch.int64)
    noise_triton.coordinate_normals((7, 2**32 - 1), corner, corner, 256, 256, 1, 0, table)
    image = torch.empty(2, 3, 256, 256, device="meta")
    distance = torch.empty(2, 1, 256, 256, device="meta", dtype=torch.uint8)
    patches_triton.gather([feature(3, 256, dtype), feature(3, 256, dtype), feature(1, 256, dtype)], 2)
    patches_triton.scatter(feature(16, 128, dtype), vector(12), 2)
    update = solver_triton.Update(0.5, 0.5, 0.5, 0.5, 0.5, 0.5)
    rings = distance, (0.7,), 0.35
    solver_triton.step(feature(3, 256, dtype), image, image, rings, update, image, image)
    update = solver_triton.Update(0.5, 0.5, 0.5, 0.5, 0.5, corrector=(0.5, 0.5, 0.5, 0.5))
    solver_triton.step(feature(3, 256, dtype), image, image, rings, update, image, None, image, image)


if __name__ == "__main__":
    JITFunction.run = compile_instead
    launch_all(torch.bfloat16)
