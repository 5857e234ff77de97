"""Calls in processes of their own, which share this machine's GPUs.

Each process is given its GPU by number: a variable such as CUDA_VISIBLE_DEVICES comes too late where the process
imports the user's script, which imports torch, before it is set.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing.queues import SimpleQueue
from typing import Any

import torch


@contextmanager
def side_by_side(jobs: int) -> Iterator[Callable[..., Callable[[], Any]]]:
    """Give a function that starts a call, in one of ``jobs`` processes if they are several, and returns its result's.

    A small network leaves most of a GPU idle, so several trained side by side cost little more than one. Each takes as
    many threads for an operation as this process, so that what it finds does not depend on ``jobs``. Where there are
    several GPUs, processes take them in turn: "cuda" is their own to each.
    """
    if jobs == 1:
        yield partial
        return
    spawn, gpus = multiprocessing.get_context("spawn"), torch.cuda.device_count()
    turns = spawn.SimpleQueue()
    for number in range(jobs if gpus else 0):
        turns.put(number % gpus)
    with ProcessPoolExecutor(jobs, spawn, _settle, (torch.get_num_threads(), turns)) as pool:
        try:
            yield lambda function, *arguments: pool.submit(function, *arguments).result
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _settle(threads: int, turns: SimpleQueue[int]) -> None:
    """Make a new process ready."""
    torch.set_num_threads(threads)
    if not turns.empty():
        torch.cuda.set_device(turns.get())
