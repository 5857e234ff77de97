"""A bounded cache of arrays for many threads, in which nothing is loaded twice at a time; and stamps of files.

What is remembered of a file beyond one call is remembered with the file's stamp: a file that is rewritten is read anew.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from pathlib import Path

import numpy as np

FileStamp = tuple[int, int, int]


def file_stamp(path: str | Path) -> FileStamp | None:
    """What changes when a file is written or replaced; None while there is none."""
    try:
        stat = Path(path).stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


class ArrayCache:
    """The arrays used last, up to ``limit`` bytes. What is kept under a key must never change."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._arrays: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._loading: dict[Hashable, Future[np.ndarray | None]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, load: Callable[[], np.ndarray | None]) -> np.ndarray | None:
        """What is kept under ``key``, or what ``load`` returns, which is then kept unless it is None.

        Threads that ask while another loads wait for it, and get its result or its exception.
        """
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
                return self._arrays[key]
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
            if array is not None and array.nbytes <= self._limit:
                self._arrays[key] = array
                self._size += array.nbytes
                while self._size > self._limit:
                    self._size -= self._arrays.popitem(last=False)[1].nbytes
        mine.set_result(array)
        return array

    def clear(self) -> None:
        """Drop everything that is kept."""
        with self._lock:
            self._arrays.clear()
            self._size = 0
