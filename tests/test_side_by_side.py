"""Calls side by side: in processes of their own, which take GPUs in turn."""

import os
import time

import pytest
import torch

from wsigen.system.side_by_side import side_by_side


def threads() -> int:
    """Threads that an operation takes in a process."""
    return torch.get_num_threads()


def gpu() -> int:
    """The GPU that "cuda" is in a process, which imported this file, and so torch, before it was told."""
    time.sleep(1)  # so that every process gets a call
    return torch.ones(1, device="cuda").get_device()


def test_processes_take_as_many_threads_as_this_one():
    with side_by_side(2) as submit:
        calls = [submit(threads) for _ in range(6)]
        assert {call() for call in calls} == {torch.get_num_threads()}


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_processes_take_gpus_in_turn():
    with side_by_side(2) as submit:
        calls = [submit(gpu) for _ in range(24)]
        assert {call() for call in calls} == {0, 1}


def test_one_at_a_time_needs_no_process():
    with side_by_side(1) as submit:
        assert submit(os.getpid)() == os.getpid()
