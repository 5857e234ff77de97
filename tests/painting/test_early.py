"""Kernels are compiled in a process beside a render; what that process does not do, the painter does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wsigen.models.registry import DEFAULT_MODEL
from wsigen.painting import early, shipped_kernels
from wsigen.system import gpu
from wsigen.system.local_cache import remember


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """Commands that are begun, on a machine with a GPU's driver and an empty cache."""
    commands = []
    monkeypatch.setenv("WSIGEN_CACHE", str(tmp_path))
    monkeypatch.setattr(early, "has_driver", lambda: True)
    monkeypatch.setattr(early, "find_spec", lambda name: name)
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: commands.append(command))
    for name in ("WSIGEN_NORM", "WSIGEN_ATTENTION"):
        monkeypatch.delenv(name, raising=False)
    return commands


@pytest.fixture
def compiles(monkeypatch):
    """Let the process of this test stand for the one that compiles, on a GPU of an architecture that is returned."""

    def on(architecture):
        monkeypatch.setattr(early, "compute_capability", lambda: architecture)
        monkeypatch.setattr(early, "compile_listed", lambda model, sm, processes: [f"sm{sm} {model}"])

    return on


def test_the_list_is_traced_from_this_code_and_a_painter_finds_what_is_compiled(tmp_path):
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "PYTHONWARNINGS": "ignore"}
    script = Path(__file__).with_name("early_kernels.py")
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same"], "write it anew: python -m wsigen.painting.kernel_tracing"
    assert found["found"] == found["compiled"] > 5


def test_the_process_imports_neither_torch_nor_numpy():
    script = (
        "import sys\nfrom wsigen.painting import early\n"
        "from wsigen_kernels import compiling, launch, layout\n"
        "print([name for name in ('torch', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_it_is_begun_once_a_machine(begun, compiles):
    compiles(90)
    assert early.start()
    assert begun == [[sys.executable, "-P", "-m", "wsigen.painting.early", DEFAULT_MODEL]]
    early.main(DEFAULT_MODEL)
    assert early.compiled(DEFAULT_MODEL) == {f"sm90 {DEFAULT_MODEL}"}
    assert not early.start()
    assert early.start("mask-colon-20x"), "another model's kernels are others"


def test_what_an_older_list_compiled_does_not_count(begun, compiles, tmp_path, monkeypatch):
    compiles(90)
    early.main(DEFAULT_MODEL)
    other = tmp_path / "kernels.json"
    other.write_text(shipped_kernels.KERNELS.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    monkeypatch.setattr(early, "KERNELS", other)
    assert early.start()
    assert not early.compiled(DEFAULT_MODEL)


@pytest.mark.parametrize("architecture", [None, 75])
def test_a_gpu_that_the_kernels_do_not_serve_compiles_nothing(begun, compiles, architecture):
    compiles(architecture)
    early.main(DEFAULT_MODEL)
    assert not early.compiled(DEFAULT_MODEL)


def test_nothing_is_begun_where_it_would_be_for_nothing(begun, monkeypatch):
    assert not early.start("a/folder/of/a/model")
    monkeypatch.setenv("WSIGEN_NORM", "torch")
    assert not early.start()
    monkeypatch.setenv("WSIGEN_NORM", "triton")
    assert early.start()
    monkeypatch.setattr(early, "has_driver", lambda: False)
    assert not early.start()


def test_a_painter_waits_for_the_process(tmp_path, monkeypatch):
    """It asks for the same lock, which the system takes from a process that dies."""
    pytest.importorskip("fcntl")
    monkeypatch.setenv("WSIGEN_CACHE", str(tmp_path))
    script = (
        "import time\nfrom wsigen.painting import early\n"
        "from wsigen.system.local_cache import one_process_at_a_time, remember\n"
        "with one_process_at_a_time(early._LOCK):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(0.5)\n"
        f"    remember({early._name(DEFAULT_MODEL)!r}, ['a key'])\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        assert early.compiled(DEFAULT_MODEL) == {"a key"}


def test_without_a_driver_no_gpu_is_found(monkeypatch):
    monkeypatch.setattr(gpu, "_driver", lambda: None)
    assert not gpu.has_driver()
    assert gpu.compute_capability() is None
    gpu.open_context()


def test_what_fails_beside_fails_in_silence():
    thread = gpu.beside(lambda: 1 // 0)
    thread.join()
    assert not thread.is_alive()


def test_a_cache_that_holds_something_else_counts_for_nothing(begun):
    remember("early-of-another-name", ["a key"])
    assert not early.compiled(DEFAULT_MODEL)
