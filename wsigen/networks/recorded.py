"""Work on a GPU, recorded once as a CUDA graph and replayed: one launch in place of some thousands.

A GPU that waits for Python to start kernels idles, the more so where Python's other threads read masks meanwhile.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Recorded:
    """A function of tensors on a CUDA device, recorded when it is first called and when a shape or type changes.

    The function must do the same work whatever the values, and may not wait for the device or copy to it from
    memory that is not its own. Not for several threads at a time.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function
        self._kinds: list[tuple[torch.Size, torch.dtype]] = []

    @torch.inference_mode()
    def __call__(self, *tensors: Tensor) -> Tensor:
        """Call the function on the current stream; the result is the caller's own."""
        if [(tensor.shape, tensor.dtype) for tensor in tensors] != self._kinds:
            self._record(tensors)
        for mine, given in zip(self._inputs, tensors, strict=True):
            mine.copy_(given)
        self._graph.replay()
        return self._output.clone()

    def _record(self, tensors: tuple[Tensor, ...]) -> None:
        self._inputs = [tensor.clone() for tensor in tensors]
        # Outside a graph first: kernels compile and libraries choose their algorithms, which a graph cannot record.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._function(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        # Other threads of this process may use the device meanwhile.
        with _no_collection(), torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._output = self._function(*self._inputs)
        self._kinds = [(tensor.shape, tensor.dtype) for tensor in tensors]


@contextmanager
def _no_collection() -> Iterator[None]:
    """Hold Python's garbage collector: a graph of an older painter that it frees would spoil the recording."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
