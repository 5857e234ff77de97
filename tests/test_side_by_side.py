"""Calls side by side: in processes of their own, which take GPUs in turn."""

import os
import sys

import torch

from wsigen.side_by_side import side_by_side


def what_it_sees() -> tuple[str, int, bool]:
    """What a process sees: its GPUs, its threads, and whether it had opened any GPU before it was told."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", ""), torch.get_num_threads(), "wsigen_kernels.dispatch" in sys.modules


def test_processes_take_gpus_in_turn(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-5")
    with side_by_side(2) as submit:
        calls = [submit(what_it_sees) for _ in range(6)]
        found = {call() for call in calls}
    assert {gpus for gpus, _, _ in found} <= {"2", "GPU-5"}
    assert {(threads, opened) for _, threads, opened in found} == {(torch.get_num_threads(), False)}


def test_one_at_a_time_needs_no_process(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with side_by_side(1) as submit:
        assert submit(os.getpid)() == os.getpid()
