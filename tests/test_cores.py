"""Cores are counted in one place, and only those that this process may use."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OTHER_COUNTS = {"cpu_count", "process_cpu_count", "sched_getaffinity", "CPU_COUNT"}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity of processes")
def test_a_process_that_is_bound_to_one_core_counts_one():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from wsigen.system.cores import available_cores; print(available_cores(), available_cores(8))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]


def test_no_other_module_counts_cores():
    counting = {
        str(path.relative_to(ROOT))
        for folder in ("wsigen", "kernels", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if getattr(node, "attr", getattr(node, "name", None)) in OTHER_COUNTS
    }
    assert counting == {"wsigen/system/cores.py"}, "call wsigen.system.cores.available_cores there"
