"""Batches are those of the plan, nothing is left behind, and an error is that of its own windows."""

import threading
from functools import partial

import numpy as np
import pytest
import torch

from wsigen.painting.batching import LARGEST_LOAD, Batcher, Load, WorkerThreads
from wsigen.painting.painter import Launched, Prepared


class SlowPainter:
    """Paints a batch of up to four numbers once it is let go."""

    batch_size = 4
    device = torch.device("cpu")

    def __init__(self):
        self.go, self.begun, self.batches = threading.Event(), threading.Event(), []

    def prepare(self, jobs):
        return Prepared(len(jobs), tuple(jobs))

    def launch(self, batch, stop):
        self.batches.append(batch.tensors)
        self.begun.set()
        assert self.go.wait(10)
        if 13 in batch.tensors:
            raise ValueError("thirteen")
        return Launched(batch.count, torch.tensor(batch.tensors))

    def fetch(self, launched):
        return launched.pixels.numpy(), 1.0


@pytest.fixture
def painter():
    return SlowPainter()


@pytest.fixture
def submit(painter):
    pools = WorkerThreads(lanes=1, loaders=1)
    batcher = Batcher(painter, pools, threading.Event())
    yield lambda *numbers: batcher.submit([Load(lambda n=n: [n], 1) for n in numbers])
    painter.go.set()
    pools.close()


def numbers_of(futures):
    return [int(np.asarray(future.result(10)[0])) for future in futures]


def test_which_windows_share_a_batch_follows_from_what_is_submitted_together(painter, submit):
    first = submit(0, 1, 2, 3, 4, 5)
    assert painter.begun.wait(10)
    second = submit(6, 7)
    painter.go.set()
    assert numbers_of(first + second) == list(range(8))
    assert painter.batches == [(0, 1, 2, 3), (4, 5), (6, 7)]


def test_which_windows_share_a_batch_does_not_depend_on_which_load_is_read_first(painter):
    """Of four threads that read, the last load is done first, and the first load last."""
    pools, order = WorkerThreads(lanes=1, loaders=4), []
    done = [threading.Event() for _ in range(4)]

    def read(number):
        if number < 3:
            assert done[number + 1].wait(10)
        order.append(number)
        done[number].set()
        return [20 * number + place if place else None for place in range(4)]

    painter.go.set()
    futures = Batcher(painter, pools, threading.Event()).submit([Load(partial(read, number), 4) for number in range(4)])
    found = [None if future.result(10) is None else int(future.result()[0]) for future in futures]
    assert found == [20 * number + place if place else None for number in range(4) for place in range(4)]
    assert order == [3, 2, 1, 0]
    assert painter.batches == [(1, 2, 3, 21), (22, 23, 41, 42), (43, 61, 62, 63)]
    pools.close()


def test_what_never_fills_up_is_painted_too(painter, submit):
    futures = submit(0, 1, 2, 3, 4, 5)
    painter.go.set()
    assert numbers_of(futures) == list(range(6))
    assert painter.batches == [(0, 1, 2, 3), (4, 5)]


def test_after_an_error_the_rest_is_painted(painter, submit):
    futures = submit(10, 11, 12, 13, 14)
    painter.go.set()
    assert numbers_of(futures[4:]) == [14]
    with pytest.raises(ValueError, match="thirteen"):
        futures[0].result(10)


def test_without_a_crew_nothing_waits_for_ever(painter):
    pools = WorkerThreads(lanes=1, loaders=1)
    batcher = Batcher(painter, pools, threading.Event())
    futures = batcher.submit([Load(lambda n=n: [n], 1) for n in range(6)])
    assert painter.begun.wait(10)
    pools.loaders.shutdown()
    painter.go.set()
    assert numbers_of(futures) == list(range(6)), "what was submitted is painted"
    for future in batcher.submit([Load(lambda n=n: [n], 1) for n in range(2)]):
        with pytest.raises(InterruptedError):
            future.result(10)
    pools.close()


@pytest.fixture
def read(painter):
    """Submit loads of several numbers, None for what needs no model; many more than there is room for at a time."""
    pools = WorkerThreads(lanes=1, loaders=4)
    batcher = Batcher(painter, pools, threading.Event())
    painter.go.set()
    yield lambda *loads: batcher.submit([Load(lambda found=found: found, len(found)) for found in loads])
    pools.close()


def test_one_load_may_fill_several_batches_and_hold_windows_that_need_no_model(painter, read):
    futures = read([0, None, 1, 2, 3, 4, None, 5])
    assert [None if future.result(10) is None else int(future.result()[0]) for future in futures] == [
        *(0, None, 1, 2, 3),
        *(4, None, 5),
    ]
    assert painter.batches == [(0, 1, 2, 3), (4, 5)]


def test_loads_for_which_there_is_no_room_wait_their_turn(painter, read):
    numbers = list(range(100, 100 + 20 * LARGEST_LOAD))
    futures = read(*(numbers[start : start + LARGEST_LOAD] for start in range(0, len(numbers), LARGEST_LOAD)))
    assert numbers_of(futures) == numbers
    assert {len(batch) for batch in painter.batches} == {4}


def test_what_goes_wrong_while_reading_is_the_error_of_all_windows_of_the_load(painter):
    def fail():
        raise OSError("unplugged")

    pools = WorkerThreads(lanes=1, loaders=1)
    batcher = Batcher(painter, pools, threading.Event())
    painter.go.set()
    futures = batcher.submit([Load(fail, 3), Load(lambda: [1, 2], 2)])
    for future in futures[:3]:
        with pytest.raises(OSError, match="unplugged"):
            future.result(10)
    assert numbers_of(futures[3:]) == [1, 2]
    pools.close()
