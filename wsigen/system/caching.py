"""Bounded caches, one of them for many threads, in which nothing is loaded twice at a time; and stamps of files.

What is remembered of a file beyond one call is remembered with the file's stamp: a file that is rewritten is read anew.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

FileStamp = tuple[int, int, int]
Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


def file_stamp(path: str | Path) -> FileStamp | None:
    """What changes when a file is written or replaced; None while there is none."""
    try:
        stat = Path(path).stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


class LastUsed(Generic[Key, Value]):
    """What was used last, up to a sum of sizes of ``limit``; each value counts 1 unless ``size_of`` says otherwise.

    For one thread at a time. A value that is larger than the limit is not kept.
    """

    def __init__(self, limit: int, size_of: Callable[[Value], int] = lambda value: 1) -> None:
        self._limit, self._size_of = limit, size_of
        self._size = 0
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        """What is kept under ``key``, and has been used now; None if there is nothing."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key]

    def keep(self, key: Key, value: Value) -> None:
        """Keep a value; what was not used for longest makes room."""
        self.drop(key)
        if self._size_of(value) > self._limit:
            return
        self.make_room(self._size_of(value))
        self._values[key] = value
        self._size += self._size_of(value)

    def make_room(self, size: int = 1) -> None:
        """Forget what was not used for longest until a value of ``size`` has room."""
        while self._values and self._size + size > self._limit:
            self._size -= self._size_of(self._values.popitem(last=False)[1])

    def drop(self, key: Key) -> None:
        """Forget a value; nothing need be there."""
        if key in self._values:
            self._size -= self._size_of(self._values.pop(key))

    def clear(self) -> None:
        """Forget everything."""
        self._values.clear()
        self._size = 0


class ArrayCache:
    """The arrays used last, up to ``limit`` bytes. What is kept under a key must never change."""

    def __init__(self, limit: int) -> None:
        self._arrays = LastUsed[Hashable, np.ndarray](limit, lambda array: array.nbytes)
        self._loading: dict[Hashable, Future[np.ndarray | None]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, load: Callable[[], np.ndarray | None]) -> np.ndarray | None:
        """What is kept under ``key``, or what ``load`` returns, which is then kept unless it is None.

        Threads that ask while another loads wait for it, and get its result or its exception.
        """
        with self._lock:
            kept = self._arrays.get(key)
            if kept is not None:
                return kept
            loading = self._loading.get(key)
            if loading is None:
                mine = self._loading[key] = Future()
        if loading is not None:
            return loading.result()
        try:
            array = load()
        except BaseException as error:
            with self._lock:
                del self._loading[key]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._loading[key]
            if array is not None:
                self._arrays.keep(key, array)
        mine.set_result(array)
        return array

    def clear(self) -> None:
        """Drop everything that is kept."""
        with self._lock:
            self._arrays.clear()
