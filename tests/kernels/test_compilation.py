"""The kernels compile for the GPU they are written for, on any machine, and neither spill nor read byte by byte."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from contract import needs_triton


def output_of(script, cache):
    """Lines that a script of this folder prints, with a cache of Triton's of its own."""
    needs_triton()
    import triton

    if not (Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas").exists():
        pytest.skip("this build of Triton carries no assembler for NVIDIA GPUs")
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(cache),
        "PYTHONWARNINGS": "ignore",
    }
    path = Path(__file__).with_name(script)
    done = subprocess.run([sys.executable, path], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    return [json.loads(line) for line in output_of("sm90.py", tmp_path_factory.mktemp("triton"))]


def test_what_processes_compiled_is_there_for_this_one(tmp_path):
    compiled, found = output_of("forked.py", tmp_path)[-1].split()
    assert int(compiled) == int(found) > 20


def test_every_kernel_compiles(reports):
    names = {row["kernel"] for row in reports}
    expected = {"moments_kernel", "coefficients_kernel", "apply_kernel", "add_kernel", "project_kernel"}
    assert names == expected | {
        *("attention_kernel", "normals_kernel", "gather_kernel", "scatter_kernel"),
        *("data_kernel", "ring_kernel", "step_kernel"),
    }


def test_nothing_spills_and_shared_memory_suffices(reports):
    for row in reports:
        assert row["local"] == 0, row
        assert row["shared"] <= 227 * 1024, row


def test_feature_maps_are_read_sixteen_bytes_at_a_time(reports):
    for row in reports:
        if row["kernel"] in ("moments_kernel", "apply_kernel", "add_kernel", "project_kernel", "attention_kernel"):
            assert row["wide_loads"], row
