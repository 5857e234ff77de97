"""What is asked for at the same time is loaded once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from wsigen.system.caching import ArrayCache, LastUsed


def test_the_arrays_used_last_are_kept():
    cache, loads = ArrayCache(250), []

    def ask(key):
        return cache.get(key, lambda: loads.append(key) or np.full(100, key, np.uint8))

    for key in (1, 2, 1, 3, 1, 2):
        assert (ask(key) == key).all()
    assert loads == [1, 2, 3, 2]
    cache.clear()
    ask(1)
    assert loads[-1] == 1


def test_threads_wait_for_the_one_that_loads():
    cache, loads, begun, go_on = ArrayCache(1000), [], threading.Event(), threading.Event()

    def load():
        loads.append(1)
        begun.set()
        assert go_on.wait(10)
        return np.ones(10)

    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(cache.get, "key", load) for _ in range(6)]
        assert begun.wait(10)
        go_on.set()
        arrays = [future.result() for future in asked]
    assert len(loads) == 1 and all(array is arrays[0] for array in arrays)


def test_what_fails_is_asked_for_again_and_none_is_not_kept():
    cache, answers = ArrayCache(1000), iter([ValueError("damaged"), None, np.ones(3)])

    def load():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.raises(ValueError, match="damaged"):
        cache.get("key", load)
    assert cache.get("key", load) is None
    assert cache.get("key", load).sum() == 3


def test_what_is_larger_than_the_cache_is_not_kept():
    cache = ArrayCache(10)
    first = cache.get("key", lambda: np.ones(100))
    assert cache.get("key", lambda: np.zeros(100)) is not first


def test_what_was_not_used_for_longest_makes_room():
    last = LastUsed[str, bytes](10, len)
    for key in ("a", "b"):
        last.keep(key, bytes(4))
    assert last.get("a") is not None
    last.keep("c", bytes(4))
    assert last.get("b") is None and last.get("a") is not None and last.get("c") is not None
    last.keep("a", bytes(6))
    assert last.get("c") is not None
    last.keep("d", bytes(11))
    assert last.get("d") is None and last.get("a") is not None
    last.drop("a")
    last.keep("e", bytes(6))
    assert last.get("c") is not None and last.get("e") is not None
