"""Batches are full while the device has work, nothing is left behind, and an error is that of its own windows."""

import threading

import numpy as np
import pytest
import torch

from wsigen.tiling.batches import LARGEST_LOAD, Batcher, Crew, Load
from wsigen.tiling.painter import Launched, Prepared


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
    crew = Crew(lanes=1, loaders=1)
    batcher = Batcher(painter, crew, threading.Event())
    yield lambda *numbers: batcher.submit([Load(lambda n=n: [n], 1) for n in numbers])
    painter.go.set()
    crew.close()


def numbers_of(futures):
    return [int(np.asarray(future.result(10)[0])) for future in futures]


def test_what_is_left_of_one_task_fills_up_with_the_next(painter, submit):
    first = submit(0, 1, 2, 3, 4, 5)
    assert painter.begun.wait(10)
    second = submit(6, 7)
    painter.go.set()
    assert numbers_of(first + second) == list(range(8))
    assert painter.batches == [(0, 1, 2, 3), (4, 5, 6, 7)]


def test_what_never_fills_up_is_painted_when_the_device_has_nothing_else(painter, submit):
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
    crew = Crew(lanes=1, loaders=1)
    batcher = Batcher(painter, crew, threading.Event())
    futures = batcher.submit([Load(lambda n=n: [n], 1) for n in range(6)])
    assert painter.begun.wait(10)
    crew.loaders.shutdown()
    painter.go.set()
    assert numbers_of(futures[:4]) == [0, 1, 2, 3]
    for future in futures[4:]:
        with pytest.raises(InterruptedError):
            future.result(10)
    crew.close()


@pytest.fixture
def read(painter):
    """Submit loads of several numbers, None for what needs no model; many more than there is room for at a time."""
    crew = Crew(lanes=1, loaders=4)
    batcher = Batcher(painter, crew, threading.Event())
    painter.go.set()
    yield lambda *loads: batcher.submit([Load(lambda found=found: found, len(found)) for found in loads])
    crew.close()


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

    crew = Crew(lanes=1, loaders=1)
    batcher = Batcher(painter, crew, threading.Event())
    painter.go.set()
    futures = batcher.submit([Load(fail, 3), Load(lambda: [1, 2], 2)])
    for future in futures[:3]:
        with pytest.raises(OSError, match="unplugged"):
            future.result(10)
    assert numbers_of(futures[3:]) == [1, 2]
    crew.close()
