"""The choice of implementation: made once, forced by environment variables, refused where it cannot run."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from contract import needs_triton
from wsigen_kernels.dispatch import (
    _xformers_refusal,
    attention_choice,
    norm_choice,
    triton_obstacle,
    xformers_obstacle,
)

REPORT = (
    "from wsigen_kernels.attention import BACKEND;"
    "from wsigen_kernels.dispatch import attention_choice, norm_choice;"
    "print(BACKEND, attention_choice(), norm_choice(), sep='\\n')"
)


@pytest.fixture(autouse=True)
def fresh_choice(monkeypatch):
    """Choices as in a process without either variable, forgotten afterwards."""
    for variable in ("WSIGEN_ATTENTION", "WSIGEN_NORM"):
        monkeypatch.delenv(variable, raising=False)
    for choice in (attention_choice, norm_choice):
        choice.cache_clear()
    yield
    for choice in (attention_choice, norm_choice):
        choice.cache_clear()


def in_a_process_of_its_own(**variables):
    environment = {**os.environ, "TRITON_INTERPRET": "0", **variables, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, "-c", REPORT], env=environment, capture_output=True, text=True, timeout=120)


def test_forced_implementations_are_taken_and_say_why():
    done = in_a_process_of_its_own(WSIGEN_ATTENTION="torch", WSIGEN_NORM="torch")
    assert done.returncode == 0, done.stderr
    backend, attention, norm = done.stdout.splitlines()
    assert backend == "torch"
    assert "set by WSIGEN_ATTENTION" in attention and "set by WSIGEN_NORM" in norm


@pytest.mark.parametrize(
    ("variable", "value", "obstacle"),
    [
        ("WSIGEN_ATTENTION", "xformers", "xformers needs a CUDA device"),
        ("WSIGEN_ATTENTION", "triton", "Triton needs a CUDA device"),
        ("WSIGEN_NORM", "triton", "Triton needs a CUDA device"),
    ],
)
def test_what_needs_a_gpu_is_refused_without_one_in_one_message(variable, value, obstacle):
    done = in_a_process_of_its_own(**{variable: value})
    assert done.returncode != 0 and not done.stdout
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith(f"{variable}={value}: {obstacle}; set {variable}=auto")
    assert done.stderr.count("Error:") == 1  # no chain of causes


def test_the_interpreter_serves_triton_where_it_is_asked_for():
    needs_triton()
    done = in_a_process_of_its_own(WSIGEN_ATTENTION="triton", WSIGEN_NORM="triton", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "triton"


@pytest.mark.parametrize(("variable", "choose"), [("WSIGEN_ATTENTION", attention_choice), ("WSIGEN_NORM", norm_choice)])
def test_an_unknown_value_names_variable_and_choices(monkeypatch, variable, choose):
    monkeypatch.setenv(variable, "quantum")
    with pytest.raises(ValueError, match=rf"{variable}=quantum: not one of auto, triton, torch"):
        choose()


@pytest.mark.parametrize("value", ["", "auto", " AUTO "])
def test_auto_and_empty_leave_the_choice_to_the_machine(monkeypatch, value):
    monkeypatch.setenv("WSIGEN_ATTENTION", value)
    monkeypatch.setenv("WSIGEN_NORM", value)
    assert "WSIGEN" not in attention_choice().reason + norm_choice().reason
    expected = "triton" if torch.cuda.is_available() and triton_obstacle() is None else "torch"
    assert attention_choice().name == norm_choice().name == expected


def test_the_choice_is_made_once(monkeypatch):
    first = attention_choice()
    monkeypatch.setenv("WSIGEN_ATTENTION", "torch")
    assert attention_choice() is first


def test_a_missing_package_is_told_from_a_missing_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert xformers_obstacle() == "xformers is not installed"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert xformers_obstacle() == "xformers needs a CUDA device"


def test_an_xformers_without_kernels_for_this_torch_is_refused_in_one_line(monkeypatch):
    def attend(query, key, value):
        raise NotImplementedError("No operator found for `attention` with inputs:\n  query: (1, 16, 1, 32)")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "xformers.ops", SimpleNamespace(memory_efficient_attention=attend))
    monkeypatch.setattr(torch, "zeros", lambda *shape, **kind: torch.ones(shape))  # on the device that is here
    _xformers_refusal.cache_clear()
    obstacle = xformers_obstacle()
    _xformers_refusal.cache_clear()
    assert obstacle == (
        f"xformers has no kernels for this GPU and torch {torch.__version__} "
        "(No operator found for `attention` with inputs)"
    )


@pytest.mark.parametrize(
    ("capability", "package", "hip", "obstacle"),
    [
        ((9, 0), True, None, None),
        ((8, 0), True, None, None),
        ((7, 5), True, None, "compute capability 7.5: the kernels need 8.0 or newer"),
        ((9, 0), False, None, "triton is not installed"),
        ((9, 0), True, "6.4", "the kernels are not tested on AMD GPUs"),
    ],
)
def test_gpus_that_triton_does_not_serve_get_torch(monkeypatch, capability, package, hip, obstacle):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: ((9, 0), capability)[index])
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if package else None)
    assert triton_obstacle() == obstacle
    for choose in (attention_choice, norm_choice):
        assert choose().name == ("torch" if obstacle else "triton")
        assert obstacle is None or choose().reason == obstacle
