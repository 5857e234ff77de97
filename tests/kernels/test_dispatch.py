"""The choice of implementation: made once, forced by environment variables, refused where it cannot run."""

import os
import subprocess
import sys

import pytest
import torch
from wsigen_kernels.dispatch import attention_choice, norm_choice, xformers_obstacle

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
    environment = {**os.environ, **variables, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, "-c", REPORT], env=environment, capture_output=True, text=True, timeout=120)


def test_forced_implementations_are_taken_and_say_why():
    done = in_a_process_of_its_own(WSIGEN_ATTENTION="torch", WSIGEN_NORM="torch")
    assert done.returncode == 0, done.stderr
    backend, attention, norm = done.stdout.splitlines()
    assert backend == "torch"
    assert "set by WSIGEN_ATTENTION" in attention and "set by WSIGEN_NORM" in norm


def test_xformers_without_a_gpu_is_refused_with_one_message():
    done = in_a_process_of_its_own(WSIGEN_ATTENTION="xformers")
    assert done.returncode != 0 and not done.stdout
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith("WSIGEN_ATTENTION=xformers: xformers needs a CUDA device; set WSIGEN_ATTENTION=auto")
    assert done.stderr.count("Error:") == 1  # no chain of causes


@pytest.mark.parametrize(("variable", "choose"), [("WSIGEN_ATTENTION", attention_choice), ("WSIGEN_NORM", norm_choice)])
def test_an_unknown_value_names_variable_and_choices(monkeypatch, variable, choose):
    monkeypatch.setenv(variable, "quantum")
    with pytest.raises(ValueError, match=rf"{variable}=quantum: not one of auto, torch"):
        choose()


@pytest.mark.parametrize("value", ["", "auto", " AUTO "])
def test_auto_and_empty_leave_the_choice_to_the_machine(monkeypatch, value):
    monkeypatch.setenv("WSIGEN_ATTENTION", value)
    monkeypatch.setenv("WSIGEN_NORM", value)
    assert "WSIGEN" not in attention_choice().reason + norm_choice().reason
    assert attention_choice().name == norm_choice().name == "torch"


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
