"""Calls in processes of their own, which share this machine's GPUs.

A process opens the GPUs when it first asks what there is, as importing kernels does, and what CUDA_VISIBLE_DEVICES says
later is not heard. So this module imports nothing of this package that does.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing.queues import SimpleQueue
from typing import Any

import torch

from wsigen.devices import visible_gpus


@contextmanager
def side_by_side(jobs: int) -> Iterator[Callable[..., Callable[[], Any]]]:
    """Give a function that starts a call, in one of ``jobs`` processes if they are several, and returns its result's.

    A small network leaves most of a GPU idle, so several trained side by side cost little more than one. Each takes as
    many threads for an operation as this process, so that what it finds does not depend on ``jobs``. Where there are
    several GPUs, processes take them in turn and see their own alone, as number 0: what one has compiled serves all.
    """
    if jobs == 1:
        yield partial
        return
    spawn, gpus = multiprocessing.get_context("spawn"), visible_gpus()
    turns = spawn.SimpleQueue()
    for number in range(jobs if gpus else 0):
        turns.put(gpus[number % len(gpus)])
    with ProcessPoolExecutor(jobs, spawn, _settle, (torch.get_num_threads(), turns)) as pool:
        try:
            yield lambda function, *arguments: pool.submit(function, *arguments).result
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _settle(threads: int, turns: SimpleQueue[str]) -> None:
    """Make a new process ready."""
    torch.set_num_threads(threads)
    if not turns.empty():
        os.environ["CUDA_VISIBLE_DEVICES"] = turns.get()
